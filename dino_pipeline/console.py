"""How stages are shown: a progress bar on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from dino_pipeline.progress import LabelCount, Progress, clock

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


class Console:
    """Shows progress on standard error.

    Args:
        stopping: whether somebody wants the work to be ended where it well can.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False) -> None:
        self.stopping = stopping
        self.bar: tqdm | None = None
        self.title = ""
        self.said = ""
        self.started = self.told = time.monotonic()

    def progress(self, progress: Progress) -> None:
        if progress.title != self.title:
            self.close()
            self.title, self.said = progress.title, ""
            self.started = self.told = time.monotonic()
        if sys.stderr.isatty():
            self._draw(progress)
        elif progress.done >= progress.total or time.monotonic() - self.told >= PLAIN_EVERY:
            self._say(progress)

    def note(self, message: str) -> None:
        if self.bar is None:
            click.echo(f"note: {message}", err=True)
        else:
            self.bar.write(f"note: {message}", file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
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

    def _say(self, progress: Progress) -> None:
        """Print a line, unless nothing has changed since the last."""
        self.told = time.monotonic()
        rate = max(progress.done - progress.resumed, 0) / max(self.told - self.started, 1e-6)
        left = progress.total - progress.done
        ending = f", {clock(left / rate)} left" if rate and left else ""
        details = _details(progress)
        details = f"; {details}" if details else ""
        done = f"{progress.title}: {progress.done}/{progress.total}"
        if done + details != self.said:
            self.said = done + details
            click.echo(f"{done}, {rate:.1f}/s{ending}{details}", err=True)


def _details(progress: Progress) -> str:
    """Return each label's accepted share and mean margin, or what else there is to say: ``1 99%, 0.5 97% (+0.31)``."""
    labels = [f"{label} {_share(count)}" for label, count in progress.labels.items() if count.written]
    return ", ".join([*labels, *([progress.extra] if progress.extra else [])])


def _share(count: LabelCount) -> str:
    margin = "" if count.mean_margin is None else f" ({count.mean_margin:+.2f})"
    return f"{count.accepted / max(count.written, 1):.0%}{margin}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
