"""The head that predicts classes from an encoder's embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from dino_pipeline.examples import Example
from dino_pipeline.measures import accuracy, macro_f1
from dino_pipeline.models import Vectors, embed

HEAD_FILE = "head.safetensors"
MAX_FITTED = 20_000
"""Texts that a head is fitted to. More do not make it better."""


@dataclass(frozen=True)
class ClassHead:
    """Scores of classes as a linear function of the embedding: ``embedding @ weight.T + bias``."""

    classes: tuple[str, ...]
    weight: Vectors
    """``(classes, dimension)``."""
    bias: Vectors
    """``(classes,)``."""

    def predict(self, embeddings: Vectors) -> list[str]:
        """Return the class of each text from ``(texts, dimension)`` embeddings."""
        scores = embeddings @ self.weight.T + self.bias  # (texts, classes)
        return [self.classes[best] for best in scores.argmax(axis=1)]

    def save(self, folder: Path) -> None:
        """Write the head into the encoder's folder, as tensors and metadata that any safetensors reader loads."""
        metadata = {"classes": json.dumps(self.classes, ensure_ascii=False)}
        # save_file writes the raw memory of an array, so that its rows must lie in order
        tensors = {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}
        save_file(tensors, folder / HEAD_FILE, metadata)

    @classmethod
    def load(cls, folder: Path) -> ClassHead:
        """Read the head from the encoder's folder."""
        with safe_open(folder / HEAD_FILE, "numpy") as file:
            classes = json.loads(file.metadata()["classes"])
            return cls(tuple(classes), file.get_tensor("weight"), file.get_tensor("bias"))


def fit_head(model: SentenceTransformer, examples: Sequence[Example]) -> ClassHead:
    """Fit a logistic regression to the embeddings of texts of two or more classes."""
    from sklearn.linear_model import LogisticRegression

    if len(examples) > MAX_FITTED:
        examples = Random(0).sample(examples, MAX_FITTED)
    classes = tuple(sorted({str(example.label) for example in examples}))
    gold = [classes.index(str(example.label)) for example in examples]
    embeddings = _embed_examples(model, examples)
    mean, spread = embeddings.mean(axis=0), embeddings.std(axis=0) + 1e-6
    regression = LogisticRegression(max_iter=1000).fit((embeddings - mean) / spread, gold)
    weight, bias = regression.coef_, regression.intercept_  # (classes, dimension), (classes,)
    if len(classes) == 2:  # scikit-learn then has one row, the log-odds of the second class
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    # fold the standardisation into the weights: w (x - mean) / spread + b = (w / spread) x + (b - (w / spread) mean)
    weight = weight / spread
    return ClassHead(classes, weight.astype(np.float32), (bias - weight @ mean).astype(np.float32))


def score_head(head: ClassHead, model: SentenceTransformer, examples: Sequence[Example]) -> dict[str, float]:
    """Return accuracy and macro F1, x 100, of a head on held-out texts."""
    gold = [str(example.label) for example in examples]
    numbers = {name: number for number, name in enumerate(sorted({*head.classes, *gold}))}
    predicted_numbers = np.array([numbers[name] for name in head.predict(_embed_examples(model, examples))])
    gold_numbers = np.array([numbers[name] for name in gold])
    measures = {
        "accuracy": accuracy(predicted_numbers, gold_numbers),
        "macro_f1": macro_f1(predicted_numbers, gold_numbers, len(numbers)),
    }
    return {name: round(100 * (sample.value or 0.0), 2) for name, sample in measures.items()}


def _embed_examples(model: SentenceTransformer, examples: Sequence[Example]) -> Vectors:
    return embed(model, [example.text_a for example in examples], normalize=False)
