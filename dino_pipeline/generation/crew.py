"""A crew on a Ray cluster: workers that each hold the model once, and write one shard after another."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_pipeline import __version__
from dino_pipeline.cluster import AHEAD, Staff, own_error, resources
from dino_pipeline.errors import ModelError, RunError, first_line
from dino_pipeline.examples import parse_example
from dino_pipeline.files import write_bytes
from dino_pipeline.generation.plan import Job, Shard
from dino_pipeline.generation.worker import Load, Ready, Worker, Written
from dino_pipeline.generation.writer import Stored
from dino_pipeline.progress import Progress, Reporter

MOST_LOSSES = 5
"""A shard on which so many workers died is the reason, rather than its victim."""
PATIENCE = 1.0
"""Seconds between two looks at a cluster where nothing happens."""
LONG = 20
"""After so many such looks without a single worker, the reason is said."""
STORING = 8
"""Shards stored side by side: a disk that is asked to make sure takes its time."""


@dataclass(eq=False)
class _Member:
    """A worker as the driver knows it."""

    actor: Any
    begun: Any
    """Its call to load the model; None before that, and once it has ended."""
    flying: dict[Any, Shard] = field(default_factory=dict)
    """Calls under way."""

    @property
    def calls(self) -> list[Any]:
        return [self.begun] if self.begun is not None else list(self.flying)


class _Todo:
    """The shards of a job: those to come, those under way, those that are there.

    Args:
        coming: gives them, one after another.
    """

    def __init__(self, coming: Iterator[Shard]) -> None:
        self.coming = coming
        self.again: deque[Shard] = deque()
        self.open: dict[Path, Shard] = {}
        self.doubled: set[Path] = set()
        self.ended = False
        """Whether there are none to come."""

    @property
    def done(self) -> bool:
        """Whether all are there."""
        return self.ended and not self.again and not self.open

    def hand_out(self, members: Sequence[_Member]) -> Iterator[tuple[_Member, Shard]]:
        """Yield who is to write what: first one shard each, then more, then what another has long had under way."""
        ready = [member for member in members if member.begun is None]
        for had in range(AHEAD):
            for member in ready:
                if len(member.flying) == had and (shard := self._next()):
                    self.open[shard.path] = shard
                    yield member, shard
        idle = (member for member in ready if not member.flying)
        late = (shard for path, shard in reversed([*self.open.items()]) if path not in self.doubled)  # begun last
        for member, shard in zip(idle, late, strict=False):
            self.doubled.add(shard.path)
            yield member, shard

    def _next(self) -> Shard | None:
        if self.again:
            return self.again.popleft()
        shard = next(self.coming, None)
        self.ended = shard is None
        return shard

    def finish(self, shard: Shard) -> bool:
        """Take a shard off the list; return whether it was still on it."""
        return self.open.pop(shard.path, None) is not None

    def put_back(self, lost: Iterable[Shard], members: Sequence[_Member]) -> None:
        """Have shards written again, unless another has them under way, too."""
        elsewhere = {shard.path for member in members for shard in member.flying.values()}
        for shard in lost:
            if shard.path not in elsewhere and self.finish(shard):
                self.again.append(shard)
                self.doubled.discard(shard.path)


@dataclass(frozen=True)
class _Round:
    """One call to write, and who is told of it."""

    job: Job
    todo: _Todo
    progress: Progress
    stored: Stored


def store(shard: Shard, found: Written) -> None:
    """Write a shard's files; the accepted one comes last."""
    write_bytes(shard.rejected, found.rejected)
    write_bytes(shard.path, found.accepted)


class Crew:
    """Workers on a cluster that write shards; what they write comes back, and is stored here.

    Workers and nodes may be lost at any time, and others come: a shard is a pure function of its tasks, so what was
    under way is written again, elsewhere. Where there is nothing else to do, a free worker writes what another has
    still under way; whoever is first counts.

    Args:
        staff: how many workers, of what size.
        reporter: is told of workers that are lost, or do not come.
    """

    def __init__(self, staff: Staff, reporter: Reporter) -> None:
        self.staff, self.reporter = staff, reporter
        self.load: Load | None = None
        self.fingerprint: str | None = None
        self.members: list[_Member] = []
        self.told: Mapping[str, Any] = {}
        self.losses: Counter[Path | None] = Counter()
        """Workers that died with a shard; None: while they loaded the model."""
        self.said: set[tuple[str, str]] = set()
        self.waited = 0
        self.pool = ThreadPoolExecutor(STORING)
        self.storing: deque[tuple[Future[None], Shard, Written]] = deque()

    def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function comes to on the first worker there is.

        Raises:
            DinoError: as the function does.
            ModelError: workers die before they can answer.
        """
        import ray

        self._hire()
        calls = [member.actor.answer.remote(question, *arguments) for member in self.members]
        try:
            ready, _ = ray.wait(calls, timeout=LONG * PATIENCE)
            if not ready:
                self.reporter.note(self._missing())
                ready, _ = ray.wait(calls)
            return ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from error
        except ray.exceptions.RayError as error:
            raise ModelError(f"a worker could not be started ({first_line(error)}); look at the cluster") from error

    def begin(self, load: Load, fingerprint: str | None) -> None:
        """Have all workers load the model, and wait for the first that has.

        Args:
            load: loads the model on a worker, and tells the fingerprint that it has there.
            fingerprint: of the model, if it lies in a folder; workers that find another one there are an error.

        Raises:
            ModelError: the model cannot be loaded.
            RunError: the worker has another model or another version than this process.
        """
        self.load, self.fingerprint = load, fingerprint
        for member in self.members:
            member.begun = member.actor.begin.remote(load)
        while not self.told:
            self._hire()
            self._wait(None)

    def facts(self) -> Mapping[str, Any]:
        """Return what the workers' engines have to tell, all the same; nothing before the first is ready."""
        return self.told

    def write(self, job: Job, shards: Iterable[Shard], reporter: Reporter, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files.

        Raises:
            ModelError: the model cannot be loaded, or workers die time and again.
            RunError: a worker has another model or another version than this process.
        """
        import ray

        asked, todo = ray.put(job), _Todo(iter(shards))
        told = _Round(job, todo, progress, stored)
        while True:
            self._hire()
            if reporter.should_stop():
                todo.again.clear()
            for member, shard in todo.hand_out(self.members):
                member.flying[member.actor.write.remote(asked, shard.tasks)] = shard
            if todo.done:
                break
            self._wait(told)
            self._tell(told, all_of_them=False)
            reporter.update(progress)
        self._tell(told, all_of_them=True)

    def _wait(self, told: _Round | None) -> None:
        """Take in the next answers, if there are any soon."""
        import ray

        calls = {call: member for member in self.members for call in member.calls}
        ready, _ = ray.wait(list(calls), timeout=PATIENCE)
        idle = not ready and all(member.begun is not None for member in self.members)
        self.waited = self.waited + 1 if idle else 0
        if self.waited == LONG:
            self.reporter.note(self._missing())
        for call in ready:
            self._take(call, calls[call], told)

    def _hire(self) -> None:
        import ray

        while len(self.members) < self.staff.workers:
            sized = {"num_cpus": self.staff.cpus, "num_gpus": self.staff.gpus}
            worker = ray.remote(max_concurrency=AHEAD + 1, **sized)(Worker).remote()
            self.members.append(_Member(worker, worker.begin.remote(self.load) if self.load else None))

    def _take(self, call: Any, member: _Member, told: _Round | None) -> None:
        """Take in what a worker answered."""
        import ray

        try:
            found = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from error
        except ray.exceptions.RayError as error:
            self._lose(member, error, told)
            return
        if isinstance(found, Ready):
            self._check(found)
            self.losses.pop(None, None)
            member.begun = None
            return
        shard = member.flying.pop(call)
        if told and told.todo.finish(shard):
            self.losses.pop(shard.path, None)
            self.storing.append((self.pool.submit(store, shard, found), shard, found))

    def _tell(self, told: _Round, *, all_of_them: bool) -> None:
        """Tell of what has been stored meanwhile, in the order in which it came."""
        while self.storing and (all_of_them or self.storing[0][0].done()):
            stored, shard, found = self.storing.popleft()
            stored.result()
            self._count(shard, found, told)

    def _count(self, shard: Shard, found: Written, told: _Round) -> None:
        for note in dict.fromkeys(found.notes):
            if note not in self.said:
                self.said.add(note)
                self.reporter.note(*note)
        told.progress.done += len(shard.tasks)
        for label, count in found.labels.items():
            told.progress.labels[label].add(count)
        lines, scored = found.accepted.splitlines(), told.job.spec.is_scored
        told.stored(shard, [parse_example(line, shard.path.as_posix, scored) for line in lines])

    def _check(self, ready: Ready) -> None:
        """Refuse a worker that would write other texts."""
        facts = {"version": ready.version, "model": ready.fingerprint, **ready.facts}
        expected = {"version": __version__, "model": self.fingerprint, **(self.told or ready.facts)}
        for name, found in facts.items():
            if found != expected.get(name):
                raise RunError(
                    f"a worker has another {name} than this process: {found}, not {expected.get(name)}; "
                    "bring all nodes to the same state"
                )
        self.told = ready.facts

    def _lose(self, member: _Member, error: Exception, told: _Round | None) -> None:
        """Have what a lost worker was writing written again."""
        import ray

        self.members.remove(member)
        with contextlib.suppress(Exception):
            ray.kill(member.actor)  # it may be alive, and only out of reach
        lost = list(member.flying.values())
        paths = [shard.path for shard in lost] if member.begun is None else [None]
        self.losses.update(paths)
        if any(self.losses[path] >= MOST_LOSSES for path in paths):
            doing = "loading the model" if member.begun is not None else f"writing {lost[0].path.name}"
            raise ModelError(
                f"{MOST_LOSSES} workers died while {doing} (the last: {first_line(error)}); is memory full? Fewer "
                "--rows or larger nodes need less; what was finished is kept"
            )
        if told:
            told.todo.put_back(lost, self.members)
        self.reporter.note(f"a worker was lost ({type(error).__name__}); {len(lost)} shards are written again")

    def _missing(self) -> str:
        cpus, gpus = resources()
        return (
            f"no worker has started so far: each needs {self.staff.cpus:g} CPUs and {self.staff.gpus:g} GPUs, and the "
            f"cluster has {cpus:g} and {gpus:g} in all; waiting for nodes, or for others to end"
        )
