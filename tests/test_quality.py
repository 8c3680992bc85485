"""What is checked before a training, and what chooses its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from dino_pipeline.errors import DataError, ModelError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.models import load_encoder, mean_cosine
from dino_pipeline.stage_records import FinetuneRecord
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.health import probe_texts
from dino_pipeline.training.objectives import TrainingContext, get_objective, resolve_hyperparameters
from dino_pipeline.training.quality import (
    alignment,
    check_encoder,
    fit_batch_size,
    has_dropout,
    inspect_data,
    selection_criterion,
    uniformity,
)
from tests.records import finetune_record
from tests.toys import Listener, static_encoder, without_dropout


def test_simcse_s_family_needs_dropout(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    assert has_dropout(model)
    assert not has_dropout(static_encoder())
    for name in ("simcse", "is-cse"):
        objective = get_objective(name)
        check_encoder(model, objective, objective.defaults)
        with pytest.raises(ModelError, match="no dropout, so that both views of a text would be the same"):
            check_encoder(static_encoder(), objective, objective.defaults)
    model = without_dropout(toy_encoder)
    model.transformers_model.config.hidden_dropout_prob = 0.0
    model.transformers_model.config.attention_probs_dropout_prob = 0.0
    assert not has_dropout(model)


def test_cached_gradients_need_batches_of_rows() -> None:
    objective = get_objective("cpt")
    with pytest.raises(ModelError, match="its inputs cannot be parted into mini-batches"):
        check_encoder(static_encoder(), objective, objective.defaults)


def looked(
    model: SentenceTransformer, name: str, rows: dict[str, list[Any]], **given: Any
) -> tuple[FinetuneRecord, list[str]]:
    objective, listener = get_objective(name), Listener()
    training = resolve_hyperparameters(objective, given, {})
    if training.max_length:
        model.max_seq_length = training.max_length
    dataset = objective.build(rows, TrainingContext(training, model.tokenizer, 1))
    record = finetune_record(train=len(dataset))
    record = record.updated(options=record.options.updated(batch_size=training.batch_size))
    return inspect_data(record, model, objective, dataset, training.batch_size, listener), listener.notes


def test_small_batches_cut_and_repeated_texts_are_said(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    texts = ["a dog", "A dog!", "cats", "x" * 40]
    found, notes = looked(model, "simcse", {"sentence": texts}, batch_size=4)
    assert (found.cut, found.repeated) == (0.25, 0.5)
    said = "; ".join(notes)
    assert "batches of 4 rows leave 3 other rows to tell a text from" in said
    assert "25% of the texts are longer than 32 tokens and are cut; raise max_length, or" in said
    assert "50% of the rows share a first text with another row; in one batch they are false negatives" in said
    assert all(note.startswith(message) for note, message in zip(notes, found.notes, strict=True))
    many = {"sentence": [f"text {number}" for number in range(64)]}
    assert looked(model, "simcse", many)[1] == []
    assert looked(model, "mirror-bert", many)[1] == [], "views that are drawn are looked at too"


def test_batches_are_no_larger_than_what_can_fill_them() -> None:
    """Neighbouring sentences share texts from row to row; a paper's batch is for more rows than there are."""
    chain = Dataset.from_dict({"anchor": [f"{n}" for n in range(1000)], "positive": [f"{n + 1}" for n in range(1000)]})
    cpt, simcse = get_objective("cpt"), get_objective("simcse")
    assert fit_batch_size(cpt, cpt.defaults.updated(batch_size=900), chain, 1).batch_size == 400
    assert fit_batch_size(cpt, cpt.defaults.updated(batch_size=900), chain, 3).batch_size == 399, (
        "each process has as many"
    )
    assert fit_batch_size(cpt, cpt.defaults.updated(batch_size=30), chain, 1).batch_size == 30
    assert fit_batch_size(cpt, cpt.defaults, chain, 1).batch_size == 50, "twenty steps"
    assert fit_batch_size(cpt, cpt.defaults.updated(steps=3), chain, 1).batch_size == 400
    assert fit_batch_size(simcse, simcse.defaults, chain, 1).batch_size == 50
    assert fit_batch_size(simcse, simcse.defaults.updated(batch_size=500), chain, 1).batch_size == 500


def test_what_leaves_no_negatives_is_refused(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    with pytest.raises(OptionError, match="batch_size=1: simcse needs the other rows of a batch"):
        looked(model, "simcse", {"sentence": ["a", "b"]}, batch_size=1)
    with pytest.raises(DataError, match="one row is too few"):
        looked(model, "simcse", {"sentence": ["a"]})
    assert looked(model, "dino", {"sentence1": ["a"], "sentence2": ["b"], "score": [1.0]})[1] == []


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
