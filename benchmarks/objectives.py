"""What objectives cost: Mirror-BERT's time, IS-CSE's steps beside SimCSE's, cpt's memory with cached gradients.

    python -m benchmarks.objectives [--part mirror --part steps --part memory]

On sentences of the pocket grammar and the pocket encoder (2 layers of 128). Steps are measured side by side, in turns.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
import transformers

from dino_pipeline import pocket
from dino_pipeline.console import table
from dino_pipeline.pocket.corpus import shard_sentences
from dino_pipeline.run import Run
from dino_pipeline.training.encoders import load_encoder
from dino_pipeline.training.objectives import Recipe, get_objective
from dino_pipeline.training.objectives.is_cse import Memory

PARTS = ("mirror", "steps", "memory")
ROUNDS = 40


def distinct_sentences(count: int) -> list[str]:
    """Return sentences of the grammar, all different."""
    found: dict[str, None] = {}
    shard = 0
    while len(found) < count:
        found.update(dict.fromkeys(shard_sentences(11, shard, count)))
        shard += 1
    return list(found)[:count]


def mirror() -> None:
    """Time the real command on 10,000 sentences, 500 more held out, with the paper's 50 steps."""
    with TemporaryDirectory() as folder:
        texts, run = Path(folder) / "sentences.txt", Run(Path(folder) / "run")
        texts.write_text("\n".join(distinct_sentences(10_500)))
        command = [sys.executable, "-m", "dino_pipeline", "finetune", str(texts), "--run", str(run.path)]
        started = time.monotonic()
        subprocess.run([*command, "--objective", "mirror-bert"], check=True, capture_output=True)
        whole = time.monotonic() - started
        stage = run.stage("finetune")
    rows = [[str(stage["train"]), str(stage["steps"]), f"{stage['seconds']:.1f}", f"{whole:.1f}"]]
    click.echo(table(["Mirror-BERT, sentences", "steps", "seconds of training", "of the whole command"], rows))


def stepper(name: str, batch_size: int) -> Callable[[], Any]:
    """Return what takes one step of an objective's training, as the trainer takes it."""
    objective = get_objective(name)
    model = load_encoder(str(pocket.ENCODER))
    model.max_seq_length = objective.defaults.max_length
    training = replace(objective.defaults, batch_size=batch_size)
    loss = objective.loss(model, Recipe(training, model.tokenizer, 1, steps=1000))
    for memory in (each for each in loss.modules() if isinstance(each, Memory)):
        memory.push(torch.nn.functional.normalize(torch.randn(len(memory.entries), memory.entries.shape[1])))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-5)
    texts = distinct_sentences(batch_size)
    model.train()

    def step() -> None:
        loss([model.preprocess(texts) for _ in range(2)], None).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps() -> None:
    """Time IS-CSE's steps with a full memory beside SimCSE's."""
    rows = []
    for batch_size in (64, 256):
        names = ("simcse", "is-cse")
        taken: dict[str, list[float]] = {name: [] for name in names}
        of_name = {name: stepper(name, batch_size) for name in names}
        for turn in range(ROUNDS + 3):
            for name in names if turn % 2 else names[::-1]:
                started = time.perf_counter()
                of_name[name]()
                if turn >= 3:
                    taken[name].append(time.perf_counter() - started)
        first, second = (statistics.median(taken[name]) for name in names)
        ratio = statistics.median(b / a for a, b in zip(*(taken[name] for name in names), strict=True))
        rows.append([str(batch_size), f"{1000 * first:.1f}", f"{1000 * second:.1f}", f"{ratio:.3f}"])
    click.echo(table(["rows a step", "SimCSE ms", "IS-CSE ms", "ratio"], rows))


def memory() -> None:
    """Take two steps of cpt with a batch of 4,096 pairs, alone in this process, and say what memory it took."""
    objective = get_objective("cpt")
    model = load_encoder(str(pocket.ENCODER), pooling="lasttoken")
    training = replace(objective.defaults, batch_size=4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    loss = objective.loss(model, Recipe(training, model.tokenizer, 1, steps=2))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-5)
    texts = distinct_sentences(8192)
    model.train()
    started = time.monotonic()
    for _ in range(2):
        loss([model.preprocess(texts[:4096]), model.preprocess(texts[4096:])], None).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = (time.monotonic() - started) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [["4096", str(training.mini_batch_size), f"{peak:.2f}", f"{before:.2f}", f"{seconds:.1f}"]]
    click.echo(table(["cpt, pairs a step", "encoded at once", "peak GiB", "GiB before", "seconds a step"], rows))


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
def main(parts: tuple[str, ...]) -> None:
    """Measure; each part in a process of its own."""
    transformers.logging.set_verbosity_error()
    if len(parts) > 1:
        for part in parts:
            subprocess.run([sys.executable, "-m", "benchmarks.objectives", "--part", part], check=True)
        return
    {"mirror": mirror, "steps": steps, "memory": memory}[parts[0]]()


if __name__ == "__main__":
    main()
