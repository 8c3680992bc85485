"""What the strength of debiasing is worth: fidelity of the texts, and Spearman of an encoder trained on them.

    python -m benchmarks.debiasing [--decay 0 --decay 30] [--seed 1 --seed 2 --seed 3]

For each seed and decay the real commands generate, filter, finetune and evaluate with the pocket models, in
outputs/debiasing/ (a seed's inputs are the same for all its decays). What is there already is not done again, so a
stopped call goes on, and calls for different seeds may run side by side.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import click

from benchmarks.common import SPEC, dino, gold_spearman
from dino_pipeline.console import table
from dino_pipeline.examples import iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.run import Run
from tools.pocket.corpus import relation_holds
from tools.pocket.fidelity import LABELS
from tools.pocket.frames import similarity
from tools.pocket.reader import parse

TRAINING = ["--learning-rate", "2e-3", "--epochs", "3", "--batch-size", "128"]
GRADED = 4
"""So many shards of each run are graded, of some thousand texts each."""
Found = dict[str, float]


def carry_out(folder: Path, seed: int, decay: float, num_inputs: int, samples: int) -> Run:
    """Do what is left to do for one seed and decay."""
    run = Run(folder / f"seed-{seed}-decay-{decay:g}")
    size = ("--num-inputs", num_inputs, "--samples", samples)
    dino("generate", SPEC, "--run", run.path, "--seed", seed, "--decay", decay, *size)
    dino("filter", run.path)
    dino("finetune", run.path, "--seed", seed, *TRAINING)
    dino("evaluate", run.path)
    return run


def look(run: Run) -> Found:
    """Return what a run came to: per label mean similarity and strict fidelity, and gold Spearman x 100."""
    found: Found = {}
    examples = [example for shard in shard_files(run.shards)[:GRADED] for example in iter_examples(shard)]
    for label, relation in LABELS.items():
        frames = [(parse(each.text_a), parse(each.text_b or "")) for each in examples if each.label == float(label)]
        grades = [similarity(one, other) for one, other in frames if one and other]
        found[f"gold {label}"] = fmean(grades)
        found[f"strict {label}"] = sum(relation_holds(relation, grade) for grade in grades) / len(frames)
        found[f"parsed {label}"] = len(grades) / len(frames)
    scores = gold_spearman(run)
    return {**found, "before": scores["pocket before"], "after": scores["pocket finetuned"]}


def row(decay: float, found: list[Found]) -> list[str]:
    """Return a line of the table: means over seeds, for the encoder with its lowest and highest."""

    def mean(name: str, form: str = ".2f") -> str:
        return format(fmean(each[name] for each in found), form)

    after = [each["after"] for each in found]
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
    found: dict[float, list[Found]] = {decay: [] for decay in decays}
    for seed in seeds:
        for decay in decays:
            found[decay].append(look(carry_out(folder, seed, decay, num_inputs, samples)))
            click.echo(f"seed {seed}, decay {decay:g}: Spearman {found[decay][-1]['after']:.2f}", err=True)
    header = ["decay", *(f"label {label}: gold / strict" for label in LABELS), "parsed", "pocket gold, before -> after"]
    click.echo(f"{len(seeds)} seeds, {num_inputs} inputs, {samples} texts per input and label")
    click.echo(table(header, [row(decay, each) for decay, each in found.items()]))


if __name__ == "__main__":
    main()
