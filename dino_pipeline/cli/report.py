"""dino report: a run on one page."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dino_pipeline.cli.base import FOLDER, command
from dino_pipeline.console import Console
from dino_pipeline.errors import RunError

if TYPE_CHECKING:
    from dino_pipeline.report.page import Report
    from dino_pipeline.run import Run


@click.command()
@click.argument("path", metavar="RUN", type=FOLDER)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="MODEL",
    help="Encoder that shows how similar the texts of pairs are; several times.  [default: the run's, before and after "
    "training]",
)
@command
def report(path: Path, encoders: tuple[str, ...]) -> None:
    """Write report.html, a page that needs nothing else: prompts, funnel, balance, lengths, similarity, diversity,
    training, scores, samples and lineage of a RUN; and its pictures as PNG."""
    run = existing(path)
    with run.locked():
        written = write(run, encoders)
    size = run.report.stat().st_size / 1e6
    click.echo(f"{run.report}: {size:.1f} MB; {len(written.pictures)} pictures in {run.pictures}")
    for title, reason in written.missing:
        click.echo(f"left out: {title}: {reason}")


def existing(path: Path) -> Run:
    """Return the run that a folder is.

    Raises:
        RunError: it is none.
    """
    from dino_pipeline.run import Run

    run = Run(path)
    if not run.is_run:
        raise RunError(f"{path}: is no run; name a folder that dino generate or dino filter wrote")
    return run


def write(run: Run, encoders: Sequence[str] = (), *, dropped: bool = True) -> Report:
    """Write a run's report, with the run's own encoder where none are named."""
    from dino_pipeline.evaluation.candidates import candidates_of
    from dino_pipeline.report.page import report

    trained = run.stage("finetune").get("status") == "done"
    named = encoders or ([str(run.path)] if trained else [])
    candidates = [each for target in named for each in candidates_of(target, only_run=True)]
    with contextlib.closing(Console()) as console:
        return report(run, candidates, console, dropped=dropped)
