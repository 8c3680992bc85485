"""Options of the filter from Python, and what `dino_pipeline.filter` takes and returns."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

import dino_pipeline as dino
from dino_pipeline.errors import DataError, RunError
from dino_pipeline.examples import FIELDS, Example, ExampleList, read_examples, write_examples
from dino_pipeline.files import write_json_lines
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.generation.generate import GeneratedTexts
from dino_pipeline.readers import list_reader
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import LabelTotals
from dino_pipeline.training.corpus import Source
from tests.conftest import TOY_SPEC
from tests.records import generate_record, write_record

PAIRS: list[tuple[str, str, float]] = [
    (f"A man waters {n} trees.", f"Somebody sings song {label} and {n * 7}.", label)
    for n in range(30)
    for label in (1.0, 0.0)
]
COLUMNS = ["text_a", "text_b", "label"]
EXACT: dict[str, Any] = {"near_duplicates": 0, "progress": False}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"labels": "smoothd"}, "labels='smoothd': must be one of hard, smoothed, posterior"),
        ({"smoothing": 5.0}, "smoothing=5.0: must be at most 1"),
        ({"smoothing": float("nan")}, "smoothing=nan: must be a finite number"),
        ({"pii": "Drop"}, "pii='Drop': must be one of flag, drop, keep"),
        ({"near_duplicates": 1.5}, "near_duplicates=1.5: must be at most 1"),
        ({"min_margin": "much"}, "min_margin='much': must be a number such as 0.1, a share"),
        ({"min_margin": "1e400"}, "min_margin='1e400': must be a number such as 0.1"),
        ({"min_margin": True}, "min_margin=True: must not be true or false"),
        ({"min_logprob": ["5%", "0.5=200%"]}, "min_logprob='0.5=200%': must be a number such as 0.1"),
        ({"min_margin": "0.3=1"}, "min_margin='0.3=1': there is no label 0.3; choose from 0.0, 1.0"),
        ({"max_per_text": -1}, "max_per_text=-1: must be at least 0"),
        ({"dev_share": 0.95}, "dev_share=0.95: must be at most 0.9"),
        ({"verify": True}, "verify=True: needs a run's spec and generator; these texts have none"),
        ({"labels": "posterior"}, "labels='posterior': needs a run's spec and generator"),
        ({"verify_margin": 0.1}, "verify_margin=0.1: applies to verification only; give verify=True, too"),
        ({"temperature": 2}, "temperature=2: applies to posterior labels only; give labels='posterior', too"),
        ({"labels": "hard", "smoothing": 1}, "smoothing=1: applies to smoothed labels only; give labels='smoothed'"),
        ({"semantic_threshold": 1}, "semantic_threshold=1: applies to semantic duplicates only; give semantic=MODEL"),
        ({"semantic": 3}, "semantic=3: must be a string"),
        ({"rule": 3}, "rule=3: must be module:function, or a function"),
        ({"without": ["near copy"]}, "without='near copy': no such rule; choose from 'empty'"),
        ({"exclude": "sts99"}, "exclude='sts99': no such file, and no evaluation set of this name"),
        ({"device": "gpu7", "semantic": "pocket"}, "device='gpu7': "),
        ({"near_duplicate": 0}, "near_duplicate: there is no such option; did you mean near_duplicates?"),
        ({"spec": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_remedy(wrong: dict[str, Any], said: str) -> None:
    pairs = [Example(*pair, margin=0.1, logprob=-1.0) for pair in PAIRS]
    with pytest.raises(dino.DinoError) as error:
        dino.filter(pairs, **{**EXACT, **wrong})
    assert str(error.value).startswith(said)


def test_plain_values_are_welcome_and_a_record_holds_what_a_user_could_not_give() -> None:
    given = {"min_margin": 0.1, "min_logprob": {0.5: "10%"}, "exclude": Path("a.tsv"), "without": "empty", "seed": "7"}
    options = FilterOptions.of(given)
    assert (options.min_margin, options.min_logprob) == (("0.1",), ("0.5=10%",))
    assert (options.exclude, options.without, options.seed) == (("a.tsv",), ("empty",), 7)
    assert FilterOptions.model_validate(FilterOptions(labels="hard").recorded()).labels == "hard"


def test_lists_are_filtered_in_memory_as_files_are_on_disk(tmp_path: Path) -> None:
    examples = [Example(*pair) for pair in PAIRS]
    write_examples(tmp_path / "pairs.jsonl", examples)
    result = dino.filter(examples, **EXACT)
    on_disk = dino.filter(tmp_path / "pairs.jsonl", run=tmp_path / "run", **EXACT)
    assert on_disk.run is not None and result.run is None
    assert list(result) == list(on_disk) == read_examples(on_disk.run.train)
    assert [list(result.dev), result.dropped, result.funnel] == [list(on_disk.dev), on_disk.dropped, on_disk.funnel]
    assert [on_disk.outcome, dino.filter(tmp_path / "pairs.jsonl", run=on_disk.run, **EXACT).outcome] == ["new", "done"]
    columns = {"sentence1": [a for a, _, _ in PAIRS], "sentence2": [b for _, b, _ in PAIRS]}
    dataset = datasets.Dataset.from_dict({**columns, "score": [label for _, _, label in PAIRS]})
    for source in (PAIRS, dataset, pandas.DataFrame(PAIRS, columns=COLUMNS)):
        assert list(dino.filter(source, **EXACT)) == list(result)


def test_the_result_is_a_list_with_reasons() -> None:
    faulty = [("A man.", "a MAN", 1.0), ("Ask me.", "Write to jo@example.org", 0.0)]
    result = dino.filter(PAIRS + faulty, balance=False, **EXACT)
    (dropped,) = [each for each in result.dropped if each.reason == "identical texts"]
    assert dropped.example == Example("A man.", "a MAN", 1.0)
    assert [(each.reason, each.evidence) for each in result.flagged] == [
        ("personal data", "e-mail address jo@example.org")
    ]
    assert result.funnel.total("dropped", "identical texts") == 1
    assert len(result) == len(result.train) == result.funnel.total("train") == len(result.to_dataset())
    assert len(result.to_pandas()) == len(result)
    assert repr(result).startswith(f"FilteredPairs(train: {len(result)}, dev: {len(result.dev)}, dropped: ")
    assert "- identical texts" in str(result.funnel)
    looked = dino.filter(PAIRS, ablate=True, **EXACT)
    assert (looked.outcome, list(looked), looked.funnel.total("read")) == ("dry run", [], len(PAIRS))


def test_a_function_is_a_rule() -> None:
    def about_songs(example: Example) -> str | None:
        return f"song: {example.text_b}" if "song 0.0" in (example.text_b or "") else None

    result = dino.filter(PAIRS + [("A", "Somebody hums.", 0.0)] * 3, rule=about_songs, without="too short", **EXACT)
    assert {each.reason for each in result.dropped} >= {"song"}
    assert result.record.options.recorded()["rule"] == [f"{__name__}:{about_songs.__qualname__}"]


def test_what_was_filtered_keeps_its_labels_and_its_split() -> None:
    first = dino.filter(PAIRS, **EXACT)
    notes: list[Any] = []
    second = dino.filter(first, near_duplicates=0, balance=False, progress=notes.append)
    assert sorted(map(str, second)) == sorted(map(str, first))
    assert not second.dev and "This was filtered before" in str(notes)


def test_a_spec_says_what_labels_are_and_what_prompts_hold() -> None:
    spec = TaskSpec.model_validate(TOY_SPEC)
    texts = [("One film", None, str(n % 2)) for n in range(4)] + [("Other", None, "1"), ("Third", None, "0")]
    names = dino.filter(texts, dev_share=0, without="too short", **EXACT)
    assert {example.label for example in names} == {"0", "1"}
    numbers = dino.filter(texts, spec=spec, dev_share=0, without="too short", labels="hard", **EXACT)
    assert {type(example.label) for example in numbers} == ({float} if spec.is_scored else {str})
    assert numbers.record.inputs.stop == spec.stop


@pytest.mark.slow
def test_generated_texts_are_filtered_in_memory_as_a_run_on_disk(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"model": "pocket", "num_inputs": 30, "samples": 2, "progress": False}
    texts = dino.generate("sts-x2", **wanted)
    on_disk = dino.filter(dino.generate("sts-x2", run=tmp_path / "run", **wanted), progress=False)
    result = dino.filter(texts, spec="sts-x2", progress=False)
    assert (list(result), result.dropped, result.funnel) == (list(on_disk), on_disk.dropped, on_disk.funnel)
    verified = dino.filter(texts, verify=True, run=tmp_path / "verified", progress=False)
    assert verified.funnel.total("dropped", "label not confirmed")
    assert dino.filter(tmp_path / "verified", verify=True, progress=False).outcome == "done"
    with pytest.raises(dino.OptionError, match="spec='topics': a run has a spec of its own"):
        dino.filter(texts, spec="topics", progress=False)


@pytest.mark.parametrize("change", ["moved", "overwritten", "missing"])
def test_a_result_on_disk_is_read_where_it_was_made_or_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = dino.filter(PAIRS, run="run", dev_share=0, **EXACT)
    record = generate_record(counts={label: LabelTotals(written=1, accepted=1) for label in ("1", "0")})
    write_record(tmp_path / "texts", record)
    write_examples(tmp_path / "texts" / "shards" / "00000.jsonl", [Example("A", "B", 1.0), Example("A", "C", 0.0)])
    Run(tmp_path / "texts").checksums.add(tmp_path / "texts" / "shards" / "00000.jsonl")
    (tmp_path / "texts" / "spec.json").write_text("{}")
    texts = GeneratedTexts(Run(Path("texts")), TaskSpec.model_validate(TOY_SPEC), record, "new")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if change == "moved":
        unread: list[Any] = pickle.loads(pickle.dumps([kept, texts]))
        assert [len(kept), len(texts), len(unread[1])] == [kept.funnel.total("train"), 2, 2]
        (tmp_path / "run").rename("run")
        (tmp_path / "texts").rename("texts")
        assert len(texts) == 2
        message = r"(run|texts): no longer exists; move it back, or call dino\.\w+\(\) again"
        texts = GeneratedTexts(Run(tmp_path / "texts"), texts.spec, record, "new")
    elif change == "overwritten":
        dino.filter(PAIRS[:20], run=tmp_path / "run", fresh=True, dev_share=0, **EXACT)
        write_record(tmp_path / "texts", record.updated(counts={"1": LabelTotals(written=1, accepted=1)}))
        message = "was overwritten: it holds the result of a later"
        with pytest.raises(RunError, match=message):
            Run.of(kept)
        with pytest.raises(RunError, match=message):
            dino.filter(texts, **EXACT)
    else:
        (tmp_path / "run" / "dropped.jsonl").unlink()
        (tmp_path / "texts" / "shards" / "00000.jsonl").unlink()
        message = "dropped.jsonl: no longer exists|00000.jsonl: no longer exists"
    for read in (lambda: kept.dropped, lambda: kept.origin, lambda: len(texts)):
        with pytest.raises(RunError, match=message):
            read()


@pytest.mark.parametrize("number", [int, np.int64, np.int8])
def test_whole_numbers_as_classes_are_what_they_are_in_a_file(tmp_path: Path, number: Any) -> None:
    pairs = [(a, np.str_(b), number(label)) for a, b, label in PAIRS]
    rows = [{"text_a": a, "text_b": b, "label": int(label)} for a, b, label in PAIRS]
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    for label_type in ("class", "score"):
        from_file, *others = (
            {str(each.label) for each in dino.filter(source, label_type=label_type, **EXACT)}
            for source in (tmp_path / "pairs.jsonl", pairs, pandas.DataFrame(pairs, columns=COLUMNS))
        )
        assert others == [from_file, from_file]
    memory = Source("texts", label_type="class", memory=pairs)
    assert {each.label for each in memory.corpus.examples} == {"0", "1"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("x", "y", float("nan")), 'example 60: "label" must be a finite number or a name (it is NaN)'),
        (Example("x", "y", float("inf")), 'example 60: "label" must be a finite number or a name (it is Infinity)'),
        ({"text_a": "x", "text_b": "y", "label": np.float32("inf")}, 'example 60: "label" must be a finite number'),
        (("x", "y", 10**400), 'example 60: "label" must be a finite number or a name'),
        (Example("x", "y", 1.0, margin=float("nan")), 'example 60: "margin" must be a finite number (it is NaN)'),
        (Example("x", "y", 1.0, input=0.5), 'example 60: "input" must be a whole number'),  # type: ignore[arg-type]
        ({"text_a": "x", "text_b": "y", "label": np.nan}, "example 60: has no label"),
        (("x", None, 1.0), "example 60: has no second text, but example 0 has one"),
    ],
)
def test_a_wrong_example_of_a_list_is_named_and_changes_nothing(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        dino.filter([*PAIRS, item], run=tmp_path / "run", **EXACT)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_results_survive_pandas_and_may_be_empty(tmp_path: Path) -> None:
    examples = [Example(*pair, input=number // 2 or None, sample=0) for number, pair in enumerate(PAIRS)]
    kept = dino.filter(examples, **EXACT)
    assert list(list_reader(kept.to_pandas())) == list(list_reader(kept.to_dataset())) == list(kept)
    assert type(kept[:2]) is type(kept.train) is ExampleList and list(kept[:2]) == list(kept)[:2]
    empty = ExampleList([])
    assert [*empty.to_pandas().columns] == empty.to_dataset().column_names == [*FIELDS]
    looked = dino.filter(PAIRS, dry_run=True, **EXACT)
    assert repr(looked).startswith("FilteredPairs(dry run without examples; read: 60")
    splits = datasets.DatasetDict({"train": kept.to_dataset()})
    assert list(dino.filter(splits, **EXACT)) == list(dino.filter(kept.to_dataset(), **EXACT))
    with pytest.raises(DataError, match="a dict of text_a, label: is not a list of examples"):
        dino.filter({"text_a": ["x"], "label": [1]}, **EXACT)
