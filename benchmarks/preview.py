"""Is a preview's estimate right? Each time a preview and then the run itself, as processes of their own.

    python -m benchmarks.preview [--times 3] [--num-inputs 134]

The bar is an estimate within 30 % of the wall time of a run of 2,000 samples.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.common import SPEC, dino, machine
from dino_pipeline.progress import table


@click.command()
@click.option("--times", default=3, show_default=True)
@click.option("--num-inputs", default=134, show_default=True)
def main(times: int, num_inputs: int) -> None:
    """Print estimates beside real times."""
    rows = []
    for _ in range(times):
        with TemporaryDirectory() as folder:
            job = (SPEC, "--run", folder, "--num-inputs", num_inputs)
            previewed, real = dino("preview", *job), dino("generate", *job)
            estimate = json.loads((Path(folder) / "estimate.json").read_text())["seconds"]
        rows.append([f"{estimate:.1f}", f"{real:.1f}", f"{estimate / real:.2f}", f"{previewed:.1f}"])
    click.echo(machine())
    click.echo(table(["estimated s", "real s", "ratio", "the preview took"], rows))


if __name__ == "__main__":
    main()
