"""How the filter stage's time and memory grow, from 1 to 10 million pairs.

    python -m benchmarks.filtering [--pairs 1000000 --pairs 10000000]

Synthetic pairs (two texts an input and label, three labels; 1 % each are copies up to case, swapped pairs under another
label, and inputs with one letter changed) are written to a temporary folder; then `dino filter` runs on them in a
process of its own: once without near-duplicates and random pairs, and once as it is. Memory is the resident memory of
that process and its children, together, every 50 ms.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np

from benchmarks.common import dino_watched, machine
from dino_pipeline.progress import table

WORDS = 20_000
LABELS = (1.0, 0.5, 0.0)
SAMPLES = 2
SHARE = 0.01
"""Of each kind of fault."""
WAYS = {
    "exact rules": ("--near-duplicates", "0", "--random-pairs", "0"),
    "all, with near-duplicates": (),
}
PIECE = 30_000
"""Inputs a file of the synthetic data."""


def vocabulary() -> list[str]:
    """Return made-up words of 2 to 9 letters."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    return ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(WORDS)]


def write_part(path: Path, first: int, inputs: int) -> None:
    """Write the pairs of some inputs."""
    rng, words = np.random.default_rng(first), vocabulary()

    def sentences() -> Iterator[str]:
        while True:
            for length in rng.integers(6, 14, 1000).tolist():
                yield " ".join([words[at] for at in rng.integers(0, WORDS, length)]).capitalize() + "."

    texts, before, said, said_label = sentences(), "", "", 0.0
    with open(path, "w") as file:
        for number in range(first, first + inputs):
            chance = rng.random(2 + len(LABELS) * SAMPLES)
            text_a = next(texts)
            if before and chance[0] < SHARE:
                text_a = before[:-2] + "x."
            before = text_a
            for at in range(len(LABELS) * SAMPLES):
                label, sample = LABELS[at // SAMPLES], at % SAMPLES
                pair = (text_a, next(texts), label)
                if chance[at + 1] < SHARE and at:
                    pair = (text_a, said.upper(), said_label)
                elif chance[at + 1] < 2 * SHARE and at:
                    pair = (said, text_a, 1.0 if said_label != 1.0 else 0.0)
                _, said, said_label = pair
                margin, logprob = rng.normal(0.3, 0.3), rng.normal(-2, 0.5)
                fields = zip(("text_a", "text_b", "label"), pair, strict=True)
                rest = {"logprob": round(logprob, 3), "margin": round(margin, 3), "input": number, "sample": sample}
                file.write(json.dumps({**dict(fields), **rest}) + "\n")


def write_pairs(folder: Path, pairs: int, workers: int) -> Path:
    """Write so many pairs into one JSONL file."""
    inputs = pairs // (len(LABELS) * SAMPLES)
    path = folder / f"{pairs}.jsonl"
    with ProcessPoolExecutor(workers) as pool:
        firsts = list(range(0, inputs, PIECE))
        parts = [folder / f"part-{first:09d}" for first in firsts]
        list(pool.map(write_part, parts, firsts, (min(PIECE, inputs - first) for first in firsts)))
    with open(path, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
            part.unlink()
    return path


@click.command()
@click.option("--pairs", "sizes", multiple=True, type=int, default=(1_000_000, 10_000_000), show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write.  [default: a temporary folder]")
def main(sizes: tuple[int, ...], workers: int, folder: Path | None) -> None:
    """Measure the filter stage."""
    click.echo(f"{machine()}, {workers} workers; s, MB at most, times the smallest size's seconds a pair")
    found: dict[str, dict[int, tuple[float, float]]] = {what: {} for what in WAYS}
    with tempfile.TemporaryDirectory(dir=folder, prefix="filtering-") as name:
        for size in sizes:
            data = write_pairs(Path(name), size, workers)
            for what, options in WAYS.items():
                call = ("filter", data, "--run", Path(name) / "run", "--fresh", "--workers", str(workers))
                found[what][size] = dino_watched(*call, *options)
                click.echo(f"{size:,} {what}: {found[what][size][0]:.1f} s, {found[what][size][1]:.0f} MB", err=True)
            data.unlink()
    rows = []
    for what, of_size in found.items():
        first = of_size[sizes[0]][0] / sizes[0]
        for size, (seconds, peak) in of_size.items():
            rows.append([f"{size:,} pairs, {what}", f"{seconds:.1f}", f"{peak:.0f}", f"{seconds / size / first:.2f}"])
    click.echo(table(["", "s", "MB", "per pair"], rows))


if __name__ == "__main__":
    main()
