"""Scored pairs: the correlation of cosine similarities with gold scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dino_pipeline.encoder_options import Aggregate
from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.suite import Embedder, Measures, cosines, percent
from dino_pipeline.measures import Measurement, Vector, mean, pearson, spearman
from dino_pipeline.text import word_overlap
from dino_pipeline.training.corpus import Corpus, evaluation_source

WORD_OVERLAP = "word overlap (Jaccard)"

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
    """``all``: one correlation over the pairs of all parts. ``mean``: the mean of the parts' correlations. ``wmean``:
    their mean, weighted by size."""
    protocol: Mapping[str, str] = field(default_factory=lambda: {"similarity": "cosine"})

    @classmethod
    def read(cls, name: str, path: Path, suite: str = "pairs") -> ScoredPairs:
        """Read a file of pairs.

        Raises:
            DataError: a row is not a pair with a number, or all numbers are equal.
        """
        return cls.of(name, evaluation_source(path).corpus, suite)

    @classmethod
    def of(cls, name: str, corpus: Corpus, suite: str = "pairs") -> ScoredPairs:
        """Return the pairs of a corpus; see `read`."""
        pairs = []
        for number, example in enumerate(corpus.examples, start=1):
            if example.text_b is None or not isinstance(example.label, float):
                raise DataError(
                    f"{corpus.name}: example {number} is not a scored pair; give text_a, text_b and a number as label"
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

    def measure(self, embedder: Embedder) -> Measures:
        return self.correlate(lambda part: cosines(embedder, [(first, second) for first, second, _ in part]))

    def baseline(self) -> tuple[str, Measures]:
        """Return the correlation of word overlap with the gold scores."""
        return WORD_OVERLAP, self.correlate(lambda part: np.array([word_overlap(a, b) for a, b, _ in part]))

    def correlate(self, predict: Callable[[Sequence[Pair]], Vector]) -> Measures:
        """Return the correlations of predicted scores with the gold scores.

        Args:
            predict: returns the predicted scores of some pairs, ``(pairs,)``.
        """
        predicted, gold = [], []
        for part in self.parts:
            predicted.append(predict(part))
            gold.append(np.array([score for _, _, score in part], dtype=float))
        if self.aggregate == "all":
            predicted, gold = [np.concatenate(predicted)], [np.concatenate(gold)]
        weights = [len(part) for part in gold] if self.aggregate == "wmean" else None

        def over_parts(correlation: Callable[[Vector, Vector], Measurement]) -> Measurement:
            of_parts = [correlation(*part) for part in zip(predicted, gold, strict=True)]
            return mean(of_parts, weights)

        return percent({"spearman": over_parts(spearman), "pearson": over_parts(pearson)})
