"""Correlations, classification and ranking measures, each with its bootstrap over the items that are evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
CHUNK_SIZE = 2**16
"""Counts of resamples that are computed at a time; this many stay in a processor core's cache."""
NDCG_CUT, MRR_CUT, RECALL_CUTS = 10, 10, (20, 100)
DEPTH = max(NDCG_CUT, MRR_CUT, *RECALL_CUTS)
"""Results of a query that `ranking` reads."""
RANKING = (f"ndcg@{NDCG_CUT}", f"mrr@{MRR_CUT}", *(f"recall@{cut}" for cut in RECALL_CUTS))
"""Names of the values that `ranking` returns."""
TITLES = {"spearman": "Spearman x 100", "pearson": "Pearson x 100"}
"""Titles of measures in tables, where they differ from the names. All measures are shown times 100."""

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.float64]
"""How often each item occurs in each of some resamples, ``(resamples, items)``."""


def measure_title(measure: str) -> str:
    return TITLES.get(measure.lower(), measure)


@dataclass(frozen=True)
class Measurement:
    """The value of a measure, and its values on resamples of the same items (Efron 1979)."""

    value: float | None
    """None if it is not defined, such as a correlation with constant predictions."""
    resampled: Vector
    """``(RESAMPLES,)``; NaN if it is not defined. Resample i holds the same items for every model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile interval. None if less than half of the resamples have a value."""
        defined = self.resampled[np.isfinite(self.resampled)]
        if self.value is None or len(defined) < len(self.resampled) / 2:
            return None
        low, high = np.percentile(defined, [2.5, 97.5])
        return float(low), float(high)

    def __sub__(self, other: Measurement) -> Measurement:
        """Return the paired difference: each resample compares both on the same items."""
        value = None if self.value is None or other.value is None else self.value - other.value
        return Measurement(value, self.resampled - other.resampled)

    def percent(self) -> Measurement:
        """Return it times 100, as it is shown and stored."""
        return Measurement(None if self.value is None else 100 * self.value, 100 * self.resampled)


def mean(measurements: Sequence[Measurement], weights: Sequence[float] | None = None) -> Measurement:
    """Return the weighted mean of measurements on different items. Its value is None if one of theirs is."""
    shares = np.asarray(weights if weights is not None else [1.0] * len(measurements), dtype=float)
    shares /= shares.sum()
    values = [measurement.value for measurement in measurements]
    value = None if None in values else float(np.dot(shares, np.array(values, dtype=float)))
    return Measurement(value, shares @ np.stack([measurement.resampled for measurement in measurements]))


def resamples(size: int) -> Iterator[Counts]:
    """Yield `RESAMPLES` resamples of ``size`` items in chunks. The same size gives the same resamples."""
    generator = np.random.default_rng(SEED)
    rows_per_chunk = max(1, CHUNK_SIZE // size)
    for first in range(0, RESAMPLES, rows_per_chunk):
        rows = min(rows_per_chunk, RESAMPLES - first)
        # Row r counts in the bins r * size .. (r + 1) * size - 1, so that one bincount serves the whole chunk.
        bins = generator.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(bins.ravel(), minlength=rows * size).reshape(rows, size).astype(float)


def bootstrap(size: int, measure: Callable[[Counts], Vector]) -> Measurement:
    """Return a measure of ``size`` items and of their resamples.

    Args:
        size: number of items.
        measure: computes the measure for resamples: ``(resamples, items) -> (resamples,)``.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(measure(np.ones((1, size)))[0])
        resampled = np.concatenate([measure(counts) for counts in resamples(size)])
    return Measurement(value if math.isfinite(value) else None, resampled)


def spearman(predicted: Vector, gold: Vector) -> Measurement:
    """Return Spearman's rank correlation. Tied values share the mean of their ranks."""
    predicted_ranks, gold_ranks = _ranks(predicted), _ranks(gold)
    return bootstrap(len(gold), lambda counts: _correlation(predicted_ranks(counts), gold_ranks(counts), counts))


def pearson(predicted: Vector, gold: Vector) -> Measurement:
    # Rounding errors stay small if the values are near zero.
    first, second = (predicted - predicted.mean())[None], (gold - gold.mean())[None]  # (1, items)
    return bootstrap(len(gold), lambda counts: _correlation(first, second, counts))


def _ranks(values: Vector) -> Callable[[Counts], Vector]:
    """Return a function that ranks the values within resamples, ``(resamples, items) -> (resamples, items)``.

    The values are sorted once. In a resample, equal values form a group of some size, and all members get the mean of
    the ranks that the group takes: the size of all groups up to here, less half of (this group's size - 1).
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    group_starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    group_of_item = np.empty(len(values), dtype=np.int64)
    group_of_item[order] = np.repeat(np.arange(len(group_starts)), np.diff(np.r_[group_starts, len(values)]))

    def ranks(counts: Counts) -> Vector:
        sizes = np.add.reduceat(counts[:, order], group_starts, axis=1)  # (resamples, groups)
        mean_ranks: Vector = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
        return mean_ranks[:, group_of_item]

    return ranks


def _correlation(first: Vector, second: Vector, counts: Counts) -> Vector:
    """Return Pearson's correlations, ``(resamples,)``, of values that occur ``counts`` times each.

    The result is NaN where the values of one side are constant.
    """
    total = counts.sum(axis=1, keepdims=True)
    first = first - (counts * first).sum(axis=1, keepdims=True) / total
    second = second - (counts * second).sum(axis=1, keepdims=True) / total
    covariance = np.einsum("ij,ij,ij->i", counts, first, second)
    variances = np.einsum("ij,ij,ij->i", counts, first, first) * np.einsum("ij,ij,ij->i", counts, second, second)
    correlation: Vector = np.where(variances > 1e-24 * total[:, 0] ** 2, covariance / np.sqrt(variances), np.nan)
    return np.clip(correlation, -1, 1)


def average(values: Vector) -> Measurement:
    """Return the mean of one value per item."""
    return bootstrap(len(values), lambda counts: counts @ values / counts.sum(axis=1))


def accuracy(predicted: Integers, gold: Integers) -> Measurement:
    """Return the share of items whose predicted class is right."""
    return average((predicted == gold).astype(float))


def macro_f1(predicted: Integers, gold: Integers, classes: int) -> Measurement:
    """Return the mean F1 over classes. A class that is neither predicted nor gold in a resample is left out."""
    one_hot = np.eye(classes)
    is_predicted, is_gold = one_hot[predicted], one_hot[gold]  # (items, classes)

    def measure(counts: Counts) -> Vector:
        true_positives = counts @ (is_predicted * is_gold)  # (resamples, classes)
        f1 = 2 * true_positives / (counts @ is_predicted + counts @ is_gold)
        means: Vector = np.nanmean(f1, axis=1)
        return means

    return bootstrap(len(gold), measure)


def ranking(ranked: Sequence[str], judged: Mapping[str, int]) -> tuple[float, ...]:
    """Return nDCG@10, MRR@10, Recall@20 and Recall@100 of one query, as trec_eval defines them.

    Args:
        ranked: ids of documents, the best first.
        judged: relevance by id. It is the gain of nDCG (Järvelin & Kekäläinen 2002); 0 and less is not relevant.

    Returns:
        Zeros if no document is relevant.
    """
    relevant = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
    if not relevant:
        return (0.0,) * len(RANKING)
    grades = [max(judged.get(document, 0), 0) for document in ranked[:DEPTH]]
    reciprocal_rank = next((1 / rank for rank, grade in enumerate(grades[:MRR_CUT], start=1) if grade), 0.0)
    is_relevant = np.array(grades) > 0
    recalls = [float(is_relevant[:cut].sum()) / len(relevant) for cut in RECALL_CUTS]
    return (_gain(grades[:NDCG_CUT]) / _gain(relevant[:NDCG_CUT]), reciprocal_rank, *recalls)


def _gain(grades: Sequence[int]) -> float:
    """Return the discounted cumulative gain of grades, the best result's first."""
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))
