from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.training.corpus import Corpus, Source, distinct_texts, hold_out


def read(path: Path, **kwargs: Any) -> Corpus:
    return Source(str(path), **kwargs).corpus


def test_plain_text_has_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One dog.\n\n  Two cats. They sit.  \n")
    found = read(tmp_path / "t.txt")
    assert (found.content, Source(str(tmp_path / "t.txt")).label) == ("texts", "t.txt")
    assert [example.text_a for example in found.examples] == ["One dog.", "Two cats. They sit."]
    (tmp_path / "t.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds no texts; give a file with a sentence or document a line"):
        read(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("example", "content"),
    [
        (Example("a"), "texts"),
        (Example("a", None, 1.0), "classified texts"),
        (Example("a", "b"), "pairs"),
        (Example("a", "b", "x"), "classified pairs"),
        (Example("a", "b", 1.0), "scored pairs"),
    ],
)
def test_what_a_file_holds_is_seen_from_its_examples(tmp_path: Path, example: Example, content: str) -> None:
    write_examples(tmp_path / "d.jsonl", [example] * 2)
    assert read(tmp_path / "d.jsonl").content == content


def test_numbers_are_classes_when_a_user_says_so(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text_a": "x", "text_b": "y", "label": "1"}\n')
    assert read(tmp_path / "d.jsonl").content == "scored pairs"
    assert read(tmp_path / "d.jsonl", label_type="class").examples[0].label == "1"
    (tmp_path / "d.csv").write_text("sentence1,sentence2,label\na,b,1\n")
    assert read(tmp_path / "d.csv").examples == [Example("a", "b", 1.0)]
    assert read(tmp_path / "d.csv", label_type="class").examples == [Example("a", "b", "1")]


def test_a_folder_as_on_the_hub_is_read_by_its_columns(tmp_path: Path) -> None:
    names = ClassLabel(names=["entailment", "neutral"])
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": names})
    rows = {"premise": ["a", "b", "c", "d"], "hypothesis": ["x", "y", "z", "nobody could say"], "label": [0, 1, 0, -1]}
    for split in ("train", "validation"):
        Dataset.from_dict(rows, features).to_parquet(tmp_path / "folder" / "data" / f"{split}.parquet")
    source = Source(str(tmp_path / "folder"), split="validation")
    assert source.corpus.content == "classified pairs"
    assert source.corpus.examples[1:] == [Example("b", "y", "neutral"), Example("c", "z", "entailment")]
    assert source.label == "folder, validation"
    assert source.digest() == Source(str(tmp_path / "folder"), split="train").digest()
    with pytest.raises(DataError, match=r"cannot be read as a dataset .*; see split"):
        read(tmp_path / "folder", split="nosplit")


def test_columns_are_named_where_their_names_do_not_say(tmp_path: Path) -> None:
    Dataset.from_dict({"docstring": ["adds"], "body": ["a + b"]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"row 1: text_a is missing \(the columns are docstring, body\); .*text_a=NAME"):
        read(tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet", columns={"text_a": "docstring", "text_b": "body"})
    assert found.examples == [Example("adds", "a + b")]
    with pytest.raises(DataError, match="has no column code, only docstring, body"):
        read(tmp_path / "c.parquet", columns={"text_a": "docstring", "text_b": "code"})
    (tmp_path / "c.jsonl").write_text('{"abstract": "One.", "year": 3}\n')
    assert read(tmp_path / "c.jsonl", columns={"text_a": "abstract"}).examples == [Example("One.")]
    with pytest.raises(DataError, match=r"line 1: \"year\" must be a string \(it is 3\)"):
        read(tmp_path / "c.jsonl", columns={"text_a": "year"})


def test_what_is_not_there_is_named(here: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: is not there"):
        read(Path("gone.txt"))
    with pytest.raises(DataError, match="no/where: is neither a file or folder here nor a dataset"):
        read(Path("no/where"))


def test_kinds_are_not_mixed() -> None:
    with pytest.raises(DataError, match="example 0: has no second text, but example 2 has one"):
        _ = Source("c", memory=[Example("a"), Example("b"), Example("c", "d", 1.0)]).corpus


def test_what_is_held_out_shares_no_first_text_and_does_not_depend_on_order() -> None:
    examples = [Example(f"Text {n % 40}", f"other {n}", 1.0) for n in range(120)]
    train, held = hold_out(Corpus("c", examples), 0.1, 500)
    assert len({example.text_a for example in held.examples}) == 4
    assert len(held.examples) == 12
    assert sorted([*train.examples, *held.examples], key=str) == sorted(examples, key=str)
    assert not {e.text_a for e in train.examples} & {e.text_a for e in held.examples}
    _, again = hold_out(Corpus("c", examples[::-1]), 0.1, 500)
    assert sorted(again.examples, key=str) == sorted(held.examples, key=str)
    _, few = hold_out(Corpus("c", examples), 0.5, 3)
    assert len({example.text_a for example in few.examples}) == 3
    with pytest.raises(DataError, match="too few texts to keep some out"):
        hold_out(Corpus("c", examples[:1]), 0.1, 500)


def test_texts_that_differ_in_case_and_points_are_one() -> None:
    assert distinct_texts([Example("A dog.", "a dog"), Example("a DOG!", "Rain")]) == ["A dog.", "Rain"]
