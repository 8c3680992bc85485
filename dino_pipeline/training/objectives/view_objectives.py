"""Objectives in which a text finds its other view in a batch: simcse, simcse-sup, triplets, is-cse, mirror-bert."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather
from torch import Tensor, nn
from torch.nn.functional import normalize

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.text import has_spaced_words
from dino_pipeline.training.objectives import Columns, Objective, Row, TrainingContext, drawn_rows, fixed_rows
from dino_pipeline.training.objectives.pairs import ContrastOptions, InfoNCELoss, NTXentLoss, module_per_size

# SimCSE: a sentence finds itself, seen through another dropout mask, among the others of its batch.


def repeated_sentences(columns: Columns, context: TrainingContext) -> Dataset:
    """Return each sentence twice, as ``anchor`` and ``positive``."""
    return Dataset.from_dict({"anchor": columns["sentence"], "positive": columns["sentence"]})


def projection_head(size: int) -> nn.Sequential:
    """Return the layer on top of the encoder that is only used in training (Gao et al. 2021, section 6.3)."""
    return nn.Sequential(nn.Linear(size, size), nn.Tanh())


class SimCSELoss(InfoNCELoss):
    """InfoNCE behind a projection head that is dropped after training (Gao et al. 2021, section 3)."""

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.heads = module_per_size(self.dimensions, projection_head)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of the two views of each sentence, each column ``(rows, dimension)``."""
        first, second = (self.heads[str(views.shape[-1])](views) for views in embeddings)
        return self.contrast(first, second)

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of projected views, each ``(rows, dimension)``."""
        return super().compare([first, second], None)


PAPER = Hyperparameters(
    batch_size=64,
    learning_rate=3e-5,
    weight_decay=0.0,
    warmup=0.0,
    max_length=32,
    pooling="cls",
)
"""The paper's values for BERT-base. For RoBERTa-base it used batches of 512 and a learning rate of 1e-5."""

SIMCSE = Objective(
    name="simcse",
    needs="sentences",
    method="dropout twice, InfoNCE",
    build=repeated_sentences,
    loss=SimCSELoss,
    hyperparameters=PAPER,
    options=ContrastOptions,
    citation="Gao et al. 2021, SimCSE: Simple Contrastive Learning of Sentence Embeddings, arXiv:2104.08821",
    in_batch_negatives=True,
    needs_dropout=True,
    caches_gradients=True,
)

# Supervised SimCSE: an anchor finds its positive among its batch's positives and hard negatives (section 4).
# The head that the paper keeps in the encoder is left out, so that the encoder stays a plain one.

SIMCSE_SUP = Objective(
    name="simcse-sup",
    needs="triplets",
    method="InfoNCE with hard negatives",
    build=fixed_rows,
    loss=InfoNCELoss,
    hyperparameters=PAPER.updated(epochs=3, batch_size=512, learning_rate=5e-5),
    options=ContrastOptions,
    citation=SIMCSE.citation,
    in_batch_negatives=True,
    no_duplicates=True,
    caches_gradients=True,
)

# The same with settings for the few texts that a small model writes, measured on real text (docs/results.md): at the
# papers' rates an encoder forgets what it knew, and tokens' weights and whitening add to what it learns.

TRIPLETS = replace(
    SIMCSE_SUP,
    name="triplets",
    method="InfoNCE with the contrasted texts as negatives, embeddings whitened",
    hyperparameters=Hyperparameters(batch_size=32, pooling="mean", whiten="auto"),
    faithful=None,
)

# IS-CSE: SimCSE that also pulls a sentence towards a weighted mean of its neighbours among recent sentences.

ATTENTION_TEMPERATURE = 2.0
"""Temperature of the attention to the neighbours."""


class IsCseOptions(ContrastOptions):
    """Options of is-cse, the paper's for base models. For large ones it raised alpha from .005 to .05."""

    buffer: int = Field(default=1024, ge=1, description="Sentences that are remembered.")
    neighbours: int = Field(default=16, ge=1, description="Remembered sentences that a sentence is smoothed with.")
    alpha: float = Field(default=0.1, ge=0, description="Weight of the smoothed views' loss.")
    alpha_start: float = Field(default=0.1, ge=0, description="That weight at first.")
    ramp: float = Field(default=0.5, ge=0, le=1, description="Share of the steps in which it reaches alpha.")


def smooth_views(views: Tensor, memory: Tensor, neighbours: int) -> Tensor:
    """Return an attention-weighted mean of each view and its nearest neighbours (He et al. 2023, section 3).

    Args:
        views: ``(rows, dimension)``, of length 1.
        memory: ``(entries, dimension)``, of length 1.
        neighbours: how many entries of the memory take part.

    Returns:
        The sums weighted by ``softmax(view . neighbour / 2)``, ``(rows, dimension)``.
    """
    similarities = views.detach() @ memory.T  # (rows, entries)
    nearest = similarities.topk(min(neighbours, len(memory)), dim=-1).indices  # (rows, neighbours)
    values = torch.cat([views[:, None], memory[nearest]], dim=1)  # (rows, 1 + neighbours, dimension)
    logits = (values @ views[:, :, None]).squeeze(-1) / ATTENTION_TEMPERATURE  # (rows, 1 + neighbours)
    weights = torch.softmax(logits, dim=-1)
    return (weights[:, None] @ values).squeeze(1)


class MemoryBuffer(nn.Module):
    """The latest embeddings, first in, first out. They are buffers of the module, so that checkpoints hold them."""

    def __init__(self, capacity: int, size: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(capacity, size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.entries: Tensor
        self.seen: Tensor

    @property
    def is_full(self) -> bool:
        """Return whether all entries have been filled."""
        return bool(self.seen >= len(self.entries))

    def push(self, embeddings: Tensor) -> None:
        """Put embeddings, ``(rows, dimension)``, in the places of the oldest entries."""
        capacity = len(self.entries)
        kept = embeddings[-capacity:]  # of more rows than fit, the last ones
        start = int(self.seen) + len(embeddings) - len(kept)
        places = (start + torch.arange(len(kept), device=kept.device)) % capacity  # it is written in a circle
        self.entries[places] = kept.to(self.entries.dtype)
        self.seen += len(embeddings)


class InstanceSmoothedLoss(SimCSELoss):
    """``SimCSE(z1, z2) + alpha * SimCSE(z1, smoothed z2)``, the second term once the memory is full."""

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.context = context
        self.memories = module_per_size(self.dimensions, lambda size: MemoryBuffer(context["buffer"], size))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.step: Tensor

    @property
    def alpha(self) -> float:
        """Return the weight of the second term.

        It goes from ``alpha_start`` to ``alpha`` along half a cosine, during the share ``ramp`` of the steps.
        """
        start, end = float(self.context["alpha_start"]), float(self.context["alpha"])
        done = int(self.step) / max(self.context["ramp"] * self.context.steps, 1)
        return end - (end - start) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of projected views, each ``(rows, dimension)``, and remember the second ones."""
        loss = super().contrast(first, second)
        memory = self.memories[str(second.shape[-1])]
        assert isinstance(memory, MemoryBuffer)
        views = normalize(second, dim=-1)
        if memory.is_full:
            smoothed = smooth_views(views, memory.entries, self.context["neighbours"])
            loss = loss + self.alpha * super().contrast(first, smoothed)
        memory.push(all_gather(views.detach()) if self.context.processes > 1 else views.detach())
        if second.shape[-1] == self.dimensions[0]:  # with several sizes, a step calls this once for each
            self.step += 1
        return loss


IS_CSE = Objective(
    name="is-cse",
    needs="sentences",
    method="SimCSE, and towards remembered neighbours",
    build=repeated_sentences,
    loss=InstanceSmoothedLoss,
    hyperparameters=PAPER,
    options=IsCseOptions,
    citation="He et al. 2023, Instance Smoothed Contrastive Learning for Unsupervised Sentence Embedding, "
    "arXiv:2305.07424",
    in_batch_negatives=True,
    needs_dropout=True,
    caches_gradients=True,
)

# Mirror-BERT: a sentence finds its view with a masked span among both views of all others of its batch.

MIN_CHARACTERS = 30
"""Shorter texts are not masked."""


class MirrorOptions(ContrastOptions):
    """Options of mirror-bert."""

    temperature: float = Field(default=0.04, gt=0, description="What cosines are divided by.")
    mask: Literal["words", "characters", "none"] = Field(default="words", description="What is masked in the view.")
    span: int = Field(default=5, ge=1, description="Characters that are masked.")
    mean: Literal["texts", "padded"] = Field(default="texts", description="Token states whose mean is the embedding.")


def masked_sentences(columns: Columns, context: TrainingContext) -> Dataset:
    """Return each sentence as ``anchor``, and with a span masked, another one in each epoch, as ``positive``.

    Raises:
        ModelError: the tokenizer has no mask token.
    """
    mask: Any = getattr(context.tokenizer, "mask_token", None)
    if mask is None and context["mask"] != "none":
        raise ModelError(
            "mirror-bert: the encoder's tokenizer has no mask",
            "take another encoder, or set the objective's option mask=none",
        )
    draw = partial(draw_view, mask=mask, kind=context["mask"], span=context["span"])
    return drawn_rows({"anchor": columns["sentence"]}, draw, context.seed)


def draw_view(row: Row, random: Random, *, mask: str, kind: str, span: int) -> Row:
    """Return both views of a row.

    Args:
        row: holds the sentence as ``anchor``.
        random: chooses the span.
        mask: the mask token.
        kind: ``words``, ``characters`` or ``none``; in scripts without spaces, words are masked as characters.
        span: characters to mask.
    """
    text = row["anchor"]
    if kind == "none" or len(text) < MIN_CHARACTERS:
        return {"anchor": text, "positive": text}
    mask_span = mask_characters if kind == "characters" or not has_spaced_words(text) else mask_words
    return {"anchor": text, "positive": mask_span(text, random, mask, span)}


def mask_characters(text: str, random: Random, mask: str, span: int) -> str:
    """Return the text with ``span`` characters anywhere replaced by the mask, as the reference code does."""
    start = random.randrange(max(len(text) - span, 0) + 1)
    return f"{text[:start]} {mask} {text[start + span :]}"


def mask_words(text: str, random: Random, mask: str, span: int) -> str:
    """Return the text with whole words that cover ``span`` characters replaced by the mask, but never all words.

    With ``span`` 5, "the quick brown fox" becomes for example "the [MASK] brown fox".
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]  # (start, end) of each
    if len(words) < 2:
        return text
    first = last = random.randrange(len(words))
    while last + 1 < len(words) and words[last][1] - words[first][0] < span:
        last += 1
    if (first, last) == (0, len(words) - 1):
        return text
    return text[: words[first][0]] + mask + text[words[last][1] :]


class PaddedMeanLoss(NTXentLoss):
    """NT-Xent over means of all token states, padding included, as in the reference code.

    Raises:
        OptionError: gradients are to be cached, or leading dimensions trained; both need the encoder's own pooling.
    """

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        if context.hyperparameters.mini_batch_size or context.hyperparameters.matryoshka:
            raise OptionError(
                "means over padding allow neither mini-batches nor leading dimensions",
                "leave out {mini_batch_size} and {matryoshka}, or set the objective's option mean=texts",
                option="faithful",
            )
        super().__init__(model, context)

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of a column's texts, ``(rows, dimension)``."""
        states: Tensor = self.model(features)["token_embeddings"]  # (rows, tokens, dimension)
        return torch.mean(states, dim=1)


def mirror_loss(model: SentenceTransformer, context: TrainingContext) -> NTXentLoss:
    """Return NT-Xent over the two views (Liu et al. 2021, section 2)."""
    return (PaddedMeanLoss if context["mean"] == "padded" else NTXentLoss)(model, context)


MIRROR_BERT = Objective(
    name="mirror-bert",
    needs="sentences",
    method="a span masked, NT-Xent",
    build=masked_sentences,
    loss=mirror_loss,
    hyperparameters=Hyperparameters(batch_size=200, warmup=0.0, schedule="constant", max_length=50),
    options=MirrorOptions,
    citation="Liu et al. 2021, Fast, Effective, and Self-Supervised: Transforming Masked Language Models into "
    "Universal Lexical and Sentence Encoders, arXiv:2104.08027",
    faithful={"mask": "characters", "mean": "padded"},
    in_batch_negatives=True,
    caches_gradients=True,
)
