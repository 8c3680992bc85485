"""dino filter: clean, de-duplicate, verify, balance and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import COMMAND_LINE, FOLDER, command
from dino_pipeline.cli.flags import GroupedCommand, flags
from dino_pipeline.console import Console, table
from dino_pipeline.errors import OptionError, worded
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.run import is_unpublished


@click.command("filter", cls=GroupedCommand)
@click.argument("source", metavar="RUN|FILE", required=False, type=FOLDER)
@click.option("--list", "list_rules", is_flag=True, help="Show the rules with these options, and leave.")
@command
@flags(FilterOptions)
def filter_command(source: Path | None, list_rules: bool = False, **given: Any) -> None:
    """Clean, de-duplicate, balance and split the texts of a RUN, or the examples of a JSONL FILE or DATASET."""
    from dino_pipeline.filtering.filter import filter

    if list_rules:
        _list_rules(FilterOptions.of(given))
        return
    if source is None:
        raise OptionError("nothing to filter", "give a run's folder or a JSONL file")
    if not given.keys() & {"run", "dry_run", "ablate"}:
        _require_run(source)
    result = filter(source, progress=Console(wording=COMMAND_LINE), **given)
    if result.outcome == "done" and result.run:
        click.echo(f"{result.run.path}: filtered data is up to date")
    funnel = result.funnel
    click.echo(table(funnel.header(), funnel.without_idle().rows(COMMAND_LINE)))
    if idle := funnel.idle_rules():
        click.echo(f"Nothing to drop for: {', '.join(idle)}.")
    for label, missing in result.missing:
        target = result.record.options.target_per_label
        click.echo(f"label {label}: {missing} of {target} are missing: dino generate --until-target")


def _require_run(source: Path) -> None:
    """Raise `OptionError` unless the source is a run, which is where the result is written."""
    if is_unpublished(source):
        return
    if not source.exists():
        raise OptionError(
            f"{source}: is not there",
            "give a run's folder or a JSONL file or, for a dataset on the Hub, {run=FOLDER} as well",
        )
    kind = "dataset" if source.is_dir() else "file"
    raise OptionError(f"{source}: is a {kind}", "name the folder to write with {run}")


def _list_rules(options: FilterOptions) -> None:
    from dino_pipeline.filtering.filter import rules

    described = [
        (rule.name, worded(rule.option, COMMAND_LINE), rule.help if rule.is_on else f"(off) {rule.help}")
        for rule in rules(options)
    ]
    name_width = max(len(name) for name, _, _ in described)
    option_width = max(len(option) for _, option, _ in described)
    for name, option, help in described:
        click.echo(f"{name:{name_width}}  {option:{option_width}}  {help}")
