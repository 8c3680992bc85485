"""The evaluate stage: how well the cosine of a model's embeddings follows gold scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata, spearmanr
from sentence_transformers import SentenceTransformer

from dino_pipeline.encoders import load_encoder
from dino_pipeline.errors import DataError, ModelError
from dino_pipeline.examples import Example, read_examples, write_json
from dino_pipeline.texts import word_overlap

RESAMPLES = 1000
WORD_OVERLAP = "word overlap (Jaccard)"
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One model on one set of scored pairs; correlations times 100."""

    data: str
    model: str
    pairs: int
    spearman: float | None
    """None where all predictions are the same."""
    low: float | None
    """Lower end of the 95 % bootstrap interval of Spearman's correlation."""
    high: float | None
    pearson: float | None


@dataclass(frozen=True)
class ScoredPairs:
    """A named set of pairs with gold scores."""

    name: str
    examples: list[Example]

    @classmethod
    def read(cls, name: str, path: Path) -> ScoredPairs:
        """Read a JSONL file.

        Raises:
            DataError: a row is no pair with a number, or the gold scores are all the same.
        """
        examples = read_examples(path)
        for number, example in enumerate(examples, start=1):
            if example.text_b is None or not isinstance(example.label, float):
                raise DataError(
                    f"{path}: example {number} is no scored pair; give text_a, text_b and a number as label"
                )
        if len(dict.fromkeys(example.label for example in examples)) < 2:
            raise DataError(f"{path}: all pairs have the same label; a correlation needs different ones")
        return cls(name, examples)

    @property
    def gold(self) -> Vector:
        """The gold scores, ``(pairs,)``."""
        return np.array([example.label for example in self.examples], dtype=float)


def evaluate(models: Sequence[tuple[str, str]], sets: Sequence[ScoredPairs], *, batch_size: int = 64) -> list[Score]:
    """Score models, and the overlap of words beside them, on sets of pairs.

    Args:
        models: (name to show, folder or Hub id) of each.
        sets: the pairs.
        batch_size: texts a batch; changes speed only.

    Returns:
        For each set, the word-overlap baseline and then each model.

    Raises:
        ModelError: a model cannot be loaded.
    """
    scores = [[score(pairs, WORD_OVERLAP, overlaps(pairs))] for pairs in sets]
    for name, path in models:
        model = load_encoder(path)
        for of_set, pairs in zip(scores, sets, strict=True):
            of_set.append(score(pairs, name, cosines(model, pairs, batch_size)))
    return [found for of_set in scores for found in of_set]


def overlaps(pairs: ScoredPairs) -> Vector:
    """Return each pair's word overlap, ``(pairs,)``."""
    return np.array([word_overlap(example.text_a, example.text_b or "") for example in pairs.examples])


def cosines(model: SentenceTransformer, pairs: ScoredPairs, batch_size: int) -> Vector:
    """Return each pair's cosine, ``(pairs,)``; a text that occurs again is encoded once."""
    texts = list(dict.fromkeys(text for example in pairs.examples for text in (example.text_a, example.text_b or "")))
    embeddings = model.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
    at = {text: number for number, text in enumerate(texts)}
    first = embeddings[[at[example.text_a] for example in pairs.examples]]
    second = embeddings[[at[example.text_b or ""] for example in pairs.examples]]
    return np.asarray((first * second).sum(axis=1), dtype=float)


def score(pairs: ScoredPairs, model: str, predicted: Vector) -> Score:
    """Correlate predictions with the gold scores."""
    gold = pairs.gold
    if not np.isfinite(predicted).all():
        raise ModelError(f"{model}: some of its embeddings are not numbers (NaN); it cannot be scored")
    if np.ptp(predicted) == 0:
        return Score(pairs.name, model, len(gold), None, None, None, None)
    low, high = spearman_interval(predicted, gold)
    correlations = (spearmanr(predicted, gold)[0], low, high, pearsonr(predicted, gold)[0])
    rounded = [round(100 * float(value), 2) for value in correlations]
    return Score(pairs.name, model, len(gold), *rounded)


def spearman_interval(
    predicted: Vector, gold: Vector, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of Spearman's correlation over pairs."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        chosen = draw.integers(0, len(gold), len(gold))
        ranks = rankdata(predicted[chosen]), rankdata(gold[chosen])
        if np.ptp(ranks[0]) and np.ptp(ranks[1]):
            found.append(np.corrcoef(*ranks)[0, 1])
    low, high = np.percentile(found, [2.5, 97.5]) if found else (np.nan, np.nan)
    return float(low), float(high)


def write_scores(path: Path, scores: Sequence[Score], chosen_on: Mapping[str, str] | None = None) -> None:
    """Write scores as JSON, atomically, with the human labels that models' checkpoints were chosen on, by model."""
    found = {"unit": "correlation x 100", "chosen_on_human_labels": dict(chosen_on or {})}
    write_json(path, {**found, "scores": [asdict(each) for each in scores]})
