"""dino verify: whether a published folder is what was published."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dino_pipeline.cli.base import HUB_ID, command
from dino_pipeline.errors import OptionError


@click.command()
@click.argument("target", metavar="REPO|FOLDER")
@click.option("--model", "is_model", is_flag=True, help="REPO is a model's, not a dataset's.")
@click.option("--revision", metavar="REVISION", help="Of the REPO.")
@command
def verify(target: str, is_model: bool, revision: str | None) -> None:
    """Check hashes and counts of a dataset or model that dino publish made, and say whether the same commands would
    make the same dataset here. Exit code 1 if something is not as it was published."""
    from dino_pipeline.hub.check import check
    from dino_pipeline.hub.upload import download

    folder = Path(target)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(target):
            raise OptionError(f"{target}: is no folder here, and no user/name; give one of them")
        folder = download(target, "model" if is_model else "dataset", revision)
    checked = check(folder)
    manifest = checked.manifest
    for wrong in checked.wrong:
        click.echo(wrong)
    rows = f", {sum(manifest.rows.values())} rows" if manifest.rows else ""
    if not checked.wrong:
        click.echo(f"{target}: {len(manifest.files)} files{rows}: all as published")
    if manifest.dataset:
        commit = f", commit {manifest.dataset['commit']}" if manifest.dataset.get("commit") else ""
        click.echo(f"trained on {manifest.dataset['repository']}{commit}")
    if checked.other:
        click.echo(f"A rerun may differ: {'; '.join(checked.other)}")
    else:
        click.echo("A rerun with the same options, on the same kind of machine, is the same.")
    if checked.wrong:
        sys.exit(1)
