"""What verification and soft labels are worth: Spearman of an encoder trained on hard, smoothed and posterior labels.

    python -m benchmarks.soft_labels [--seed 1 --seed 2 --seed 3]

For each seed the real commands generate once with the pocket models, then filter, finetune and evaluate in every way,
in outputs/soft-labels/. What is there already is not done again, so a stopped call goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import fmean

import click

from benchmarks.common import SPEC, dino, gold_spearman
from dino_pipeline.funnel import Funnel
from dino_pipeline.progress import table
from dino_pipeline.run import Run

WAYS = {
    "hard": ["--labels", "hard"],
    "smoothed": ["--labels", "smoothed"],
    "posterior": ["--labels", "posterior"],
    "posterior, temperature 3": ["--labels", "posterior", "--temperature", "3"],
    "verified, hard": ["--verify", "--labels", "hard"],
    "verified, smoothed": ["--verify", "--labels", "smoothed"],
    "verified, posterior": ["--verify", "--labels", "posterior"],
}
TRAINING = ["--learning-rate", "2e-3", "--batch-size", "128", "--epochs", "5"]


def score(folder: Path, seed: int, way: str, num_inputs: int, samples: int) -> tuple[float, int]:
    """Return the pocket gold Spearman x 100 of one seed and way, and how many pairs of the generator's were kept."""
    texts = Run(folder / f"seed-{seed}")
    size = ("--num-inputs", num_inputs, "--samples", samples)
    dino("generate", SPEC, "--run", texts.path, "--seed", seed, *size)
    run = Run(folder / f"seed-{seed}-{way.replace(', ', '-').replace(' ', '-')}")
    if not run.path.exists():
        shutil.copytree(texts.path, run.path)
    dino("filter", run.path, *WAYS[way])
    if run.label_scores.exists() and not texts.label_scores.exists():
        shutil.copytree(run.label_scores, texts.label_scores)  # for the other ways
    dino("finetune", run.path, "--seed", seed, *TRAINING)
    dino("evaluate", run.path, "--suite", "pocket")
    kept = Funnel.of(run.record().filter).total("kept")
    return gold_spearman(run)["pocket finetuned"], kept


@click.command()
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2, 3), show_default=True)
@click.option("--num-inputs", default=1250, show_default=True)
@click.option("--samples", default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("outputs/soft-labels"), show_default=True)
def main(seeds: tuple[int, ...], num_inputs: int, samples: int, folder: Path) -> None:
    """Compare kinds of labels."""
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
    for seed in seeds:
        for way, scores in found.items():
            scores.append(score(folder, seed, way, num_inputs, samples))
            click.echo(f"seed {seed}, {way}: {scores[-1][0]:.2f}", err=True)
    click.echo(f"{len(seeds)} seeds, {num_inputs} inputs, {samples} texts per input and label")
    rows = []
    for way, scores in found.items():
        after, kept = zip(*scores, strict=True)
        spread = f"{min(after):.1f} .. {max(after):.1f}"
        rows.append([way, f"{fmean(kept):.0f}", f"{fmean(after):.1f}", spread])
    click.echo(table(["labels", "pairs", "Spearman x 100", "range"], rows))


if __name__ == "__main__":
    main()
