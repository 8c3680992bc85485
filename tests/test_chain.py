"""Trainings that go on from one another, and sentences beside the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import dino_pipeline as dino
from dino_pipeline.examples import Example, read_examples
from dino_pipeline.pocket import GOLD_DEV
from dino_pipeline.processes import Stopped
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FinetuneRecord
from dino_pipeline.training.corpus import distinct_texts
from tests.records import recorded
from tests.toys import Listener

pytestmark = pytest.mark.slow

SENTENCES = distinct_texts(list(read_examples(GOLD_DEV))[:150])[:200]
PAIRS = [
    Example(text, other, label)
    for number, text in enumerate(SENTENCES[:60])
    for other, label in ((f"{text} too", 1.0), (SENTENCES[60 + number], 0.0))
]
TEXTS = [SENTENCES[0], PAIRS[0].text_b or "", "a text of neither"]


@pytest.fixture
def few(toy_encoder: Path) -> dict[str, Any]:
    """Options of short trainings."""
    return {"encoder": str(toy_encoder), "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "progress": False}


def test_a_chain_is_its_trainings_one_after_another(few: dict[str, Any], tmp_path: Path) -> None:
    chain = dino.finetune(
        PAIRS,
        objective="mirror-bert",
        then=["simcse-sup"],
        pooling="mean",
        objective_options={"mirror-bert:steps": 10, "mirror-bert:span": 3},
        run=tmp_path / "chain",
        **few,
    )
    options = {**few, "steps": 10, "pooling": "mean", "objective_options": {"span": 3}}
    dino.finetune(PAIRS, objective="mirror-bert", run=tmp_path / "first", **options)
    by_hand = dino.finetune(
        PAIRS, objective="simcse-sup", run=tmp_path / "second", **{**few, "encoder": str(tmp_path / "first" / "model")}
    )
    np.testing.assert_allclose(chain.encode(TEXTS), by_hand.encode(TEXTS), atol=1e-5)
    record = chain.dino.record
    assert record.options.objectives == ["mirror-bert", "simcse-sup"]
    assert [each.steps for each in record.trainings] == [10, 12]
    assert record.options.encoder.name == few["encoder"], "the one that the chain started from"
    assert not Run(tmp_path / "chain").checkpoints.exists()
    card = (tmp_path / "chain" / "model" / "README.md").read_text()
    assert "# chain (mirror-bert, then simcse-sup)" in card
    assert "| before: mirror-bert | 10 steps of 8 rows, learning rate 0.001 |" in card
    assert "Liu et al. 2021" in card
    assert "Gao et al. 2021" in card
    assert "before: mirror-bert" in dino.report(tmp_path / "chain", progress=False).path.read_text()


class Asker(Listener):
    """Asks to stop after some steps of one of the trainings."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def should_stop(self) -> bool:
        return bool(self.seen) and self.seen[-1][0].startswith(self.title) and self.seen[-1][1] >= 5


@pytest.mark.parametrize("stopped_in", ["mirror-bert", "triplets"])
def test_a_stopped_chain_ends_as_a_whole_one(few: dict[str, Any], tmp_path: Path, stopped_in: str) -> None:
    options = {**few, "objective": "mirror-bert", "then": "triplets", "sentences": SENTENCES, "whiten": "end"}
    whole = dino.finetune(PAIRS, run=tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        dino.finetune(PAIRS, run=tmp_path / "run", **{**options, "progress": Asker(stopped_in)})
    listener = Listener()
    again = dino.finetune(PAIRS, run=tmp_path / "run", **{**options, "progress": listener})
    assert again.dino.state == "resumed"
    titles = {title.split(",")[0] for title, _, _ in listener.seen}
    assert titles == ({"mirror-bert", "triplets"} if stopped_in == "mirror-bert" else {"triplets"})
    np.testing.assert_allclose(again.encode(TEXTS), whole.encode(TEXTS), atol=1e-5)
    assert dino.finetune(PAIRS, run=tmp_path / "run", **options).dino.state == "done"
    with pytest.raises(dino.RunError, match=r"other options: .*before\.objective was .mirror-bert"):
        dino.finetune(PAIRS, run=tmp_path / "run", **{**options, "objective": "simcse"})
    fewer = {**options, "sentences": SENTENCES[:150]}
    assert dino.finetune(PAIRS, run=tmp_path / "run", **fewer).dino.state == "new", "it is made of these, too"


def test_a_chain_is_weighed_before_the_first_training_and_whitened_after_the_last(
    few: dict[str, Any], tmp_path: Path
) -> None:
    model = dino.finetune(PAIRS, objective="mirror-bert", then="triplets", sentences=SENTENCES, whiten="end", **few)
    assert [type(module).__name__ for module in model] == ["Transformer", "WordWeights", "Pooling", "Dense"]
    assert [each.whitened for each in model.dino.record.trainings] == ["no", "end"]
    embeddings = model.encode(SENTENCES)
    assert abs(embeddings.mean(axis=0)).max() < 1e-3, "it is fitted to the sentences"
    started = dino.finetune(PAIRS, objective="mirror-bert", then="triplets", whiten="start", **few, sentences=SENTENCES)
    assert [type(module).__name__ for module in started] == ["Transformer", "WordWeights", "Pooling", "Dense"]
    static = {**few, "encoder": f"static:{few['encoder']}"}
    table = dino.finetune(PAIRS, objective="triplets", then="dino", **static)
    assert [type(module).__name__ for module in table] == ["StaticEmbedding"]


def test_with_sentences_an_encoder_without_pooling_learns_from_them_first(few: dict[str, Any], tmp_path: Path) -> None:
    record = dino.finetune(PAIRS, sentences=SENTENCES, **few).dino.record
    assert record.options.objectives == ["mirror-bert", "triplets"]
    first, last = record.trainings
    assert (first.steps, first.batch) == (12, 8), "given for all"
    assert (first.train, first.selection.on) == (180, "examples in memory, held out")
    assert last.train == 54
    left_open = {"encoder": few["encoder"], "progress": False}
    as_measured = dino.finetune(PAIRS, sentences=SENTENCES, **left_open).dino.record.trainings[0]
    assert (as_measured.steps, as_measured.batch, as_measured.options.learning_rate) == (70, 40, 5e-5)
    assert dino.finetune(PAIRS, **few).dino.record.options.objectives == ["triplets"]
    SentenceTransformer(few["encoder"]).save(str(tmp_path / "with-pooling"))
    own = dino.finetune(PAIRS, sentences=SENTENCES, whiten="end", **{**few, "encoder": str(tmp_path / "with-pooling")})
    assert own.dino.record.options.objectives == ["triplets"], "it was trained on sentences before"
    listener = Listener()
    told = {**few, "encoder": str(tmp_path / "with-pooling"), "progress": listener}
    assert dino.finetune(PAIRS, sentences=SENTENCES, **told).dino.record.whitened == "no"
    assert any("examples in memory: is not used; the encoder brings pooling" in note for note in listener.notes)


def test_sentences_are_learnt_from_beside_texts_with_classes(few: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    texts = [Example(text, None, "even" if number % 2 else "odd") for number, text in enumerate(SENTENCES[:40])]
    model = dino.finetune(texts, objective="mirror-bert", sentences=tmp_path / "sentences.txt", **few)
    record = model.dino.record
    assert record.train == 180, "a tenth of the sentences is held out"
    assert record.options.sentences == "sentences.txt"
    assert model.dino.head is not None
    assert set(model.dino.head.classes) == {"even", "odd"}


def test_a_comparison_takes_sentences_for_those_that_need_them(few: dict[str, Any], tmp_path: Path) -> None:
    rows = dino.compare(
        PAIRS, objectives=["triplets", "mirror-bert"], sentences=SENTENCES, seeds=1, data=PAIRS, run=tmp_path, **few
    ).rows
    assert {row.name: row.rows for row in rows if row.rows} == {"triplets": 54, "mirror-bert": 180}
    first = recorded(Run(tmp_path / "triplets" / "seed-42"), FinetuneRecord)
    assert first.options.sentences == "examples in memory"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective_options": {"span": 3}}, r"span=3.*must be OBJECTIVE:NAME=VALUE with one of .* mirror-bert, dino"),
        ({"objective_options": {"simcse:steps": 3}}, r"simcse:steps=3.*must be OBJECTIVE:NAME=VALUE"),
        ({"objective_options": {"mirror-bert:pooling": "cls"}}, r"mirror-bert:pooling.*pooling is the encoder's"),
        ({"lora": 4, "lora_save": "adapter"}, "each training merges its adapters for the next one"),
        ({"then": (), "objective": "dino", "sentences": SENTENCES}, "dino does not learn from them"),
        ({"then": "dine"}, r"then=.*must be one of triplets"),
    ],
)
def test_what_no_chain_can_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(dino.OptionError, match=said):
        dino.finetune(PAIRS, progress=False, **{"objective": "mirror-bert", "then": "dino", **options})
