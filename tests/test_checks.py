from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from dino_pipeline.errors import PYTHON, DataError, ModelError, OptionError
from dino_pipeline.models import load_encoder
from dino_pipeline.progress import full_note
from dino_pipeline.training.checks import DataReport, check_encoder, fit_batch_size, has_dropout, inspect_data
from dino_pipeline.training.objectives import TrainingContext, get_objective, resolve_hyperparameters
from tests.toys import static_encoder, without_dropout


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


def looked(model: SentenceTransformer, name: str, texts: list[str], **given: Any) -> DataReport:
    objective = get_objective(name)
    training = resolve_hyperparameters(objective, given, {})
    if training.max_length:
        model.max_seq_length = training.max_length
    dataset = objective.build({"sentence": texts}, TrainingContext(training, model.tokenizer, 1))
    return inspect_data(model, objective, training, dataset, len(dataset), training.batch_size)


def test_small_batches_cut_and_repeated_texts_are_said(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    texts = ["a dog", "A dog!", "cats", "x" * 40]
    found = looked(model, "simcse", texts, batch_size=4)
    assert (found.cut, found.repeated) == (0.25, 0.5)
    said = "; ".join(full_note(*note, PYTHON) for note in found.notes)
    assert "batches of 4 rows leave 3 other rows to tell a text from" in said
    assert "25% of the texts are longer than 32 tokens and are cut; raise max_length, or" in said
    assert "50% of the rows share a first text with another row; in one batch they are false negatives" in said
    many = [f"text {number}" for number in range(64)]
    assert looked(model, "simcse", many).notes == []
    assert looked(model, "mirror-bert", many).notes == [], "views that are drawn are looked at too"


def test_batches_are_no_larger_than_what_can_fill_them() -> None:
    """Neighbouring sentences share texts from row to row; a paper's batch is for more rows than there are."""
    chain = Dataset.from_dict({"anchor": [f"{n}" for n in range(1000)], "positive": [f"{n + 1}" for n in range(1000)]})
    cpt, simcse = get_objective("cpt"), get_objective("simcse")
    assert fit_batch_size(cpt, cpt.defaults.updated(batch_size=900), chain, 1).batch_size == 400
    assert fit_batch_size(cpt, cpt.defaults.updated(batch_size=900), chain, 3).batch_size == 399, (
        "each process has as many"
    )
    assert fit_batch_size(cpt, cpt.defaults.updated(batch_size=30), chain, 1).batch_size == 24
    assert fit_batch_size(cpt, cpt.defaults, chain, 1).batch_size == 40, "twenty steps"
    assert fit_batch_size(cpt, cpt.defaults.updated(steps=3), chain, 1).batch_size == 400
    assert fit_batch_size(simcse, simcse.defaults, chain, 1).batch_size == 50
    assert fit_batch_size(simcse, simcse.defaults.updated(batch_size=500), chain, 1).batch_size == 500


def test_what_leaves_no_negatives_is_refused(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    with pytest.raises(OptionError, match="batch_size=1: simcse needs the other rows of a batch"):
        looked(model, "simcse", ["a", "b"], batch_size=1)
    with pytest.raises(DataError, match="one row is too few"):
        looked(model, "simcse", ["a"])
    objective = get_objective("dino")
    pair = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "score": [1.0]})
    assert inspect_data(model, objective, objective.defaults, pair, 1, 32).notes == []
