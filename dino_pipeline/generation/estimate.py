"""What a preview found a job to take, and whether the run goes as fast."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino_pipeline.files import write_json
from dino_pipeline.generation.plan import GenerateOptions
from dino_pipeline.progress import Progress, Reporter, clock
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec

LONG_ENOUGH = 6.0
"""Seconds of writing that tell how fast it is."""
DEVIATION = 0.3
"""A run that is so much slower than what was measured is told of."""
LEAST_SEEN = 200


def job(spec: TaskSpec, model: Mapping[str, Any], options: GenerateOptions) -> dict[str, Any]:
    """Return what identifies a job: an estimate holds for the same only."""
    much = {name: getattr(options, name) for name in ("num_inputs", "samples", "best_of")}
    return {"spec": spec.digest, "model": dict(model), **much, "sampling": options.sampling.model_dump()}


@dataclass(frozen=True)
class Estimate:
    """What a job will take, measured on a small part of it."""

    texts: int
    """To write in all."""
    per_second: float
    seconds: float
    """Of the whole job, inputs and loading included."""
    row_tokens: int
    """Tokens to compute: those of each text, once for every prompt it is written under."""
    memory: int
    """Bytes that the process took while it was measured, the device's among them."""
    accepted: Mapping[str, float]
    """Share of each label's texts."""
    margins: Mapping[str, float | None]
    tokens: float
    """Of a text, on average."""

    def write(self, run: Run, asked: Mapping[str, Any]) -> None:
        """Store it in a run's folder, for `Expected`."""
        write_json(run.estimate, {"asked": asked, "seconds": round(self.seconds, 1), "per_second": self.per_second})


class Expected:
    """Tells once if a run is much slower than what a preview measured."""

    def __init__(self, reporter: Reporter, run: Run, asked: Mapping[str, Any]) -> None:
        """Look for an estimate of the same job in the run's folder.

        Args:
            reporter: is told what it would be told without this.
            run: whose folder.
            asked: what identifies the job.
        """
        self.reporter, self.note, self.should_stop = reporter, reporter.note, reporter.should_stop
        self.found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):  # none, or damaged: nothing to compare with
            found = json.loads(run.estimate.read_text(encoding="utf-8"))
            self.found = found if found.get("asked") == json.loads(json.dumps(asked)) else {}
        self.begun: tuple[float, int] | None = None

    def update(self, progress: Progress) -> None:
        self.reporter.update(progress)
        if progress.title != "texts" or not self.found:
            return
        now = time.monotonic()
        if self.begun is None:
            self.begun = now, progress.done
        begun, first = self.begun
        done = progress.done - first
        if done < max(LEAST_SEEN, progress.total // 10) or now - begun < LONG_ENOUGH:
            return
        rate, expected = done / (now - begun), self.found["per_second"]
        if rate < (1 - DEVIATION) * expected:
            left = clock((progress.total - progress.done) / rate)
            self.note(
                f"{rate:.1f} texts a second, {expected:.1f} were measured by dino preview: {left} are left "
                f"(expected were {clock(self.found['seconds'])} in all)"
            )
        self.found = {}
