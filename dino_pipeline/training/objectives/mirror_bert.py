"""Mirror-BERT: a sentence finds its view with a masked span among both views of all others of its batch."""

from __future__ import annotations

import re
from functools import partial
from random import Random
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.text import has_spaced_words
from dino_pipeline.training.objective import Columns, Objective, Row, TrainingContext, drawn_rows
from dino_pipeline.training.objectives.contrastive import NTXentLoss

MIN_CHARACTERS = 30
"""Shorter texts are not masked."""


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
    defaults=Hyperparameters(
        batch_size=200,
        warmup=0.0,
        schedule="constant",
        max_length=50,
        options={"temperature": 0.04, "mask": "words", "span": 5, "mean": "texts"},
    ),
    citation="Liu et al. 2021, Fast, Effective, and Self-Supervised: Transforming Masked Language Models into "
    "Universal Lexical and Sentence Encoders, arXiv:2104.08027",
    faithful={"mask": "characters", "mean": "padded"},
    choices={"mask": ("words", "characters", "none"), "mean": ("texts", "padded")},
    in_batch_negatives=True,
    caches_gradients=True,
)
