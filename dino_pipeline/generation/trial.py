"""A small part of a run, from which time, memory and quality of the whole are estimated."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from dino_pipeline.decoding.engine import LocalEngine
from dino_pipeline.errors import ModelError
from dino_pipeline.examples import iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.filtering.losses import Losses, losses_of_trial
from dino_pipeline.generation.generate_stage import write_texts
from dino_pipeline.generation.plan import count_inputs
from dino_pipeline.generation.shard_writer import EngineWriter
from dino_pipeline.processes import peak_memory
from dino_pipeline.progress import Progress, Reporter, SilentReporter
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateRecord, GenerateSettings

FIRST_TRIAL = 16
"""Texts of each label in the first trial."""
MAX_TRIALS = 3
SHORT = 0.05
"""Seconds that are too short to measure anything."""
LONG_ENOUGH = 6.0
"""Seconds of writing that suffice to measure its speed."""
ROUNDS_OF_ROWS = 2
"""A trial that fills all rows this often measures their speed."""
SOME_INPUTS = 64
"""Inputs that speed is measured with, at most."""


@dataclass(frozen=True)
class Estimate:
    """Time, memory and quality of a run, estimated from a short trial."""

    texts: int
    """To write in all."""
    per_second: float
    seconds: float
    """Of the whole run, with the inputs and loading the model."""
    row_tokens: int
    """Tokens to compute: those of each text, once for every prompt that it is written under."""
    memory: int
    """Bytes that this process has held at most, with the device's."""
    accepted: Mapping[str, float]
    """Share of accepted texts by label."""
    margins: Mapping[str, float | None]
    """Mean margin by label."""
    tokens: float
    """Tokens per text, on average."""
    losses: Losses
    """Why texts are lost, up to the filter's rules about single texts."""


class _Stopwatch:
    """A reporter that records time and number of texts at each update.

    It drops notes: those of a small trial need not hold for the run.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.should_stop = reporter, reporter.should_stop
        self.started = time.monotonic()
        self.updates: dict[str, list[tuple[float, int]]] = {}
        """Time and number of texts of each update, by the progress's title."""
        self.latest: dict[str, Progress] = {}

    def update(self, progress: Progress) -> None:
        self.updates.setdefault(progress.title, []).append((time.monotonic(), progress.done))
        self.latest[progress.title] = progress
        self.reporter.update(replace(progress, title=f"measuring: {progress.title}"))

    def note(self, message: str, remedy: str = "") -> None:
        """Drop the note."""

    def seconds(self, title: str) -> float:
        """Return the time from the first to the last update."""
        updates = self.updates.get(title)
        return updates[-1][0] - updates[0][0] if updates else 0.0

    def per_second(self, title: str, concurrent: int) -> float:
        """Return the rate, without the beginning and the end, when fewer than ``concurrent`` texts run side by side."""
        updates = self.updates[title]
        total = updates[-1][1]
        margin = min(concurrent, total // 4)
        middle = [(when, done) for when, done in updates if margin <= done <= total - margin] or updates
        (started, first), (ended, last) = middle[0], middle[-1]
        if last == first or ended - started < SHORT:
            (started, first), (ended, last) = (self.started, 0), updates[-1]
        return (last - first) / max(ended - started, SHORT)


def measure(
    engine: LocalEngine,
    spec: TaskSpec,
    inputs: Iterable[str] | None,
    settings: GenerateSettings,
    reporter: Reporter,
    *,
    loading: float,
) -> tuple[Estimate, list[str]]:
    """Do a small part of a run; return an estimate of the whole, and some inputs.

    The settings are those of the whole run; ``loading`` is the seconds that it took to load the model.
    """
    num_inputs = count_inputs(settings.num_inputs, inputs) if spec.needs_inputs else None
    whole = settings.model_copy(update={"num_inputs": num_inputs})
    prompts = fmean(1 + len(label.counter_labels) for label in spec.labels.values())  # a text, on average
    with tempfile.TemporaryDirectory(prefix="dino-preview-") as folder:
        run, part, record, stopwatch = _run_trials(Path(folder), EngineWriter(engine), spec, inputs, whole, reporter)
        some = _some_inputs(run, inputs) if spec.needs_inputs else []
        losses = losses_of_trial(run, spec, record)
        written = sum(count.written for count in record.counts.values())
        tokens, row_tokens = _count_tokens(spec, stopwatch)
        if part == whole or written * prompts >= ROUNDS_OF_ROWS * engine.rows:
            a_text = 1 / stopwatch.per_second("texts", round(engine.rows / prompts))
            edges = max(
                0.0, stopwatch.seconds("texts") - written * a_text
            )  # while rows fill at first, and empty at last
        else:
            speed = _measure_speed(Run(Path(folder) / "speed"), engine, spec, some, whole, reporter)
            wave = max(engine.rows / prompts, 1)  # texts that run at the same time
            is_shared = not (spec.needs_inputs or spec.variables)  # then all texts of a label have the same prompt
            a_text = row_tokens / written / speed.row_tokens + (0.0 if is_shared else speed.filling / wave)
            edges = settings.sampling.max_new_tokens * engine.rows / speed.row_tokens / 2
    texts = (whole.num_inputs or 1) * whole.samples * len(spec.labels)
    calls = 1 if engine.refill_rows else math.ceil(texts / whole.shard_size)  # each has its edges
    for_inputs = 0.0
    if "inputs" in stopwatch.latest:
        found = sum(count.accepted for count in stopwatch.latest["inputs"].labels.values())
        for_inputs = stopwatch.seconds("inputs") * (whole.num_inputs or 0) / max(found, 1)
    estimate = Estimate(
        texts=texts,
        per_second=1 / a_text,
        seconds=loading + for_inputs + texts * a_text + calls * edges,
        row_tokens=round(row_tokens / max(written, 1) * texts),
        memory=peak_memory() + (torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0),
        accepted={label: count.accepted / max(count.written, 1) for label, count in record.counts.items()},
        margins=record.mean_margins,
        tokens=tokens,
        losses=losses,
    )
    return estimate, some


def _some_inputs(run: Run, inputs: Iterable[str] | None) -> list[str]:
    """Return some inputs: the first that were brought, or those that a trial has written."""
    if inputs is not None:
        return list(itertools.islice(dict.fromkeys(itertools.islice(inputs, 10 * SOME_INPUTS)), SOME_INPUTS))
    files = shard_files(run.input_shards) or [run.inputs]
    texts = (example.text_a for path in files for example in iter_examples(path))
    return list(itertools.islice(dict.fromkeys(texts), SOME_INPUTS))


def _count_tokens(spec: TaskSpec, stopwatch: _Stopwatch) -> tuple[float, int]:
    """Return the mean number of tokens of the texts, and how many tokens were written under all prompts."""
    texts = tokens = row_tokens = 0
    for label, count in stopwatch.latest["texts"].labels.items():
        texts += count.written
        tokens += count.tokens
        row_tokens += count.tokens * (1 + len(spec.labels[label].counter_labels))
    return tokens / max(texts, 1), row_tokens


def _run_trials(
    folder: Path,
    writer: EngineWriter,
    spec: TaskSpec,
    inputs: Iterable[str] | None,
    whole: GenerateSettings,
    reporter: Reporter,
) -> tuple[Run, GenerateSettings, GenerateRecord, _Stopwatch]:
    """Do larger and larger parts of a run, until one takes long enough to be measured or is the whole run.

    Returns:
        The last trial's folder, settings, record and times.
    """
    size = FIRST_TRIAL
    for number in itertools.count(1):
        part = _part(whole, size)
        run, stopwatch = Run(folder / str(number)), _Stopwatch(reporter)
        _, record = write_texts(run, spec, lambda: writer, part, stopwatch, inputs=inputs)
        seconds = stopwatch.seconds("texts")
        if seconds >= LONG_ENOUGH / 2 or part == whole or number == MAX_TRIALS:
            break
        size = math.ceil(1.2 * LONG_ENOUGH / max(seconds, 0.1) * size)
    return run, part, record, stopwatch


def _part(whole: GenerateSettings, size: int) -> GenerateSettings:
    """Return a part of a run that has about ``size`` texts of each label: many inputs rather than many samples."""
    if whole.num_inputs is None:
        return whole.model_copy(update={"samples": min(whole.samples, size)})
    num_inputs = min(whole.num_inputs, size)
    return whole.model_copy(
        update={"num_inputs": num_inputs, "samples": min(whole.samples, math.ceil(size / num_inputs))}
    )


class _Speed(NamedTuple):
    """How fast an engine writes with all rows in use."""

    filling: float
    """Seconds until all rows have a prompt and a first token."""
    row_tokens: float
    """Tokens a second from then on, one for each prompt that a text is written under."""


class _TimeUpError(Exception):
    """Enough was written."""


def _measure_speed(
    run: Run, engine: LocalEngine, spec: TaskSpec, inputs: Sequence[str], whole: GenerateSettings, reporter: Reporter
) -> _Speed:
    """Write with all rows for some seconds, and measure how fast. No text needs to end in that time."""
    rows_a_sample = sum(1 + len(label.counter_labels) for label in spec.labels.values()) * max(len(inputs), 1)
    samples = max(whole.samples, math.ceil(ROUNDS_OF_ROWS * engine.rows / rows_a_sample))
    part = whole.model_copy(update={"samples": samples, "num_inputs": len(inputs) if spec.needs_inputs else None})
    started, before = time.monotonic(), engine.row_tokens
    steps: list[tuple[float, int]] = []  # seconds since the start, tokens so far

    def watch() -> None:
        steps.append((time.monotonic() - started, engine.row_tokens - before))
        reporter.update(Progress("measuring: speed", round(LONG_ENOUGH), min(round(steps[-1][0]), round(LONG_ENOUGH))))
        if steps[-1][0] - steps[0][0] >= LONG_ENOUGH:
            raise _TimeUpError

    engine.on_step = watch
    try:
        write_texts(run, spec, lambda: EngineWriter(engine), part, SilentReporter(), inputs=inputs or None)
    except (_TimeUpError, ModelError):  # the latter: no text was accepted
        pass
    finally:
        engine.on_step = lambda: None
    (filled, first), (ended, last) = steps[0], steps[-1]
    per_second = (last - first) / max(ended - filled, SHORT)
    return _Speed(max(filled - first / max(per_second, 1.0), 0.0), max(per_second, 1.0))
