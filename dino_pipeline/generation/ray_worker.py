"""What runs on a Ray cluster: a worker that holds the model once, and writes the shards that it is given."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dino_pipeline import __version__
from dino_pipeline.decoding.engine import Engine, EngineFacts, Task
from dino_pipeline.examples import dropped_row
from dino_pipeline.files import json_line
from dino_pipeline.generation.plan import GenerationJob, Shard
from dino_pipeline.generation.shard_writer import TextWriter
from dino_pipeline.progress import LabelCount, Progress, SilentReporter, no_counts

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
    """A call to write a shard, as the worker that received it keeps it."""

    job: GenerationJob
    shard: Shard
    result: Future[WrittenShard]


class RayWorker:
    """A worker on the cluster, which holds the model once and writes shards.

    Calls only enter shards into a queue, and wait: one thread of its own writes them all. So an engine that
    refills its rows takes the next shard's texts while the last texts of a shard are being written.
    """

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[_WorkerCall] = queue.SimpleQueue()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns on this machine."""
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
        """Write a call's shard, and those of further calls of the same job for as long as they follow in time.

        Returns:
            The call that ended this because it is of another job.
        """
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
