"""dino evaluate: score encoders on suites of data."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from dino_pipeline.cli.base import COMMAND_LINE, command
from dino_pipeline.cli.flags import GroupedCommand, flags
from dino_pipeline.console import Console
from dino_pipeline.evaluate_options import EvaluateOptions


@click.command("evaluate", cls=GroupedCommand)
@click.argument("targets", metavar="[RUN|MODEL]...", nargs=-1)
@command
@flags(EvaluateOptions)
def evaluate_command(targets: tuple[str, ...], **given: Any) -> None:
    """Score encoders: MODELs by folder or Hub id (id@revision), or a RUN's encoder before and after training. With
    several, differences from the first are given with their own intervals.

    The scores are written to scores.json in the RUN, or here.
    """
    from dino_pipeline.evaluation.candidates import is_run
    from dino_pipeline.evaluation.evaluate import evaluate

    if sum(map(is_run, targets)) != 1:
        given.setdefault("output", "scores.json")
    with closing(Console(wording=COMMAND_LINE)) as console:
        scores = evaluate(*targets, progress=console, **given)
    if scores.was_kept:
        click.echo(f"{scores.path and scores.path.parent}: scores are up to date")
    click.echo(scores)
    if "output" in given:
        click.echo(f"written: {scores.path}")
