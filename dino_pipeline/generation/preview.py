"""What a run would write and take: some texts with and without debiasing, an estimate, and a watch that it holds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from pydantic import Field, JsonValue

from dino_pipeline.decoding.engine import LocalEngine
from dino_pipeline.files import record_json, write_bytes
from dino_pipeline.generate_options import PreviewOptions
from dino_pipeline.generation.engines import local_engine
from dino_pipeline.generation.plan import open_inputs, resolve_settings
from dino_pipeline.generation.preview_texts import PreviewText, preview_texts
from dino_pipeline.generation.shard_writer import EngineWriter
from dino_pipeline.generation.trial import SECONDS, Estimate, measure
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, clock, reporter_for
from dino_pipeline.record_base import Record
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import GenerateSettings

SLOWDOWN = 0.3
"""Note a run that is slower than its estimate by more than this share."""
MIN_TEXTS = 200
"""Texts that a run must have written before its speed is compared with the estimate."""


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
        mean = fmean(debiased)
        labels = self.spec.labels.values()
        share = sum(bool(label.counter_labels) for label in labels) / len(labels)  # of the texts that are debiased
        # a round is a proposal and its scores; in the end, the server spells the text out
        requests = self.estimate.texts * (share * (2 * mean + 1) + 1 - share)
        return RejectionPrice(mean, round(requests))


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
        asked, seconds = estimate_key(settings), round(estimate.seconds, 1)
        stored = StoredEstimate(asked=asked, seconds=seconds, per_second=estimate.per_second)
        write_bytes(Run(chosen.run).estimate, record_json(stored))
    return Preview(task, texts, estimate)


def estimate_key(settings: GenerateSettings) -> dict[str, JsonValue]:
    """Return what an estimate depends on: it holds for runs of the same key only."""
    names = {"spec", "engine", "model", "num_inputs", "samples", "best_of", "sampling"}
    key: dict[str, JsonValue] = settings.model_dump(mode="json", include=names, exclude={"model": {"chat_date"}})
    return key


class StoredEstimate(Record):
    """The content of estimate.json."""

    asked: dict[str, JsonValue]
    """See `estimate_key`."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    per_second: float = Field(ge=0, allow_inf_nan=False)


class SpeedMonitor:
    """A reporter that notes once if a run is much slower than its estimate, and passes everything on to another.

    Args:
        reporter: the other.
        run: whose folder may hold an estimate.
        key: of the run, see `estimate_key`.
    """

    def __init__(self, reporter: Reporter, run: Run, key: Mapping[str, JsonValue]) -> None:
        self.reporter, self.note, self.should_stop = reporter, reporter.note, reporter.should_stop
        self.estimate: StoredEstimate | None = None
        with contextlib.suppress(OSError, ValueError):  # without an intact estimate nothing is compared
            stored = StoredEstimate.model_validate_json(run.estimate.read_bytes())
            self.estimate = stored if stored.asked == dict(key) else None
        self.start: tuple[float, int] | None = None
        """Time and number of texts at the first update."""

    def update(self, progress: Progress) -> None:
        """Pass the update on; compare the speed once there are enough texts."""
        self.reporter.update(progress)
        if progress.title != "texts" or not self.estimate:
            return
        now = time.monotonic()
        written = progress.done - progress.resumed
        if self.start is None:
            self.start = now, written
        started, written_before = self.start
        done = written - written_before
        if done < max(MIN_TEXTS, progress.total // 10) or now - started < SECONDS:
            return
        rate, expected = done / (now - started), self.estimate.per_second
        if rate < (1 - SLOWDOWN) * expected:
            left = clock((progress.total - progress.done) / rate)
            self.note(
                f"{rate:.1f} texts a second, {expected:.1f} were measured by the preview: {left} are left "
                f"(expected were {clock(self.estimate.seconds)} in all)"
            )
        self.estimate = None
