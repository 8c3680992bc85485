"""Token weights and whitening, fitted to texts before an encoder is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dino_pipeline as dino
from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import OptionError
from dino_pipeline.examples import Example, read_examples
from dino_pipeline.models import embed, load_encoder, mean_cosine
from dino_pipeline.pocket import GOLD_DEV
from dino_pipeline.training.corpus import distinct_texts
from dino_pipeline.training.whitening import SHRINKAGE, fit_whitening, weigh, whiten
from tests.toys import static_encoder

TEXTS = distinct_texts(list(read_examples(GOLD_DEV))[:200])


def test_whitened_vectors_have_no_mean_and_no_direction_that_dominates() -> None:
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(500, 8)) * [50, 9, 1, 1, 1, 1, 0.1, 0.0] + 3).astype(np.float32)
    weight, bias = fit_whitening(vectors)
    white = vectors @ weight.numpy().T + bias.numpy()
    assert abs(white.mean(axis=0)).max() < 1e-3
    covariance = np.cov(white, rowvar=False)
    assert abs(covariance - np.diag(np.diag(covariance))).max() < 1e-2, "the directions are independent"
    variances = np.cov(vectors, rowvar=False).trace() / 8 * SHRINKAGE
    assert covariance.diagonal().max() == pytest.approx(50**2 / (50**2 + variances), rel=0.1)


def test_an_encoder_is_whitened_by_stock_modules(toy_encoder: Path, tmp_path: Path) -> None:
    plain = load_encoder(str(toy_encoder))
    model = whiten(weigh(plain, TEXTS), TEXTS)
    assert [type(module).__name__ for module in model] == ["Transformer", "WordWeights", "Pooling", "Dense"]
    assert abs(mean_cosine(model, TEXTS)) < 0.2 < mean_cosine(plain, TEXTS)
    model.save(str(tmp_path / "model"), create_model_card=False)
    np.testing.assert_allclose(embed(load_encoder(str(tmp_path / "model")), TEXTS), embed(model, TEXTS), atol=1e-5)


def test_a_token_weighs_what_its_rarity_says(toy_encoder: Path) -> None:
    model = weigh(load_encoder(str(toy_encoder)), ["a" * 40] * 99 + ["ab"])
    weights = model[1].emb_layer.weight[:, 0]
    ids = model.tokenizer("abc")["input_ids"]
    of_a, of_b, unseen = (weights[model.tokenizer.convert_tokens_to_ids(letter)] for letter in "abc")
    assert len(ids) >= 3
    torch.testing.assert_close(of_a, torch.tensor(np.log(101 / 100), dtype=torch.float32))
    torch.testing.assert_close(of_b, torch.tensor(np.log(101), dtype=torch.float32))
    torch.testing.assert_close(unseen, of_b)
    special = weights[model.tokenizer.all_special_ids]
    torch.testing.assert_close(special, of_a.expand(len(special)), msg="a mask does not outweigh words")


def test_a_vocabulary_with_holes_is_weighed(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    vocabulary = dict(model.tokenizer.get_vocab())
    last = max(vocabulary, key=vocabulary.__getitem__)
    moved = {name: number + 2 * (name == last) for name, number in vocabulary.items()}
    model.tokenizer.get_vocab = lambda: moved
    assert weigh(model, TEXTS)[1].emb_layer.weight.shape[0] == len(vocabulary) + 2


def test_an_encoder_that_cannot_be_whitened_is_refused(toy_encoder: Path) -> None:
    for model, texts, said in (
        (load_encoder(str(toy_encoder), pooling="cls"), TEXTS, "needs an encoder with layers and mean pooling"),
        (static_encoder(), TEXTS, "needs an encoder with layers and mean pooling"),
        (load_encoder(str(toy_encoder)), TEXTS[:99], "needs at least 100 different texts; there are 99"),
    ):
        with pytest.raises(OptionError, match=said):
            weigh(model, texts)
    with pytest.raises(OptionError, match="there are 99"):
        whiten(load_encoder(str(toy_encoder)), TEXTS[:99])


@pytest.mark.parametrize(("name", "when"), [("mirror-bert", "end"), ("dino", "start")])
def test_without_a_step_an_encoder_is_whitened_alone(name: str, when: str, toy_encoder: Path, tmp_path: Path) -> None:
    pairs = list(read_examples(GOLD_DEV))[:200]
    sentences = [pair.text_a for pair in pairs]
    source: list[Any] = sentences if name == "mirror-bert" else pairs
    options: dict[str, Any] = {
        "encoder": str(toy_encoder),
        "objective": name,
        "whiten": when,
        "steps": 0,
        "dev": pairs[:50],
    }
    encoder = dino.finetune(source, run=tmp_path / "run", progress=False, **options)
    record = encoder.dino.record
    assert (record.steps, record.rows_seen, [point.step for point in record.history]) == (0, 0, [0])
    before_whitening = record.history[0].dev == pytest.approx(record.selection.best, abs=0.01)
    assert before_whitening == (when == "start")
    training = record.options
    assert training.whiten == when and training.steps == 0
    texts = distinct_texts([dino.Example(text) for text in sentences])
    np.testing.assert_allclose(
        embed(encoder, TEXTS), embed(whiten(weigh(load_encoder(str(toy_encoder)), texts), texts), TEXTS), atol=1e-5
    )
    assert dino.finetune(source, run=tmp_path / "run", progress=False, **options).dino.state == "done"
    assert "| steps | 0 |" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_whitening_at_the_end_is_fitted_to_the_trained_encoder(toy_encoder: Path) -> None:
    pairs = list(read_examples(GOLD_DEV))[:200]
    options: dict[str, Any] = {"encoder": str(toy_encoder), "steps": 3, "learning_rate": 1e-2, "dev": pairs[:50]}
    encoder = dino.finetune(pairs, whiten="end", freeze_embeddings=True, progress=False, **options)
    texts = distinct_texts([dino.Example(pair.text_a) for pair in pairs])
    vectors = embed(encoder, texts, normalize=False)
    assert abs(vectors.mean(axis=0)).max() < 1e-3, "fitted after the last step"
    before = load_encoder(str(toy_encoder)).transformers_model
    after = encoder.transformers_model
    assert before is not None and after is not None
    torch.testing.assert_close(after.get_input_embeddings().weight, before.get_input_embeddings().weight)
    changed = [name for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))]
    assert changed, "the layers are trained"


def test_a_record_of_an_earlier_version_says_whether_to_whiten() -> None:
    assert [Hyperparameters.model_validate({"whiten": value}).whiten for value in (True, False)] == ["start", "no"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"whiten": "end", "matryoshka": (8,)}, "turns the trained leading dimensions away"),
        ({"whiten": "start", "objective": "mirror-bert", "faithful": True}, "needs token states without weights"),
    ],
)
def test_what_whitening_would_undo_is_refused(options: dict[str, Any], said: str, toy_encoder: Path) -> None:
    pairs = list(read_examples(GOLD_DEV))[:200]
    with pytest.raises(OptionError, match=said):
        dino.finetune(pairs, encoder=str(toy_encoder), steps=1, progress=False, **options)


def test_the_texts_choose_objective_and_whitening(toy_encoder: Path) -> None:
    firsts = list(dict.fromkeys(pair.text_a for pair in read_examples(GOLD_DEV)))[:120]
    triples = [
        Example(text, f"{text} {other}", label) for text in firsts for other, label in (("so", 1.0), ("no", 0.0))
    ]
    once = [Example(text, f"{text} so", number % 3 / 2) for number, text in enumerate(firsts)]
    few: dict[str, Any] = {"encoder": str(toy_encoder), "steps": 0, "progress": False}
    for texts, more, objective, whitened in (
        (triples, {}, "triplets", "end"),
        (triples, {"whiten": "no"}, "triplets", "no"),
        (triples, {"matryoshka": (8,)}, "triplets", "no"),
        (triples, {"faithful": True}, "dino", "no"),
        (triples, {"loss": "cosent"}, "dino", "no"),
        ([*once, *triples[:2]], {}, "dino", "no"),
        (firsts, {}, "mirror-bert", "no"),
    ):
        record = dino.finetune(texts, **few, **more).dino.record
        assert (record.options.objective, record.whitened) == (objective, whitened), more


def test_a_static_student_is_compared_with_its_start(toy_encoder: Path, tmp_path: Path) -> None:
    pairs = list(read_examples(GOLD_DEV))[:200]
    options: dict[str, Any] = {"objectives": "dino", "seeds": 1, "steps": 1, "data": pairs, "progress": False}
    compared = dino.compare(pairs, encoder=f"static:{toy_encoder}", run=tmp_path / "run", **options)
    assert "untrained" in repr(compared)
