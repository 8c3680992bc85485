"""dino compare: every objective on the same texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import COMMAND_LINE, FOLDER, Grouped, command, options_of, parts_of, watching
from dino_pipeline.cli.finetune import (
    HYPERPARAMETERS,
    SOURCE_OPTIONS,
    TRAINING_OPTIONS,
    assignments,
    identity_of_encoder,
    load_to_train,
    texts_of,
)
from dino_pipeline.console import Console, table
from dino_pipeline.errors import OptionError
from dino_pipeline.evaluate_options import EvaluateOptions
from dino_pipeline.training.objectives import NAMES

if TYPE_CHECKING:
    from dino_pipeline.finetune_options import Hyperparameters
    from dino_pipeline.training.objective import Objective


@click.command(cls=Grouped)
@click.argument("data", metavar="RUN|FILE|DATASET")
@click.option("--objectives", default="all", show_default=True, metavar="NAME,...", help=f"Of {', '.join(NAMES)}.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each objective.")
@click.option("--seed", default=42, show_default=True, help="The first seed; the others follow it.")
@click.option("--run", "run_path", type=FOLDER, help="Folder to write.  [default: compare in the RUN]")
@click.option("--data", "data_files", multiple=True, metavar="FILE", help="JSONL of scored pairs.")
@click.option("--suite", type=click.Choice(["pocket"]), help="Evaluate on held-out pairs of the pocket grammar.")
@click.option(
    "--set",
    "own",
    multiple=True,
    metavar="OBJECTIVE:NAME=VALUE",
    callback=assignments,
    help="A hyper-parameter, or an option of its own, for one objective.",
)
@click.option("--fresh", is_flag=True, help="Train all again.")
@options_of(TRAINING_OPTIONS)
@options_of(SOURCE_OPTIONS)
@command
def compare(data: str, run_path: Path | None, data_files: Sequence[str], suite: str | None, **options: Any) -> None:
    """Train the same encoder by each objective on the same texts, evaluate it on the same sets, and print, save and
    draw one table. Finished cells are not done again.

    Hyper-parameters given here are for all objectives, those that are not given each objective's own.
    """
    from dino_pipeline.evaluation.compare import Plan, as_table, remarks, write_comparison
    from dino_pipeline.evaluation.compare import compare as run_compare
    from dino_pipeline.evaluation.evaluation_data import evaluation_sets
    from dino_pipeline.run import Run

    lenient = options["objectives"] == "all"
    names = NAMES if lenient else _names(options["objectives"])
    run, texts = texts_of(data, run_path, options)
    suites = [*(["pairs"] if data_files else []), *([suite] if suite else [])]
    of_pocket = options["encoder"] == "pocket"
    wanted = EvaluateOptions.of({"suite": suites, "data": data_files})
    with closing(Console(wording=COMMAND_LINE)) as console:
        sets = evaluation_sets(wanted, [Run(Path(data))], console, of_pocket=of_pocket)
    plan = Plan(
        folder=run.path if run_path else run.comparison,
        objectives=[_settled(name, options) for name in names],
        seeds=range(options["seed"], options["seed"] + options["seeds"]),
        encoder=identity_of_encoder(options),
        load=partial(load_to_train, options),
        texts=texts,
        sets=sets,
    )
    with watching("Saving a checkpoint") as console:
        rows = run_compare(plan, console, lenient=lenient, fresh=options["fresh"])
    files = write_comparison(plan, rows)
    header, *lines = as_table(rows, [each.name for each in plan.sets])
    click.echo(table(header, lines))
    for remark in remarks(rows):
        click.echo(remark)
    seeds = f"{options['seeds']} seed{'s' * (options['seeds'] > 1)}"
    click.echo(f"Spearman x 100, mean and range of {seeds}; written: {', '.join(map(str, files))}")


def _names(given: str) -> list[str]:
    names = parts_of(given)
    if not names:
        raise OptionError(f"--objectives {given!r}: names none; choose from {', '.join(NAMES)}, or all")
    if unknown := [name for name in names if name not in NAMES]:
        raise OptionError(f"--objectives {unknown[0]}: is none; choose from {', '.join(NAMES)}, or all")
    return names


def _settled(name: str, options: Mapping[str, Any]) -> tuple[Objective, Hyperparameters]:
    """Return an objective and its hyper-parameters: those for all, as far as it has them, and those for it alone."""
    from dino_pipeline.training.objective import get_objective, resolve_hyperparameters, rows_are_independent

    objective = get_objective(name)
    given = {each: options[each] for each in HYPERPARAMETERS if options[each] is not None}
    if not (objective.caches_gradients or rows_are_independent(objective, objective.defaults)):
        given.pop("mini_batch_size", None)
    if not objective.faithful:
        given.pop("faithful", None)
    own = {}
    for key, value in options["own"].items():
        of, colon, option = key.partition(":")
        if not colon or of not in NAMES:
            raise OptionError(f"--set {key}: give OBJECTIVE:NAME=VALUE")
        if of == name and option in HYPERPARAMETERS:
            given[option] = _parsed(option, value)
        elif of == name:
            own[option] = value
    return objective, resolve_hyperparameters(objective, given, own)


def _parsed(name: str, value: str) -> Any:
    """Return a hyper-parameter as the option of that name takes it."""
    context = click.get_current_context()
    option = next(each for each in context.command.params if each.name == name)
    return option.process_value(context, value)
