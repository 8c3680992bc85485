from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, pearsonr, rankdata, spearmanr
from sklearn.metrics import accuracy_score, f1_score

from dino_pipeline.measures import (
    RESAMPLES,
    accuracy,
    average,
    macro_f1,
    mean,
    pearson,
    ranking,
    resamples,
    spearman,
)
from tests.toys import by_score


@given(st.integers(0, 2**32 - 1), st.integers(3, 60), st.integers(2, 9))
def test_correlations_are_those_of_scipy_with_ties(seed: int, size: int, values: int) -> None:
    draw = np.random.default_rng(seed)
    predicted, gold = draw.integers(0, values, size) / 8, draw.integers(0, 3, size).astype(float)
    if np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        assert spearman(predicted, gold).value is None
        assert spearman(predicted, gold).interval is None
        return
    assert spearman(predicted, gold).value == pytest.approx(spearmanr(predicted, gold)[0], abs=1e-9)
    assert pearson(predicted, gold).value == pytest.approx(pearsonr(predicted, gold)[0], abs=1e-9)


def test_every_resample_is_correlated_as_if_it_were_drawn() -> None:
    draw = np.random.default_rng(1)
    predicted, gold = draw.integers(0, 12, 50).astype(float), draw.integers(0, 4, 50).astype(float)
    found = spearman(predicted, gold).resampled, pearson(predicted, gold).resampled
    counts = np.concatenate(list(resamples(50)))
    assert counts.shape == (RESAMPLES, 50)
    for at in range(0, RESAMPLES, 97):
        chosen = np.repeat(np.arange(50), counts[at].astype(int))
        assert len(chosen) == 50
        ranks = rankdata(predicted[chosen]), rankdata(gold[chosen])
        assert found[0][at] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
        assert found[1][at] == pytest.approx(pearsonr(predicted[chosen], gold[chosen])[0], abs=1e-9)


@pytest.mark.slow
def test_intervals_are_those_of_scipys_bootstrap() -> None:
    draw = np.random.default_rng(3)
    gold = draw.normal(size=400)
    predicted = gold + draw.normal(size=400)
    found = spearman(predicted, gold).interval
    assert found and found == spearman(predicted, gold).interval
    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 2000}
    scipys = bootstrap((predicted, gold), lambda *both: spearmanr(*both)[0], rng=draw, **options).confidence_interval
    assert found == pytest.approx(tuple(scipys), abs=0.01)


def test_differences_are_resampled_in_pairs() -> None:
    """Two models that err on the same items differ far less than their own intervals are wide."""
    draw = np.random.default_rng(5)
    gold = draw.normal(size=500)
    first = gold + draw.normal(size=500)
    second = first + 0.05 * draw.normal(size=500)
    difference = spearman(second, gold) - spearman(first, gold)
    alone = spearman(first, gold).interval
    assert difference.interval and alone
    assert difference.interval[1] - difference.interval[0] < (alone[1] - alone[0]) / 3
    assert difference.value == pytest.approx(spearmanr(second, gold)[0] - spearmanr(first, gold)[0])


def test_means_are_weighted_and_none_where_one_is_none() -> None:
    one, other = average(np.array([0.0, 1.0])), average(np.array([1.0, 1.0]))
    assert mean([one, other]).value == 0.75
    assert mean([one, other], [3, 1]).value == pytest.approx(0.625)
    assert mean([one, spearman(np.ones(3), np.arange(3.0))]).value is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 5))
def test_classification_measures_are_those_of_sklearn(seed: int, size: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    predicted, gold = draw.integers(0, classes, size), draw.integers(0, classes, size)
    assert accuracy(predicted, gold).value == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
    expected = f1_score(gold, predicted, average="macro")
    assert macro_f1(predicted, gold, classes).value == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_ranking_measures_are_those_of_trec_eval_with_ties_and_grades(seed: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    scores = {f"d{name}": float(score) / 8 for name, score in zip(range(size), draw.integers(0, 20, size), strict=True)}
    judged = {name: int(draw.choice([-1, 0, 1, 1, 2, 3])) for name in scores if draw.random() < 0.3}
    judged["not found"] = int(draw.choice([0, 2]))
    asked = {"ndcg_cut.10", "recall.20,100", "recip_rank"}
    ranked = by_score(scores)
    found = pytrec_eval.RelevanceEvaluator({"q": judged}, asked).evaluate({"q": scores})["q"]
    best_ten = {"q": {name: scores[name] for name in ranked[:10]}}
    reciprocal = pytrec_eval.RelevanceEvaluator({"q": judged}, asked).evaluate(best_ten)["q"]["recip_rank"]
    expected = (found["ndcg_cut_10"], reciprocal, found["recall_20"], found["recall_100"])
    assert ranking(ranked, judged) == pytest.approx(expected, abs=1e-9)
