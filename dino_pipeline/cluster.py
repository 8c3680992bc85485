"""Generation on a Ray cluster: workers that each hold the model once, and take one shard after another."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_pipeline import __version__
from dino_pipeline.errors import DinoError, ModelError, OptionError, RunError, first_line
from dino_pipeline.examples import iter_examples, write_bytes
from dino_pipeline.processes import Make
from dino_pipeline.progress import Progress, Watch
from dino_pipeline.worker import Load, Ready, Worker, Written
from dino_pipeline.writer import Job, Shard, Stored

AHEAD = 2
"""Shards that a worker has at once: while one ends, it goes on with the next."""
MOST_LOSSES = 5
"""A shard on which so many workers died is the reason, rather than its victim."""
PATIENCE = 1.0
"""Seconds between two looks at a cluster where nothing happens."""
LONG = 20
"""After so many such looks without a single worker, the reason is said."""


STORING = 8
"""Shards stored side by side: a disk that is asked to make sure takes its time."""


@dataclass(frozen=True)
class Staff:
    """What a cluster is asked for."""

    workers: int
    """At most: those that it has no room for start when nodes are added."""
    cpus: float = 1
    """Of each worker: as many threads compute."""
    gpus: float = 0
    """Likewise; less than 1 shares one."""


def connect(address: str | None) -> None:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: the cluster's; None takes ``RAY_ADDRESS``, or the one that was started here last, or starts one.

    Raises:
        OptionError: Ray is not installed, or there is no such cluster.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ImportError as error:
        raise OptionError('--ray needs Ray: pip install "dino-pipeline[ray]"') from error
    if ray.is_initialized():
        return
    try:
        if address and (place := re.search(r"([^/:@\[\]]+):(\d+)$", address)):
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself tries for minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise OptionError(
            f"--ray {address or ''}: no cluster can be reached ({first_line(error)}); give the address that "
            "`ray start --head` told, or --ray alone to start one here"
        ) from error


def leave() -> None:
    """Leave the cluster; what runs there for this process ends."""
    import ray

    ray.shutdown()


def resources() -> tuple[float, float]:
    """Return the CPUs and the GPUs of the cluster."""
    import ray

    found = ray.cluster_resources()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)


def anywhere(staff: Staff, watch: Watch, work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function comes to on a machine of the cluster that could hold a worker.

    Raises:
        DinoError: as the function does.
    """
    import ray

    call = ray.remote(num_cpus=staff.cpus, num_gpus=staff.gpus)(work).remote(*arguments)
    try:
        if not ray.wait([call], timeout=LONG * PATIENCE)[0]:
            watch.note(f"no machine was free so far: {_missing(staff)}")
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise _own(error) from error


class Doers:
    """Workers of the cluster that do any jobs.

    Jobs depend on nothing but themselves: those of workers and nodes that are lost, Ray has done again elsewhere.
    """

    def __init__(self, staff: Staff) -> None:
        import ray

        remote = ray.remote(num_cpus=staff.cpus, max_restarts=-1, max_task_retries=-1)(_Doer)
        self.doers = [remote.remote() for _ in range(staff.workers)]

    @contextlib.contextmanager
    def spread(self, make: Make) -> Iterator[Callable[[Iterator[Any]], Iterator[Any]]]:
        """Give a map over jobs, results in order, a few jobs ahead at most.

        Raises:
            DinoError: as the jobs do.
        """
        import ray

        how = ray.put(make)

        def ordered(jobs: Iterator[Any]) -> Iterator[Any]:
            ahead: deque[Any] = deque()
            turns = itertools.cycle(self.doers)
            try:
                for job in jobs:
                    ahead.append(next(turns).do.remote(how, how.hex(), job))
                    if len(ahead) > AHEAD * len(self.doers):
                        yield ray.get(ahead.popleft())
                while ahead:
                    yield ray.get(ahead.popleft())
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from error
            except ray.exceptions.RayError as error:
                raise ModelError(f"the cluster lost its workers ({first_line(error)}); run the same again") from error

        yield ordered


class _Doer:
    """Does jobs on the cluster."""

    def __init__(self) -> None:
        self.known = ""
        self.work: Callable[[Any], Any] = lambda job: job

    def do(self, make: Make, name: str, job: Any) -> Any:
        """Do one; what does it is made for the first of its name."""
        if name != self.known:
            self.known, self.work = name, make()
        return self.work(job)


def _missing(staff: Staff) -> str:
    cpus, gpus = resources()
    return (
        f"a worker needs {staff.cpus:g} CPUs and {staff.gpus:g} GPUs, and the cluster has {cpus:g} and {gpus:g} in "
        "all; waiting for nodes, or for others to end"
    )


def _own(error: Any) -> BaseException:
    """Return the error that was raised on a worker."""
    return error.cause if isinstance(error.cause, DinoError) else error


@dataclass(eq=False)
class _Member:
    """A worker as the driver knows it."""

    actor: Any
    begun: Any
    """Its call to load the model; None once that has ended."""
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
        late = (shard for path, shard in list(self.open.items()) if path not in self.doubled)
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
    """One call to write, and who is told what of it."""

    job: Job
    todo: _Todo
    watch: Watch
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
        load: loads the model on a worker, and tells the fingerprint that it has there.
        staff: how many workers, of what size.
        watch: is told of workers that are lost, or do not come.
        fingerprint: of the model, if it lies in a folder; workers that find another one there are an error.
    """

    def __init__(self, load: Load, staff: Staff, watch: Watch, fingerprint: str | None) -> None:
        self.load, self.staff, self.fingerprint = load, staff, fingerprint
        self.watch = watch
        self.members: list[_Member] = []
        self.told: Mapping[str, Any] = {}
        self.losses: Counter[Path | None] = Counter()
        """Workers that died with a shard; None: while they loaded the model."""
        self.said: set[str] = set()
        self.waited = 0
        self.pool = ThreadPoolExecutor(STORING)
        self.storing: deque[tuple[Future[None], Shard, Written]] = deque()

    def start(self) -> None:
        """Wait for the first worker.

        Raises:
            ModelError: the model cannot be loaded.
            RunError: the worker has another model or another version than this process.
        """
        while not self.told:
            self._hire()
            self._wait(None)

    def facts(self) -> Mapping[str, Any]:
        """Return what the workers' engines have to tell, all the same; nothing before the first is ready."""
        return self.told

    def write(self, job: Job, shards: Iterable[Shard], watch: Watch, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files.

        Raises:
            ModelError: the model cannot be loaded, or workers die time and again.
            RunError: a worker has another model or another version than this process.
        """
        import ray

        asked, todo = ray.put(job), _Todo(iter(shards))
        told = _Round(job, todo, watch, progress, stored)
        while True:
            self._hire()
            if watch.stopping():
                todo.again.clear()
            for member, shard in todo.hand_out(self.members):
                member.flying[member.actor.write.remote(asked, shard.tasks)] = shard
            if todo.done:
                break
            self._wait(told)
            self._tell(told, all_of_them=False)
            watch.progress(progress)
        self._tell(told, all_of_them=True)

    def _wait(self, told: _Round | None) -> None:
        """Take in the next answers, if there are any soon."""
        import ray

        calls = {call: member for member in self.members for call in member.calls}
        ready, _ = ray.wait(list(calls), timeout=PATIENCE)
        idle = not ready and all(member.begun is not None for member in self.members)
        self.waited = self.waited + 1 if idle else 0
        if self.waited == LONG:
            self.watch.note(f"no worker has started so far: {_missing(self.staff)}")
        for call in ready:
            self._take(call, calls[call], told)

    def _hire(self) -> None:
        import ray

        actor = ray.remote(num_cpus=self.staff.cpus, num_gpus=self.staff.gpus, max_concurrency=AHEAD + 1)(Worker)
        while len(self.members) < self.staff.workers:
            worker = actor.remote(self.load)
            self.members.append(_Member(worker, worker.begin.remote()))

    def _take(self, call: Any, member: _Member, told: _Round | None) -> None:
        """Take in what a worker answered."""
        import ray

        try:
            found = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise _own(error) from error
        except ray.exceptions.RayError as error:
            self._lose(member, error, told)
            return
        if isinstance(found, Ready):
            self._check(found)
            member.begun = None
            return
        shard = member.flying.pop(call)
        if told and told.todo.finish(shard):
            self.losses.clear()
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
                self.watch.note(note)
        told.progress.done += len(shard.tasks)
        for label, count in found.labels.items():
            told.progress.labels[label].add(count)
        told.stored(shard, list(iter_examples(shard.path, numeric_labels=told.job.spec.is_scored)))

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
        self.watch.note(f"a worker was lost ({type(error).__name__}); {len(lost)} shards are written again")
