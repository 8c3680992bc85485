"""DeCLUTR: a span of a document finds the spans near it among those of other places, and its masked words are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from dino_pipeline.errors import DataError
from dino_pipeline.training.objectives.base import Columns, Objective, Recipe, Training
from dino_pipeline.training.objectives.contrastive import NT_XENT_DIRECTIONS, embedding_sizes, in_batch, nt_xent
from dino_pipeline.training.objectives.masked import MaskedWords
from dino_pipeline.training.objectives.views import with_views


@dataclass(frozen=True)
class Spans:
    """How spans are drawn from a document (Giorgi et al. 2021, section 3.1)."""

    anchors: int
    positives: int
    shortest: int
    longest: int
    scaled: bool
    """Shorter documents give shorter spans; otherwise they are refused."""

    @property
    def least(self) -> int:
        """Tokens that a document must have."""
        return 2 * self.anchors * (1 if self.scaled else self.longest)

    def of_document(self, tokens: int) -> tuple[int, int]:
        """Return the shortest and the longest span of a document."""
        longest = min(self.longest, tokens // (2 * self.anchors)) if self.scaled else self.longest
        return min(self.shortest, max(longest // 2, 1)), longest

    def draw(self, tokens: int, random: Random) -> list[list[tuple[int, int]]]:
        """Return, for each anchor, its span and those of its positives, as token positions (start, end)."""
        shortest, longest = self.of_document(tokens)
        place, drawn = tokens // self.anchors, []
        for first in random.sample(range(0, place * self.anchors, place), self.anchors):
            length = int(random.betavariate(4, 2) * (longest - shortest) + shortest)
            start = random.randint(first, max(min(first + place, tokens) - length, first))
            spans = [(start, start + length)]
            for _ in range(self.positives):
                size = int(random.betavariate(2, 4) * (longest - shortest) + shortest)
                low, high = max(start - size, 0), min(start + length, tokens - size)
                at = random.randint(low, max(high, low))
                spans.append((at, at + size))
            drawn.append(spans)
        return drawn


def build(columns: Columns, recipe: Recipe) -> Dataset:
    """Return spans of each document, other ones in each epoch: all anchors, then the positives of each.

    Raises:
        DataError: all documents are too short for spans, or one for those of the paper.
    """
    sizes = {name: recipe[name] for name in ("anchors", "positives", "shortest", "longest")}
    spans = Spans(**sizes, scaled=recipe["spans"] == "scaled")
    offsets = [_offsets(text, recipe.tokenizer) for text in columns["document"]]
    short = [number for number, found in enumerate(offsets, start=1) if len(found) < spans.least]
    if short and not (spans.scaled and len(short) < len(offsets)):
        remedy = "give longer documents" if spans.scaled else "give longer documents, or leave out --faithful"
        raise DataError(
            f"document {short[0]}: has {len(offsets[short[0] - 1])} tokens, as {len(short)} of {len(offsets)} "
            f"have under {spans.least}; {remedy}, or fewer anchors (--set anchors=1)"
        )
    pairs = zip(columns["document"], offsets, strict=True)
    long = [(text, found) for text, found in pairs if len(found) >= spans.least]
    rows: Columns = {"document": [text for text, _ in long], "offsets": [found for _, found in long]}
    return with_views(rows, partial(view, spans=spans), recipe.seed)


def _offsets(text: str, tokenizer: Any) -> list[list[int]]:
    """Return the (start, end) of each token in the text, whole words in one."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    return [list(pair) for pair in encoded["offset_mapping"]]


def view(row: dict[str, Any], random: Random, *, spans: Spans) -> dict[str, Any]:
    """Return a document's spans as texts."""
    text, offsets = row["document"], row["offsets"]
    drawn = [[_cut(text, offsets, span) for span in anchor] for anchor in spans.draw(len(offsets), random)]
    anchors = {f"anchor{number}": texts[0] for number, texts in enumerate(drawn)}
    near = {f"near{number}x{at}": text for number, texts in enumerate(drawn) for at, text in enumerate(texts[1:])}
    return {**anchors, **near}


def _cut(text: str, offsets: list[list[int]], span: tuple[int, int]) -> str:
    """Return the text of a span of tokens, out to the ends of the words that it touches."""
    start, end = offsets[span[0]][0], offsets[span[1] - 1][1]
    while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return text[start:end]


class NearSpans(nn.Module):
    """NT-Xent between anchors and the means of their positives, plus masked language modelling on the anchors."""

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.anchors = recipe["anchors"]
        self.size = embedding_sizes(model, recipe)[0]
        self.words = MaskedWords(model, recipe)
        self.stock = in_batch(model, recipe, directions=NT_XENT_DIRECTIONS)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch: the columns are all anchors, then the positives of each."""
        columns = list(sentence_features)
        masked = [self.words.mask(features) for features in columns[: self.anchors]]
        states = [self.model(features) for features, _ in masked]
        anchors = torch.cat([each["sentence_embedding"] for each in states])
        near = [self.model(features)["sentence_embedding"] for features in columns[self.anchors :]]
        each = len(near) // self.anchors
        means = [torch.stack(near[at : at + each]).mean(0) for at in range(0, len(near), each)]
        loss = nt_xent(self.stock, anchors, torch.cat(means))
        if anchors.shape[-1] < self.size:  # a shorter embedding of the same states: its words are counted already
            return loss
        told = [self.words(each["token_embeddings"], words) for each, (_, words) in zip(states, masked, strict=True)]
        return loss + torch.stack(told).mean()


OBJECTIVE = Objective(
    name="declutr",
    needs="documents",
    method="spans near one another, NT-Xent, and masked words",
    build=build,
    loss=NearSpans,
    defaults=Training(
        batch_size=16,
        learning_rate=5e-5,
        weight_decay=0.1,
        options={
            "temperature": 0.05,
            "masked": 0.15,
            "anchors": 2,
            "positives": 2,
            "shortest": 32,
            "longest": 512,
            "spans": "scaled",
        },
    ),
    citation="Giorgi et al. 2021, DeCLUTR: Deep Contrastive Learning for Unsupervised Textual Representations, "
    "arXiv:2006.03659",
    faithful={"spans": "fixed"},
    choices={"spans": ("scaled", "fixed")},
    shares=("masked",),
    in_batch=True,
)
