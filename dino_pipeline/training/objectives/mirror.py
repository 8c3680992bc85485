"""Mirror-BERT: a sentence finds its view with a masked span among both views of all others of its batch."""

from __future__ import annotations

import re
from functools import partial
from random import Random
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.models import pooling_of
from dino_pipeline.text import has_spaced_words
from dino_pipeline.training.objectives import Columns, Objective, Row, TrainingContext, drawn_rows
from dino_pipeline.training.objectives.pairs import ContrastOptions, NTXentLoss
from dino_pipeline.training.objectives.reference import Reference
from dino_pipeline.training.padding import MASK, pools_padding

MIN_CHARACTERS = 30
"""Shorter texts are not masked."""


class MirrorOptions(ContrastOptions):
    """Options of mirror-bert."""

    temperature: float = Field(default=0.04, gt=0, description="What cosines are divided by.")
    mask: Literal["words", "characters", "none"] = Field(
        default="words", description="What is masked in the view. characters: as the authors' code does."
    )
    span: int = Field(default=5, ge=1, description="Characters that are masked.")
    mean: Literal["texts", "padded"] = Field(
        default="texts",
        description="Token states whose mean is the embedding, where it is a mean. padded: those of padding, too.",
    )


def masked_sentences(columns: Columns, context: TrainingContext) -> Dataset:
    """Return each sentence as ``anchor``, and with a span masked, another one in each epoch, as ``positive``.

    Raises:
        ModelError: the tokenizer has no mask token.
    """
    mask: Any = getattr(context.tokenizer, "mask_token", None)
    if mask is None and context["mask"] == "words":
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
    if kind == "characters":
        return {"anchor": text, "positive": mask_as_authors(text, random, span)}
    mask_span = mask_words if has_spaced_words(text) else mask_characters
    return {"anchor": text, "positive": mask_span(text, random, mask, span)}


def mask_as_authors(text: str, random: Random, span: int) -> str:
    """Return the text with ``span`` characters replaced by "[MASK]", as the authors' code does.

    The last place is never drawn. The first of several equal spans is masked, whichever was drawn. The mask is these
    six characters, even if the tokenizer has another one.
    """
    if len(text) <= span:
        return text
    start = random.randrange(len(text) - span)
    left, right = text.split(text[start : start + span], 1)
    return f"{left} [MASK] {right}"


def mask_characters(text: str, random: Random, mask: str, span: int) -> str:
    """Return the text with ``span`` characters anywhere replaced by the mask."""
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


CERTAIN = 100.0
"""Argument for which a sigmoid is 1 exactly, and its gradient 0."""


def pad_means(model: SentenceTransformer, hyperparameters: Hyperparameters) -> None:
    """Make an encoder that pools a mean pad all texts to the maximum length, and pool the states of padding, too.

    It consists of stock modules, so that sentence-transformers computes the same in encoding: behind the first pooling,
    a layer whose output is always 1 takes the place of the attention mask, and a second pooling reads that.

    Raises:
        OptionError: the encoder has no layers.
    """
    if hyperparameters.options["mean"] != "padded" or pooling_of(model) != "mean" or pools_padding(model):
        return
    layers, length = model[0], hyperparameters.max_length
    if not isinstance(layers, Transformer) or length is None:
        raise OptionError("means over padding need an encoder with layers", "take another one", option="encoder")
    layers.processing_kwargs = {"text": {"padding": "max_length", "max_length": length}}
    place = next(number for number, module in enumerate(model) if isinstance(module, Pooling))
    size = model[place].embedding_dimension
    ones = Dense(
        size,
        length,
        activation_function=nn.Sigmoid(),
        init_weight=torch.zeros(length, size),
        init_bias=torch.full((length,), CERTAIN),
        module_output_name=MASK,
    )
    model.insert(place + 1, ones.requires_grad_(False).to(model.device))
    model.insert(place + 2, Pooling(size, pooling_mode="mean"))


def mirror_loss(model: SentenceTransformer, context: TrainingContext) -> NTXentLoss:
    """Return NT-Xent over the two views (Liu et al. 2021, section 2)."""
    pad_means(model, context.hyperparameters)
    return NTXentLoss(model, context)


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
    faithful=Reference(
        code="github.com/cambridgeltl/mirror-bert",
        more="all weights decay, gradients are not clipped, rows that fill no batch are left out, the last checkpoint "
        "is kept, and texts are cut in encoding, too",
        options={"mask": "characters", "mean": "padded"},
        adam="torch",
        decays_all=True,
        clip=0.0,
        drops_last_batch=True,
        keeps_last=True,
        keeps_length=True,
    ),
    in_batch_negatives=True,
    caches_gradients=True,
    prepare=pad_means,
)
