"""What a run would write and take: some texts with and without debiasing, an estimate, and a watch that it holds."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import JsonValue

from dino_pipeline.decoding.engine import LocalEngine
from dino_pipeline.examples import iter_examples
from dino_pipeline.files import shard_files, write_json
from dino_pipeline.filtering.losses import Losses, losses_of_trial
from dino_pipeline.generate_options import PreviewOptions
from dino_pipeline.generation.engines import local_engine
from dino_pipeline.generation.generate_stage import write_texts
from dino_pipeline.generation.plan import count_inputs, open_inputs, resolve_settings
from dino_pipeline.generation.preview_texts import PreviewText, preview_texts
from dino_pipeline.generation.shard_writer import EngineWriter
from dino_pipeline.options import accepts
from dino_pipeline.processes import peak_memory
from dino_pipeline.progress import Progress, Reporter, clock, reporter_for
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import GenerateRecord, GenerateSettings

FIRST_TRIAL = 128
"""Texts of each label in the first trial."""
MAX_TRIALS = 3
SHORT = 0.05
"""Seconds that are too short to measure anything."""
LONG_ENOUGH = 6.0
"""Seconds of writing that suffice to measure its speed."""
SLOWDOWN = 0.3
"""Note a run that is slower than its estimate by more than this share."""
MIN_TEXTS = 200
"""Texts that a run must have written before its speed is compared with the estimate."""


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

    def write(self, run: Run, key: Mapping[str, JsonValue]) -> None:
        """Store it in a run's folder, for `SpeedMonitor`."""
        write_json(run.estimate, {"asked": key, "seconds": round(self.seconds, 1), "per_second": self.per_second})


@dataclass(frozen=True)
class RejectionPrice:
    """What it takes to debias a run's texts by rejection, with a server that runs the same model."""

    rounds: float
    """Proposals for a text that has counter-labels, on average."""
    requests: int
    """To the server, for all texts."""


@dataclass(frozen=True)
class Preview:
    """Some texts of a run to come, and what the whole run would take."""

    spec: TaskSpec
    texts: Sequence[PreviewText]
    estimate: Estimate

    def __repr__(self) -> str:
        estimate = self.estimate
        return (
            f"Preview({estimate.texts} texts would take about {clock(estimate.seconds)} and "
            f"{estimate.memory / 2**30:.1f} GiB of memory)"
        )

    def changed_share(self, label: str) -> float | None:
        """Return the share of a label's tokens that debiasing changed, None for a label without counter-labels."""
        if not self.spec.labels[label].counter_labels:
            return None
        changed = [is_changed for text in self.texts if text.label == label for _, is_changed in text.pieces]
        return sum(changed) / max(len(changed), 1)

    @property
    def rejection_price(self) -> RejectionPrice | None:
        """What the whole run would take by rejection, on a server; None if there is nothing to debias."""
        debiased = [text.rounds for text in self.texts if text.rounds is not None]
        if not debiased:
            return None
        # a round is a proposal and its scores; in the end, the server spells the text out
        requests = sum(2 * rounds + 1 for rounds in debiased) + len(self.texts) - len(debiased)
        return RejectionPrice(sum(debiased) / len(debiased), round(self.estimate.texts * requests / len(self.texts)))


@accepts(PreviewOptions)
def preview(
    spec: TaskSpec | str | Path | Mapping[str, object],
    *,
    progress: bool | Callable[[Progress | str], object] | Reporter = True,
    **options: Any,
) -> Preview:
    """Write a few texts with debiasing and without, and estimate time and memory of the whole run from a short trial.

    With ``run``, the estimate is stored there, and `dino.generate` notes if the run is much slower.

    Args:
        spec: a spec, its file, its fields, or the name of a spec that comes with the package.
        progress: True shows progress, False shows nothing; or a function that takes each progress and note.

    Returns:
        The texts and the estimate.

    Raises:
        OptionError: an option is wrong, or does not fit the spec.
        SpecError: the spec is wrong.
        ModelError: the model cannot be loaded, or none of the trial's texts was accepted.
    """
    started = time.monotonic()
    chosen = PreviewOptions.of(options)
    task = load_spec(spec)
    inputs = open_inputs(task, chosen)
    with reporter_for(progress) as reporter, contextlib.ExitStack() as stack:
        choice = local_engine(chosen, None, reporter)
        stack.callback(choice.load_writer.close)
        settings = resolve_settings(chosen, task, inputs, choice.model)
        engine = cast(LocalEngine, cast(EngineWriter, choice.load_writer()).engine)
        loading = time.monotonic() - started  # a run begins like this, too
        estimate, some_inputs = measure(engine, task, inputs, settings, reporter, loading=loading)
        texts = preview_texts(engine, task, some_inputs, settings, chosen.texts)
        for message, remedy in estimate.losses.notes(task, settings.sampling.max_new_tokens):
            reporter.note(message, remedy)
    if chosen.run:
        estimate.write(Run(chosen.run), estimate_key(settings))
    return Preview(task, texts, estimate)


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
    with tempfile.TemporaryDirectory(prefix="dino-preview-") as folder:
        run, part, record, stopwatch = _run_trials(Path(folder), EngineWriter(engine), spec, inputs, whole, reporter)
        examples = (example for path in shard_files(run.shards) for example in iter_examples(path))
        some = list(dict.fromkeys(example.text_a for example in examples))[:8] if spec.needs_inputs else []
        losses = losses_of_trial(run, spec, record)
    written = sum(count.written for count in record.counts.values())
    prompts = [1 + len(label.counter_labels) for label in spec.labels.values()]
    rate = stopwatch.per_second("texts", round(engine.rows / (sum(prompts) / len(prompts))))
    texts = (whole.num_inputs or 1) * whole.samples * len(spec.labels)
    edges = max(0.0, stopwatch.seconds("texts") - written / rate)  # while rows fill at first, and run empty at last
    for_inputs = stopwatch.seconds("inputs") * (whole.num_inputs or 0) / (part.num_inputs or 1)
    tokens, row_tokens = _count_tokens(spec, stopwatch)
    estimate = Estimate(
        texts=texts,
        per_second=rate,
        seconds=loading + for_inputs + texts / rate + edges,
        row_tokens=round(row_tokens / max(written, 1) * texts),
        memory=peak_memory() + (torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0),
        accepted={label: count.accepted / max(count.written, 1) for label, count in record.counts.items()},
        margins=record.mean_margins,
        tokens=tokens,
        losses=losses,
    )
    return estimate, some


def _count_tokens(spec: TaskSpec, stopwatch: _Stopwatch) -> tuple[float, int]:
    """Return the mean number of tokens of the texts and inputs, and how many tokens were computed under all prompts."""
    texts = tokens = row_tokens = 0
    for title, of_title in (("inputs", spec.inputs), ("texts", spec)):
        if isinstance(of_title, TaskSpec) and title in stopwatch.latest:
            for label, count in stopwatch.latest[title].labels.items():
                texts += count.written
                tokens += count.tokens
                row_tokens += count.tokens * (1 + len(of_title.labels[label].counter_labels))
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
    part = _part(whole, max(8, FIRST_TRIAL // whole.samples) if spec.needs_inputs else FIRST_TRIAL)
    for number in itertools.count(1):
        run, stopwatch = Run(folder / str(number)), _Stopwatch(reporter)
        _, record = write_texts(run, spec, lambda: writer, part, stopwatch, inputs=inputs)
        seconds = stopwatch.seconds("texts")
        if seconds >= LONG_ENOUGH or part == whole or number == MAX_TRIALS:
            break
        factor = 1.2 * LONG_ENOUGH / max(seconds, 0.1)
        part = _part(whole, math.ceil(factor * (part.num_inputs or part.samples)))
    return run, part, record, stopwatch


def _part(whole: GenerateSettings, size: int) -> GenerateSettings:
    """Return a part of a run, of ``size`` inputs or, if the spec needs none, samples."""
    if whole.num_inputs is None:
        return whole.model_copy(update={"samples": min(whole.samples, size)})
    return whole.model_copy(update={"num_inputs": min(whole.num_inputs, size)})


def estimate_key(settings: GenerateSettings) -> dict[str, JsonValue]:
    """Return what an estimate depends on: it holds for runs of the same key only."""
    names = {"spec", "engine", "model", "num_inputs", "samples", "best_of", "sampling"}
    return settings.model_dump(mode="json", include=names)


class SpeedMonitor:
    """A reporter that notes once if a run is much slower than its estimate, and passes everything on to another.

    Args:
        reporter: the other.
        run: whose folder may hold an estimate.
        key: of the run, see `estimate_key`.
    """

    def __init__(self, reporter: Reporter, run: Run, key: Mapping[str, JsonValue]) -> None:
        self.reporter, self.note, self.should_stop = reporter, reporter.note, reporter.should_stop
        self.estimate: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):  # without an intact estimate nothing is compared
            stored = json.loads(run.estimate.read_text(encoding="utf-8"))
            self.estimate = stored if stored.get("asked") == dict(key) else {}
        self.start: tuple[float, int] | None = None
        """Time and number of texts at the first update."""

    def update(self, progress: Progress) -> None:
        """Pass the update on; compare the speed once there are enough texts."""
        self.reporter.update(progress)
        if progress.title != "texts" or not self.estimate:
            return
        now = time.monotonic()
        if self.start is None:
            self.start = now, progress.done
        started, done_before = self.start
        done = progress.done - done_before
        if done < max(MIN_TEXTS, progress.total // 10) or now - started < LONG_ENOUGH:
            return
        rate, expected = done / (now - started), self.estimate["per_second"]
        if rate < (1 - SLOWDOWN) * expected:
            left = clock((progress.total - progress.done) / rate)
            self.note(
                f"{rate:.1f} texts a second, {expected:.1f} were measured by the preview: {left} are left "
                f"(expected were {clock(self.estimate['seconds'])} in all)"
            )
        self.estimate = {}
