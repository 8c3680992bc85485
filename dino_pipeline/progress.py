"""What a stage tells while it runs; the command line decides how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class LabelCount:
    """What became of one label's texts so far."""

    written: int = 0
    accepted: int = 0
    margin_sum: float = 0.0
    margins: int = 0
    rejected_in_a_row: int = 0
    next_warning: int = 30
    """So many rejected texts in a row are worth a warning; each warning doubles it."""

    def add(self, other: LabelCount) -> None:
        """Add another's texts, written elsewhere."""
        self.written += other.written
        self.accepted += other.accepted
        self.margin_sum += other.margin_sum
        self.margins += other.margins

    @property
    def mean_margin(self) -> float | None:
        """Mean margin of the accepted texts; None without counter-labels."""
        return self.margin_sum / self.margins if self.margins else None


def no_counts(labels: Iterable[str]) -> dict[str, LabelCount]:
    """Return each label's count before there are texts."""
    return {label: LabelCount() for label in labels}


@dataclass
class Progress:
    """How far generation is."""

    title: str
    total: int
    done: int = 0
    resumed: int = 0
    """Samples that an earlier run had finished."""
    labels: dict[str, LabelCount] = field(default_factory=dict)
    extra: str = ""
    """What else there is to say, in a few words."""


def clock(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Watch(Protocol):
    """Follows a stage."""

    def progress(self, progress: Progress) -> None:
        """Called after every text, and once at the end."""

    def note(self, message: str) -> None:
        """Called with what a user should know at once."""

    def stopping(self) -> bool:
        """Asked where work can well be ended: whether somebody wants it to."""


class Unseen:
    """A watch that shows nothing."""

    def progress(self, progress: Progress) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def stopping(self) -> bool:
        """Nobody can ask."""
        return False
