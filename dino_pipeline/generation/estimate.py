"""What a preview estimates that a run will take, and whether the run is as fast."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from dino_pipeline.files import write_json
from dino_pipeline.progress import Progress, Reporter, clock
from dino_pipeline.run import Run
from dino_pipeline.stage_records import GenerateSettings

LONG_ENOUGH = 6.0
"""Seconds of writing that suffice to measure its speed."""
SLOWDOWN = 0.3
"""Note a run that is slower than its estimate by more than this share."""
MIN_TEXTS = 200
"""Texts that a run must have written before its speed is compared with the estimate."""


def estimate_key(settings: GenerateSettings) -> dict[str, JsonValue]:
    """Return what an estimate depends on: it holds for runs of the same key only."""
    names = {"spec", "model", "num_inputs", "samples", "best_of", "sampling"}
    return settings.model_dump(mode="json", include=names)


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

    def write(self, run: Run, key: Mapping[str, JsonValue]) -> None:
        """Store it in a run's folder, for `SpeedMonitor`."""
        write_json(run.estimate, {"asked": key, "seconds": round(self.seconds, 1), "per_second": self.per_second})


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
        """Pass the update on. Once there are enough texts, note if they take much longer than the preview found."""
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
