from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example
from dino_pipeline.models import load_encoder, mean_cosine
from dino_pipeline.training.checks import probe_texts
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.selection import alignment, selection_criterion, uniformity


def unit(seed: int, rows: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 5))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_alignment_and_uniformity_are_wang_and_isola_s() -> None:
    first, second = unit(0, 7), unit(1, 7)
    distances = [((a - b) ** 2).sum() for a, b in zip(first, second, strict=True)]
    assert alignment(first, second) == pytest.approx(np.mean(distances), abs=1e-6)
    pairs = [np.exp(-2 * ((first[i] - first[j]) ** 2).sum()) for i in range(7) for j in range(i)]
    assert uniformity(first) == pytest.approx(np.log(np.mean(pairs)), abs=1e-5)
    assert uniformity(np.ones((3, 1), dtype=np.float32)) == pytest.approx(0)
    assert uniformity(first[:1]) == 0


def test_scored_pairs_choose_by_spearman_other_texts_by_alignment_and_uniformity(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    scored = [Example("a dog", "a dog", 1.0), Example("a dog", "rain falls", 0.0), Example("cats", "a cat", 0.5)]
    chosen = selection_criterion(Corpus("dev", scored))
    assert (chosen.measure, chosen.metric, chosen.rows) == ("Spearman", "eval_dev_spearman_cosine", 3)
    assert "dev_spearman_cosine" in chosen.evaluator(model)
    texts = [Example("a dog runs over the hill"), Example("rain"), Example("two cats sit on a wall")]
    classes = [Example("a dog runs", "no dog", "contradiction"), Example("rain falls", "it rains", "entailment")]
    views = selection_criterion(Corpus("dev", classes)).evaluator.second
    assert views[0] in ("a dog", "a runs", "dog runs"), "what contradicts does not belong together"
    for examples in (texts, classes, [Example("a dog", "dogs"), Example("rain", "it rains"), Example("x", "y")]):
        chosen = selection_criterion(Corpus("dev", examples))
        assert (chosen.measure, chosen.scale) == ("alignment and uniformity", 1)
        found = chosen.evaluator(model)
        assert found == chosen.evaluator(model), "the same views each time"
        both = (chosen.evaluator.first, chosen.evaluator.second)
        first, second = (model.encode(texts, normalize_embeddings=True) for texts in both)
        assert found["dev_alignment_uniformity"] == pytest.approx(
            -alignment(first, second) - uniformity(first), abs=1e-5
        )
        assert alignment(first, second) > 0 > uniformity(first)
    with pytest.raises(DataError, match="at least two different scores"):
        selection_criterion(Corpus("dev", [Example("a", "b", 1.0), Example("c", "d", 1.0)]))


def test_the_mean_cosine_of_different_texts_tells_collapse(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    texts = probe_texts([Example("a dog", "rain falls", 1.0), Example("A dog!", "cats", 0.0)])
    assert texts == ["a dog", "rain falls", "cats"]
    vectors = model.encode(texts, normalize_embeddings=True)
    expected = np.mean([vectors[0] @ vectors[1], vectors[0] @ vectors[2], vectors[1] @ vectors[2]])
    assert mean_cosine(model, texts) == pytest.approx(expected, abs=1e-6)
    assert mean_cosine(model, texts[:1]) == 0
