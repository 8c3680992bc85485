"""What a report of many pairs costs: seconds, memory and the size of the page.

    python -m benchmarks.report [--pairs 200000]

Synthetic pairs are put into a run as if they had been written, and filtered; then `dino report` runs in a process of
its own, with the pocket encoder to show similarities.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.common import SPEC, dino, dino_watched, machine
from benchmarks.filtering import LABELS, SAMPLES, write_part
from dino_pipeline.console import table
from dino_pipeline.files import write_json
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run, Stage
from dino_pipeline.spec_file import load_spec


def make_run(run: Run, pairs: int, *filtering: str) -> None:
    """Write a run that looks as if its pairs had been generated, and filter it with these options."""
    inputs = pairs // (len(LABELS) * SAMPLES)
    run.shards.mkdir(parents=True)
    write_part(run.shards / "00000.jsonl", 0, inputs)
    spec = load_spec(SPEC)
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    with run.locked():
        options: dict[str, Any] = {"spec": spec.digest, "model": "none", "revision": None, "fingerprint": None}
        options |= {"dtype": "float32", "samples": SAMPLES, "num_inputs": inputs, "seed": 0}
        options["sampling"] = Sampling().model_dump()
        run.begin(Stage("generate", options, outputs=[run.spec, run.shards]))
        counts = {label: {"written": pairs // len(LABELS), "accepted": pairs // len(LABELS)} for label in spec.labels}
        run.finish("generate", task=spec.task_name, label_type="score", inputs=inputs, counts=counts, mean_margins={})
    dino("filter", run.path, *filtering)


@click.command()
@click.option("--pairs", default=200_000, show_default=True)
def main(pairs: int) -> None:
    """Measure the real command."""
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        make_run(run, pairs)
        kept = dict(json.loads(run.record_file.read_text())["filter"]["funnel"])["train"]
        seconds, memory = dino_watched("report", run.path, "--encoder", "pocket")
        size = run.report.stat().st_size / 1e6
    row = [f"{pairs}", f"{sum(count for _, count in kept)}", f"{seconds:.1f}", f"{memory:.0f}", f"{size:.2f}"]
    click.echo(machine())
    click.echo(table(["pairs", "in train", "seconds", "MB of memory", "MB of page"], [row]))


if __name__ == "__main__":
    main()
