"""dino finetune: train a bi-encoder."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import command, model_path, or_dash, run_or_file
from dino_pipeline.errors import OptionError


@click.command()
@click.argument("data", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--dev", "dev_file", type=click.Path(path_type=Path), help="Held-out JSONL, where DATA is a file.")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder to write, where DATA is a file.")
@click.option("--encoder", default="pocket", show_default=True, help="Folder or Hub id of the encoder to start from.")
@click.option("--revision", help="The encoder's revision on the Hub.")
@click.option("--objective", type=click.Choice(["dino"]), default="dino", show_default=True)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="[default: the objective's paper; dino 1]")
@click.option("--batch-size", type=click.IntRange(1), help="Over all processes.  [default: dino 32]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: dino 2e-5]")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: dino 0.01]")
@click.option("--warmup", type=click.FloatRange(0, 1), help="Share of the steps.  [default: dino 0.1]")
@click.option("--max-length", type=click.IntRange(1), help="Tokens a text is cut at.  [default: the encoder's]")
@click.option("--seed", default=42, show_default=True)
@click.option("--fresh", is_flag=True, help="Train again from the start.")
@command
def finetune(data: Path, dev_file: Path | None, run_path: Path | None, **options: Any) -> None:
    """Train a bi-encoder on a RUN's filtered data, or on a JSONL FILE; goes on from the last checkpoint."""
    from dino_pipeline.console import Console
    from dino_pipeline.encoders import load_encoder
    from dino_pipeline.finetune import finetune as run_finetune
    from dino_pipeline.objectives import get_objective
    from dino_pipeline.run import model_fingerprint

    run, file = run_or_file(data, run_path)
    if file is not None and dev_file is None:
        raise OptionError(f"{file}: is a file; say with --dev which pairs choose the best checkpoint")
    objective = get_objective(options["objective"])
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup", "max_length")
    given = {name: options[name] for name in names if options[name] is not None}
    path = model_path(options["encoder"], "ENCODER")
    console = Console()
    first_process = os.environ.get("RANK", "0") == "0"
    with run.locked() if first_process else contextlib.nullcontext():
        found = run_finetune(
            run,
            objective,
            replace(objective.defaults, **given),
            encoder={
                "encoder": options["encoder"],
                "revision": options["revision"],
                "fingerprint": model_fingerprint(path),
            },
            load=lambda: load_encoder(path, options["revision"]),
            train=file or run.train,
            dev=dev_file or run.dev,
            watch=console,
            seed=options["seed"],
            fresh=options["fresh"],
        )
    console.close()
    if first_process:
        said = "is up to date" if found.state == "done" else "is trained"
        click.echo(f"{run.model}: {said}; best dev Spearman x 100: {or_dash(found.dev_spearman, '.2f')}")
