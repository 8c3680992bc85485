"""What a stage reports while it runs, and how that is shown: a bar, plain lines, tables."""

from __future__ import annotations

import copy
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dino_pipeline.display import console_cell, escape_html, log_may_be_lost, say, spelt
from dino_pipeline.errors import PYTHON, OptionError, Wording, worded
from dino_pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass
class LabelCount:
    """Counts of one label's texts so far."""

    total: int = 0
    """Texts to write in all; 0 if that is not known."""
    prompts: int = 1
    """Under which each text is written."""
    resumed: int = 0
    """Of the texts written, those of an earlier call."""
    written: int = 0
    accepted: int = 0
    tokens: int = 0
    """Of the texts that this call wrote, with those that closed them."""
    margin_sum: float = 0.0
    margins: int = 0
    rejected_in_a_row: int = 0
    next_warning: int = 30
    """Rejected texts in a row at which to warn; each warning doubles it."""

    def add(self, other: LabelCount) -> None:
        """Add the counts of texts written elsewhere."""
        self.written += other.written
        self.accepted += other.accepted
        self.tokens += other.tokens
        self.margin_sum += other.margin_sum
        self.margins += other.margins

    @property
    def mean_margin(self) -> float | None:
        """Mean margin of the accepted texts. None without counter-labels."""
        return self.margin_sum / self.margins if self.margins else None


ENOUGH_TEXTS = 8
"""Texts of a label whose mean number of tokens is believed."""


def no_counts(labels: Iterable[str]) -> dict[str, LabelCount]:
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

    def seconds_left(self, elapsed: float) -> float | None:
        """Return how long the rest takes, None before that can be told.

        Labels differ in what a text costs: its tokens, once for each prompt. So the rest of each label counts by what
        its texts cost so far, where the labels' totals are known; else all items count alike.

        Args:
            elapsed: seconds in which all but the resumed items were done.
        """
        here, left = self.done - self.resumed, self.total - self.done
        if here <= 0 or left <= 0:
            return None
        costs = self._costs()
        if costs is None:
            return elapsed * left / here
        counts = self.labels
        done = sum((counts[label].written - counts[label].resumed) * cost for label, cost in costs.items())
        missing = {label: max(counts[label].total - counts[label].written, 0) for label in costs}
        rest = sum(missing[label] * cost for label, cost in costs.items())
        # some of the missing ones are done already: inputs that were left out
        rest *= left / max(sum(missing.values()), left)
        return elapsed * rest / done if done else None

    def _costs(self) -> dict[str, float] | None:
        """Return a text's tokens under all prompts by label, None if that is not known."""
        written = {label: count.written - count.resumed for label, count in self.labels.items()}
        tokens = sum(count.tokens for count in self.labels.values())
        if not (tokens and sum(written.values())) or not all(count.total for count in self.labels.values()):
            return None
        costs = {}
        for label, count in self.labels.items():
            is_known = written[label] >= ENOUGH_TEXTS
            mean = count.tokens / written[label] if is_known else tokens / sum(written.values())
            costs[label] = count.prompts * mean
        return costs


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
        """Take what a user should know at once, from any thread; ``remedy`` is a template of `errors.worded`."""

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
        self.lock = threading.RLock()

    def update(self, progress: Progress) -> None:
        self._call(copy.deepcopy(progress))  # the stage goes on to change its own

    def note(self, message: str, remedy: str = "") -> None:
        """Pass the note on, options written as Python arguments."""
        self._call(full_note(message, remedy, PYTHON))

    def should_stop(self) -> bool:
        return self.stopped

    def _call(self, event: Progress | str) -> None:
        with self.lock:  # notes come from several threads
            if self.callback(event) is False:
                self.stopped = True


def full_note(message: str, remedy: str, wording: Wording) -> str:
    """Return a note with its remedy, options written for one kind of caller."""
    return f"{message}; {worded(remedy, wording)}" if remedy else message


FIRST_SIGN, PLAIN_EVERY = 4.0, 10.0
"""Seconds without a sign after which a console tells what goes on, at first and later."""
TICK = 0.5
"""Seconds between two looks at whether that is due."""


class Console:
    """A `Reporter` that shows progress and notes on standard error.

    Whatever the work is, no more than `PLAIN_EVERY` seconds pass without a sign.

    Args:
        should_stop: returns whether the user asked to stop.
        wording: how notes write options.
        running: seconds for which the program has been running without a sign.
    """

    def __init__(
        self, should_stop: Callable[[], bool] = lambda: False, wording: Wording = PYTHON, *, running: float = 0.0
    ) -> None:
        self.should_stop = should_stop
        self.wording = wording
        self.bar: tqdm | None = None
        self.title = ""
        self.last_line = ""
        self.activity = "starting"
        self.latest: Progress | None = None
        self.started = self.last_time = time.monotonic() - running
        self.has_shown = False
        """Whether there was any sign."""
        self.lock = threading.RLock()
        self._closed = threading.Event()
        threading.Thread(target=_tick, args=(weakref.ref(self), self._closed), daemon=True).start()

    def doing(self, activity: str) -> None:
        """Take what goes on from now, until the next progress; it is shown if it takes long, and stops at once."""
        with self.lock:
            self._close_bar()
            self.activity, self.title, self.latest = activity, "", None
            self.started = time.monotonic()
        if isinstance(self.should_stop, StopRequest):
            self.should_stop.end_polling()

    def update(self, progress: Progress) -> None:
        """Draw the bar, or print a line if the last one is some seconds old."""
        with self.lock:
            if progress.title != self.title:
                self._close_bar()
                self.title, self.last_line = progress.title, ""
                self.started = time.monotonic()
            self.latest = progress
            if sys.stderr.isatty():
                self._draw(progress)
            elif progress.done >= progress.total or time.monotonic() - self.last_time >= PLAIN_EVERY:
                self._print_line(progress)

    def note(self, message: str, remedy: str = "") -> None:
        line = f"note: {full_note(message, remedy, self.wording)}"
        with self.lock:
            if self.bar is None:
                say(line, err=True)
            else:
                with log_may_be_lost():
                    self.bar.write(spelt(line), file=sys.stderr)

    def close(self) -> None:
        """Stop showing anything, and leave the bar on the screen."""
        self._closed.set()
        with self.lock:
            self._close_bar()
            self.title, self.latest = "", None

    def _close_bar(self) -> None:
        if self.bar is not None:
            with log_may_be_lost():
                self.bar.close()
            self.bar = None

    def tick(self) -> None:
        """Show what goes on if there was no sign of it for long."""
        with self.lock:
            now = time.monotonic()
            if self._closed.is_set() or now - self.last_time < (PLAIN_EVERY if self.has_shown else FIRST_SIGN):
                return
            self.last_time, self.has_shown = now, True
            if self.bar is not None:
                with log_may_be_lost():
                    self.bar.refresh()  # the time on it goes on
            elif self.latest is not None:
                self._print_line(self.latest, is_sign=True)
            else:
                say(f"{self.activity}: {clock(now - self.started)}", err=True)

    def _draw(self, progress: Progress) -> None:
        from tqdm import tqdm

        title, details = spelt(progress.title), ", ".join(filter(None, [self._left(progress), _details(progress)]))
        with log_may_be_lost():
            if self.bar is None:
                self.bar = tqdm(initial=progress.resumed, desc=title, dynamic_ncols=True, bar_format=BAR)
            self.bar.total = progress.total
            self.bar.set_postfix_str(details, refresh=False)
            self.bar.update(progress.done - self.bar.n)

    def _left(self, progress: Progress) -> str:
        """Return the time that is left in words, nothing if it is not known."""
        seconds = progress.seconds_left(time.monotonic() - self.started)
        return "" if seconds is None else f"{clock(seconds)} left"

    def _print_line(self, progress: Progress, *, is_sign: bool = False) -> None:
        """Print a line; one that says the same as the last one only if it is a sign that work goes on."""
        self.last_time, self.has_shown = time.monotonic(), True
        elapsed = self.last_time - self.started
        rate = max(progress.done - progress.resumed, 0) / max(elapsed, 1e-6)
        left, details = self._left(progress), _details(progress)
        done = f"{progress.title}: {progress.done}/{progress.total}"
        shown = f"{done}, {rate:.1f}/s" if rate else f"{done}, {clock(elapsed)}"
        shown += (f", {left}" if left else "") + (f"; {details}" if details else "")
        if is_sign or done + details != self.last_line:
            self.last_line = done + details
            say(shown, err=True)


def _tick(console: weakref.ref[Console], closed: threading.Event) -> None:
    """Let a console show a sign in time, until it is closed or nobody uses it any more."""
    while not closed.wait(TICK):
        if (watched := console()) is None:
            return
        watched.tick()
        del watched


BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
"""The bar of `tqdm` without its own estimate of the time left, which counts all items alike."""


@contextmanager
def doing(reporter: Reporter, activity: str) -> Iterator[None]:
    """Tell a reporter what goes on inside the block, if it shows such things (`Console` does)."""
    if not isinstance(reporter, Console):
        yield
        return
    reporter.doing(activity)
    try:
        yield
    finally:
        reporter.doing("working")


def _details(progress: Progress) -> str:
    """Return each label's accepted share and mean margin, and the extra: ``1 99%, 0.5 97% (+0.31)``."""
    labels = [f"{console_cell(label)} {_share(count)}" for label, count in progress.labels.items() if count.written]
    return ", ".join([*labels, *([spelt(progress.extra)] if progress.extra else [])])


def _share(count: LabelCount) -> str:
    margin = "" if count.mean_margin is None else f" ({count.mean_margin:+.2f})"
    return f"{count.accepted / max(count.written, 1):.0%}{margin}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header, the first column aligned left, the others right; cells are made fit for a console."""
    header, *rows = [[console_cell(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def table_html(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a small table for a notebook, every cell escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape_html(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<p>{escape_html(title)}</p><table>{line('th', header)}{body}</table>"


@contextmanager
def reporter_for(progress: bool | Callable[[Progress | str], object] | Reporter) -> Iterator[Reporter]:
    """Give the reporter that a caller asked for.

    Args:
        progress: True shows progress on standard error, False shows nothing; a function is called with each `Progress`
            and each note (a string), and may return False to stop; a `Reporter` is used as it is.

    Raises:
        OptionError: it is none of these.
    """
    if progress is True:
        with closing(Console()) as console:
            yield console
    elif progress is False:
        yield SilentReporter()
    elif callable(progress):
        yield CallbackReporter(progress)
    elif all(hasattr(progress, method) for method in ("update", "note", "should_stop")):
        yield progress
    else:
        raise OptionError("must be True, False, a function or a Reporter", option="progress", value=progress)
