from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

import dino_pipeline as dino
from dino_pipeline.cli.stage_commands import marked
from dino_pipeline.decoding.engine import Completion
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.decoding.tokenization import StopRule
from dino_pipeline.errors import ModelError
from dino_pipeline.generation import trial
from dino_pipeline.generation.preview import SpeedMonitor
from dino_pipeline.generation.preview_texts import PreviewText, preview_texts, token_pieces
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.progress import LabelCount, Progress
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import GenerateSettings
from tests.commands import answer, invoke, refused
from tests.test_spec import SPECS
from tests.test_stops import byte_tokenizer
from tests.toys import Listener

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    monkeypatch.setattr(trial, "LONG_ENOUGH", 0.2)


def settings(**changes: Any) -> GenerateSettings:
    plain = {"spec": "", "labels": (), "model": ModelRef(name="pocket"), "sampling": Sampling()}
    return GenerateSettings(**{**plain, **changes})


def test_what_debiasing_changed_is_marked_and_nothing_else() -> None:
    decoder = load_decoder(ModelRef(name="pocket"), device="cpu", rows=64)
    spec, inputs = load_spec(SPECS / "sts-x2.json"), ["A man plays a guitar.", "A dog runs."]
    drawn = preview_texts(decoder, spec, inputs, settings(), 4)
    assert [each.label for each in drawn] == ["1"] * 4 + ["0.5"] * 4 + ["0"] * 4
    changed = 0
    for each in drawn:
        assert "".join(piece for piece, _ in each.pieces).startswith(each.debiased.text)
        flags = [flag for _, flag in each.pieces]
        both = zip(each.debiased.tokens, each.plain.tokens, strict=False)
        same = next((at for at, (token, other) in enumerate(both) if token != other), None)
        if each.debiased.tokens == each.plain.tokens:
            assert not any(flags)
        else:
            assert same == flags.index(True), "the first token that is another is the first that is marked"
            changed += 1
        if each.label == "1":
            assert not any(flags)
    assert changed > 4
    plain = preview_texts(decoder, spec, inputs, settings(sampling=Sampling(decay=0)), 2)
    assert not any(flag for each in plain for _, flag in each.pieces)


def test_a_character_of_several_tokens_is_shown_whole_and_marked_by_each() -> None:
    tokenizer = byte_tokenizer()
    rule = StopRule(tokenizer, len(tokenizer), '"', stop_at_newline=True)
    text = "Öl “x”"
    tokens = tokenizer(text)["input_ids"]
    found = token_pieces(rule.decode, tokens)
    assert found == ["", "Ö", "l", " ", "", "", "“", "x", "", "", "”"]
    done = Completion(0, text, "stop", tuple(tokens), len(tokens), -1.0, None)
    for changed, shown in (([0], "[Ö]l “x”"), ([1, 2], "[Ö][l] “x”"), ([5], "Öl [“]x”"), ([3], "Öl “x”")):
        flags = [(piece, at in changed) for at, piece in enumerate(found)]
        assert marked(PreviewText("1", None, flags, done, done, None)) == shown


def test_a_preview_shows_texts_and_reckons(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = (SPECS / "sts-x2.json", "--run", run, "--num-inputs", "20", "--samples", "2")
    shown = invoke("preview", *job, "--texts", "2")
    rounds, requests = re.findall(r"rejection, a server would take about (\S+) rounds .* and (\S+) requests", shown)[0]
    assert 2 < float(rounds) < 200 and 300 < int(requests.replace(",", "")) < 40_000
    assert shown.count(" debiased    ") == 2 * 2 and re.search(r" debiased    .*\[", shown)
    assert "The whole job: 120 texts of" in shown and "row-tokens" in shown
    estimate = json.loads((run / "estimate.json").read_text())
    assert estimate["seconds"] > 0 and estimate["asked"]["samples"] == 2 and estimate["asked"]["num_inputs"] == 20
    assert list(run.iterdir()) == [run / "estimate.json"]
    invoke("generate", *job)
    short = ("--samples", "3", "--max-new-tokens", "5", "--keep-unfinished", "--keep-newlines")
    single = invoke("preview", SPECS / "topics.json", "--run", tmp_path / "b", *short)
    assert "The whole job: 12 texts" in single
    cut_off = answer("preview", *job[:2], tmp_path / "e", *job[3:], "--texts", "1", "--max-new-tokens", "10").stderr
    assert re.search(r'note: label "0.5": \d\d% of its texts run to the token limit; try .* --max-new-tokens', cut_off)
    (tmp_path / "one.json").write_text('{"task_name": "one", "labels": {"a": {"instruction": "Say: \\""}}}')
    few = ("--run", tmp_path / "c", "--samples", "1", *short[2:], "--texts", "1")
    one = invoke("preview", tmp_path / "one.json", *few)
    assert "The whole job: 1 texts" in one and "rejection" not in one
    nothing = refused("preview", SPECS / "documents.json", "--run", tmp_path / "d", *short[:4])
    assert "no text was accepted: " in nothing
    assert "no stop string, such as '" in nothing


def test_a_run_that_is_much_slower_than_measured_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dino_pipeline.generation.preview.time.monotonic", lambda: now[0])
    run, asked = Run(tmp_path), {"spec": "a"}
    run.estimate.write_text(json.dumps({"asked": asked, "seconds": 100.0, "per_second": 50.0}))

    def told(per_second: float, asked: Any) -> list[str]:
        notes = Listener()
        expected = SpeedMonitor(notes, run, asked)
        for done in range(0, 3000, 10):
            now[0] += 10 / per_second
            expected.update(Progress("texts", 5000, done))
        return notes.notes

    assert told(45.0, asked) == told(10.0, {"spec": "b"}) == []
    (note,) = told(20.0, asked)
    assert note.startswith("20.0 texts a second, 50.0 were measured by the preview: 4 minutes are left")


def test_a_preview_from_python_keeps_its_estimate_only_with_a_run(here: Path) -> None:
    options: dict[str, Any] = {"inputs": ["A man runs.", "A dog sleeps."], "samples": 1, "texts": 1, "progress": False}
    result = dino.preview("sts-x2", **options)
    assert not list(here.iterdir())
    assert re.fullmatch(r"Preview\(6 texts would take about .* and .* GiB of memory\)", repr(result))
    unchanged = [(text.label, result.changed_share(text.label) is None) for text in result.texts]
    assert unchanged == [("1", True), ("0.5", False), ("0", False)]
    dino.preview("sts-x2", run=here / "run", **options)
    assert (here / "run" / "estimate.json").exists()


class SlowEngine:
    """An engine whose steps take ``each`` seconds, after ten times that to fill the rows; it writes into no file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float) -> None:
        self.rows, self.row_tokens, self.refill_rows = 64, 0, True
        self.on_step: Callable[[], object] = lambda: None
        self.each, self.now = each, 0.0
        self.parts: list[GenerateSettings] = []
        monkeypatch.setattr("dino_pipeline.generation.trial.time.monotonic", lambda: self.now)
        monkeypatch.setattr(trial, "write_texts", self.write)

    def write(self, run: Run, spec: Any, load: Any, part: GenerateSettings, reporter: Any, **_: Any) -> Any:
        """Write texts of 20 tokens with all rows."""
        self.parts.append(part)
        texts = (part.num_inputs or 1) * part.samples * len(spec.labels)
        prompts = fmean(1 + len(label.counter_labels) for label in spec.labels.values())
        labels = {label: LabelCount(written=texts // 3, tokens=20 * (texts // 3)) for label in spec.labels}
        reporter.update(Progress("texts", texts, 0, labels=labels))
        self.now += 10 * self.each
        for _step in range(math.ceil(texts * 20 * prompts / self.rows)):
            self.now += self.each
            self.row_tokens += self.rows
            self.on_step()
        reporter.update(Progress("texts", texts, texts, labels=labels))
        return "new", SimpleNamespace(counts=labels, mean_margins={})


@pytest.mark.parametrize(("each", "most"), [(0.0001, 60), (0.01, 40), (0.25, 40), (2.0, 70)])
def test_a_trial_takes_some_seconds_however_slow_the_model_is(
    each: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 6.0)
    engine: Any = SlowEngine(monkeypatch, each)
    monkeypatch.setattr(trial, "losses_of_trial", lambda *_: None)
    spec, inputs = load_spec(SPECS / "sts-x2.json"), [f"Number {number}." for number in range(2000)]
    estimate, some = trial.measure(engine, spec, inputs, settings(num_inputs=2000), Listener(), loading=0.0)
    assert engine.now < most
    assert some == inputs[:64]
    assert 2 <= (engine.parts[-1].num_inputs or 0) * engine.parts[-1].samples <= 128
    assert all(part.samples * 6 * 64 >= 2 * 64 for part in engine.parts[:-1]), "rows are full"
    assert estimate.texts == 2000 * 3 * settings().samples
    assert estimate.per_second == pytest.approx(64 / 20 / 2 / each, rel=0.5)


def test_texts_of_which_none_is_accepted_end_a_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = SlowEngine(monkeypatch, 0.25)

    def write(*_: Any, **__: Any) -> Any:
        raise ModelError("memory does not hold ...")

    monkeypatch.setattr(trial, "write_texts", write)
    with pytest.raises(ModelError, match="memory"):
        trial.measure(
            engine, load_spec(SPECS / "sts-x2.json"), ["A dog."], settings(num_inputs=1), Listener(), loading=0
        )
