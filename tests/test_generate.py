from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas
import pytest

import dino_pipeline as dino
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Task, task_prompts
from dino_pipeline.errors import DataError, ModelError, OptionError, RunError
from dino_pipeline.examples import Example, iter_examples, write_examples
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.generation import generate_stage as stage
from dino_pipeline.generation import shard_writer
from dino_pipeline.generation.generate import generate
from dino_pipeline.generation.generate_stage import write_texts
from dino_pipeline.generation.plan import resolve_settings
from dino_pipeline.generation.shard_writer import EngineWriter, ShardWriter
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateRecord, GenerateSettings
from tests.commands import invoke
from tests.conftest import TOY_SPEC
from tests.toys import Listener, char_tokenizer, tiny_model

pytestmark = pytest.mark.slow

MODEL = ModelRef(name="toy", dtype="float32")
WIDE = Sampling(top_k=0, top_p=0.99, max_new_tokens=30)
SERVER = {"engine": "openai", "base_url": "http://h/v1"}
OPTIONS: dict[str, Any] = {"shard_size": 18, "samples": 3, "num_inputs": 8}
TEXTS = ["A dog.", "Two men walk home.", "x", "The bird sings.", "Rain, rain."]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(tiny_model("gpt2"), char_tokenizer(), rows=32)


def settings(spec: TaskSpec, inputs: Any = None, **options: Any) -> GenerateSettings:
    """What decides the texts: options, and sampling where the spec's is not to count."""
    sampling = {"sampling": options.pop("sampling", WIDE)}
    input_sampling, model = options.pop("input_sampling", WIDE), options.pop("model", MODEL)
    if inputs is None and spec.inputs:
        sampling["input_sampling"] = input_sampling
    resolved = resolve_settings(GenerateOptions.of({**OPTIONS, **options}), spec, inputs, model)
    return resolved.model_copy(update=sampling)


def write(
    run: Run, decoder: Decoder, fields: dict[str, Any] = TOY_SPEC, *, inputs: Any = None, **given: Any
) -> tuple[str, Listener]:
    reporter = given.pop("reporter", None) or Listener()
    stage = {name: given.pop(name) for name in ("speed", "fresh") if name in given}
    load = given.pop("load", lambda: EngineWriter(decoder))
    spec = TaskSpec.model_validate(fields)
    state, _ = write_texts(run, spec, load, settings(spec, inputs, **given), reporter, inputs=inputs, **stage)
    return state, reporter


def examples(folder: Path) -> list[Example]:
    return [example for path in sorted(folder.glob("*.jsonl")) for example in iter_examples(path)]


def rejected(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for path in run.rejected.glob("*.jsonl") for line in path.read_text().splitlines()]


def contents(run: Run) -> dict[str, bytes]:
    """All files of a run but run.json, which holds times."""
    files = [path for path in sorted(run.path.rglob("*.jsonl")) if path.is_file()]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def made(run: Run) -> GenerateRecord:
    record = run.record().generate
    assert record
    return record


def test_every_input_label_and_sample_is_accepted_or_rejected(run: Run, decoder: Decoder) -> None:
    state, reporter = write(run, decoder, inputs=TEXTS, num_inputs=None)
    assert state == "new"
    accepted = examples(run.shards)
    places = Counter((row.text_a, row.label, row.sample) for row in (*accepted, *examples(run.rejected)))
    assert set(places.values()) == {1}
    assert len(places) == 5 * 3 * 3
    assert accepted == sorted(accepted, key=lambda row: (row.input, -float(row.label or 0), row.sample))
    assert len(list(run.shards.glob("*.jsonl"))) == 3
    assert all(row.text_b and row.logprob is not None and row.logprob < 0 for row in accepted)
    assert {row.label for row in accepted if row.margin is None} == {1.0}
    assert [row.text_a for row in iter_examples(run.inputs)] == TEXTS
    assert reporter.last is not None
    assert (reporter.last.done, reporter.last.total) == (45, 45)
    record = made(run)
    assert record.is_done
    assert record.counts["1"].written == 15
    assert sum(count.accepted for count in record.counts.values()) == len(accepted)


def test_inputs_are_written_first_and_are_distinct(run: Run, decoder: Decoder) -> None:
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
            patch.setattr(shard_writer, "write_examples", interrupted)
            try:
                write(run, decoder)
            except KeyboardInterrupt:
                assert made(run).status == "running"
        assert write(run, decoder)[0] in {"resumed", "done"}
        assert contents(run) == contents(whole)


def test_a_finished_run_is_not_redone_and_loads_no_model(run: Run, decoder: Decoder) -> None:
    write(run, decoder)
    before = contents(run)

    def load() -> ShardWriter:
        raise AssertionError("the model was loaded")

    assert write(run, decoder, load=load)[0] == "done"
    assert contents(run) == before


def test_run_json_is_read_no_more_often_for_more_shards(tmp_path: Path, decoder: Decoder) -> None:
    counts = []
    for size in (9, 90):
        with patch.object(Run, "record", autospec=True, side_effect=Run.record) as reads:
            write(Run(tmp_path / f"{size}"), decoder, inputs=TEXTS, shard_size=size)
        counts.append(reads.call_count)
    assert counts[0] == counts[1]


def test_a_lost_shard_is_written_again(run: Run, decoder: Decoder) -> None:
    write(run, decoder)
    before = contents(run)
    (run.shards / "00000.jsonl").unlink()
    write(run, decoder)
    assert contents(run) == before


def test_other_options_are_refused_by_name_and_fresh_starts_over(run: Run, decoder: Decoder) -> None:
    write(run, decoder)
    before = contents(run)
    other: dict[str, Any] = {"seed": 7, "sampling": WIDE.model_copy(update={"decay": 10.0})}
    with pytest.raises(
        RunError,
        match=r"generate was begun with other options: seed was 42, now 7; sampling\.decay was .*, now 10\.0; .*fresh",
    ):
        write(run, decoder, **other)
    assert contents(run) == before
    with pytest.raises(RunError, match="spec was"):
        write(run, decoder, {**TOY_SPEC, "stop": '"', "labels": {"1": TOY_SPEC["labels"]["1"]}})
    assert write(run, decoder, speed={"rows": 3})[0] == "done", "speed settings invalidate nothing"
    assert write(run, decoder, **other, fresh=True)[0] == "new"
    assert contents(run) != before


def test_work_without_a_record_is_not_deleted(run: Run, decoder: Decoder) -> None:
    write(run, decoder)
    run.record_file.unlink()
    before = contents(run)
    with pytest.raises(RunError, match=r"holds inputs.jsonl, .*and no record of the generate that made them"):
        write(run, decoder)
    assert contents(run) == before


def test_a_start_from_scratch_cut_short_does_not_pass_for_finished(run: Run, decoder: Decoder) -> None:
    write(run, decoder)
    whole = contents(run)

    def cut_short(path: Path) -> None:
        path.unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dino_pipeline.run.remove", cut_short)
        with pytest.raises(KeyboardInterrupt):
            write(run, decoder, fresh=True)
    assert write(run, decoder)[0] == "new"
    assert contents(run) == whole


def test_a_mistake_that_left_nothing_behind_can_be_corrected(run: Run, decoder: Decoder) -> None:
    def load() -> ShardWriter:
        raise ModelError("no such model")

    with pytest.raises(ModelError):
        write(run, decoder, inputs=TEXTS, load=load, model=ModelRef(name="typo"))
    assert write(run, decoder, inputs=TEXTS)[0] == "new"


def test_a_text_does_not_depend_on_the_order_of_inputs(tmp_path: Path, decoder: Decoder) -> None:
    found = []
    for name, texts in (("one", TEXTS), ("two", TEXTS[::-1]), ("three", TEXTS[2:4])):
        run = Run(tmp_path / name)
        write(run, decoder, inputs=texts, num_inputs=None)
        found.append({(row.text_a, row.label, row.sample): row.text_b for row in examples(run.shards)})
    assert found[0] == found[1]
    assert found[2].items() <= found[0].items()


def test_single_texts_are_written_per_label(run: Run, decoder: Decoder) -> None:
    write(run, decoder, TOY_SPEC["inputs"], samples=40, num_inputs=None)
    rows = examples(run.shards)
    assert all(row.text_b is None and row.input is None for row in rows)
    assert {row.label for row in rows} == {0.0, 1.0}


def test_the_reasons_for_rejection(tmp_path: Path, decoder: Decoder) -> None:
    def reasons(**options: Any) -> set[str]:
        run = Run(tmp_path / str(len(list(tmp_path.iterdir()))))
        many = {"num_inputs": None, "samples": 15, **options}
        write(run, decoder, inputs=TEXTS, **many)
        return {row["reason"] for row in rejected(run)}

    assert reasons() == {"no stop string", "newline", "empty"}
    assert reasons(keep_unfinished=True, keep_newlines=True) == {"empty"}
    assert "fewer than 2 words" in reasons(min_words=2, samples=5)
    assert "fewer than 9 tokens" in reasons(min_tokens=9, samples=5)


def test_inputs_that_cannot_be_asked_about_are_dropped_alone(run: Run, decoder: Decoder) -> None:
    spec = {**TOY_SPEC, "stop": "»", "labels": {"1": {"instruction": "Same: «<X1>»\nThen: «"}}}
    options: dict[str, Any] = {"num_inputs": None, "samples": 60, "shard_size": 1024}
    _, reporter = write(run, decoder, spec, inputs=["fine", "x" * 250, "say «yes»"], **options)
    assert any("inputs left out: the input holds the stop string »" in note for note in reporter.notes)
    dropped = {row["text_a"][:5]: row["reason"] for row in rejected(run) if row["text_b"] is None}
    assert dropped == {
        "xxxxx": "the prompt leaves less than 30 tokens of the model's context",
        "say «": "the input holds the stop string »",
    }
    assert made(run).counts["1"].written == 60


def test_of_single_texts_only_those_whose_prompt_is_too_long_are_left_out(run: Run, decoder: Decoder) -> None:
    spec = {
        "task_name": "t",
        "labels": {"a": {"instruction": 'Write: "'}, "b": {"instruction": f'Write {"very " * 50}much: "'}},
    }
    options: dict[str, Any] = {"num_inputs": None, "samples": 20}
    _, reporter = write(run, decoder, spec, **options)
    assert reporter.notes.count("9 prompts left out: the prompt leaves less than 30 tokens of the model's context") == 2
    counts = made(run).counts
    assert (counts["a"].written, counts["b"].written) == (20, 0)


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
    asked = [task_prompts(spec, 42, Task(None, None, "b", sample), decoder.render) for sample in range(60)]
    for own, counter in asked:
        assert own.removeprefix("Not ") == counter.removeprefix("On ")
    assert {own for own, _ in asked} == {f'Not {topic}: "' for topic in topics}
    assert asked == [task_prompts(spec, 42, Task(None, None, "b", sample), decoder.render) for sample in range(60)]


def test_a_label_that_collapses_is_reported_while_it_happens(run: Run, decoder: Decoder) -> None:
    short = WIDE.model_copy(update={"max_new_tokens": 1})
    options: dict[str, Any] = {"num_inputs": None, "samples": 80, "sampling": short}
    reporter = Listener()
    with pytest.raises(ModelError, match="no text was accepted"):
        write(run, decoder, inputs=["x"], **options, reporter=reporter)
    said = [note for note in reporter.notes if 'label "0.5"' in note]
    assert "the last 30 texts were all rejected" in said[0]
    assert "the last 60 texts" in said[1]


def test_a_spec_and_its_inputs_must_fit() -> None:
    bare = {key: value for key, value in TOY_SPEC.items() if key != "inputs"}
    with pytest.raises(OptionError, match="there are no inputs; give inputs=FILE"):
        generate(TaskSpec.model_validate(bare))
    with pytest.raises(OptionError, match="takes no inputs"):
        generate(TaskSpec.model_validate(TOY_SPEC["inputs"]), inputs=["x"])


def test_a_generator_of_one_and_the_same_input_is_an_error_not_a_loop(run: Run, decoder: Decoder) -> None:
    options: dict[str, Any] = {"num_inputs": 500, "input_sampling": Sampling(top_k=1)}
    with pytest.raises(ModelError, match=r"further texts were new, and there are \d of 500 inputs; sample more widely"):
        write(run, decoder, **options)


def test_texts_from_python_are_a_list_that_the_filter_takes() -> None:
    texts = dino.generate("sts-x2", inputs=[" A man runs. ", "", "A dog sleeps."], samples=2, progress=False)
    assert len(texts) == len(list(texts)) == sum(total.accepted for total in texts.record.counts.values())
    assert {text.text_a for text in texts} == {"A man runs.", "A dog sleeps."}
    assert len(texts) + len(texts.rejected) == 12
    assert (texts.state, texts.run, texts.spec.task_name) == ("new", None, "sts")
    assert repr(texts).startswith(f"GeneratedTexts({len(texts)} texts for sts; accepted: 1 ")
    kept = dino.filter(texts, random_pairs=0, near_duplicates=0, dev_share=0.0, progress=False)
    assert {pair.text_a for pair in kept} <= {text.text_a for text in texts}
    assert kept.record.inputs.stop == '"', "the prompts' parts come with the texts"


def test_a_run_from_python_is_the_command_lines(run: Run, toy_generator: Path) -> None:
    options: dict[str, Any] = {"model": str(toy_generator), "inputs": TEXTS, "samples": 2, "progress": False}
    first = dino.generate(TOY_SPEC, run=run.path, more={"0.5": 1}, **options)
    model = first.record.options.model
    assert (model.name, model.dtype, bool(model.fingerprint)) == (str(toy_generator), "float32", True)
    assert first.record.counts["0.5"].written == 3 * len(TEXTS)
    again = dino.generate(TOY_SPEC, run=run, more=["0.5=1"], **options)
    assert (again.state, list(again), again.rejected) == ("done", list(first), first.rejected)
    assert "texts are up to date" in invoke(
        *("generate", run.spec, "--run", run.path, "--model", toy_generator),
        *("--inputs", run.inputs, "--samples", "2", "--more", "0.5=1"),
    )
    in_run = dino.filter(again, dry_run=True, progress=False)
    assert in_run.run and in_run.run.path == run.path, "the run is filtered, where its texts are"
    with pytest.raises(RunError, match=r"earlier calls asked for other extra samples; give more='0.5=1' first"):
        dino.generate(TOY_SPEC, run=run, more={"1": 1}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0: must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5: must be at most 1"),
        ({"samplse": 3}, r"samplse: there is no such option; did you mean samples\?"),
        ({"seed": True}, "seed=True: must not be true or false"),
        ({"input_format": "word"}, "input_format='word': must be one of auto, text, jsonl, sts"),
        ({"rows": "many"}, "rows='many': must be a whole number"),
        ({"inputs": [3]}, "input 0: is 3; give a file, or texts"),
        ({"inputs": []}, "the inputs hold no text"),
        ({"inputs": {"text": ["x"]}}, "the inputs are a dict of text; give one of its values"),
        ({"inputs": pandas.DataFrame({"words": ["x"]})}, r"example 0: text_a is missing \(the columns are words\)"),
        ({"more": {"0.7": 1}}, "more='0.7=1': there is no such label; choose from 1, 0.5, 0"),
        ({"more": {"1": 0}}, "more='1=0': is not LABEL=N with N of 1 or more"),
        ({"more": 3}, "must give a number of texts for each label"),
        ({"more": {"1": 1}, "until_target": 3}, "cannot be combined with a target; leave out more or until_target"),
        ({"budget": 9}, "budget=9: has no meaning without a target; give until_target as well"),
        (
            {"budget": 9, "until_target": 1},
            "budget=9: the first round alone writes 45 texts; raise it, or lower num_in",
        ),
        ({"workers": 2}, "workers: has no meaning without a cluster; give ray as well"),
        ({"base_url": "http://h/v1"}, "base_url: belongs to the engine openai; leave it out, or give engine='openai'"),
        ({"engine": "openai"}, "engine='openai': needs the server's address; give base_url='http"),
        ({**SERVER, "debias": "off", "decay": 9}, "decay: the server's texts are not debiased"),
        ({**SERVER, "debias": "off", "best_of": 2}, "best_of=2: needs a scorer"),
        ({"debias": "off"}, "debias: belongs to the engine openai"),
        ({**SERVER, "dtype": "float16"}, "dtype: belongs to the engine transform"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu': cannot be combined with the device map auto"),
    ],
)
def test_a_wrong_option_from_python_is_named_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, DataError), match=message):
        dino.generate(TOY_SPEC, **{"inputs": TEXTS, "samples": 3, "progress": False, **options})
