"""What a stage reports while it runs. Whoever called it decides how that is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from dino_pipeline.errors import PYTHON, Wording, worded


@dataclass
class LabelCount:
    """Counts of one label's texts so far."""

    written: int = 0
    accepted: int = 0
    margin_sum: float = 0.0
    margins: int = 0
    rejected_in_a_row: int = 0
    next_warning: int = 30
    """Rejected texts in a row at which to warn; each warning doubles it."""

    def add(self, other: LabelCount) -> None:
        """Add the counts of texts written elsewhere."""
        self.written += other.written
        self.accepted += other.accepted
        self.margin_sum += other.margin_sum
        self.margins += other.margins

    @property
    def mean_margin(self) -> float | None:
        """Mean margin of the accepted texts. None without counter-labels."""
        return self.margin_sum / self.margins if self.margins else None


def no_counts(labels: Iterable[str]) -> dict[str, LabelCount]:
    """Return a zero count for each label."""
    return {label: LabelCount() for label in labels}


@dataclass
class Progress:
    """How far a stage is."""

    title: str
    total: int
    done: int = 0
    resumed: int = 0
    """Items that an earlier call had finished."""
    labels: dict[str, LabelCount] = field(default_factory=dict)
    extra: str = ""
    """Anything else worth showing, in a few words."""


def clock(seconds: float) -> str:
    """Return a duration in the unit that people would use."""
    if seconds < 90:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Reporter(Protocol):
    """Follows a stage: the one channel through which the library tells a user something."""

    def update(self, progress: Progress) -> None:
        """Take how far the stage is; called after every text or step, and once at the end."""

    def note(self, message: str, remedy: str = "") -> None:
        """Take what a user should know at once; ``remedy`` is a template of `errors.worded`."""

    def should_stop(self) -> bool:
        """Return whether the user asked to stop; called where work can be ended without loss."""


class SilentReporter:
    """A reporter that shows nothing and never stops."""

    def update(self, progress: Progress) -> None:
        """Show nothing."""

    def note(self, message: str, remedy: str = "") -> None:
        """Say nothing."""

    def should_stop(self) -> bool:
        """Return False."""
        return False


class CallbackReporter:
    """A reporter that hands everything to one function: a `Progress`, or a note as a string.

    Args:
        callback: the function. The stage stops where it can without loss once it returns ``False`` (not ``None``).
    """

    def __init__(self, callback: Callable[[Progress | str], object]) -> None:
        self.callback = callback
        self.stopped = False

    def update(self, progress: Progress) -> None:
        """Pass the state on."""
        self._call(progress)

    def note(self, message: str, remedy: str = "") -> None:
        """Pass the note on, options written as Python arguments."""
        self._call(full_note(message, remedy, PYTHON))

    def should_stop(self) -> bool:
        """Return whether the function has returned ``False``."""
        return self.stopped

    def _call(self, event: Progress | str) -> None:
        if self.callback(event) is False:
            self.stopped = True


def full_note(message: str, remedy: str, wording: Wording) -> str:
    """Return a note with its remedy, options written for one kind of caller."""
    return f"{message}; {worded(remedy, wording)}" if remedy else message
