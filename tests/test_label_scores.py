"""Scores under every label: what is asked, what is stored, and what the filter makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_pipeline.decoding.engine import Scored
from dino_pipeline.errors import OptionError
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.files import write_json
from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.filtering.filter_source import file_source
from dino_pipeline.filtering.filter_stage import filter_run
from dino_pipeline.filtering.label_scores import LabelScores
from dino_pipeline.models import ModelRef
from dino_pipeline.progress import Console
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec
from tests.commands import invoke, refused
from tests.pairs import Words, dropped, raw
from tests.records import generate_record
from tests.test_spec import SPECS

pytestmark = pytest.mark.slow
MODEL = ModelRef(name="m", fingerprint="f", dtype="float32")


class Oracle:
    """A decoder that finds texts as likely as they say themselves, by the label whose instruction it reads."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def render(self, prompt: str, opening: str) -> str:
        return prompt

    def score(self, pairs: list[tuple[str, str]], *, stop: str) -> list[Scored]:
        self.asked += pairs
        words = {"same thing": 0, "somewhat": 1, "different": 2}
        which = [next(at for word, at in words.items() if word in prompt) for prompt, _ in pairs]
        return [Scored(-float(text.split()[at]), 10) for at, (_, text) in zip(which, pairs, strict=True)]


def texts_as_told(count: int = 30) -> list[tuple[float, str]]:
    """Return labels and texts that begin with minus the log-probabilities for 1, 0.5 and 0."""
    rng, words = np.random.default_rng(0), Words()
    found = []
    for number in range(count):
        told = " ".join(f"{x:.2f}" for x in rng.uniform(1, 1.5, 3))
        found.append(((1.0, 0.5, 0.0)[number % 3], f"{told} {words.sentence()}"))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose texts are all written."""
    run = Run(tmp_path / "run")
    spec = load_spec(SPECS / "sts-x2.json")
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    examples = [
        Example(f"Input {number} is here.", text, label, input=number, sample=0)
        for number, (label, text) in enumerate(texts_as_told())
    ]
    write_examples(run.shards / "00000.jsonl", examples)
    run.checksums.add(run.shards / "00000.jsonl")
    run.finish(generate_record({"spec": spec.digest, "seed": 1, "model": MODEL}))
    return run


def scores(run: Run, oracle: Oracle, model: ModelRef = MODEL) -> LabelScores:
    loader: Any = lambda: oracle  # noqa: E731
    generated = run.record().generate
    assert generated is not None
    return LabelScores(run, generated, model, loader, Console())


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_a_pair_stays_if_its_own_label_is_the_likeliest_by_a_margin(run: Run, margin: float) -> None:
    filter_run(run, raw(verify=True, verify_margin=margin), FilterRuntime(scorer=scores(run, Oracle())))
    gone = {row["text_b"]: row for row in dropped(run)}
    assert 0 < len(gone) < 30
    for label, text in texts_as_told():
        told = [-float(word) for word in text.split()[:3]]
        own = told.pop({1.0: 0, 0.5: 1, 0.0: 2}[label])
        assert (text in gone) == (own - max(told) < margin or own <= max(told))
        if text in gone:
            assert gone[text]["reason"] == "label not confirmed"
            assert gone[text]["evidence"].startswith(f"own label {own:.3f}, label ")


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_posterior_labels_are_the_expected_label(run: Run, temperature: float) -> None:
    options = raw(labels="posterior", temperature=temperature)
    filter_run(run, options, FilterRuntime(scorer=scores(run, Oracle())))
    found = {row.text_b or "": row.label for row in read_examples(run.train)}
    assert len(found) == 30
    for text, label in found.items():
        weights = np.exp(-10 * np.array([float(word) for word in text.split()[:3]]) / temperature)
        assert label == pytest.approx(float(weights @ [1.0, 0.5, 0.0] / weights.sum()), abs=1e-6)


def test_nothing_is_asked_twice_of_the_same_model(run: Run) -> None:
    first, second, third = Oracle(), Oracle(), Oracle()
    filter_run(run, raw(verify=True), FilterRuntime(scorer=scores(run, first)))
    assert len(first.asked) == 90
    prompt, text = first.asked[0]
    assert prompt.startswith("Task: Write two sentences that mean the same thing.")
    assert prompt.endswith('Sentence 2: "')
    assert text in {told for _, told in texts_as_told()}
    filter_run(run, raw(labels="posterior", fresh=True), FilterRuntime(scorer=scores(run, second)))
    assert second.asked == []
    (file,) = run.label_scores.glob("*.jsonl")
    file.write_bytes(file.read_bytes().replace(b"-", b"", 1))
    filter_run(run, raw(labels="posterior", fresh=True), FilterRuntime(scorer=scores(run, second)))
    assert len(second.asked) == 90, "the scores were damaged"
    (run.label_scores / "about.json").write_text("[")
    filter_run(run, raw(labels="posterior", fresh=True), FilterRuntime(scorer=scores(run, second)))
    assert len(second.asked) == 180
    (run.label_scores / "SHA256SUMS").unlink()
    (run.label_scores / "copy.jsonl").write_text("mine")
    filter_run(run, raw(labels="posterior", fresh=True), FilterRuntime(scorer=scores(run, second)))
    assert len(second.asked) == 180, "an earlier version kept no checksums"
    assert (run.label_scores / "SHA256SUMS").exists()
    another = MODEL.model_copy(update={"fingerprint": "another"})
    filter_run(run, raw(verify=True, fresh=True), FilterRuntime(scorer=scores(run, third, another)))
    assert len(third.asked) == 90


def test_classes_have_no_posterior_mean(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", [Example(f"a{n}", f"b{n}", "xy"[n % 2]) for n in range(9)])
    with pytest.raises(OptionError, match="these labels are classes"):
        filter_run(Run(tmp_path / "run"), raw(labels="posterior"), source=file_source(tmp_path / "data.jsonl", False))


def test_the_pocket_generator_verifies_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("generate", SPECS / "sts-x2.json", "--run", "run", "--num-inputs", "40", "--samples", "2")
    assert "- label not confirmed" in invoke("filter", "run", "--verify", "--labels", "posterior")
    rows = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    same = [row["label"] for row in rows if row["sample"] is not None and row["margin"] is None]
    assert np.mean(same) > 0.7, "what was written as the same is found to be so"
    of_file = refused("filter", "run/train.jsonl", "--run", "other", "--verify")
    assert "needs a run's spec and generator" in of_file
    of_run = refused("filter", "run", "--verify", "--label-type", "class", "--fresh")
    assert "--label-type class: the labels of a run are what its spec" in of_run
