from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from dino_pipeline.errors import DataError, ModelError
from dino_pipeline.evaluate import WORD_OVERLAP, ScoredPairs, evaluate, score, spearman_interval, write_scores
from dino_pipeline.examples import Example, write_examples

PAIRS = [
    Example("a dog runs", "a dog runs", 1.0),
    Example("a dog runs", "a dog sits", 0.6),
    Example("a dog runs", "two cats sit", 0.2),
    Example("rain falls", "a dog sits", 0.0),
]


def stored(tmp_path: Path, rows: list[Example]) -> Path:
    write_examples(tmp_path / "gold.jsonl", rows)
    return tmp_path / "gold.jsonl"


def test_word_overlap_and_models_are_scored_side_by_side(tmp_path: Path, toy_encoder: Path) -> None:
    pairs = ScoredPairs.read("gold", stored(tmp_path, PAIRS))
    scores = evaluate([("toy", str(toy_encoder))], [pairs])
    assert [(found.data, found.model, found.pairs) for found in scores] == [
        ("gold", WORD_OVERLAP, 4),
        ("gold", "toy", 4),
    ]
    assert scores[0].spearman == pytest.approx(100 * spearmanr([1, 0.5, 0, 0], [1, 0.6, 0.2, 0])[0], abs=0.01)
    assert scores[1].pearson is not None
    assert scores[1].low is not None
    assert scores[1].high is not None
    assert -100 <= scores[1].low <= scores[1].high <= 100
    write_scores(tmp_path / "scores.json", scores)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["spearman"] == scores[0].spearman


def test_a_perfect_prediction_scores_100_and_a_constant_none() -> None:
    pairs = ScoredPairs("gold", PAIRS)
    assert score(pairs, "m", pairs.gold).spearman == 100
    assert score(pairs, "m", np.ones(4)).spearman is None


def test_the_interval_holds_the_truth_and_is_the_same_each_time() -> None:
    draw = np.random.default_rng(3)
    gold = draw.normal(size=400)
    predicted = gold + draw.normal(size=400)
    low, high = spearman_interval(predicted, gold)
    assert low < spearmanr(predicted, gold)[0] < high
    assert 0.05 < high - low < 0.2
    assert (low, high) == spearman_interval(predicted, gold)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([Example("a", None, 1.0)], "example 1 is no scored pair"),
        ([Example("a", "b", 1.0), Example("a", "b", "x")], "example 2 is no scored pair"),
        ([Example("a", "b", 1.0), Example("a", "c", 1.0)], "all pairs have the same label"),
    ],
)
def test_data_without_scores_is_refused(tmp_path: Path, rows: list[Example], said: str) -> None:
    with pytest.raises(DataError, match=said):
        ScoredPairs.read("gold", stored(tmp_path, rows))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: cannot be loaded as an encoder"):
        evaluate([("x", str(tmp_path / "nowhere"))], [ScoredPairs("gold", PAIRS)])
