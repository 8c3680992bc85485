"""How much time and memory does a report of many pairs take, and how large is the page?

    python -m benchmarks.report [--pairs 200000]

The run holds synthetic pairs, filtered. `dino report` runs in a process of its own, with the pocket encoder.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.common import SPEC, dino, dino_watched, machine, settings_of
from benchmarks.filtering import LABELS, SAMPLES, write_part
from dino_pipeline.files import write_json
from dino_pipeline.funnel import Funnel
from dino_pipeline.progress import table
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import GenerateRecord, LabelTotals


def make_run(run: Run, pairs: int, *filtering: str) -> None:
    """Write a run that looks as if its pairs had been generated, and filter it with these options."""
    inputs = pairs // (len(LABELS) * SAMPLES)
    run.shards.mkdir(parents=True)
    write_part(run.shards / "00000.jsonl", 0, inputs)
    spec = load_spec(SPEC)
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    options = settings_of(spec, "none", samples=SAMPLES, num_inputs=inputs, seed=0)
    of_label = LabelTotals(written=pairs // len(LABELS), accepted=pairs // len(LABELS))
    made = {"task": spec.task_name, "label_type": "score", "inputs": inputs}
    with run.locked():
        run.finish(GenerateRecord(options=options, counts=dict.fromkeys(spec.labels, of_label), **made))
    dino("filter", run.path, *filtering)


@click.command()
@click.option("--pairs", default=200_000, show_default=True)
def main(pairs: int) -> None:
    """Measure the real command."""
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        make_run(run, pairs)
        kept = Funnel.of(run.record().filter).total("train")
        seconds, memory = dino_watched("report", run.path, "--encoder", "pocket")
        size = run.report.stat().st_size / 1e6
    row = [f"{pairs}", f"{kept}", f"{seconds:.1f}", f"{memory:.0f}", f"{size:.2f}"]
    click.echo(machine())
    click.echo(table(["pairs", "in train", "seconds", "MB of memory", "MB of page"], [row]))


if __name__ == "__main__":
    main()
