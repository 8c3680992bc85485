"""What objectives cost: Mirror-BERT's time, IS-CSE's steps beside SimCSE's, cpt's memory, steps with less padding.

    python -m benchmarks.objectives [--part mirror --part steps --part memory --part padding]

On sentences of the pocket grammar and the pocket encoder (2 layers of 128); those without padding on texts of one to
six sentences and a random encoder (6 layers of 384). Steps are measured side by side, in turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.common import dino, distinct_sentences, timed
from dino_pipeline import pocket
from dino_pipeline.models import load_encoder
from dino_pipeline.processes import peak_memory
from dino_pipeline.progress import table
from dino_pipeline.run import Run
from dino_pipeline.training.objectives import TrainingContext, get_objective
from dino_pipeline.training.objectives.view_objectives import MemoryBuffer
from dino_pipeline.training.padding import rows_grouped_by_length

PARTS = ("mirror", "steps", "memory", "padding")
ROUNDS = 40


def mirror() -> None:
    """Time the real command on 10,000 sentences, 500 more held out, with the paper's 50 steps."""
    with TemporaryDirectory() as folder:
        texts, run = Path(folder) / "sentences.txt", Run(Path(folder) / "run")
        texts.write_text("\n".join(distinct_sentences(10_500)))
        whole = dino("finetune", texts, "--run", run.path, "--objective", "mirror-bert")
        record = run.record().finetune
    assert record is not None
    rows = [[str(record.train), str(record.steps), f"{record.seconds:.1f}", f"{whole:.1f}"]]
    click.echo(table(["Mirror-BERT, sentences", "steps", "seconds of training", "of the whole command"], rows))


def stepper(name: str, *columns: list[str], pooling: str = "mean") -> Callable[[], None]:
    """Return what takes one step of an objective's training on these texts, as the trainer takes it."""
    return stepper_of(load_encoder(str(pocket.ENCODER), pooling=pooling), name, *columns)


def stepper_of(model: SentenceTransformer, name: str, *columns: list[str]) -> Callable[[], None]:
    """Return the same for an encoder."""
    objective = get_objective(name)
    model.max_seq_length = objective.defaults.max_length or model.max_seq_length
    training = objective.defaults.updated(batch_size=len(columns[0]))
    loss = objective.loss(model, TrainingContext(training, model.tokenizer, 1, steps=1000))
    for memory in (each for each in loss.modules() if isinstance(each, MemoryBuffer)):
        memory.push(torch.nn.functional.normalize(torch.randn(len(memory.entries), memory.entries.shape[1])))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-5)
    model.train()

    def step() -> None:
        loss([model.preprocess(texts) for texts in columns], None).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps() -> None:
    """Time IS-CSE's steps with a full memory beside SimCSE's."""
    rows = []
    for batch_size in (64, 256):
        names = ("simcse", "is-cse")
        taken: dict[str, list[float]] = {name: [] for name in names}
        texts = distinct_sentences(batch_size)
        of_name = {name: stepper(name, texts, texts) for name in names}
        for turn in range(ROUNDS + 3):
            for name in names if turn % 2 else names[::-1]:
                seconds, _ = timed(of_name[name])
                if turn >= 3:
                    taken[name].append(seconds)
        first, second = (statistics.median(taken[name]) for name in names)
        ratio = statistics.median(b / a for a, b in zip(*(taken[name] for name in names), strict=True))
        rows.append([str(batch_size), f"{1000 * first:.1f}", f"{1000 * second:.1f}", f"{ratio:.3f}"])
    click.echo(table(["rows a step", "SimCSE ms", "IS-CSE ms", "ratio"], rows))


def memory() -> None:
    """Take two steps of cpt with a batch of 4,096 pairs, alone in this process, and say what memory it took."""
    texts = distinct_sentences(8192)
    step = stepper("cpt", texts[:4096], texts[4096:], pooling="lasttoken")
    before = peak_memory()
    seconds = min(timed(step)[0] for _ in range(2))
    mini = get_objective("cpt").defaults.mini_batch_size
    peaks = (f"{peak / 2**30:.2f}" for peak in (peak_memory(), before))
    rows = [["4096", f"{mini}", *peaks, f"{seconds:.1f}"]]
    click.echo(table(["cpt, pairs a step", "encoded at once", "peak GiB", "GiB before", "seconds a step"], rows))


def padding() -> None:
    """Time the steps of Mirror-BERT with rows grouped by length beside whole batches."""
    sentences, random = iter(distinct_sentences(2000)), Random(0)
    texts = [" ".join(islice(sentences, random.choice((1, 1, 1, 2, 2, 3, 6)))) for _ in range(64)]
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    taken: dict[bool, list[float]] = {False: [], True: []}
    with TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(pocket.ENCODER).save_pretrained(folder)
        model = load_encoder(folder)
    step = stepper_of(model, "mirror-bert", texts, texts)
    for turn in range(7):
        for grouped in (False, True) if turn % 2 else (True, False):
            with rows_grouped_by_length(model) if grouped else nullcontext():
                taken[grouped].append(timed(step)[0])
    whole, parted = (statistics.median(taken[grouped][1:]) for grouped in (False, True))
    ratio = statistics.median(a / b for a, b in zip(taken[False][1:], taken[True][1:], strict=True))
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    row = [f"{statistics.fmean(lengths):.0f}, at most {max(lengths)}", f"{whole:.2f}", f"{parted:.2f}", f"{ratio:.2f}"]
    click.echo(table(["tokens a text", "seconds, whole batch", "in groups", "ratio"], [row]))


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
def main(parts: tuple[str, ...]) -> None:
    """Measure; each part in a process of its own."""
    transformers.logging.set_verbosity_error()
    if len(parts) > 1:
        for part in parts:
            subprocess.run([sys.executable, "-m", "benchmarks.objectives", "--part", part], check=True)
        return
    {"mirror": mirror, "steps": steps, "memory": memory, "padding": padding}[parts[0]]()


if __name__ == "__main__":
    main()
