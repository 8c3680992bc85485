"""How much time and memory does it take to write millions of pairs as a dataset, and how large are the files?

    python -m benchmarks.publishing [--pairs 5000000]

The run holds synthetic pairs, filtered without the rule about near-duplicates and without random pairs.
`dino publish --dry-run` runs in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.common import dino_watched, machine
from benchmarks.report import make_run
from dino_pipeline.progress import table
from dino_pipeline.run import Run


@click.command()
@click.option("--pairs", default=5_000_000, show_default=True)
def main(pairs: int) -> None:
    """Measure the real command."""
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        make_run(run, pairs, "--near-duplicates", "0", "--random-pairs", "0")
        call = ("publish", run.path, "--repo", "me/pairs", "--dry-run", "--license", "cc0-1.0")
        seconds, memory = dino_watched(*call)
        files = sorted((run.hub / "dataset").rglob("*.parquet"))
        size = sum(path.stat().st_size for path in files) / 1e6
    click.echo(machine())
    row = [f"{pairs}", f"{seconds:.1f}", f"{memory:.0f}", f"{len(files)}", f"{size:.0f}"]
    click.echo(table(["pairs", "seconds", "MB of memory", "Parquet files", "MB of them"], [row]))


if __name__ == "__main__":
    main()
