"""Do time per kept pair and memory stay flat as a job grows?

    python -m benchmarks.growth [--texts 1000 --texts 10000 --texts 100000]

For each size, in a process of its own, the generate stage writes pairs with the pocket generator for a file of that
many inputs, five texts for each input and label. The sizes are measured upwards, then downwards, so that a machine that
becomes slower or faster meanwhile shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from benchmarks.common import SPEC, Memory, distinct_sentences, machine, settings_of, timed
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.generation.generate_stage import write_texts
from dino_pipeline.generation.shard_writer import EngineWriter
from dino_pipeline.input_texts import InputTexts
from dino_pipeline.models import ModelRef
from dino_pipeline.processes import peak_memory
from dino_pipeline.progress import Console, table
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec

SAMPLES = 5
WARM_UP = 20
"""Inputs written before the clock starts."""


def write(run: Run, decoder: Decoder, inputs: InputTexts, num_inputs: int) -> int:
    """Write the texts of so many inputs; return how many were kept."""
    spec, writer = load_spec(SPEC), EngineWriter(decoder)
    settings = settings_of(spec, samples=SAMPLES, num_inputs=num_inputs)
    _, record = write_texts(run, spec, lambda: writer, settings, Console(), inputs=inputs)
    return sum(count.accepted for count in record.counts.values())


def measure_here(folder: Path, num_inputs: int) -> dict[str, float]:
    """Return seconds, kept pairs and bytes of memory of one size."""
    decoder = load_decoder(ModelRef(name="pocket", dtype="float32"), device="cpu")
    inputs = InputTexts(folder / "inputs.txt", "text")
    write(Run(folder / f"warm-up-{num_inputs}"), decoder, inputs, WARM_UP)
    memory = Memory()
    memory.start()
    run = Run(folder / f"run-{num_inputs}-{time.time_ns()}")
    seconds, kept = timed(lambda: write(run, decoder, inputs, num_inputs))
    return {"seconds": seconds, "kept": kept, "grown": memory.stop(), "peak": peak_memory()}


def measure(folder: Path, num_inputs: int) -> dict[str, Any]:
    """Do the same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--inside", str(folder), "--inputs", str(num_inputs)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--texts", "sizes", multiple=True, type=click.IntRange(300), default=[1000, 10_000, 100_000])
@click.option("--inside", hidden=True, type=click.Path(path_type=Path))
@click.option("--inputs", "num_inputs", hidden=True, type=int)
def main(sizes: Sequence[int], inside: Path | None, num_inputs: int) -> None:
    """Print time per kept pair and peak memory for jobs of several sizes."""
    if inside:
        click.echo(json.dumps(measure_here(inside, num_inputs)))
        return
    click.echo(f"{machine()}; pocket generator, {SPEC.name}, {SAMPLES} texts for each input and label")
    sizes = sorted(sizes)
    labels = len(load_spec(SPEC).labels)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inputs.txt").write_text("\n".join(distinct_sentences(max(WARM_UP, sizes[-1] // (SAMPLES * labels)))))
        for size in [*sizes, *sizes[-2::-1]]:
            found[size].append(measure(folder, size // (SAMPLES * labels)))
    rows = []
    for size, results in found.items():
        each = [1000 * result["seconds"] / result["kept"] for result in results]
        memory = [f"{fmean(result[what] for result in results) / 1e6:.0f}" for what in ("grown", "peak")]
        times = " ".join(f"{one:.2f}" for one in each)
        rows.append([f"{size:,}", f"{results[0]['kept']:,.0f}", f"{fmean(each):.2f}", times, *memory])
    click.echo(table(["texts", "kept", "ms / kept pair", "each time", "MB grown", "peak MB"], rows))


if __name__ == "__main__":
    main()
