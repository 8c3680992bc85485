"""What a report is made from: a run's records and texts, and what is to be said where something is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dino_pipeline.evaluation.candidates import Candidate
from dino_pipeline.progress import Reporter
from dino_pipeline.public import public
from dino_pipeline.report.blocks import Missing
from dino_pipeline.report.texts_of_run import TextsOfRun, in_order
from dino_pipeline.run import Run

MOST_LABELS = 12
"""Labels that pictures and samples show; there are more in few datasets."""


@dataclass(frozen=True)
class Material:
    """What a report is made from."""

    run: Run
    texts: TextsOfRun
    candidates: Sequence[Candidate]
    """Encoders that show how labels lie apart."""
    reporter: Reporter
    shows_dropped: bool = True
    """Whether samples show what was dropped."""

    @cached_property
    def records(self) -> dict[str, Any]:
        """What run.json holds."""
        found: dict[str, Any] = public(self.run.records())
        return found

    def stage(self, name: str) -> dict[str, Any]:
        """Return a finished stage's record.

        Raises:
            Missing: it has not been carried out to its end.
        """
        found: dict[str, Any] = self.records.get(name, {})
        if found.get("status") != "done":
            raise Missing(f"dino {name} has not {'ended' if found else 'run'}")
        return found

    def kept(self) -> dict[str, int]:
        """Return how many texts of each label the filter kept.

        Raises:
            Missing: there are none.
        """
        if counts := self.texts.counts("kept"):
            return counts
        self.stage("filter")
        raise Missing("the filter kept nothing")

    def labels(self, table: str = "kept") -> list[str]:
        """Return the labels that are shown: the most frequent ones."""
        counts = self.texts.counts(table)
        return in_order(sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS])
