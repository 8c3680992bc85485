"""Makes the pocket models and the gold set: `python -m dino_pipeline.pocket.train generator|encoder|gold`."""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from dino_pipeline.pocket import ENCODER, GENERATOR, GOLD_DEV, GOLD_TEST
from dino_pipeline.pocket.corpus import Noise, Row, row_text, shard_rows, shard_sentences
from dino_pipeline.pocket.gold import COUNTS, gold_pairs

logger = logging.getLogger(__name__)

END = "<|endoftext|>"
PAD = "<|pad|>"
IGNORED = -100
Encoded = list[tuple[list[int], list[float]]]  # token ids and a loss weight for each


@dataclass(frozen=True)
class Schedule:
    """Steps come in shards: a shard of text is made, trained on, and a checkpoint may follow it."""

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
        """Linear warm-up, then linear to zero."""
        left = (self.steps - step) / max(1, self.steps - self.warmup)
        return self.learning_rate * min((step + 1) / self.warmup, max(left, 0.0))


# Tokenizers.


def bpe_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a quote is always a token of its own, so that a prompt may end at one."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split('"', "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=256
    )


def wordpiece_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """BERT's tokenizer, of lower-case ASCII."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = bert_like(models.WordPiece(wordpiece_vocabulary(texts, vocabulary, special), unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)


def wordpiece_vocabulary(texts: Iterable[str], size: int, special: list[str]) -> dict[str, int]:
    """The trainer numbers the pieces inside words as they come out of a hash map, other in every process, and their
    numbers break ties between merges; handed over as special tokens, they have theirs already."""
    tokenizer = bert_like(models.WordPiece(unk_token="[UNK]"))
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    inner = [f"##{letter}" for letter in letters if letter.isalnum()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special + inner, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def bert_like(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


# Text to token ids, in worker processes that each hold the tokenizer once.

WORKER: dict[str, Any] = {}


def start_worker(tokenizer_file: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    WORKER["tokenizer"] = Tokenizer.from_file(tokenizer_file)


def encode_row(tokenizer: Tokenizer, row: Row) -> tuple[list[int], list[float]]:
    encodings = tokenizer.encode_batch([text for text, _ in row], add_special_tokens=False)
    ids = [i for encoding in encodings for i in encoding.ids]
    weights = [w for encoding, (_, w) in zip(encodings, row, strict=True) for _ in encoding.ids]
    end: Any = tokenizer.token_to_id(END)
    return [*ids, end], [*weights, 1.0]


def generator_shard(shard: int, schedule: Schedule, clean_shards: int, noise: Noise) -> tuple[Encoded, str]:
    """Encoded rows of a shard, and the hash of their text."""
    clean = 0.9 if shard < clean_shards else 0.15
    rows = shard_rows(schedule.seed, shard, schedule.shard_size, clean, noise)
    digest = hashlib.sha256("\0".join(map(row_text, rows)).encode()).hexdigest()
    return [encode_row(WORKER["tokenizer"], row) for row in rows], digest


def encoder_shard(shard: int, schedule: Schedule) -> tuple[Encoded, str]:
    texts = shard_sentences(schedule.seed, shard, schedule.shard_size)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    encodings = WORKER["tokenizer"].encode_batch(texts)
    return [(encoding.ids, [1.0] * len(encoding.ids)) for encoding in encodings], digest


def batches(rows: Encoded, size: int, rng: Random) -> list[Encoded]:
    """Rows of like length together, batches in random order."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    cut = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rng.shuffle(cut)
    return cut


def padded(batch: Encoded, pad: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and weights, each (rows, length)."""
    width = -(-max(len(ids) for ids, _ in batch) // 8) * 8
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in batch])
    return ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)


# Losses: ids, weights -> scalar.


def causal_loss(model: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted next-token loss; rows are padded on the right, so that no mask is needed."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def masked_loss(model: Any, ids: torch.Tensor, _: torch.Tensor, mask_id: int, first_word: int) -> torch.Tensor:
    """The usual masking, of 20 %: eight in ten by the mask, one by a random token, one left."""
    chosen = (torch.rand(ids.shape, device=ids.device) < 0.2) & (ids >= first_word)
    draw = torch.rand(ids.shape, device=ids.device)
    words = torch.randint_like(ids, first_word, model.config.vocab_size)
    inputs = torch.where(chosen & (draw < 0.8), mask_id, torch.where(chosen & (draw > 0.9), words, ids))
    logits = model(input_ids=inputs, attention_mask=(ids != model.config.pad_token_id).long()).logits.float()
    labels = torch.where(chosen, ids, IGNORED)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


# The loop.


def autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()


def optimizer_for(model: torch.nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))


@dataclass
class Progress:
    """What a checkpoint holds besides weights."""

    recipe: dict[str, Any]
    """What decides the weights; a checkpoint of another recipe is not gone on with."""
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
    logger.info("going on at shard %d", state["progress"]["shard"])
    return Progress(**state["progress"])


def shard_stream(make_shard: Any, shards: Iterable[int], tokenizer_file: Path, workers: int) -> Iterator[Any]:
    if workers < 1:
        start_worker(str(tokenizer_file))
        yield from map(make_shard, shards)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, start_worker, (str(tokenizer_file),)) as pool:
        yield from pool.imap(make_shard, shards)


def train_shard(model: Any, optimizer: Any, rows: Encoded, loss_of: Any, schedule: Schedule, shard: int) -> float:
    """One pass over a shard's rows; the mean loss of its steps."""
    device = str(model.device.type)
    torch.manual_seed(schedule.seed * 1_000_003 + shard)
    losses = []
    for index, batch in enumerate(batches(rows, schedule.batch_size, Random(f"order/{schedule.seed}/{shard}"))):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(shard * schedule.shard_steps + index)
        ids, weights = padded(batch, model.config.pad_token_id, device)
        with autocast(device):
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
    """`stream(shards)` yields encoded shards in order; a checkpoint follows every few. `text` is what, beside the
    schedule, decides the text."""
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
        type_vocab_size=2,
    )
    return BertForMaskedLM(config)


def publish(model: Any, tokenizer: PreTrainedTokenizerFast, progress: Progress, work: Path, out: Path) -> None:
    """Write model, tokenizer and record aside, then move each file into `out`, beside the card.

    Weights are stored in half precision to keep the package small, to be computed with in single precision.
    """
    with TemporaryDirectory(dir=work) as folder:
        aside = Path(folder)
        model.to("cpu").half().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        write_json(aside / "config.json", config, sort_keys=True)
        record = {**progress.recipe, "tokens": progress.tokens, "data_hash": progress.data_hash}
        write_json(aside / "training.json", record)
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(aside.iterdir()):
            shutil.move(file, out / file.name)


def write_json(path: Path, value: dict[str, Any], sort_keys: bool = False) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=sort_keys) + "\n", encoding="utf-8")


def prepared(work: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The scratch folder with the tokenizer file that workers load."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
    return work / "tokenizer.json"


def pick_device(name: str) -> str:
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def common_options(command: Any) -> Any:
    options = [
        click.option("--seed", default=1, show_default=True),
        click.option("--work", type=click.Path(path_type=Path), required=True, help="Checkpoints, to go on from."),
        click.option("--workers", default=0, show_default=True, help="Processes that write text; 0: this one."),
        click.option("--device", default="auto", show_default=True),
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
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--clean-share", default=0.3, show_default=True, help="Share of steps before the prompts begin.")
@click.option("--vocabulary", default=2048, show_default=True)
@common_options
def generator(
    out: Path, steps: int, batch_size: int, learning_rate: float, clean_share: float, vocabulary: int, seed: int,
    work: Path, workers: int, device: str,
) -> None:  # fmt: skip
    """Train the causal language model."""
    torch.manual_seed(seed)
    schedule = Schedule(steps, batch_size, learning_rate, seed)
    tokenizer = bpe_tokenizer(map(row_text, shard_rows(seed, -1, 20_000, 0.5, Noise())), vocabulary)
    file = prepared(work, tokenizer)
    model: Any = generator_model(tokenizer)
    model.to(pick_device(device))
    make = partial(generator_shard, schedule=schedule, clean_shards=round(clean_share * schedule.shards), noise=Noise())
    stream = partial(shard_stream, make, tokenizer_file=file, workers=workers)
    text = {"clean_share": clean_share, "noise": asdict(Noise())}
    progress = train(model, schedule, text, stream, causal_loss, work / "generator.pt")
    publish(model, tokenizer, progress, work, out)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=ENCODER)
@click.option("--steps", default=200, show_default=True)
@click.option("--batch-size", default=256, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--vocabulary", default=2048, show_default=True)
@common_options
def encoder(
    out: Path, steps: int, batch_size: int, learning_rate: float, vocabulary: int, seed: int, work: Path,
    workers: int, device: str,
) -> None:  # fmt: skip
    """Train the masked language model that finetuning starts from."""
    torch.manual_seed(seed)
    schedule = Schedule(steps, batch_size, learning_rate, seed)
    tokenizer = wordpiece_tokenizer(shard_sentences(seed, -1, 50_000), vocabulary)
    file = prepared(work, tokenizer)
    model: Any = encoder_model(tokenizer)
    model.to(pick_device(device))
    loss_of = partial(masked_loss, mask_id=tokenizer.mask_token_id, first_word=5)
    stream = partial(shard_stream, partial(encoder_shard, schedule=schedule), tokenizer_file=file, workers=workers)
    progress = train(model, schedule, {}, stream, loss_of, work / "encoder.pt")
    publish(model, tokenizer, progress, work, out)


@main.command()
def gold() -> None:
    """Write the graded test and dev pairs."""
    for split, path in (("test", GOLD_TEST), ("dev", GOLD_DEV)):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(pair._asdict()) for pair in gold_pairs(split, COUNTS[split])]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        logger.info("%s: %d pairs", path.name, len(lines))


if __name__ == "__main__":
    main()
