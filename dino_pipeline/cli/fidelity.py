"""dino evaluate --suite pocket-generation: what generators write, graded by the pocket grammar."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dino_pipeline.cli.base import pick_device
from dino_pipeline.console import Console, table
from dino_pipeline.errors import OptionError
from dino_pipeline.models import model_path

if TYPE_CHECKING:
    from dino_pipeline.evaluation.fidelity import Summary

SUITE = "pocket-generation"


def evaluate_generators(
    models: Sequence[str], output: Path | None, *, seeds: Sequence[int], num_inputs: int, samples: int
) -> None:
    """Measure each generator, print a table a generator, and write all rows, seed by seed, if told where."""
    from dino_pipeline.decoding.loading import Generator, load_decoder, pick_dtype
    from dino_pipeline.evaluation.fidelity import measure, summarise
    from dino_pipeline.examples import write_json
    from dino_pipeline.run import Run

    if runs := [model for model in models if Run(Path(model)).is_run]:
        raise OptionError(f"{runs[0]}: is a run; suite {SUITE} takes generators, by folder or Hub id")
    results, seeds = [], list(dict.fromkeys(seeds))
    device = pick_device(None)
    for model in models:
        generator = Generator(model_path(model, "generator"))
        decoder = load_decoder(replace(generator, dtype=pick_dtype(generator, device=device)), device=device)
        with closing(Console()) as console:
            found = [
                quality
                for seed in seeds
                for quality in measure(decoder, console, seed=seed, num_inputs=num_inputs, samples=samples)
            ]
        results.append({"model": model, "qualities": [asdict(quality) for quality in found]})
        listed = ", ".join(map(str, seeds))
        click.echo(f"{model}: {num_inputs} inputs, {samples} texts per input and label, seeds {listed}")
        click.echo(_table(summarise(found)))
    if output:
        write_json(output, {"suite": SUITE, "num_inputs": num_inputs, "samples": samples, "models": results})


def _table(summaries: Sequence[Summary]) -> str:
    from dino_pipeline.evaluation.fidelity import MEASURES

    rows = [
        [
            summary.label if summary.label == "inputs" else f"label {summary.label}",
            "-" if summary.decay is None else "off" if summary.decay == 0 else f"{summary.decay:g}",
            *(_value(summary.values[name]) for name in MEASURES),
        ]
        for summary in summaries
    ]
    return table(["texts", "decay", "stopped", "parsed", "novel", "distinct-2", "strict fidelity", "mean gold"], rows)


def _value(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "-"
    mean, spread = found
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"
