"""dino report: a run on one page."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from dino_pipeline.cli.base import command
from dino_pipeline.cli.candidates import candidates_of


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
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
    from dino_pipeline.console import Console
    from dino_pipeline.errors import RunError
    from dino_pipeline.report.page import report as write_report
    from dino_pipeline.run import Run

    run = Run(path)
    if not run.is_run:
        raise RunError(f"{path}: is no run; name a folder that dino generate or dino filter wrote")
    trained = run.stage("finetune").get("status") == "done"
    named = encoders or ([str(path)] if trained else [])
    candidates = [each for target in named for each in candidates_of(target, alone=True)]
    with contextlib.closing(Console()) as console, run.locked():
        written = write_report(run, candidates, console)
    size = written.page.stat().st_size / 1e6
    click.echo(f"{written.page}: {size:.1f} MB; {len(written.pictures)} pictures in {run.pictures}")
    for title, reason in written.missing:
        click.echo(f"left out: {title}: {reason}")
