"""The commands about encoders: finetune, compare and evaluate."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import COMMAND_LINE, command, watching
from dino_pipeline.cli.flags import GroupedCommand, flags
from dino_pipeline.encoder_options import OBJECTIVES, CompareOptions, EvaluateOptions, FinetuneOptions
from dino_pipeline.errors import OptionError
from dino_pipeline.progress import Console, table


@click.command("finetune", cls=GroupedCommand)
@click.argument("source", metavar="[RUN|FILE|DATASET]", required=False)
@click.option("--list", "listing", is_flag=True, help="List the objectives with what they need and their defaults.")
@command
@flags(FinetuneOptions)
def finetune_command(source: str | None, listing: bool, **given: Any) -> None:
    """Train a bi-encoder on a RUN's filtered data, a FILE (JSONL, or a sentence or document a line), or a DATASET of
    the Hub. A stopped training goes on from its last checkpoint.

    Hyper-parameters are those of the objective's paper unless given.
    """
    from dino_pipeline.measures import measure_title
    from dino_pipeline.training.finetune import finetune

    if listing:
        _list_objectives()
        return
    if source is None:
        raise OptionError("nothing to train on", "give a RUN, a FILE or a DATASET, or --list")
    folder = _folder(source, given)
    with watching("Saving a checkpoint") as console:
        encoder = finetune(source, progress=console, **given)
    if os.environ.get("RANK", "0") == "0":
        info = encoder.dino
        done = "is up to date" if info.state == "done" else "is trained"
        chosen = info.record.selection
        click.echo(f"{folder / 'model'}: {done}; best dev {measure_title(chosen.measure)}: {chosen.best:.2f}")


@click.command("compare", cls=GroupedCommand)
@click.argument("source", metavar="RUN|FILE|DATASET")
@command
@flags(CompareOptions)
def compare_command(source: str, **given: Any) -> None:
    """Train the same encoder by each objective on the same texts, evaluate it on the same sets, and print, save and
    draw one table. Finished trainings are not done again.

    Hyper-parameters given here are for all objectives, those that are not given each objective's own.
    """
    from dino_pipeline.evaluation.compare import compare

    _folder(source, given)
    with watching("Saving a checkpoint") as console:
        comparison = compare(source, progress=console, **given)
    click.echo(comparison)
    seeds = f"{len(comparison.seeds)} seed{'s' * (len(comparison.seeds) > 1)}"
    files = ", ".join(map(str, comparison.files))
    click.echo(f"Spearman x 100, mean and range of {seeds}; written: {files}")


def _folder(source: str, given: dict[str, Any]) -> Path:
    """Return the folder to write. A command keeps what it trains, so that it must have one."""
    from dino_pipeline.run import Run

    if "run" not in given and not Run(Path(source)).is_run:
        raise OptionError(f"{source}: is not a run", "name the folder to write with {run=FOLDER}")
    return Path(given.get("run", source))


def _list_objectives() -> None:
    from dino_pipeline.training.objectives import get_objective

    objectives = [get_objective(name) for name in OBJECTIVES]
    rows = []
    for objective in objectives:
        defaults = objective.defaults
        numbers = [f"{defaults.epochs:g}", str(defaults.batch_size), f"{defaults.learning_rate:g}"]
        rows.append([objective.name, objective.needs, *numbers, defaults.pooling])
    click.echo(table(["objective", "needs", "epochs", "batch", "rate", "pooling"], rows))
    for objective in objectives:
        click.echo(f"\n{objective.name}: {objective.method}\n  {objective.citation}")
        for name, field in objective.options.model_fields.items():
            click.echo(f"  --set {name}={field.default}: {field.description}")
        if not objective.options.model_fields:
            click.echo("  no options of its own")
        if objective.faithful:
            click.echo(f"  --faithful: {', '.join(f'{name}={value}' for name, value in objective.faithful.items())}")


@click.command("evaluate", cls=GroupedCommand)
@click.argument("targets", metavar="[RUN|MODEL]...", nargs=-1)
@command
@flags(EvaluateOptions)
def evaluate_command(targets: tuple[str, ...], **given: Any) -> None:
    """Score encoders: MODELs by folder or Hub id (id@revision), or a RUN's encoder before and after training. With
    several, differences from the first are given with their own intervals.

    The scores are written to scores.json in the RUN, or here.
    """
    from dino_pipeline.evaluation.evaluate import evaluate
    from dino_pipeline.training.training_texts import as_run

    if sum(as_run(target) is not None for target in targets) != 1:
        given.setdefault("output", "scores.json")
    with closing(Console(wording=COMMAND_LINE)) as console:
        scores = evaluate(*targets, progress=console, **given)
    if scores.was_kept:
        click.echo(f"{scores.path and scores.path.parent}: scores are up to date")
    click.echo(scores)
    if "output" in given:
        click.echo(f"written: {scores.path}")
