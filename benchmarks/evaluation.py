"""The cost of evaluation beyond embedding: suite sts against one bare `encode` of its distinct texts.

    python -m benchmarks.evaluation [--rounds 5]

The encoder has 6 layers of 384 (random weights). The sentences are of the pocket grammar, in the sizes of the seven STS
sets, a quarter of the texts repeated. Both alternate in one process. Evaluation reads the files, loads the model,
embeds, correlates, and resamples for the intervals.
"""

from __future__ import annotations

import statistics
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.common import distinct_sentences, machine, timed
from dino_pipeline import pocket
from dino_pipeline.encoder_options import StsProtocol
from dino_pipeline.evaluation.evaluate import Candidate, score_candidates
from dino_pipeline.evaluation.suites.sts import SIZES, read_sts
from dino_pipeline.progress import SilentReporter, table

DISTINCT = 0.75


def save_encoder(folder: Path) -> Path:
    """Save an encoder with the shape of popular small ones, and return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(pocket.ENCODER)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    BertModel(config).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    transformer = Transformer(str(folder / "plain"))
    SentenceTransformer(modules=[transformer, Pooling(384)]).save(str(folder / "encoder"))
    return folder / "encoder"


def write_sets(folder: Path) -> list[str]:
    """Write the seven sets as TSV files, and return their distinct texts."""
    distinct = distinct_sentences(int(2 * sum(SIZES.values()) * DISTINCT))
    texts = cycle(distinct)
    for name, size in SIZES.items():
        rows = zip(islice(texts, size), islice(texts, size), strict=True)
        lines = (f"{number % 26 / 5}\t{first}\t{second}\n" for number, (first, second) in enumerate(rows))
        (folder / f"{name}.tsv").write_text("".join(lines))
    return distinct


@click.command()
@click.option("--rounds", default=5, show_default=True)
def main(rounds: int) -> None:
    """Measure and print the ratio."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        encoder, distinct = str(save_encoder(folder)), write_sets(folder)
        bare = SentenceTransformer(encoder)

        def suite() -> None:
            sets, _ = read_sts(folder, StsProtocol())
            score_candidates([Candidate("encoder", encoder)], sets, SilentReporter())

        work = {"bare": lambda: bare.encode(distinct, batch_size=64, show_progress_bar=False), "suite": suite}
        bare.encode(distinct[:512])
        times = [{name: timed(each)[0] for name, each in work.items()} for _ in range(rounds)]
    ratios = [each["suite"] / each["bare"] for each in times]
    click.echo(machine())
    shown = [f"{statistics.median(each[name] for each in times):.1f}" for name in work]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
    click.echo(table(["distinct texts", "encode, s", "sts suite, s", "ratio"], [[str(len(distinct)), *shown, spread]]))


if __name__ == "__main__":
    main()
