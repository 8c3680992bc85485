"""Whether a run goes as fast as a preview measured."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from dino_pipeline.progress import Progress, Watch
from dino_pipeline.run import Run

LONG_ENOUGH = 6.0
"""Seconds of writing that tell how fast it is."""
DEVIATION = 0.3
"""A run that is so much slower than what was measured is told of."""
LEAST_SEEN = 200


class Expected:
    """Tells once if a run is much slower than what a preview measured."""

    def __init__(self, watch: Watch, run: Run, asked: Mapping[str, Any], shown: Callable[[float], str]) -> None:
        """Look for an estimate of the same job in the run's folder.

        Args:
            watch: is told what it would be told without this.
            run: whose folder.
            asked: what identifies the job.
            shown: writes seconds as people read them.
        """
        self.watch, self.shown = watch, shown
        self.found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):  # none, or damaged: nothing to compare with
            found = json.loads(run.estimate.read_text(encoding="utf-8"))
            self.found = found if found.get("asked") == json.loads(json.dumps(asked)) else {}
        self.begun: tuple[float, int] | None = None

    def note(self, message: str) -> None:
        """Pass it on."""
        self.watch.note(message)

    def stopping(self) -> bool:
        """Pass it on."""
        return self.watch.stopping()

    def progress(self, progress: Progress) -> None:
        """Pass it on, and compare the rate so far."""
        self.watch.progress(progress)
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
            left = self.shown((progress.total - progress.done) / rate)
            self.note(
                f"{rate:.1f} texts a second, {expected:.1f} were measured by dino preview: {left} are left "
                f"(expected were {self.shown(self.found['seconds'])} in all)"
            )
        self.found = {}
