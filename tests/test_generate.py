from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.errors import ModelError, OptionError, RunError
from dino_pipeline.examples import Example, iter_examples, write_examples
from dino_pipeline.generation import generate as stage
from dino_pipeline.generation import writer
from dino_pipeline.generation.generate import generate
from dino_pipeline.generation.plan import GenerateOptions, Task
from dino_pipeline.generation.prompts import prompts
from dino_pipeline.generation.writer import Hands, OneEngine
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from tests.conftest import TOY_SPEC
from tests.toys import Listener, char_tokenizer, tiny_model

pytestmark = pytest.mark.slow

MODEL = {"model": "toy", "dtype": "float32"}
WIDE = Sampling(top_k=0, top_p=0.99, max_new_tokens=30)
OPTIONS = GenerateOptions(shard_size=18, samples=3, num_inputs=8, sampling=WIDE, input_sampling=WIDE)
TEXTS = ["A dog.", "Two men walk home.", "x", "The bird sings.", "Rain, rain."]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(tiny_model("gpt2"), char_tokenizer(), rows=32)


def write(run: Run, decoder: Decoder, spec: dict[str, Any] = TOY_SPEC, **kwargs: Any) -> tuple[str, Listener]:
    options = kwargs.pop("options", OPTIONS)
    reporter = kwargs.pop("reporter", None) or Listener()
    state = generate(
        run,
        TaskSpec.model_validate(spec),
        lambda: OneEngine(decoder),
        options,
        reporter,
        model=MODEL,
        **kwargs,
    )
    return state, reporter


def examples(folder: Path) -> list[Example]:
    return [example for path in sorted(folder.glob("*.jsonl")) for example in iter_examples(path)]


def contents(run: Run) -> dict[str, bytes]:
    """All files of a run but run.json, which holds times."""
    files = [path for path in sorted(run.path.rglob("*.jsonl")) if path.is_file()]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def test_every_input_label_and_sample_is_accepted_or_rejected(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    state, reporter = write(run, decoder, inputs=TEXTS, options=replace(OPTIONS, num_inputs=None))
    assert state == "new"
    accepted, rejected = examples(run.shards), examples(run.rejected)
    places = Counter((row.text_a, row.label, row.sample) for row in (*accepted, *rejected))
    assert set(places.values()) == {1}
    assert len(places) == 5 * 3 * 3
    assert accepted == sorted(accepted, key=lambda row: (row.input, -float(row.label or 0), row.sample))
    assert len(list(run.shards.glob("*.jsonl"))) == 3
    assert all(row.text_b and row.logprob is not None and row.logprob < 0 for row in accepted)
    assert {row.label for row in accepted if row.margin is None} == {1.0}
    assert [row.text_a for row in iter_examples(run.inputs)] == TEXTS
    assert reporter.last is not None
    assert (reporter.last.done, reporter.last.total) == (45, 45)
    record = run.stage("generate")
    assert record["status"] == "done"
    assert record["counts"]["1"]["written"] == 15
    assert sum(count["accepted"] for count in record["counts"].values()) == len(accepted)


def test_inputs_are_written_first_and_are_distinct(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    write(run, decoder)
    inputs = [row.text_a for row in iter_examples(run.inputs)]
    assert len(inputs) == len(set(inputs)) == 8
    written = [row.text_a for row in examples(run.input_shards)]
    assert inputs == list(dict.fromkeys(written))[:8]
    assert {row.input for row in examples(run.shards)} <= set(range(8))


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, decoder: Decoder) -> None:
    whole = Run(tmp_path / "whole")
    write(whole, decoder)
    for stop_after in range(1, 9):
        run = Run(tmp_path / f"run{stop_after}")
        left = stop_after

        def interrupted(path: Path, rows: Any, write_examples: Any = write_examples) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            write_examples(path, rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "write_examples", interrupted)
            patch.setattr(writer, "write_examples", interrupted)
            try:
                write(run, decoder)
            except KeyboardInterrupt:
                assert run.stage("generate")["status"] == "running"
        assert write(run, decoder)[0] in {"resumed", "done"}
        assert contents(run) == contents(whole)


def test_a_finished_run_is_not_redone_and_loads_no_model(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    write(run, decoder)
    before = contents(run)

    def load() -> Hands:
        raise AssertionError("the model was loaded")

    state = generate(run, TaskSpec.model_validate(TOY_SPEC), load, OPTIONS, Listener(), model=MODEL)
    assert state == "done"
    assert contents(run) == before


def test_run_json_is_read_no_more_often_for_more_shards(tmp_path: Path, decoder: Decoder) -> None:
    counts = []
    for size in (9, 90):
        with patch.object(Run, "records", autospec=True, side_effect=Run.records) as reads:
            write(Run(tmp_path / f"{size}"), decoder, inputs=TEXTS, options=replace(OPTIONS, shard_size=size))
        counts.append(reads.call_count)
    assert counts[0] == counts[1]


def test_a_lost_shard_is_written_again(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    write(run, decoder)
    before = contents(run)
    (run.shards / "00000.jsonl").unlink()
    write(run, decoder)
    assert contents(run) == before


def test_other_options_are_refused_by_name_and_fresh_starts_over(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    write(run, decoder)
    before = contents(run)
    other = replace(OPTIONS, seed=7, sampling=WIDE.model_copy(update={"decay": 10.0}))
    with pytest.raises(
        RunError, match=r"generate was begun with other options: seed was 42, now 7; sampling was .*fresh"
    ):
        write(run, decoder, options=other)
    assert contents(run) == before
    with pytest.raises(RunError, match="spec was"):
        write(run, decoder, {**TOY_SPEC, "stop": '"', "labels": {"1": TOY_SPEC["labels"]["1"]}})
    assert write(run, decoder, settings={"rows": 3})[0] == "done", "speed settings invalidate nothing"
    assert write(run, decoder, options=other, fresh=True)[0] == "new"
    assert contents(run) != before


def test_work_without_a_record_is_not_deleted(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    write(run, decoder)
    run.record_file.unlink()
    before = contents(run)
    with pytest.raises(RunError, match=r"inputs.jsonl: made by no recorded generate"):
        write(run, decoder)
    assert contents(run) == before


def test_a_start_from_scratch_cut_short_does_not_pass_for_finished(tmp_path: Path, decoder: Decoder) -> None:
    run, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    write(run, decoder)
    write(whole, decoder)

    def cut_short(path: Path) -> None:
        path.unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dino_pipeline.run.remove", cut_short)
        with pytest.raises(KeyboardInterrupt):
            write(run, decoder, fresh=True)
    assert write(run, decoder)[0] == "new"
    assert contents(run) == contents(whole)


def test_a_mistake_that_left_nothing_behind_can_be_corrected(tmp_path: Path, decoder: Decoder) -> None:
    def load() -> Hands:
        raise ModelError("no such model")

    run, spec = Run(tmp_path / "run"), TaskSpec.model_validate(TOY_SPEC)
    with pytest.raises(ModelError):
        generate(run, spec, load, OPTIONS, Listener(), model={"model": "typo"}, inputs=TEXTS)
    assert write(run, decoder, inputs=TEXTS)[0] == "new"


def test_a_text_does_not_depend_on_the_order_of_inputs(tmp_path: Path, decoder: Decoder) -> None:
    found = []
    for name, texts in (("one", TEXTS), ("two", TEXTS[::-1]), ("three", TEXTS[2:4])):
        run = Run(tmp_path / name)
        write(run, decoder, inputs=texts, options=replace(OPTIONS, num_inputs=None))
        found.append({(row.text_a, row.label, row.sample): row.text_b for row in examples(run.shards)})
    assert found[0] == found[1]
    assert found[2].items() <= found[0].items()


def test_single_texts_are_written_per_label(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    write(run, decoder, TOY_SPEC["inputs"], options=replace(OPTIONS, samples=40, num_inputs=None))
    rows = examples(run.shards)
    assert all(row.text_b is None and row.input is None for row in rows)
    assert {row.label for row in rows} == {0.0, 1.0}


def test_the_reasons_for_rejection(tmp_path: Path, decoder: Decoder) -> None:
    def reasons(**options: Any) -> set[str]:
        run = Run(tmp_path / str(len(list(tmp_path.iterdir()))))
        many = replace(OPTIONS, num_inputs=None, **{"samples": 15, **options})
        write(run, decoder, inputs=TEXTS, options=many)
        lines = [line for path in run.rejected.glob("*.jsonl") for line in path.read_text().splitlines()]
        return {json.loads(line)["reason"] for line in lines}

    assert reasons() == {"no stop string", "newline", "empty"}
    assert reasons(keep_unfinished=True, keep_newlines=True) == {"empty"}
    assert "fewer than 2 words" in reasons(min_words=2, samples=5)
    assert "fewer than 9 tokens" in reasons(min_tokens=9, samples=5)


def test_inputs_that_cannot_be_asked_about_are_dropped_alone(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    spec = {**TOY_SPEC, "stop": "»", "labels": {"1": {"instruction": "Same: «<X1>»\nThen: «"}}}
    options = replace(OPTIONS, num_inputs=None, samples=60, shard_size=1024)
    _, reporter = write(run, decoder, spec, inputs=["fine", "x" * 250, "say «yes»"], options=options)
    assert any("inputs left out: the input holds the stop string »" in note for note in reporter.notes)
    lines = [json.loads(line) for line in (run.rejected / "00000.jsonl").read_text().splitlines()]
    dropped = {row["text_a"][:5]: row["reason"] for row in lines if row["text_b"] is None}
    assert dropped == {
        "xxxxx": "the prompt leaves less than 30 tokens of the model's context",
        "say «": "the input holds the stop string »",
    }
    assert run.stage("generate")["counts"]["1"]["written"] == 60


def test_of_single_texts_only_those_whose_prompt_is_too_long_are_left_out(tmp_path: Path, decoder: Decoder) -> None:
    spec = {
        "task_name": "t",
        "labels": {"a": {"instruction": 'Write: "'}, "b": {"instruction": f'Write {"very " * 50}much: "'}},
    }
    options = replace(OPTIONS, num_inputs=None, samples=20)
    _, reporter = write(Run(tmp_path / "run"), decoder, spec, options=options)
    assert reporter.notes.count("9 prompts left out: the prompt leaves less than 30 tokens of the model's context") == 2
    counts = Run(tmp_path / "run").stage("generate")["counts"]
    assert (counts["a"]["written"], counts["b"]["written"]) == (20, 0)


def test_variables_are_drawn_per_sample_and_shared_with_counter_prompts(decoder: Decoder) -> None:
    topics = ["art", "war", "tea"]
    fields = {
        "task_name": "t",
        "variables": {"TOPIC": topics},
        "labels": {
            "a": {"instruction": 'On <TOPIC>: "'},
            "b": {"instruction": 'Not <TOPIC>: "', "counter_labels": ["a"]},
        },
    }
    spec = TaskSpec.model_validate(fields)
    asked = [prompts(spec, 42, Task(None, None, "b", sample), decoder.render) for sample in range(60)]
    for own, counter in asked:
        assert own.removeprefix("Not ") == counter.removeprefix("On ")
    assert {own for own, _ in asked} == {f'Not {topic}: "' for topic in topics}
    assert asked == [prompts(spec, 42, Task(None, None, "b", sample), decoder.render) for sample in range(60)]


def test_a_label_that_collapses_is_reported_while_it_happens(tmp_path: Path, decoder: Decoder) -> None:
    run = Run(tmp_path / "run")
    options = replace(OPTIONS, num_inputs=None, samples=80, sampling=WIDE.model_copy(update={"max_new_tokens": 1}))
    reporter = Listener()
    with pytest.raises(ModelError, match="no text was accepted"):
        write(run, decoder, inputs=["x"], options=options, reporter=reporter)
    said = [note for note in reporter.notes if 'label "0.5"' in note]
    assert "the last 30 texts were all rejected" in said[0]
    assert "the last 60 texts" in said[1]


def test_a_spec_and_its_inputs_must_fit(tmp_path: Path, decoder: Decoder) -> None:
    bare = {key: value for key, value in TOY_SPEC.items() if key != "inputs"}
    with pytest.raises(OptionError, match="there are no inputs; give --inputs FILE"):
        write(Run(tmp_path / "a"), decoder, bare)
    with pytest.raises(OptionError, match="--inputs has no place"):
        write(Run(tmp_path / "b"), decoder, TOY_SPEC["inputs"], inputs=["x"])


def test_a_generator_of_one_and_the_same_input_is_an_error_not_a_loop(tmp_path: Path, decoder: Decoder) -> None:
    options = replace(OPTIONS, num_inputs=500, input_sampling=Sampling(top_k=1))
    with pytest.raises(ModelError, match=r"further texts were new, \d of 500 inputs are there; sample more widely"):
        write(Run(tmp_path / "run"), decoder, options=options)
