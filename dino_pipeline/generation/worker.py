"""What runs on a cluster: a worker that holds the model once, and writes the shards that it is handed."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dino_pipeline import __version__
from dino_pipeline.decoding.engine import Engine
from dino_pipeline.examples import dropped_row
from dino_pipeline.files import json_line
from dino_pipeline.generation.plan import Job, Shard, Task
from dino_pipeline.generation.writer import Writer
from dino_pipeline.progress import LabelCount, Progress, SilentReporter, no_counts


@dataclass(frozen=True)
class Ready:
    """What a worker tells when its model is loaded."""

    version: str
    fingerprint: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """A shard's two files, its counts, and what there was to say."""

    accepted: bytes
    rejected: bytes
    labels: dict[str, LabelCount]
    notes: list[tuple[str, str]]


class _Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def note(self, message: str, remedy: str = "") -> None:
        self.notes.append((message, remedy))


Load = Callable[[], tuple[Engine, str | None]]
_Call = tuple[Job, Shard, Future[Written]]


class Worker:
    """Runs on the cluster. A thread of its own writes; calls only hand it shards, so that the next is there in time."""

    def __init__(self) -> None:
        self.coming: queue.SimpleQueue[_Call] = queue.SimpleQueue()

    def answer(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function comes to here."""
        return question(*arguments)

    def begin(self, load: Load) -> Ready:
        """Load the model."""
        logging.disable(logging.INFO)
        self.engine, fingerprint = load()
        threading.Thread(target=self._work, daemon=True).start()
        return Ready(__version__, fingerprint, dict(self.engine.facts()))

    def write(self, job: Job, tasks: list[Task]) -> Written:
        """Write a shard."""
        written: Future[Written] = Future()
        self.coming.put((job, Shard(Path(), Path(), tasks), written))
        return written.result()

    def _work(self) -> None:
        while True:
            first = self.coming.get()
            under_way: dict[int, Future[Written]] = {}
            try:
                self._write_on(first, under_way)
            except BaseException as error:  # for the driver to hear of
                for written in under_way.values():
                    written.set_exception(error)

    def _write_on(self, first: _Call, under_way: dict[int, Future[Written]]) -> None:
        """Write a shard, and those of the same job that come meanwhile."""
        job = first[0]
        progress, reporter = Progress("", 0, labels=no_counts(job.spec.labels)), _Notes()

        def shards() -> Iterator[Shard]:
            coming: _Call | None = first
            while coming:
                other, shard, written = coming
                if other != job:
                    self.coming.put(coming)
                    return
                under_way[id(shard)] = written
                yield shard
                try:
                    coming = self.coming.get_nowait()
                except queue.Empty:
                    coming = None

        def store(shard: Shard) -> None:
            accepted = b"".join(json_line(asdict(example)) for example in shard.accepted)
            rejected = b"".join(json_line(dropped_row(dropped)) for dropped in shard.dropped)
            found = Written(accepted, rejected, progress.labels, reporter.notes)
            progress.labels, reporter.notes = no_counts(job.spec.labels), []
            under_way.pop(id(shard)).set_result(found)

        Writer(job, self.engine, reporter, progress, store).write(shards())
