"""What sentences without labels give: from a file of them to one table on STS-B dev, in Markdown.

    python -m benchmarks.real --models FOLDER --data FOLDER [--spec NAME --inputs N --seeds N --objective NAME]
    python -m benchmarks.real --models pocket --inputs 200 --seeds 1 --steps 20    # a try, in a minute

Word overlap and the encoder before training come first, as it is and whitened; then the encoder trained by each
objective. If that has in-batch negatives and reads no token states, the encoder is also whitened at the end. Objectives
that learn from sentences get all of them, the others the generated pairs. Token weights and whitening are fitted to a
sample of the sentences. Token embeddings are frozen. Each step is a run in --folder and is not done again. Encoders
stay there; those with a score may be deleted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import click

import dino_pipeline as dino
from benchmarks.common import distinct_sentences, timed
from dino_pipeline import pocket
from dino_pipeline.delimited_files import read_tab_separated
from dino_pipeline.evaluation.suites.suite import WORD_OVERLAP
from dino_pipeline.files import digest_files, write_bytes, write_json
from dino_pipeline.input_texts import distinct
from dino_pipeline.json_files import read_json_lines
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.models import load_encoder
from dino_pipeline.text_files import read_lines
from dino_pipeline.training.objectives import get_objective
from dino_pipeline.training.whitening import weigh, whiten

SENTENCES, DEV = "stsb-train-sentences.txt", "stsb-dev.tsv"
SETTINGS: dict[str, dict[str, Any]] = {
    "simcse-sup": {"batch_size": 20},
    "mirror-bert": {"batch_size": 40, "learning_rate": 5e-5},
}
"""Settings other than an objective's defaults: small batches for two cores."""
FITTED = 1500
"""Sentences that an encoder is whitened by if it is not trained."""
POCKET_RATE = 2e-3
"""Learning rate of the pocket encoder."""
GET_GENERATOR = "Gemma 3 270M is on the Hub (google/gemma-3-270m): agree to its terms, and download it into this folder"
GET_ENCODER = "any encoder will do, or the generator's first layers: load it with fewer num_hidden_layers, and save it"
GET_DATA = (
    "STS-B is on the Hub (sentence-transformers/stsb): write the sentences of its training part into "
    f"{SENTENCES}, one a line, and its dev part into {DEV}: with tabs, score in column 5, texts in columns 6 and 7"
)
Result = dict[str, Any]
"""What a step found: ``minutes``; ``spearman`` x 100, or a ``summary`` of texts, or why it was ``refused``."""
Pairs = list[tuple[str, str, float]]


def existing(path: Path, remedy: str) -> Path:
    """Return a path, which must be there."""
    if not path.exists():
        raise click.ClickException(f"{path}: is not there; {remedy}")
    return path


def read_data(folder: Path, of_pocket: bool, inputs: int) -> tuple[list[str], Pairs, str]:
    """Return the sentences, each once, the dev pairs with scores from 0 to 1, and a digest of the files."""
    if of_pocket:
        gold = [(row["text_a"], row["text_b"], row["label"]) for _, row in read_json_lines(pocket.GOLD_DEV)]
        return distinct_sentences(2 * inputs), gold, digest_files([pocket.GOLD_DEV])
    sentences, dev = existing(folder / SENTENCES, GET_DATA), existing(folder / DEV, GET_DATA)
    lines = distinct(line.strip() for line in read_lines(sentences))
    pairs = [(row[5], row[6], float(row[4]) / 5) for _, row in read_tab_separated(dev) if len(row) > 6]
    return [line for line in lines if line], pairs, digest_files([sentences, dev])


def claim(folder: Path, choices: Result) -> None:
    """Record in a folder what its steps are made with. It must not hold steps that were made with something else."""
    file = folder / "choices.json"
    before = json.loads(file.read_text()) if file.exists() else choices
    if others := [f"{name} {before.get(name)}" for name in choices if before.get(name) != choices[name]]:
        raise click.ClickException(f"{folder}: holds steps with {', '.join(others)}; name another with --folder")
    write_json(file, choices)


def kept(file: Path, work: Callable[[], Result]) -> Result:
    """Return the result of a step. It is done if its file is not there. A refusal is tried again in the next call."""
    if not file.exists():
        try:
            seconds, result = timed(work)
        except (dino.DataError, dino.ModelError, dino.OptionError) as error:
            return {"refused": str(error).replace("|", "/")}
        write_json(file, {"minutes": seconds / 60, **result})
    return dict(json.loads(file.read_text()))


def score(encoder: Any, dev: Pairs) -> Result:
    """Return the Spearman x 100 of an encoder in memory, and of word overlap."""
    scores = dino.evaluate(encoder, data={"dev": dev})
    return {"spearman": scores.value("spearman"), "overlap": scores.value("spearman", model=WORD_OVERLAP)}


def starts(folder: Path, encoder: str, sentences: Sequence[str], dev: Pairs) -> dict[str, Result]:
    """Score what needs no training."""
    before = kept(folder / "untrained.json", lambda: score(load_encoder(encoder), dev))
    whitened = kept(folder / "whitened.json", lambda: score(without_training(encoder, sentences), dev))
    overlap = {**before, "spearman": before.get("overlap"), "minutes": 0.0}
    return {"word overlap": overlap, "untrained": before, "untrained, whitened": whitened}


def without_training(encoder: str, sentences: Sequence[str]) -> Any:
    """Return an encoder with token weights and whitening alone, both fitted to a sample of the sentences."""
    texts = random.Random(0).sample(sentences, min(FITTED, len(sentences)))
    return whiten(weigh(load_encoder(encoder).float(), texts), texts)


def write(run: Path, **options: Any) -> Result:
    """Write and filter the pairs, and say in a line what became of them."""
    return {"summary": f"{dino.generate(run=run, **options).summary}; {dino.filter(run).summary}"}


def train(cell: Path, source: object, dev: Pairs, **options: Any) -> Result:
    """Train and score an encoder."""
    encoder = dino.finetune(source, run=cell, pooling="mean", **options)
    return {**score(encoder, dev), "minutes": encoder.dino.record.seconds / 60}


def line(name: str, learns_from: str, results: Sequence[Result]) -> str:
    """Return the line of the table with the results of all seeds."""
    if refused := [each["refused"] for each in results if "refused" in each]:
        return f"| {name} | {learns_from} | refused: {refused[0]} | | |"
    values = [each["spearman"] or 0.0 for each in results]  # None: all embeddings are the same
    spread = f"{min(values):.1f} .. {max(values):.1f}" if len(values) > 1 else ""
    minutes = fmean(each["minutes"] for each in results)
    return f"| {name} | {learns_from} | {fmean(values):.1f} | {spread} | {minutes:.1f} |"


@click.command()
@click.option("--models", type=click.Path(path_type=Path), required=True, help="A folder, or pocket.")
@click.option("--generator", default="gemma-3-270m", show_default=True, help="A folder in --models.")
@click.option("--encoder", default="gemma-enc-6", show_default=True, help="A folder in --models.")
@click.option("--data", type=click.Path(path_type=Path), default=Path(), help="A folder; pocket models need none.")
@click.option("--spec", help="Default: sts-few-shot; sts-x2, which the pocket model knows, with that.")
@click.option("--inputs", default=400, show_default=True)
@click.option("--samples", default=2, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Trainings of each kind; the texts are the same.")
@click.option("--steps", default=40, show_default=True, help="Of each training.")
@click.option("--objective", "objectives", multiple=True, default=("dino", "triplets", "mirror-bert"))
@click.option("--folder", type=click.Path(path_type=Path), default=Path("outputs/real"), show_default=True)
def main(models: Path, data: Path, folder: Path, objectives: Sequence[str], **asked: Any) -> None:
    """Measure, and write the table to --folder."""
    of_pocket = models == Path("pocket")
    generator, encoder = pocket.GENERATOR, pocket.ENCODER
    if not of_pocket:
        generator = existing(models / asked["generator"], GET_GENERATOR)
        encoder = existing(models / asked["encoder"], GET_ENCODER)
    sentences, dev, digest = read_data(data, of_pocket, asked["inputs"])
    inputs = random.Random(42).sample(sentences, min(asked["inputs"], len(sentences)))
    texts = {"spec": asked["spec"] or ("sts-x2" if of_pocket else "sts-few-shot"), "samples": asked["samples"]}
    training = {"steps": asked["steps"], "freeze_embeddings": True}
    training |= {"learning_rate": POCKET_RATE} if of_pocket else {}
    choices: Result = {path.name: model_fingerprint(str(path)) for path in (generator, encoder)}
    choices |= {"data": digest, "inputs": len(inputs), **texts, **training}
    claim(folder, choices | {"fitted": FITTED, "settings": SETTINGS})

    made_with = ", ".join(f"{name} {value}" for name, value in choices.items())
    head = [f"Spearman x 100 on {len(dev)} dev pairs; mean pooling; {made_with}.", ""]
    lines = ["| training | learns from | mean | range | minutes |", "|---|---|---|---|---|"]
    lines += [line(name, "", [result]) for name, result in starts(folder, str(encoder), sentences, dev).items()]
    chosen = [get_objective(name) for name in objectives]
    run = folder / "texts"
    if any(objective.needs != "sentences" for objective in chosen):
        written = kept(folder / "texts.json", lambda: write(run, model=str(generator), inputs=inputs, **texts))
        head.insert(1, written.get("refused") or f"{written['minutes']:.1f} minutes for {written['summary']}.")
    for objective in chosen:
        name, source = objective.name, sentences if objective.needs == "sentences" else run
        options = {**SETTINGS.get(name, {}), **training, "encoder": str(encoder), "objective": name}
        if objective.in_batch_negatives and not objective.reads_token_states:
            name += ", whitened"
            options |= {"whiten": "end", "sentences": None if source is sentences else sentences}
        results = []
        for seed in range(1, asked["seeds"] + 1):
            cell = folder / f"{objective.name}-{seed}"
            results.append(kept(cell / "dev.json", partial(train, cell, source, dev, seed=seed, **options)))
        lines.append(line(name, objective.needs, results))
    table = "\n".join([*head, *lines, ""])
    write_bytes(folder / "table.md", table.encode())
    click.echo(table)


if __name__ == "__main__":
    main()
