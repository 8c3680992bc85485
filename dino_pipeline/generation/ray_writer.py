"""How workers of a Ray cluster write shards, while workers and nodes are lost and others join."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_pipeline import __version__
from dino_pipeline.cluster import CALLS_PER_WORKER, ClusterResources, total_resources, worker_error
from dino_pipeline.decoding.engine import EngineFacts
from dino_pipeline.errors import ModelError, RunError, first_line
from dino_pipeline.examples import parse_example
from dino_pipeline.files import write_bytes
from dino_pipeline.generation.plan import GenerationJob, Shard
from dino_pipeline.generation.ray_worker import LoadedWorker, LoadEngine, RayWorker, WrittenShard
from dino_pipeline.generation.shard_writer import OnStored
from dino_pipeline.progress import Progress, Reporter

MAX_LOSSES = 5
"""Give up after this many workers died with the same shard: the shard is the reason."""
POLL_SECONDS = 1.0
"""Longest wait for the next result."""
POLLS_BEFORE_NOTE = 20
"""Polls without a single worker after which a note says why."""
STORING_THREADS = 8
"""Shards stored at the same time: each waits until the disk has it."""


@dataclass(eq=False)
class _Worker:
    """A worker, as the process that leads the work knows it."""

    actor: Any
    loading: Any
    """The call that loads the model; None before it is made, and after it has ended."""
    writing: dict[Any, Shard] = field(default_factory=dict)
    """The calls that write shards."""

    @property
    def calls(self) -> list[Any]:
        return list(self.writing) if self.loading is None else [self.loading]


class _ShardQueue:
    """The shards of one job: those still to begin, those begun, and those to begin again."""

    def __init__(self, shards: Iterator[Shard]) -> None:
        self.shards = shards
        self.is_exhausted = False
        self.lost: deque[Shard] = deque()
        self.begun: dict[Path, Shard] = {}
        self.copied: set[Path] = set()
        """Begun shards that a second worker writes, too."""

    @property
    def is_done(self) -> bool:
        return self.is_exhausted and not self.lost and not self.begun

    def next_shard(self) -> Shard | None:
        """Begin a lost shard or the next one; None if there is none."""
        shard = self.lost.popleft() if self.lost else next(self.shards, None)
        if shard is None:
            self.is_exhausted = True
        else:
            self.begun[shard.path] = shard
        return shard

    def next_copy(self) -> Shard | None:
        """Return the shard begun last that only one worker writes, for a second one; None if there is none."""
        for path, shard in reversed(self.begun.items()):
            if path not in self.copied:
                self.copied.add(path)
                return shard
        return None

    def finish(self, shard: Shard) -> bool:
        """Take a shard out; return False if another worker has finished it before."""
        return self.begun.pop(shard.path, None) is not None

    def put_back(self, shards: Iterable[Shard]) -> None:
        """Have begun shards begun again."""
        for shard in shards:
            if self.finish(shard):
                self.lost.append(shard)
                self.copied.discard(shard.path)


@dataclass(frozen=True)
class _WriteCall:
    """The arguments of one call of `RayShardWriter.write`."""

    job: GenerationJob
    queue: _ShardQueue
    progress: Progress
    on_stored: OnStored


def store_shard(shard: Shard, written: WrittenShard) -> None:
    """Write a shard's files, the accepted texts last: a shard that has them is complete."""
    rejected_digest = write_bytes(shard.rejected_path, written.rejected)
    shard.digests = {shard.rejected_path: rejected_digest, shard.path: write_bytes(shard.path, written.accepted)}


class RayShardWriter:
    """Writes shards with workers of a cluster; this process stores what they return.

    Workers and nodes may be lost at any time, and others may join. A shard is a pure function of its tasks, so what a
    lost worker was writing is written again by another. When no shard is left to begin, idle workers write copies of
    shards that others have begun, and the first result counts.

    Args:
        resources: how many workers, and what each gets.
        reporter: gets notes about workers that are lost or do not start.
    """

    def __init__(self, resources: ClusterResources, reporter: Reporter) -> None:
        self.resources, self.reporter = resources, reporter
        self.load: LoadEngine | None = None
        self.fingerprint: str | None = None
        self.loaded_facts: EngineFacts = {}
        """Of the first worker that was loaded; all others must have the same."""
        self.workers: list[_Worker] = []
        self.losses: Counter[Path | None] = Counter()
        """Workers that died, by the shard that they were writing; None: while they loaded the model."""
        self.notes: set[tuple[str, str]] = set()
        self.idle_polls = 0
        self.pool = ThreadPoolExecutor(STORING_THREADS)
        self.storing: deque[tuple[Future[None], Shard, WrittenShard]] = deque()

    def run_on_worker(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns on the first worker that starts.

        Raises:
            DinoError: as the function does.
            ModelError: workers die before they answer.
        """
        import ray

        self._start_workers()
        calls = [worker.actor.run.remote(function, *arguments) for worker in self.workers]
        try:
            ready, _ = ray.wait(calls, timeout=POLLS_BEFORE_NOTE * POLL_SECONDS)
            if not ready:
                self.reporter.note(self._no_worker_note())
                ready, _ = ray.wait(calls)
            return ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            raise worker_error(error) from error
        except ray.exceptions.RayError as error:
            raise ModelError(f"a worker could not be started ({first_line(error)}); look at the cluster") from error

    def load_model(self, load: LoadEngine, fingerprint: str | None) -> None:
        """Load the model on all workers, and wait for the first one.

        Args:
            load: loads the model on a worker.
            fingerprint: of the model, if it is a folder.

        Raises:
            ModelError: the model cannot be loaded.
            RunError: a worker has another model, or another version of this package.
        """
        self.load, self.fingerprint = load, fingerprint
        for worker in self.workers:
            worker.loading = worker.actor.load.remote(load)
        while not self.loaded_facts:
            self._start_workers()
            self._wait_for_results(None)

    def facts(self) -> EngineFacts:
        """Return the facts of the workers' engines, all the same; empty before the first worker is loaded."""
        return self.loaded_facts

    def write(
        self, job: GenerationJob, shards: Iterable[Shard], reporter: Reporter, progress: Progress, on_stored: OnStored
    ) -> None:
        """Write the texts of the shards into their files; see `ShardWriter`.

        Raises:
            ModelError: the model cannot be loaded, or workers die again and again.
            RunError: a worker has another model, or another version of this package.
        """
        import ray

        shared_job = ray.put(job)
        call = _WriteCall(job, _ShardQueue(iter(shards)), progress, on_stored)
        while True:
            self._start_workers()
            if reporter.should_stop():
                call.queue.lost.clear()
            self._assign(shared_job, call.queue)
            if call.queue.is_done:
                break
            self._wait_for_results(call)
            self._report_stored(call, wait=False)
            reporter.update(progress)
        self._report_stored(call, wait=True)

    def _start_workers(self) -> None:
        import ray

        while len(self.workers) < self.resources.workers:
            size = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus}
            # one more call at a time than shards, so that `run` and `load` never wait for a shard
            actor = ray.remote(max_concurrency=CALLS_PER_WORKER + 1, **size)(RayWorker).remote()
            self.workers.append(_Worker(actor, actor.load.remote(self.load) if self.load else None))

    def _assign(self, shared_job: Any, shards: _ShardQueue) -> None:
        """Give shards to the loaded workers: one each first, then a second one, then copies to those without any."""
        loaded = [worker for worker in self.workers if worker.loading is None]
        for calls in range(1, CALLS_PER_WORKER + 1):
            for worker in loaded:
                if len(worker.writing) < calls and (shard := shards.next_shard()):
                    worker.writing[worker.actor.write.remote(shared_job, shard.tasks)] = shard
        for worker in loaded:
            if not worker.writing and (shard := shards.next_copy()):
                worker.writing[worker.actor.write.remote(shared_job, shard.tasks)] = shard

    def _wait_for_results(self, write_call: _WriteCall | None) -> None:
        """Handle the results that are ready, or become ready within `POLL_SECONDS`."""
        import ray

        workers = {call: worker for worker in self.workers for call in worker.calls}
        ready, _ = ray.wait(list(workers), timeout=POLL_SECONDS)
        is_idle = not ready and all(worker.loading is not None for worker in self.workers)
        self.idle_polls = self.idle_polls + 1 if is_idle else 0
        if self.idle_polls == POLLS_BEFORE_NOTE:
            self.reporter.note(self._no_worker_note())
        for call in ready:
            self._handle_result(call, workers[call], write_call)

    def _handle_result(self, call: Any, worker: _Worker, write_call: _WriteCall | None) -> None:
        import ray

        try:
            result = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise worker_error(error) from error
        except ray.exceptions.RayError as error:
            self._handle_loss(worker, error, write_call)
            return
        if isinstance(result, LoadedWorker):
            self._check_same(result)
            self.losses.pop(None, None)
            worker.loading = None
            return
        shard = worker.writing.pop(call)
        if write_call and write_call.queue.finish(shard):
            self.losses.pop(shard.path, None)
            self.storing.append((self.pool.submit(store_shard, shard, result), shard, result))

    def _report_stored(self, call: _WriteCall, *, wait: bool) -> None:
        """Count the shards that are stored, in the order in which they were returned.

        Args:
            call: whose shards.
            wait: wait for those that are still being stored.
        """
        while self.storing and (wait or self.storing[0][0].done()):
            stored, shard, written = self.storing.popleft()
            stored.result()
            for note in dict.fromkeys(written.notes):
                if note not in self.notes:
                    self.notes.add(note)
                    self.reporter.note(*note)
            call.progress.done += len(shard.tasks)
            for label, count in written.labels.items():
                call.progress.labels[label].add(count)
            is_scored = call.job.spec.is_scored
            lines = written.accepted.splitlines()
            call.on_stored(shard, [parse_example(line, shard.path.as_posix, is_scored) for line in lines])

    def _check_same(self, loaded: LoadedWorker) -> None:
        """Refuse a worker that would write other texts than the others, or than the run records."""
        facts: dict[str, object] = {"version": loaded.version, "model": loaded.fingerprint, **loaded.facts}
        expected: dict[str, object] = {
            "version": __version__,
            "model": self.fingerprint,
            **(self.loaded_facts or loaded.facts),
        }
        for name, value in facts.items():
            if value != expected.get(name):
                raise RunError(
                    f"a worker has another {name} than this process: {value}, not {expected.get(name)}",
                    "bring all nodes to the same state",
                )
        self.loaded_facts = loaded.facts

    def _handle_loss(self, worker: _Worker, error: Exception, write_call: _WriteCall | None) -> None:
        """Have the shards of a lost worker written again, unless another worker has begun them as well."""
        import ray

        self.workers.remove(worker)
        with contextlib.suppress(Exception):
            ray.kill(worker.actor)  # it may be alive, and only out of reach
        shards = list(worker.writing.values())
        paths = [shard.path for shard in shards] if worker.loading is None else [None]
        self.losses.update(paths)
        if any(self.losses[path] >= MAX_LOSSES for path in paths):
            action = "loading the model" if worker.loading is not None else f"writing {shards[0].path.name}"
            raise ModelError(
                f"{MAX_LOSSES} workers died while {action} (the last: {first_line(error)}). Memory may be full; what "
                "was finished is kept",
                "use fewer {rows} or larger nodes",
            )
        if write_call:
            begun_elsewhere = {shard.path for other in self.workers for shard in other.writing.values()}
            write_call.queue.put_back(shard for shard in shards if shard.path not in begun_elsewhere)
        self.reporter.note(f"a worker was lost ({type(error).__name__}); {len(shards)} shards are written again")

    def _no_worker_note(self) -> str:
        cpus, gpus = total_resources()
        return (
            f"no worker has started so far: each needs {self.resources.cpus:g} CPUs and {self.resources.gpus:g} GPUs, "
            f"and the cluster has {cpus:g} and {gpus:g} in all; waiting for nodes, or for others to end"
        )
