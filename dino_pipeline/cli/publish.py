"""dino publish: a run as a dataset and a model on the Hugging Face Hub."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.again import commands
from dino_pipeline.cli.base import FOLDER, command
from dino_pipeline.cli.report import existing, write


def repository(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Return a repository's name, if it is one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if name is not None and "/" not in name:
            raise HFValidationError("give user/name")
        validate_repo_id(name or "none")
    except HFValidationError as error:
        raise click.BadParameter(f"{name!r} is no repository: {error}") from error
    return name


def license_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a licence's name, if it may be one."""
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", value):
        raise click.BadParameter(
            f"{value!r} is no licence as the Hub names them, such as cc-by-4.0; any other is: other"
        )
    return value


@click.command()
@click.argument("path", metavar="RUN", type=FOLDER)
@click.option("--repo", callback=repository, required=True, metavar="USER/NAME", help="The dataset's repository.")
@click.option(
    "--model-repo",
    callback=repository,
    metavar="USER/NAME",
    help="The encoder's repository.  [default: the dataset's name]",
)
@click.option(
    "--what",
    type=click.Choice(["dataset", "model", "both"]),
    help="What to publish.  [default: both, where an encoder is trained]",
)
@click.option(
    "--license",
    callback=license_id,
    metavar="ID",
    help="Of what is published, e.g. cc-by-4.0.  [default: the spec's, else the card's]",
)
@click.option("--no-raw", is_flag=True, help="Leave out what was written and what was dropped.")
@click.option("--widgets", is_flag=True, help="Put a few held-out pairs on the model's page, to try it with.")
@click.option("--private", is_flag=True, help="Make the repositories private.")
@click.option("--dry-run", is_flag=True, help="Write the folders, upload nothing.")
@click.option("--force", is_flag=True, help="Replace what this run did not make.")
@command
def publish(path: Path, **options: Any) -> None:
    """Write a RUN's dataset and encoder, with cards that tell how they were made, to RUN/hub, and upload them, each in
    one commit. What people wrote into the cards is kept.

    The token is the one that `hf auth login` stored, or HF_TOKEN.
    """
    run = existing(path)
    from dino_pipeline.hub.publish import Request  # takes its time
    from dino_pipeline.hub.publish import publish as publish_run

    with run.locked():
        report = partial(write, run, dropped=not options["no_raw"])
        publish_run(run, Request(**options), commands(run), report, click.echo)
