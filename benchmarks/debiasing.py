"""The effect of the strength of debiasing: fidelity of the texts, and Spearman of an encoder trained on them.

    python -m benchmarks.debiasing [--decay 0 --decay 30] [--seed 1 --seed 2 --seed 3]

For each seed and decay, the commands generate, filter, finetune and evaluate run with the pocket models in
outputs/debiasing/. All decays of a seed have the same inputs. Finished runs are kept, so a stopped call resumes, and
calls for different seeds may run in parallel.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from statistics import fmean

import click

from benchmarks.common import SPEC, dino, gold_spearman
from dino_pipeline.examples import iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.progress import table
from dino_pipeline.run import Run
from tools.pocket.corpus import relation_holds
from tools.pocket.fidelity import LABELS
from tools.pocket.frames import similarity
from tools.pocket.reader import parse

TRAINING = ["--learning-rate", "2e-3", "--epochs", "3", "--batch-size", "128"]
GRADED_SHARDS = 4
"""Shards of each run that are graded, some thousand texts each."""
Result = dict[str, float]
"""Values of one run by name."""


def finish_run(folder: Path, seed: int, decay: float, num_inputs: int, samples: int) -> Run:
    """Run the stages that are not finished for one seed and decay."""
    run = Run(folder / f"seed-{seed}-decay-{decay:g}")
    size = ("--num-inputs", num_inputs, "--samples", samples)
    dino("generate", SPEC, "--run", run.path, "--seed", seed, "--decay", decay, *size)
    dino("filter", run.path)
    dino("finetune", run.path, "--seed", seed, *TRAINING)
    dino("evaluate", run.path)
    return run


def measure(run: Run) -> Result:
    """Return mean similarity, strict fidelity and readable share of each label, and gold Spearman x 100."""
    result: Result = {}
    examples = list(chain.from_iterable(map(iter_examples, shard_files(run.shards)[:GRADED_SHARDS])))
    for label, relation in LABELS.items():
        of_label = [example for example in examples if example.label == float(label)]
        frames = [(parse(example.text_a), parse(example.text_b or "")) for example in of_label]
        grades = [similarity(one, other) for one, other in frames if one and other]
        result[f"gold {label}"] = fmean(grades)
        result[f"strict {label}"] = sum(relation_holds(relation, grade) for grade in grades) / len(frames)
        result[f"parsed {label}"] = len(grades) / len(frames)
    scores = gold_spearman(run)
    return {**result, "before": scores["pocket before"], "after": scores["pocket finetuned"]}


def row(decay: float, results: list[Result]) -> list[str]:
    """Return a line of the table: means over seeds; for the trained encoder with the lowest and the highest value."""

    def mean(name: str, form: str = ".2f") -> str:
        return format(fmean(result[name] for result in results), form)

    after = [result["after"] for result in results]
    return [
        "off" if decay == 0 else f"{decay:g}",
        *(f"{mean(f'gold {label}')} / {mean(f'strict {label}')}" for label in LABELS),
        " ".join(mean(f"parsed {label}", ".3f") for label in LABELS),
        f"{mean('before', '.1f')} -> {mean('after', '.1f')} ({min(after):.1f} .. {max(after):.1f})",
    ]


@click.command()
@click.option("--decay", "decays", type=float, multiple=True, default=(0.0, 10.0, 30.0, 100.0), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2, 3), show_default=True)
@click.option("--num-inputs", default=8000, show_default=True)
@click.option("--samples", default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("outputs/debiasing"), show_default=True)
def main(decays: tuple[float, ...], seeds: tuple[int, ...], num_inputs: int, samples: int, folder: Path) -> None:
    """Compare strengths of debiasing."""
    results: dict[float, list[Result]] = {decay: [] for decay in decays}
    for seed in seeds:
        for decay in decays:
            result = measure(finish_run(folder, seed, decay, num_inputs, samples))
            results[decay].append(result)
            click.echo(f"seed {seed}, decay {decay:g}: Spearman {result['after']:.2f}", err=True)
    header = ["decay", *(f"label {label}: gold / strict" for label in LABELS), "parsed", "pocket gold, before -> after"]
    click.echo(f"{len(seeds)} seeds, {num_inputs} inputs, {samples} texts per input and label")
    click.echo(table(header, [row(decay, of_decay) for decay, of_decay in results.items()]))


if __name__ == "__main__":
    main()
