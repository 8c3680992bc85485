"""Mirror-BERT: a sentence finds itself with a span masked, among both views of all others of its batch."""

from __future__ import annotations

import re
from functools import partial
from random import Random
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.texts import parts_words
from dino_pipeline.training.objectives.base import Columns, Objective, Recipe, Training
from dino_pipeline.training.objectives.contrastive import NTXent
from dino_pipeline.training.objectives.views import with_views

SHORTEST = 30
"""Texts of fewer characters are not masked."""


def build(columns: Columns, recipe: Recipe) -> Dataset:
    """Return each sentence as ``anchor``, and with a span masked, another one in each epoch, as ``positive``.

    Raises:
        ModelError: the tokenizer has no mask.
    """
    mask: Any = getattr(recipe.tokenizer, "mask_token", None)
    if mask is None and recipe["mask"] != "none":
        raise ModelError("mirror-bert: the encoder's tokenizer has no mask; take another encoder, or --set mask=none")
    draw = partial(view, mask=mask, kind=recipe["mask"], span=recipe["span"])
    return with_views({"anchor": columns["sentence"]}, draw, recipe.seed)


def view(row: dict[str, Any], random: Random, *, mask: str, kind: str, span: int) -> dict[str, Any]:
    """Return both views of a row."""
    text = row["anchor"]
    if kind == "none" or len(text) < SHORTEST:
        return {"anchor": text, "positive": text}
    characters = kind == "characters" or not parts_words(text)
    return {"anchor": text, "positive": (mask_characters if characters else mask_words)(text, random, mask, span)}


def mask_characters(text: str, random: Random, mask: str, span: int) -> str:
    """Return the text with ``span`` characters anywhere replaced by the mask, as the reference code does."""
    start = random.randrange(max(len(text) - span, 0) + 1)
    return f"{text[:start]} {mask} {text[start + span :]}"


def mask_words(text: str, random: Random, mask: str, span: int) -> str:
    """Return the text with as many whole words as cover ``span`` characters replaced by the mask, never all of them."""
    words = [found.span() for found in re.finditer(r"\S+", text)]
    if len(words) < 2:
        return text
    first = last = random.randrange(len(words))
    while last + 1 < len(words) and words[last][1] - words[first][0] < span:
        last += 1
    if (first, last) == (0, len(words) - 1):
        return text
    return text[: words[first][0]] + mask + text[words[last][1] :]


class MeanOverPadding(NTXent):
    """NT-Xent over means of all token states, padding included, as the reference code takes them.

    Raises:
        OptionError: gradients are to be cached, or leading dimensions trained, which go by the encoder's own pooling.
    """

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        if recipe.training.mini_batch_size or recipe.training.matryoshka:
            raise OptionError("--faithful: takes no part in --mini-batch-size and --matryoshka; add --set mean=texts")
        super().__init__(model, recipe)

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of a column's texts, ``(rows, dimension)``."""
        states: Tensor = self.model(features)["token_embeddings"]
        return torch.mean(states, dim=1)


def loss(model: SentenceTransformer, recipe: Recipe) -> NTXent:
    """Return NT-Xent over the two views."""
    return (MeanOverPadding if recipe["mean"] == "padded" else NTXent)(model, recipe)


OBJECTIVE = Objective(
    name="mirror-bert",
    needs="sentences",
    method="a span masked, NT-Xent",
    build=build,
    loss=loss,
    defaults=Training(
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
    in_batch=True,
    caches=True,
)
