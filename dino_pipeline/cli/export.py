"""dino export: labelled pairs in the original DINO's format."""

from __future__ import annotations

from pathlib import Path

import click

from dino_pipeline.cli.base import FILE, command
from dino_pipeline.errors import DataError, OptionError


@click.command()
@click.argument("source", metavar="RUN|FOLDER|REPO")
@click.option("--output", type=FILE, required=True, help="The JSONL file to write.")
@click.option(
    "--split", type=click.Choice(["train", "validation"]), default="train", show_default=True, help="Which pairs."
)
@command
def export(source: str, output: Path, split: str) -> None:
    """Write a run's, or a published dataset's, examples as the original DINO's JSONL: text_a, text_b, label."""
    from dino_pipeline.files import write_json_lines
    from dino_pipeline.run import Run
    from dino_pipeline.training.corpus import Source

    run = Run(Path(source))
    path = run.train if split == "train" else run.dev
    if run.is_run and not path.exists():
        raise DataError(f"{path}: is not there; run dino filter {source} first")
    if Path(source).is_file() and split != "train":
        raise OptionError(f"--split {split}: {source} is a file and has no splits; leave it out")
    if output.exists() and (Run(output.parent).is_run or (Path(source).is_file() and output.samefile(source))):
        raise OptionError(f"{output}: is what would be read, or a file of a run; give another --output")
    classes = run.is_run and not run.numeric_labels
    examples = Source(str(path) if run.is_run else source, split=split, classes=classes).corpus.examples
    rows = ({"text_a": each.text_a, "text_b": each.text_b, "label": each.label} for each in examples)
    write_json_lines(output, rows)
    click.echo(f"{output}: {len(examples)} examples")
