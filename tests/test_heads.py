"""Encoders of texts with classes, and the heads that tell them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.models import load_encoder
from dino_pipeline.run import Run
from dino_pipeline.training.adapters import adapt, contrast_classes
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.heads import HEAD_FILE, fit_head
from tests.commands import execute, invoke, refused

pytestmark = pytest.mark.slow

WORDS = {"good": ("fine", "lovely", "great"), "bad": ("broken", "poor", "awful"), "10": ("red", "green", "blue")}


def texts(count: int) -> list[Example]:
    return [
        Example(f"Item {at} was {word} and {words[(at + 1) % 3]}.", None, name)
        for at in range(count)
        for name, words in WORDS.items()
        for word in [words[at % 3]]
    ]


def test_pairs_and_triplets_of_classes() -> None:
    corpus = Corpus("here", texts(10))
    classes = {example.text_a: example.label for example in corpus.examples}
    pairs = contrast_classes(corpus.examples)
    assert all((classes[each.text_a] == classes[each.text_b or ""]) == (each.label == 1.0) for each in pairs)
    assert {each.text_a for each in pairs} == set(classes)
    assert contrast_classes(corpus.examples) == pairs, "the same each time"
    triplets = adapt(corpus, "triplets", "simcse-sup").columns
    for anchor, positive, negative in zip(*triplets.values(), strict=True):
        assert classes[anchor] == classes[positive] != classes[negative]
    assert len(adapt(corpus, "sentences", "simcse")) == 30
    alone = Corpus("here", [Example(f"Item {at}.", None, "one") for at in range(5)])
    with pytest.raises(DataError, match="no scored pairs can be made of its classified texts"):
        adapt(alone, "scored pairs", "dino")


def record_of(run: Run) -> Any:
    return json.loads(run.record_file.read_text())["finetune"]


def test_an_encoder_of_classes_comes_with_a_head_and_its_card_predicts(tmp_path: Path, run: Run) -> None:
    write_examples(tmp_path / "texts.jsonl", texts(60))
    classes = ("--label-type", "class")
    invoke("filter", tmp_path / "texts.jsonl", "--run", run.path, "--near-duplicates", "0", *classes)
    few = ("--steps", "30", "--batch-size", "32", "--learning-rate", "1e-3", *classes)
    invoke("finetune", run.path, *few)
    record = record_of(run)
    assert record["head"]["classes"] == ["10", "bad", "good"]
    assert record["head"]["accuracy"] > 90 and record["head"]["macro_f1"] > 90
    assert record["selection"]["measure"] == "Spearman"
    folder = run.model
    assert (folder / HEAD_FILE).exists()
    card = (folder / "README.md").read_text()
    assert f"right in {record['head']['accuracy']:.1f} of 100" in card
    program = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[1]
    program = program.replace("path/to/this/folder", str(folder))
    program = program.replace("A text to classify.", "Item 99 was fine and lovely.")
    program = program.replace("And another one.", "Item 98 was awful and broken.")
    assert execute(program).strip() == "['good', 'bad']"
    invoke("publish", run.path, "--repo", "me/reviews", "--dry-run")
    published = run.hub / "model"
    assert 'hf_hub_download("me/reviews", "head.safetensors")' in (published / "README.md").read_text()
    assert (published / HEAD_FILE).read_bytes() == (folder / HEAD_FILE).read_bytes()
    invoke("finetune", run.path, *few, "--objective", "simcse", "--fresh", "--steps", "2")
    record = record_of(run)
    assert record["selection"]["measure"] == "alignment and uniformity", "which looks at no label"
    assert record["head"]["accuracy"] > 50


def test_a_head_is_fitted_to_no_more_texts_than_help(toy_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = load_encoder(str(toy_encoder)), list[str]()
    encode = model.encode

    def noted(given: list[str], **how: Any) -> Any:
        seen.extend(given)
        return encode(given, **how)

    monkeypatch.setattr("dino_pipeline.training.heads.MAX_FITTED", 12)
    monkeypatch.setattr(model, "encode", noted)
    assert fit_head(model, texts(20)).classes == ("10", "bad", "good")
    assert len(set(seen)) == len(seen) == 12


def test_the_class_of_the_second_text(toy_encoder: Path, tmp_path: Path, run: Run) -> None:
    """As in reviews of movies: what is classified is text_b, and text_a its input."""
    pairs = [Example(f"Title {at}", each.text_a, each.label) for at, each in enumerate(texts(20))]
    write_examples(tmp_path / "pairs.jsonl", pairs)
    of_second = ("--column", "text_a=text_b", "--label-type", "class", "--run", run.path)
    few = ("--encoder", toy_encoder, "--steps", "2", "--batch-size", "16")
    invoke("finetune", tmp_path / "pairs.jsonl", *of_second, *few)
    assert record_of(run)["head"]["classes"] == ["10", "bad", "good"]
    said = refused(
        "finetune", tmp_path / "pairs.jsonl", "--run", tmp_path / "x", "--label-type", "class", "--objective", "dino"
    )
    assert "holds classified pairs, but dino needs scored pairs" in said
