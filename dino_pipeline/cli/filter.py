"""dino filter: clean, de-duplicate, balance and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import command, run_or_file


@click.command("filter")
@click.argument("source", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder to write, where the source is a file.")
@click.option(
    "--max-per-text", type=click.IntRange(0), default=2, show_default=True, help="text_b per (text_a, label)."
)
@click.option("--balance/--no-balance", default=True, show_default=True, help="Cap labels at the smallest one's count.")
@click.option("--smoothing", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Label smoothing.")
@click.option("--random-pairs", type=click.IntRange(0), default=2, show_default=True, help="Added per text_a, label 0.")
@click.option(
    "--dev-share", type=click.FloatRange(0, 0.9), default=0.1, show_default=True, help="Share of the dev split."
)
@click.option(
    "--label-type",
    type=click.Choice(["score", "class"]),
    help="class: labels of a FILE are names, whatever they spell.  [default: score; of a RUN, its spec's]",
)
@click.option("--seed", default=42, show_default=True)
@click.option("--fresh", is_flag=True, help="Filter again with other options.")
@command
def filter_command(source: Path, run_path: Path | None, label_type: str | None, fresh: bool, **options: Any) -> None:
    """Clean, de-duplicate, balance and split the texts of a RUN, or the examples of a JSONL FILE."""
    from dino_pipeline.console import table
    from dino_pipeline.filters import FilterOptions, filter_run

    run, file = run_or_file(source, run_path)
    with run.locked():
        numeric = (label_type or (file is None and run.stage("generate").get("label_type"))) != "class"
        chosen = FilterOptions(**options)
        state, funnel = filter_run(run, chosen, source=file, numeric_labels=numeric, fresh=fresh)
    if state == "done":
        click.echo(f"{run.path}: filtered data is up to date")
    click.echo(table(funnel.header(), funnel.rows()))
