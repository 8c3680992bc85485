"""Texts without labels beside those that an encoder is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

import dino_pipeline as dino
from dino_pipeline.examples import Example, read_examples
from dino_pipeline.pocket import GOLD_DEV
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FinetuneRecord
from dino_pipeline.training.corpus import distinct_texts
from tests.records import recorded
from tests.toys import Listener

SENTENCES = distinct_texts(list(read_examples(GOLD_DEV))[:150])[:200]
PAIRS = [
    Example(text, other, label)
    for number, text in enumerate(SENTENCES[:60])
    for other, label in ((f"{text} too", 1.0), (SENTENCES[60 + number], 0.0))
]


@pytest.fixture
def few(toy_encoder: Path) -> dict[str, Any]:
    """Options of short trainings."""
    return {"encoder": str(toy_encoder), "steps": 2, "batch_size": 8, "progress": False}


@pytest.mark.slow
def test_whitening_is_fitted_to_them(few: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(dino.OptionError, match="needs at least 100 different texts"):
        dino.finetune(PAIRS[:40], whiten="end", **few)
    model = dino.finetune(PAIRS[:40], sentences=SENTENCES, run=tmp_path / "run", **few)
    assert [type(module).__name__ for module in model] == ["Transformer", "WordWeights", "Pooling", "Dense"]
    assert abs(model.encode(SENTENCES).mean(axis=0)).max() < 1e-3
    assert abs(model.encode([pair.text_a for pair in PAIRS]).mean(axis=0)).max() > 1e-2
    listener = Listener()
    dino.finetune(PAIRS[:40], sentences=SENTENCES, **{**few, "progress": listener})
    assert any(note.startswith("whitened by 200 texts of examples in memory: dev Spearman") for note in listener.notes)
    assert "Su et al. 2021" in (tmp_path / "run" / "model" / "README.md").read_text()
    record = model.dino.record
    assert (record.options.objective, record.options.sentences) == ("triplets", "examples in memory")
    assert "| sentences | examples in memory |" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert dino.finetune(PAIRS[:40], sentences=SENTENCES, run=tmp_path / "run", **few).dino.state == "done"
    fewer = dino.finetune(PAIRS[:40], sentences=SENTENCES[:150], run=tmp_path / "run", **few)
    assert fewer.dino.state == "new", "it is made of these, too"


@pytest.mark.slow
def test_objectives_that_need_sentences_learn_from_them(few: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    texts = [Example(text, None, "even" if number % 2 else "odd") for number, text in enumerate(SENTENCES[:40])]
    model = dino.finetune(texts, objective="mirror-bert", sentences=tmp_path / "sentences.txt", **few)
    record = model.dino.record
    assert record.train == 180, "a tenth of the sentences is held out"
    assert record.options.sentences == "sentences.txt"
    assert model.dino.head is not None, "which is fitted to the texts with classes"
    listener = Listener()
    dino.finetune(PAIRS, objective="mirror-bert", sentences=SENTENCES, **{**few, "progress": listener})
    assert "mirror-bert learns from examples in memory, not from examples in memory" in listener.notes


@pytest.mark.slow
def test_a_comparison_takes_them_for_the_objectives_that_need_sentences(few: dict[str, Any], tmp_path: Path) -> None:
    rows = dino.compare(
        PAIRS, objectives=["triplets", "mirror-bert"], sentences=SENTENCES, seeds=1, data=PAIRS, run=tmp_path, **few
    ).rows
    assert {row.name: row.rows for row in rows if row.rows} == {"triplets": 54, "mirror-bert": 180}
    first = recorded(Run(tmp_path / "triplets" / "seed-42"), FinetuneRecord)
    assert first.options.sentences == "examples in memory"


@pytest.mark.slow
def test_sentences_that_change_nothing_are_refused_or_noted(few: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(dino.OptionError, match="dino does not learn from them, and nothing is whitened"):
        dino.finetune(PAIRS, objective="dino", sentences=SENTENCES, **few)
    SentenceTransformer(few["encoder"]).save(str(tmp_path / "with-pooling"))
    listener = Listener()
    told = {**few, "encoder": str(tmp_path / "with-pooling"), "progress": listener}
    assert dino.finetune(PAIRS, sentences=SENTENCES, **told).dino.record.whitened == "no"
    assert "examples in memory: nothing learns from it, and the encoder is not whitened" in listener.notes
    listener.notes.clear()
    static = {**few, "encoder": f"static:{few['encoder']}", "progress": listener}
    dino.finetune(PAIRS, objective="dino", sentences=SENTENCES, **static)
    assert not any("nothing learns" in note for note in listener.notes), "its table is fitted to them"
    with pytest.raises(dino.OptionError, match="gives both views of a sentence the same embedding"):
        dino.finetune(SENTENCES, **static)


@pytest.mark.slow
def test_texts_of_several_sentences_are_split_for_whitening(few: dict[str, Any]) -> None:
    documents = [" ".join(SENTENCES[start : start + 4]) for start in range(0, 200, 4)]
    options = {**few, "whiten": "end", "sentences": documents}
    with pytest.raises(dino.OptionError, match="there are 50"):
        dino.finetune(PAIRS, **options)
    assert dino.finetune(PAIRS, split_sentences=True, **options).dino.record.whitened == "end"
