"""Show stages to people: a progress bar on a terminal or in a notebook, plain lines elsewhere; tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from dino_pipeline.errors import PYTHON, Wording
from dino_pipeline.progress import CallbackReporter, LabelCount, Progress, Reporter, SilentReporter, clock, full_note

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_EVERY = 10.0
"""Seconds between two progress lines if there is no terminal."""


class Console:
    """A `Reporter` that shows progress and notes on standard error.

    Args:
        should_stop: returns whether the user asked to stop.
        wording: how notes write options.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False, wording: Wording = PYTHON) -> None:
        self.should_stop = should_stop
        self.wording = wording
        self.bar: tqdm | None = None
        self.title = ""
        self.last_line = ""
        self.started = self.last_time = time.monotonic()

    def update(self, progress: Progress) -> None:
        """Draw the bar, or print a line if the last one is some seconds old."""
        if progress.title != self.title:
            self.close()
            self.title, self.last_line = progress.title, ""
            self.started = self.last_time = time.monotonic()
        if sys.stderr.isatty():
            self._draw(progress)
        elif progress.done >= progress.total or time.monotonic() - self.last_time >= PLAIN_EVERY:
            self._print_line(progress)

    def note(self, message: str, remedy: str = "") -> None:
        """Print a note above the bar."""
        line = f"note: {full_note(message, remedy, self.wording)}"
        if self.bar is None:
            click.echo(line, err=True)
        else:
            self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Stop updating the bar and leave it on the screen."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _draw(self, progress: Progress) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(initial=progress.resumed, desc=progress.title, dynamic_ncols=True)
        self.bar.total = progress.total
        self.bar.set_postfix_str(_details(progress), refresh=False)
        self.bar.update(progress.done - self.bar.n)

    def _print_line(self, progress: Progress) -> None:
        """Print a line unless nothing has changed since the last one."""
        self.last_time = time.monotonic()
        rate = max(progress.done - progress.resumed, 0) / max(self.last_time - self.started, 1e-6)
        left = progress.total - progress.done
        ending = f", {clock(left / rate)} left" if rate and left else ""
        details = _details(progress)
        details = f"; {details}" if details else ""
        done = f"{progress.title}: {progress.done}/{progress.total}"
        if done + details != self.last_line:
            self.last_line = done + details
            click.echo(f"{done}, {rate:.1f}/s{ending}{details}", err=True)


def _details(progress: Progress) -> str:
    """Return each label's accepted share and mean margin, and the extra: ``1 99%, 0.5 97% (+0.31)``."""
    labels = [f"{label} {_share(count)}" for label, count in progress.labels.items() if count.written]
    return ", ".join([*labels, *([progress.extra] if progress.extra else [])])


def _share(count: LabelCount) -> str:
    margin = "" if count.mean_margin is None else f" ({count.mean_margin:+.2f})"
    return f"{count.accepted / max(count.written, 1):.0%}{margin}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header, the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


@contextmanager
def reporter_for(progress: bool | Callable[[Progress | str], object] | Reporter) -> Iterator[Reporter]:
    """Give the reporter that a caller asked for.

    Args:
        progress: True shows progress on standard error, False shows nothing; a function is called with each `Progress`
            and each note (a string), and may return False to stop; a `Reporter` is used as it is.
    """
    if progress is True:
        with closing(Console()) as console:
            yield console
    elif progress is False:
        yield SilentReporter()
    elif callable(progress):
        yield CallbackReporter(progress)
    else:
        yield progress
