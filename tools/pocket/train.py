"""Train the pocket models and write the gold set: `python -m tools.pocket.train generator|encoder|gold`."""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dino_pipeline.files import write_json, write_json_lines
from dino_pipeline.pocket import ENCODER, GENERATOR, GOLD_DEV, GOLD_TEST
from tools.pocket.corpus import NOISE, Row, row_text, shard_rows, shard_sentences
from tools.pocket.gold import COUNTS, gold_pairs
from tools.pocket.vocabulary import END, FIRST_WORD, MASK, bpe_tokenizer, wordpiece_tokenizer

logger = logging.getLogger(__name__)

CLEAN_SHARE = 0.3  # of the generator's steps, before the prompts begin
IGNORED = -100
Encoded = list[tuple[list[int], list[float]]]  # token ids and a loss weight for each


@dataclass(frozen=True)
class Schedule:
    """Steps of a training, in shards: each shard of text is written and trained on; a checkpoint may follow."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    shard_steps: int = 50
    weight_decay: float = 0.1

    @property
    def warmup(self) -> int:
        return max(1, min(200, self.steps // 5))

    @property
    def shards(self) -> int:
        return -(-self.steps // self.shard_steps)

    @property
    def shard_size(self) -> int:
        return self.shard_steps * self.batch_size

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then linear decay to zero."""
        left = (self.steps - step) / max(1, self.steps - self.warmup)
        return self.learning_rate * min((step + 1) / self.warmup, max(left, 0.0))


# Text to token ids.


@cache
def read_tokenizer(file: Path) -> Tokenizer:
    """Return the tokenizer of a file, which each process reads once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return Tokenizer.from_file(str(file))


def encode_row(tokenizer: Tokenizer, row: Row) -> tuple[list[int], list[float]]:
    encodings = tokenizer.encode_batch([text for text, _ in row], add_special_tokens=False)
    ids = [i for encoding in encodings for i in encoding.ids]
    weights = [w for encoding, (_, w) in zip(encodings, row, strict=True) for _ in encoding.ids]
    end: Any = tokenizer.token_to_id(END)
    return [*ids, end], [*weights, 1.0]


def generator_shard(shard: int, schedule: Schedule, tokenizer_file: Path) -> tuple[Encoded, str]:
    """Return the encoded rows of a shard, and the hash of their text."""
    clean = 0.9 if shard < round(CLEAN_SHARE * schedule.shards) else 0.15
    rows = shard_rows(schedule.seed, shard, schedule.shard_size, clean)
    tokenizer = read_tokenizer(tokenizer_file)
    return [encode_row(tokenizer, row) for row in rows], digest_of(map(row_text, rows))


def encoder_shard(shard: int, schedule: Schedule, tokenizer_file: Path) -> tuple[Encoded, str]:
    texts = shard_sentences(schedule.seed, shard, schedule.shard_size)
    encodings = read_tokenizer(tokenizer_file).encode_batch(texts)
    return [(encoding.ids, [1.0] * len(encoding.ids)) for encoding in encodings], digest_of(texts)


def digest_of(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def batches(rows: Encoded, size: int, rng: Random) -> list[Encoded]:
    """Return batches of rows of similar length, in random order."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    cut = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rng.shuffle(cut)
    return cut


def padded(batch: Encoded, pad: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and loss weights, each (rows, length)."""
    width = -(-max(len(ids) for ids, _ in batch) // 8) * 8
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in batch])
    return ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)


# Losses: ids, weights -> scalar.


def causal_loss(model: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted next-token loss. Rows are padded on the right, so no mask is needed."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def masked_loss(model: Any, ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Return BERT's masked-word loss with 20 % of tokens: of ten, eight masked, one random, one unchanged."""
    chosen = (torch.rand(ids.shape, device=ids.device) < 0.2) & (ids >= FIRST_WORD)
    draw = torch.rand(ids.shape, device=ids.device)
    words = torch.randint_like(ids, FIRST_WORD, model.config.vocab_size)
    inputs = torch.where(chosen & (draw < 0.8), MASK, torch.where(chosen & (draw > 0.9), words, ids))
    logits = model(input_ids=inputs, attention_mask=(ids != model.config.pad_token_id).long()).logits.float()
    labels = torch.where(chosen, ids, IGNORED)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


# The loop.


def optimizer_for(model: torch.nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))


@dataclass
class Progress:
    """State of a training that a checkpoint holds besides the weights."""

    recipe: dict[str, Any]
    """Settings that decide the weights. A checkpoint of another recipe is refused."""
    shard: int = 0
    tokens: int = 0
    data_hash: str = ""

    def add(self, digest: str, tokens: int) -> None:
        self.shard += 1
        self.tokens += tokens
        self.data_hash = hashlib.sha256((self.data_hash + digest).encode()).hexdigest()


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    aside.replace(path)


def load_checkpoint(
    path: Path, recipe: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    if not path.exists():
        return Progress(recipe)
    state = torch.load(path, map_location="cpu", weights_only=True)
    old = state["progress"]["recipe"]
    if other := [f"{name} {old.get(name)}" for name in {**old, **recipe} if old.get(name) != recipe.get(name)]:
        raise click.UsageError(f"{path}: was begun with {', '.join(other)}; delete it, or name another --work")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resuming at shard %d", state["progress"]["shard"])
    return Progress(**state["progress"])


def shard_stream(shards: Iterable[int], make_shard: Any, workers: int) -> Iterator[Any]:
    if workers < 1:
        yield from map(make_shard, shards)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(make_shard, shards)


def train_shard(model: Any, optimizer: Any, rows: Encoded, loss_of: Any, schedule: Schedule, shard: int) -> float:
    """Train on the rows of a shard once, and return the mean loss of the steps."""
    device = str(model.device.type)
    torch.manual_seed(schedule.seed * 1_000_003 + shard)
    losses = []
    for index, batch in enumerate(batches(rows, schedule.batch_size, Random(f"order/{schedule.seed}/{shard}"))):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(shard * schedule.shard_steps + index)
        ids, weights = padded(batch, model.config.pad_token_id, device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def train(
    model: Any, schedule: Schedule, text: dict[str, Any], stream: Any, loss_of: Any, checkpoint: Path, every: int = 10
) -> Progress:
    """Train, or resume a training, and return its progress.

    Args:
        model: the model, on its device.
        schedule: steps, rates and seed.
        text: settings besides the schedule that decide the text.
        stream: ``stream(shards)`` yields encoded shards in order.
        loss_of: ``loss_of(model, ids, weights)`` returns a scalar.
        checkpoint: file of the checkpoint.
        every: shards between two checkpoints.
    """
    recipe = json.loads(json.dumps({**asdict(schedule), **text}))
    optimizer = optimizer_for(model, schedule)
    progress = load_checkpoint(checkpoint, recipe, model, optimizer)
    model.train()
    start, before = time.monotonic(), progress.tokens
    for rows, digest in stream(range(progress.shard, schedule.shards)):
        loss = train_shard(model, optimizer, rows, loss_of, schedule, progress.shard)
        progress.add(digest, sum(len(ids) for ids, _ in rows))
        speed = (progress.tokens - before) / (time.monotonic() - start)
        done = progress.shard * schedule.shard_steps
        logger.info("step %d: loss %.4f, %.1f M tokens, %.0f tokens/s", done, loss, progress.tokens / 1e6, speed)
        if progress.shard % every == 0 or progress.shard == schedule.shards:
            save_checkpoint(checkpoint, model, optimizer, progress)
    return progress


# The two models.


def generator_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encoder_model(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)


def publish(model: Any, tokenizer: PreTrainedTokenizerFast, progress: Progress, work: Path, out: Path) -> None:
    """Write model, tokenizer and record to a temporary folder, then move each file into `out`.

    Weights are stored in half precision to keep the package small, and computed with in single precision.
    """
    with TemporaryDirectory(dir=work) as folder:
        aside = Path(folder)
        model.to("cpu").half().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
        write_json(aside / "config.json", {**config, "dtype": "float32"})
        record = {**progress.recipe, "tokens": progress.tokens, "data_hash": progress.data_hash}
        write_json(aside / "training.json", record)
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(aside.iterdir()):
            shutil.move(file, out / file.name)


def prepared(work: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save the tokenizer for the workers in the scratch folder, and return its file."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
    return work / "tokenizer.json"


def train_options(command: Any) -> Any:
    options = [
        click.option("--learning-rate", default=2e-3, show_default=True),
        click.option("--seed", default=1, show_default=True),
        click.option("--work", type=click.Path(path_type=Path), required=True, help="Checkpoints, to go on from."),
        click.option("--workers", default=0, show_default=True, help="Processes that write text; 0: this one."),
        click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Make the embedded models and their gold set."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=GENERATOR)
@click.option("--steps", default=9000, show_default=True)
@click.option("--batch-size", default=512, show_default=True)
@train_options
def generator(out: Path, work: Path, workers: int, device: str, **schedule: Any) -> None:
    """Train the causal language model."""
    made = Schedule(**schedule)
    tokenizer = bpe_tokenizer(map(row_text, shard_rows(made.seed, -1, 20_000, 0.5)))
    make = partial(generator_shard, schedule=made, tokenizer_file=prepared(work, tokenizer))
    torch.manual_seed(made.seed)
    model: Any = generator_model(tokenizer)
    text = {"clean_share": CLEAN_SHARE, "noise": NOISE}
    stream = partial(shard_stream, make_shard=make, workers=workers)
    progress = train(model.to(device), made, text, stream, causal_loss, work / "generator.pt")
    publish(model, tokenizer, progress, work, out)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=ENCODER)
@click.option("--steps", default=200, show_default=True)
@click.option("--batch-size", default=256, show_default=True)
@train_options
def encoder(out: Path, work: Path, workers: int, device: str, **schedule: Any) -> None:
    """Train the masked language model that finetuning starts from."""
    made = Schedule(**schedule)
    tokenizer = wordpiece_tokenizer(shard_sentences(made.seed, -1, 50_000))
    make = partial(encoder_shard, schedule=made, tokenizer_file=prepared(work, tokenizer))
    torch.manual_seed(made.seed)
    model: Any = encoder_model(tokenizer)
    stream = partial(shard_stream, make_shard=make, workers=workers)
    progress = train(model.to(device), made, {}, stream, masked_loss, work / "encoder.pt")
    publish(model, tokenizer, progress, work, out)


@main.command()
def gold() -> None:
    """Write the graded test and dev pairs."""
    for split, path in (("test", GOLD_TEST), ("dev", GOLD_DEV)):
        pairs = gold_pairs(split, COUNTS[split])
        write_json_lines(path, ({"text_a": each.text_a, "text_b": each.text_b, "label": each.label} for each in pairs))
        logger.info("%s: %d pairs", path.name, len(pairs))


if __name__ == "__main__":
    main()
