"""Scored pairs: how well the cosine of two texts' embeddings follows what people, or a grammar, say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.base import Embedder, Measured, cosines, percent
from dino_pipeline.measures import Sample, Vector, mean, pearson, spearman
from dino_pipeline.text import word_overlap
from dino_pipeline.training.corpus import Corpus, to_evaluate_on

WORD_OVERLAP = "word overlap (Jaccard)"
Aggregate = Literal["all", "mean", "wmean"]
Pair = tuple[str, str, float]
"""Two texts and their gold score."""


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with gold scores, in one part or several."""

    name: str
    parts: Sequence[Sequence[Pair]]
    suite: str = "pairs"
    counted: str = "pairs"
    aggregate: Aggregate = "all"
    """How parts become one figure: one correlation over all pairs; the mean of each part's; that weighted by size."""
    protocol: Mapping[str, str] = field(default_factory=lambda: {"similarity": "cosine"})

    @classmethod
    def read(cls, name: str, path: Path, suite: str = "pairs") -> ScoredPairs:
        """Read a JSONL file.

        Raises:
            DataError: a row is no pair with a number, or the gold scores are all the same.
        """
        return cls.of(name, to_evaluate_on(path).corpus, suite)

    @classmethod
    def of(cls, name: str, corpus: Corpus, suite: str = "pairs") -> ScoredPairs:
        """Return what was read; see `read`."""
        pairs = []
        for number, example in enumerate(corpus.examples, start=1):
            if example.text_b is None or not isinstance(example.label, float):
                raise DataError(
                    f"{corpus.name}: example {number} is no scored pair; give text_a, text_b and a number as label"
                )
            pairs.append((example.text_a, example.text_b, example.label))
        if len({gold for _, _, gold in pairs}) < 2:
            raise DataError(f"{corpus.name}: all pairs have the same label; a correlation needs different ones")
        return cls(name, [pairs], suite)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for part in self.parts:
            for first, second, gold in part:
                digest.update(f"{first}\0{second}\0{gold}\0".encode())
        return digest.hexdigest()[:16]

    def texts(self) -> Iterator[str]:
        for part in self.parts:
            for first, second, _ in part:
                yield from (first, second)

    def measure(self, embedder: Embedder) -> Measured:
        return self.correlate(lambda part: cosines(embedder, [(first, second) for first, second, _ in part]))

    def baseline(self) -> tuple[str, Measured]:
        """Correlate the overlap of words with the gold scores."""
        return WORD_OVERLAP, self.correlate(lambda part: np.array([word_overlap(a, b) for a, b, _ in part]))

    def correlate(self, predict: Callable[[Sequence[Pair]], Vector]) -> Measured:
        """Correlate what is predicted for pairs, ``(pairs,)``, with their gold scores."""
        predicted = [predict(part) for part in self.parts]
        gold = [np.array([score for _, _, score in part], dtype=float) for part in self.parts]
        if self.aggregate == "all":
            predicted, gold = [np.concatenate(predicted)], [np.concatenate(gold)]
        weights = [len(part) for part in gold] if self.aggregate == "wmean" else None

        def over_parts(correlation: Callable[[Vector, Vector], Sample]) -> Sample:
            return mean([correlation(*both) for both in zip(predicted, gold, strict=True)], weights)

        return percent({"spearman": over_parts(spearman), "pearson": over_parts(pearson)})
