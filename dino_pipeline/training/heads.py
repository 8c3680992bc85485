"""A linear head on an encoder: which class a text belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from dino_pipeline.examples import Example
from dino_pipeline.measures import accuracy, macro_f1
from dino_pipeline.training.selection import Vectors, encoded

FILE = "head.safetensors"
MOST = 20_000
"""Texts that a head is fitted to: more make it no better."""


@dataclass(frozen=True)
class Head:
    """A class's score is the product of its row and a text's embedding, plus its bias."""

    classes: tuple[str, ...]
    weight: Vectors
    """``(classes, dimension)``."""
    bias: Vectors
    """``(classes,)``."""

    def predict(self, embeddings: Vectors) -> list[str]:
        """Return the class of each of ``(texts, dimension)`` embeddings."""
        return [self.classes[at] for at in (embeddings @ self.weight.T + self.bias).argmax(axis=1)]

    def save(self, folder: Path) -> None:
        """Write it beside the encoder; no code is needed to read it."""
        metadata = {"classes": json.dumps(self.classes, ensure_ascii=False)}
        tensors = {"weight": self.weight, "bias": self.bias}
        # what is not contiguous is written in another order, without a word
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / FILE, metadata)


def fit(model: SentenceTransformer, examples: Sequence[Example]) -> Head:
    """Fit a logistic regression to the embeddings of texts with classes, at least two."""
    from sklearn.linear_model import LogisticRegression

    if len(examples) > MOST:
        examples = Random(0).sample(examples, MOST)
    classes = tuple(sorted({str(example.label) for example in examples}))
    embeddings = _embeddings(model, examples)
    mean, spread = embeddings.mean(axis=0), embeddings.std(axis=0) + 1e-6
    gold = [classes.index(str(example.label)) for example in examples]
    fitted = LogisticRegression(max_iter=1000).fit((embeddings - mean) / spread, gold)
    rows, bias = fitted.coef_, fitted.intercept_
    if len(classes) == 2:  # one row says how much likelier the second class is
        rows, bias = np.concatenate([0 * rows, rows]), np.concatenate([0 * bias, bias])
    rows = rows / spread
    return Head(classes, rows.astype(np.float32), (bias - rows @ mean).astype(np.float32))


def judged(head: Head, model: SentenceTransformer, examples: Sequence[Example]) -> dict[str, float]:
    """Return how well a head tells the classes of held-out texts, x 100."""
    gold = np.array([str(example.label) for example in examples])
    names = {name: at for at, name in enumerate(sorted({*head.classes, *gold.tolist()}))}
    found = np.array([names[name] for name in head.predict(_embeddings(model, examples))])
    right = np.array([names[name] for name in gold.tolist()])
    measured = {"accuracy": accuracy(found, right), "macro_f1": macro_f1(found, right, len(names))}
    return {name: round(100 * (sample.value or 0.0), 2) for name, sample in measured.items()}


def _embeddings(model: SentenceTransformer, examples: Sequence[Example]) -> Vectors:
    return encoded(model, [example.text_a for example in examples], normalize=False)
