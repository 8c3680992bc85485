"""How a Ray cluster writes shards: a worker that holds the model once, and the process that leads the workers.

Workers and nodes may be lost at any time, and others may join.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dino_pipeline import __version__
from dino_pipeline.cluster import CALLS_PER_WORKER, ClusterResources, WorkerEnvironment, total_resources, worker_error
from dino_pipeline.decoding.engine import Engine, EngineFacts, Task
from dino_pipeline.errors import ModelError, RunError, first_line
from dino_pipeline.examples import dropped_row, parse_example
from dino_pipeline.files import json_line, write_bytes
from dino_pipeline.generation.plan import GenerationJob, OnStored, Shard, ShardQueue
from dino_pipeline.generation.shard_writer import TextWriter
from dino_pipeline.progress import LabelCount, Progress, Reporter, SilentReporter, no_counts

MAX_LOSSES = 5
"""Give up after this many workers died with the same shard: the shard is the reason."""
POLL_SECONDS = 1.0
"""Longest wait for the next result."""
POLLS_BEFORE_NOTE = 20
"""Polls without a single worker after which a note says why."""
STORING_THREADS = 8
"""Shards stored at the same time: each waits until the disk has it."""
LoadEngine = Callable[[], tuple[Engine, str | None]]
"""Loads the engine on a worker; returns it with the fingerprint that its model's folder has there."""


@dataclass(frozen=True)
class LoadedWorker:
    """The result of loading the model on a worker."""

    version: str
    """Of this package."""
    fingerprint: str | None
    facts: EngineFacts


@dataclass(frozen=True)
class WrittenShard:
    """The result of writing a shard: the contents of both files, counts since its last shard, and notes."""

    accepted: bytes
    rejected: bytes
    labels: dict[str, LabelCount]
    notes: list[tuple[str, str]]
    """Messages with their remedies."""


class _NoteCollector(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def note(self, message: str, remedy: str = "") -> None:
        self.notes.append((message, remedy))


class _WorkerCall(NamedTuple):
    """A call to write a shard, kept by the worker that received it."""

    job: GenerationJob
    shard: Shard
    result: Future[WrittenShard]


class RayWorker:
    """A worker on the cluster, which holds the model once and writes shards.

    Calls only enter shards into a queue, and wait: one thread of its own writes them all. So an engine that
    refills its rows takes the next shard's texts while the last texts of a shard are being written.
    """

    def __init__(self, environment: WorkerEnvironment) -> None:
        environment.enter()
        self.calls: queue.SimpleQueue[_WorkerCall] = queue.SimpleQueue()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a function on this machine."""
        return function(*arguments)

    def load(self, load: LoadEngine) -> LoadedWorker:
        """Load the model, and begin to serve calls."""
        logging.disable(logging.INFO)
        self.engine, fingerprint = load()
        threading.Thread(target=self._serve, daemon=True).start()
        return LoadedWorker(__version__, fingerprint, self.engine.facts())

    def write(self, job: GenerationJob, tasks: list[Task]) -> WrittenShard:
        """Write a shard, and return it."""
        call = _WorkerCall(job, Shard(Path(), Path(), tasks), Future())
        self.calls.put(call)
        return call.result.result()

    def _serve(self) -> None:
        call = self.calls.get()
        while True:
            call = self._write_consecutive(call) or self.calls.get()

    def _write_consecutive(self, first: _WorkerCall) -> _WorkerCall | None:
        """Write a call's shard, and those of further calls while they follow in time; return one of another job."""
        job = first.job
        progress, reporter = Progress("", 0, labels=no_counts(job.spec.labels)), _NoteCollector()
        begun: dict[int, _WorkerCall] = {}  # by the identity of the shard
        other_job: _WorkerCall | None = None

        def shards() -> Iterator[Shard]:
            nonlocal other_job
            call = first
            while call.job == job:
                begun[id(call.shard)] = call
                yield call.shard
                try:
                    call = self.calls.get_nowait()
                except queue.Empty:
                    return
            other_job = call

        def return_shard(shard: Shard) -> None:
            accepted = b"".join(json_line(asdict(example)) for example in shard.accepted)
            rejected = b"".join(json_line(dropped_row(dropped)) for dropped in shard.rejected)
            written = WrittenShard(accepted, rejected, progress.labels, reporter.notes)
            progress.labels, reporter.notes = no_counts(job.spec.labels), []
            begun.pop(id(shard)).result.set_result(written)

        try:
            TextWriter(job, self.engine, reporter, progress, return_shard).write(shards())
        except BaseException as error:  # raised by the calls, and so in the process that made them
            for call in begun.values():
                call.result.set_exception(error)
        return other_job


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


def store_shard(shard: Shard, written: WrittenShard) -> None:
    """Write a shard's files, the accepted texts last: a shard that has them is complete."""
    rejected_digest = write_bytes(shard.rejected_path, written.rejected)
    shard.digests = {shard.rejected_path: rejected_digest, shard.path: write_bytes(shard.path, written.accepted)}


class RayShardWriter:
    """Writes shards with workers of a cluster; this process stores what they return.

    A shard is a pure function of its tasks, so what a lost worker was writing is written again by another. When no
    shard is left to begin, idle workers write copies of shards that others have begun, and the first result counts.

    Args:
        resources: how many workers, and what each gets.
        reporter: gets notes about workers that are lost or do not start.
    """

    def __init__(self, resources: ClusterResources, reporter: Reporter) -> None:
        self.resources, self.reporter = resources, reporter
        self.environment = WorkerEnvironment.current()
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
        """Load the model on all workers, and wait for the first one. A model in a folder has a fingerprint.

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

    def close(self) -> None:
        """Do nothing: the workers end with the connection to the cluster."""

    def write(
        self, job: GenerationJob, shards: Iterable[Shard], reporter: Reporter, progress: Progress, on_stored: OnStored
    ) -> None:
        """Write the texts of the shards into their files; see `ShardWriter`.

        Raises:
            ModelError: workers die again and again, or one that joins cannot load the model.
            RunError: a worker that joins has another model, or another version of this package.
        """
        import ray

        shared_job = ray.put(job)
        pending = ShardQueue(job, iter(shards), progress, on_stored)
        while True:
            self._start_workers()
            if reporter.should_stop():
                pending.lost.clear()
            self._assign(shared_job, pending)
            if pending.is_done:
                break
            self._wait_for_results(pending)
            self._report_stored(pending, wait=False)
            reporter.update(progress)
        self._report_stored(pending, wait=True)

    def _start_workers(self) -> None:
        import ray

        while len(self.workers) < self.resources.workers:
            size = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus}
            # one more call at a time than shards, so that `run` and `load` never wait for a shard
            actor = ray.remote(max_concurrency=CALLS_PER_WORKER + 1, **size)(RayWorker).remote(self.environment)
            self.workers.append(_Worker(actor, actor.load.remote(self.load) if self.load else None))

    def _assign(self, shared_job: Any, shards: ShardQueue) -> None:
        """Give shards to the loaded workers: one each first, then a second one, then copies to those without any."""
        loaded = [worker for worker in self.workers if worker.loading is None]
        for calls in range(1, CALLS_PER_WORKER + 1):
            for worker in loaded:
                if len(worker.writing) < calls and (shard := shards.next_shard()):
                    worker.writing[worker.actor.write.remote(shared_job, shard.tasks)] = shard
        for worker in loaded:
            if not worker.writing and (shard := shards.next_copy()):
                worker.writing[worker.actor.write.remote(shared_job, shard.tasks)] = shard

    def _wait_for_results(self, pending: ShardQueue | None) -> None:
        """Handle the results that are ready, or become ready within `POLL_SECONDS`."""
        import ray

        workers = {call: worker for worker in self.workers for call in worker.calls}
        ready, _ = ray.wait(list(workers), timeout=POLL_SECONDS)
        is_idle = not ready and all(worker.loading is not None for worker in self.workers)
        self.idle_polls = self.idle_polls + 1 if is_idle else 0
        if self.idle_polls == POLLS_BEFORE_NOTE:
            self.reporter.note(self._no_worker_note())
        for call in ready:
            self._handle_result(call, workers[call], pending)

    def _handle_result(self, call: Any, worker: _Worker, pending: ShardQueue | None) -> None:
        import ray

        try:
            result = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise worker_error(error) from error
        except ray.exceptions.RayError as error:
            self._handle_loss(worker, error, pending)
            return
        if isinstance(result, LoadedWorker):
            self._check_same(result)
            self.losses.pop(None, None)
            worker.loading = None
            return
        shard = worker.writing.pop(call)
        if pending and pending.finish(shard):
            self.losses.pop(shard.path, None)
            self.storing.append((self.pool.submit(store_shard, shard, result), shard, result))

    def _report_stored(self, pending: ShardQueue, *, wait: bool) -> None:
        """Count the shards that are stored, in the order in which they were returned; wait for the others or not."""
        while self.storing and (wait or self.storing[0][0].done()):
            stored, shard, written = self.storing.popleft()
            stored.result()
            for note in dict.fromkeys(written.notes):
                if note not in self.notes:
                    self.notes.add(note)
                    self.reporter.note(*note)
            pending.progress.done += len(shard.tasks)
            for label, count in written.labels.items():
                pending.progress.labels[label].add(count)
            is_scored = pending.job.spec.is_scored
            lines = written.accepted.splitlines()
            pending.on_stored(shard, [parse_example(line, shard.path.as_posix, is_scored) for line in lines])

    def _check_same(self, loaded: LoadedWorker) -> None:
        """Refuse a worker that would write other texts than the others, or than the run records."""
        facts: dict[str, object] = {"version": loaded.version, "model": loaded.fingerprint, **loaded.facts}
        own_facts = self.loaded_facts or loaded.facts
        expected: dict[str, object] = {"version": __version__, "model": self.fingerprint, **own_facts}
        for name, value in facts.items():
            if value != expected.get(name):
                raise RunError(
                    f"a worker has another {name} than this process: {value}, not {expected.get(name)}",
                    "bring all nodes to the same state",
                )
        self.loaded_facts = loaded.facts

    def _handle_loss(self, worker: _Worker, error: Exception, pending: ShardQueue | None) -> None:
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
        if pending:
            begun_elsewhere = {shard.path for other in self.workers for shard in other.writing.values()}
            pending.put_back(shard for shard in shards if shard.path not in begun_elsewhere)
        self.reporter.note(f"a worker was lost ({type(error).__name__}); {len(shards)} shards are written again")

    def _no_worker_note(self) -> str:
        cpus, gpus = total_resources()
        return (
            f"no worker has started so far: each needs {self.resources.cpus:g} CPUs and {self.resources.gpus:g} GPUs, "
            f"and the cluster has {cpus:g} and {gpus:g} in all; waiting for nodes, or for others to end"
        )
