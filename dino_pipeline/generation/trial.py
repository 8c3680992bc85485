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
from dino_pipeline.input_texts import distinct
from dino_pipeline.processes import peak_memory
from dino_pipeline.progress import Progress, Reporter, SilentReporter, doing
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateRecord, GenerateSettings

SECONDS = 6.0
"""For which speed is measured, and about which the trial's texts take after that."""
LONG_ENOUGH = 1.0
"""Seconds that suffice if all texts are written by then."""
LEAST_STEPS = 8
"""Steps that are measured, even if the rows' prompts alone take longer than `SECONDS`."""
MOST_TEXTS, LEAST_TEXTS = 128, 2
"""Of each label in the trial."""
FULL_ROWS = 2
"""Rows are filled at least this often while speed is measured; more often if that takes no time."""
MOST_FULL_ROWS = 2**9
SOME_INPUTS = 64
"""Inputs of the trial, at most."""
SHORT = 0.05
"""Seconds that are too short to measure anything."""


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
    """A reporter that records how long each kind of texts took.

    It drops notes: those of a small trial need not hold for the run.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.should_stop = reporter, reporter.should_stop
        self.times: dict[str, list[float]] = {}
        """Of the first and the last update, by the progress's title."""
        self.latest: dict[str, Progress] = {}

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        self.times.setdefault(progress.title, [now, now])[1] = now
        self.latest[progress.title] = progress
        self.reporter.update(replace(progress, title=f"measuring: {progress.title}"))

    def note(self, message: str, remedy: str = "") -> None:
        """Drop the note."""

    def seconds(self, title: str) -> float:
        """Return the time from the first to the last update."""
        first, last = self.times.get(title, (0.0, 0.0))
        return last - first


class Speed(NamedTuple):
    """How fast an engine writes with all rows in use."""

    filling: float
    """Seconds until all rows have a prompt."""
    seconds: float
    """That were measured from then on."""
    row_tokens: int
    """Tokens that were written in them, one for each prompt that a text is written under."""
    ended: int
    """Texts that ended in them. Others took their rows, whose prompts took a part of the seconds."""

    @property
    def per_second(self) -> float:
        """Return the tokens a second."""
        return self.row_tokens / max(self.seconds, SHORT)

    def seconds_of_text(self, row_tokens: float, texts_at_once: float) -> float:
        """Return the time that a text takes while others are written beside it.

        Args:
            row_tokens: of a text, on average.
            texts_at_once: that fill all rows. Each needs a ``texts_at_once``-th of `filling` for its prompts, unless
                these were computed while tokens were measured.
        """
        texts = self.row_tokens / row_tokens  # for which the measured tokens suffice
        without_prompts = max(0.0, 1 - self.ended / texts)
        return row_tokens / self.per_second + without_prompts * self.filling / texts_at_once


@dataclass(frozen=True)
class _Trial:
    """What a trial is made of."""

    folder: Path
    engine: LocalEngine
    spec: TaskSpec
    whole: GenerateSettings
    """The settings of the run, the number of inputs counted."""
    reporter: Reporter

    @property
    def prompts(self) -> list[int]:
        """Return the number of prompts of a text, label by label."""
        return [1 + len(label.counter_labels) for label in self.spec.labels.values()]

    def write(
        self, name: str, reporter: Reporter, *, inputs: Iterable[str] | None, num_inputs: int | None, samples: int
    ) -> tuple[Run, GenerateRecord]:
        """Write a part of the run, or of a run like it, in a folder of its own."""
        part = self.whole.model_copy(update={"num_inputs": num_inputs, "samples": samples})
        run = Run(self.folder / name)
        _, record = write_texts(run, self.spec, lambda: EngineWriter(self.engine), part, reporter, inputs=inputs)
        return run, record


def measure(
    engine: LocalEngine,
    spec: TaskSpec,
    inputs: Iterable[str] | None,
    settings: GenerateSettings,
    reporter: Reporter,
    *,
    loading: float,
) -> tuple[Estimate, list[str]]:
    """Do a small part of a run, small enough for some seconds; return an estimate of the whole, and some inputs.

    First, texts are written with all rows for `SECONDS`, which shows the speed even if none ends in that time. Then so
    many texts of each label as take about as long are written to their end, which shows lengths and quality.

    The settings are those of the whole run; ``loading`` is the seconds that it took to load the model.
    """
    num_inputs = count_inputs(settings.num_inputs, inputs) if spec.needs_inputs else None
    whole = settings.model_copy(update={"num_inputs": num_inputs})
    with tempfile.TemporaryDirectory(prefix="dino-preview-") as folder:
        trial = _Trial(Path(folder), engine, spec, whole, reporter)
        some, input_seconds = _some_inputs(trial, inputs) if spec.needs_inputs else ([], 0.0)
        with doing(reporter, "measuring speed"):
            speed = measure_speed(trial, some)
        run, record, stopwatch = _write_texts(trial, some, speed)
        losses = losses_of_trial(run, spec, record)
    written = sum(count.written for count in record.counts.values())
    tokens, row_tokens = _count_tokens(spec, stopwatch)
    texts = (whole.num_inputs or 1) * whole.samples * len(spec.labels)
    texts_at_once = max(engine.rows / fmean(trial.prompts), 1)
    is_shared = not (spec.needs_inputs or spec.variables)  # then all texts of a label have the same prompt
    a_text = speed._replace(filling=0.0 if is_shared else speed.filling).seconds_of_text(
        row_tokens / written, texts_at_once
    )
    # at the end of each call the rows run empty: half of them, on average, for the length of a long text
    long = min(2 * tokens, whole.sampling.max_new_tokens)
    calls = 1 if engine.refill_rows else math.ceil(texts / whole.shard_size)
    emptying = min(texts, texts_at_once) * fmean(trial.prompts) * long / speed.per_second / 2
    estimate = Estimate(
        texts=texts,
        per_second=1 / a_text,
        seconds=loading + input_seconds * (whole.num_inputs or 0) + texts * a_text + calls * emptying,
        row_tokens=round(row_tokens / max(written, 1) * texts),
        memory=peak_memory() + (torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0),
        accepted={label: count.accepted / max(count.written, 1) for label, count in record.counts.items()},
        margins=record.mean_margins,
        tokens=tokens,
        losses=losses,
    )
    return estimate, some


def _some_inputs(trial: _Trial, inputs: Iterable[str] | None) -> tuple[list[str], float]:
    """Return some inputs: the first that were brought, or else written ones; and the seconds that one takes."""
    most = min(trial.whole.num_inputs or SOME_INPUTS, SOME_INPUTS)
    if inputs is not None:
        return list(itertools.islice(distinct(inputs), most)), 0.0
    run, stopwatch = Run(trial.folder / "inputs"), _Stopwatch(trial.reporter)
    try:
        trial.write(run.path.name, stopwatch, inputs=None, num_inputs=1, samples=1)
    except ModelError:  # no text was accepted, of one of each label
        if not run.inputs.exists():
            raise
    texts = (example.text_a for path in shard_files(run.input_shards) for example in iter_examples(path))
    found = list(distinct(texts))
    return found[:most], stopwatch.seconds("inputs") / len(found)


class _TimeUpError(Exception):
    """Enough was written."""


def measure_speed(trial: _Trial, inputs: Sequence[str]) -> Speed:
    """Write with all rows for some seconds, and measure how fast. No text needs to end in that time."""
    full_rows = FULL_ROWS
    while True:
        steps = _write_for_some_seconds(trial, inputs, full_rows)
        first, last = steps[0], steps[-1]
        if last.seconds >= LONG_ENOUGH or full_rows >= MOST_FULL_ROWS:
            break
        full_rows *= 8
    if last == first:
        return Speed(0.0, last.seconds, last.row_tokens, last.ended)
    measured = Speed(0.0, last.seconds - first.seconds, last.row_tokens - first.row_tokens, last.ended - first.ended)
    a_step = min(first.row_tokens, trial.engine.rows) / measured.per_second
    return measured._replace(filling=max(first.seconds - a_step, 0.0))


class _Step(NamedTuple):
    """How far an engine is after a step, since the beginning."""

    seconds: float
    row_tokens: int
    ended: int
    """Texts that have ended."""


class _Counter(SilentReporter):
    """A reporter that keeps how many texts have ended."""

    ended = 0

    def update(self, progress: Progress) -> None:
        self.ended = progress.done


def _write_for_some_seconds(trial: _Trial, inputs: Sequence[str], full_rows: int) -> list[_Step]:
    """Write texts that fill all rows ``full_rows`` times, or until time is up; return the steps."""
    engine = trial.engine
    samples = math.ceil(full_rows * engine.rows / (sum(trial.prompts) * max(len(inputs), 1)))
    started, before, counter = time.monotonic(), engine.row_tokens, _Counter()
    steps: list[_Step] = []

    def watch() -> None:
        steps.append(_Step(time.monotonic() - started, engine.row_tokens - before, counter.ended))
        if steps[-1].seconds >= SECONDS and len(steps) >= LEAST_STEPS:
            raise _TimeUpError

    engine.on_step = watch
    try:
        name, samples = f"speed-{full_rows}", max(samples, trial.whole.samples)
        num_inputs = len(inputs) if trial.spec.needs_inputs else None
        trial.write(name, counter, inputs=inputs or None, num_inputs=num_inputs, samples=samples)
    except _TimeUpError:
        pass
    except ModelError:
        if len(steps) < 2:
            raise
        # else no text was accepted, which the texts of the trial will show
    finally:
        engine.on_step = lambda: None
    return steps


def _write_texts(trial: _Trial, inputs: Sequence[str], speed: Speed) -> tuple[Run, GenerateRecord, _Stopwatch]:
    """Write as many texts of each label as take about `SECONDS`; many inputs rather than many samples."""
    a_text = trial.whole.sampling.max_new_tokens / 2 * sum(trial.prompts) / speed.per_second  # of each label
    size = max(LEAST_TEXTS, min(MOST_TEXTS, round(SECONDS / a_text)))
    num_inputs = min(len(inputs), size) if trial.spec.needs_inputs else None
    samples = min(trial.whole.samples, math.ceil(size / (num_inputs or 1)))
    stopwatch = _Stopwatch(trial.reporter)
    run, record = trial.write("texts", stopwatch, inputs=inputs or None, num_inputs=num_inputs, samples=samples)
    return run, record, stopwatch


def _count_tokens(spec: TaskSpec, stopwatch: _Stopwatch) -> tuple[float, int]:
    """Return the mean number of tokens of the texts, and how many tokens were written under all prompts."""
    texts = tokens = row_tokens = 0
    for label, count in stopwatch.latest["texts"].labels.items():
        texts += count.written
        tokens += count.tokens
        row_tokens += count.tokens * (1 + len(spec.labels[label].counter_labels))
    return tokens / max(texts, 1), row_tokens
