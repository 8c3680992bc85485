"""What evaluation counts: correlations, classes and rankings, each with its bootstrap over the items evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
AT_ONCE = 2**16
"""So many numbers of resamples are worked on at once: what a processor core keeps near."""
NDCG_CUT, MRR_CUT, RECALL_CUTS = 10, 10, (20, 100)
DEPTH = max(NDCG_CUT, MRR_CUT, *RECALL_CUTS)
"""How many results of a query are looked at."""
RANKING = (f"ndcg@{NDCG_CUT}", f"mrr@{MRR_CUT}", *(f"recall@{cut}" for cut in RECALL_CUTS))
"""Names of what `ranking` returns."""
TITLES = {"spearman": "Spearman x 100", "pearson": "Pearson x 100"}
"""Of measures that tables show in hundredths, without saying so in their names."""

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.float64]
"""How often each item is in each of some resamples, ``(resamples, items)``."""


def measure_title(measure: str) -> str:
    """Return what a measure is called in tables."""
    return TITLES.get(measure.lower(), measure)


@dataclass(frozen=True)
class Sample:
    """A measure's value, and its values on resamples of the same items (Efron 1979)."""

    value: float | None
    """None where it is not defined: a correlation with predictions that are all the same."""
    resampled: Vector
    """``(RESAMPLES,)``; NaN where it is not defined. The same places hold the same items for every model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile interval; None if hardly any resample has a value."""
        found = self.resampled[np.isfinite(self.resampled)]
        if self.value is None or len(found) < len(self.resampled) / 2:
            return None
        low, high = np.percentile(found, [2.5, 97.5])
        return float(low), float(high)

    def __sub__(self, other: Sample) -> Sample:
        """Return the difference, resampled in pairs: both measures see the same items each time."""
        value = None if self.value is None or other.value is None else self.value - other.value
        return Sample(value, self.resampled - other.resampled)


def mean(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> Sample:
    """Return the mean of measures on different items, weighted if asked; None where one is None."""
    shares = np.asarray(weights if weights is not None else [1.0] * len(samples), dtype=float)
    shares /= shares.sum()
    values = [sample.value for sample in samples]
    value = None if None in values else float(np.dot(shares, np.array(values, dtype=float)))
    return Sample(value, shares @ np.stack([sample.resampled for sample in samples]))


def resamples(size: int) -> Iterator[Counts]:
    """Yield all resamples of so many items, some at a time; always the same for the same size."""
    draw = np.random.default_rng(SEED)
    rows = max(1, AT_ONCE // size)
    for first in range(0, RESAMPLES, rows):
        some = min(rows, RESAMPLES - first)
        chosen = draw.integers(0, size, (some, size)) + size * np.arange(some)[:, None]
        yield np.bincount(chosen.ravel(), minlength=some * size).reshape(some, size).astype(float)


def resampled(size: int, measure: Callable[[Counts], Vector]) -> Sample:
    """Return a measure of items, given as a function of how often each item counts: ``(n, size) -> (n,)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(measure(np.ones((1, size)))[0])
        found = np.concatenate([measure(counts) for counts in resamples(size)])
    return Sample(value if math.isfinite(value) else None, found)


def spearman(predicted: Vector, gold: Vector) -> Sample:
    """Return Spearman's rank correlation; tied values share the mean of their ranks."""
    ranks_of_predicted, ranks_of_gold = _ranks(predicted), _ranks(gold)
    return resampled(len(gold), lambda counts: _correlation(ranks_of_predicted(counts), ranks_of_gold(counts), counts))


def pearson(predicted: Vector, gold: Vector) -> Sample:
    """Return Pearson's correlation."""
    centred = [(values - values.mean())[None] for values in (predicted, gold)]
    return resampled(len(gold), lambda counts: _correlation(centred[0], centred[1], counts))


def _ranks(values: Vector) -> Callable[[Counts], Vector]:
    """Return a function that gives the values' ranks within resamples, without sorting again."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(values)]))

    def ranks(counts: Counts) -> Vector:
        sizes = np.add.reduceat(counts[:, order], first, axis=1)
        middles: Vector = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
        return middles[:, group]

    return ranks


def _correlation(first: Vector, second: Vector, counts: Counts) -> Vector:
    """Return the correlations of values that count so often each; NaN where one of the two does not vary."""
    total = counts.sum(axis=1, keepdims=True)
    first = first - (counts * first).sum(axis=1, keepdims=True) / total
    second = second - (counts * second).sum(axis=1, keepdims=True) / total
    together = np.einsum("ij,ij,ij->i", counts, first, second)
    alone = np.einsum("ij,ij,ij->i", counts, first, first) * np.einsum("ij,ij,ij->i", counts, second, second)
    found: Vector = np.where(alone > 1e-24 * total[:, 0] ** 2, together / np.sqrt(alone), np.nan)
    return np.clip(found, -1, 1)


def average(values: Vector) -> Sample:
    """Return the mean of what each item came to."""
    return resampled(len(values), lambda counts: counts @ values / counts.sum(axis=1))


def accuracy(predicted: Integers, gold: Integers) -> Sample:
    """Return the share of items that were given their class."""
    return average((predicted == gold).astype(float))


def macro_f1(predicted: Integers, gold: Integers, classes: int) -> Sample:
    """Return the mean over classes of F1; a class that is neither given nor right anywhere does not count."""
    given, right = np.eye(classes)[predicted], np.eye(classes)[gold]

    def measure(counts: Counts) -> Vector:
        both = counts @ (given * right)
        f1 = 2 * both / (counts @ given + counts @ right)
        found: Vector = np.nanmean(f1, axis=1)
        return found

    return resampled(len(gold), measure)


def ranking(ranked: Sequence[str], judged: Mapping[str, int]) -> tuple[float, ...]:
    """Return nDCG@10, MRR@10, Recall@20 and Recall@100 of one query, as trec_eval defines them.

    Args:
        ranked: ids, the best first.
        judged: relevance by id; the gain of nDCG (Järvelin & Kekäläinen 2002). 0 and less is not relevant.

    Returns:
        Zeros if nothing is relevant.
    """
    relevant = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
    if not relevant:
        return (0.0,) * len(RANKING)
    grades = [max(judged.get(name, 0), 0) for name in ranked[:DEPTH]]
    reciprocal = next((1 / rank for rank, grade in enumerate(grades[:MRR_CUT], start=1) if grade), 0.0)
    recalls = [sum(grade > 0 for grade in grades[:cut]) / len(relevant) for cut in RECALL_CUTS]
    return (_gain(grades[:NDCG_CUT]) / _gain(relevant[:NDCG_CUT]), reciprocal, *recalls)


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))
