"""What users bring is read by one set of rules, whatever file it stands in and whichever command reads it."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import dino_pipeline as dino
from dino_pipeline.dataset_tables import open_tables
from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.probe import Probe
from dino_pipeline.evaluation.suites.suite import ScoredPairs
from dino_pipeline.examples import Example
from dino_pipeline.filtering.contamination import exclusion_files, texts_of
from dino_pipeline.input_texts import InputTexts
from dino_pipeline.readers import ExampleReader, LabelType, list_reader
from dino_pipeline.rows import UNDECIDED, with_class_names
from dino_pipeline.training.corpus import Source
from tests.commands import refused
from tests.hub import Repo, local_hub
from tests.pairs import Words
from tests.toys import Listener

KINDS = ("csv", "tsv", "jsonl", "json", "parquet")
Rows = list[dict[str, str]]


def write(path: Path, rows: Rows, **dialect: Any) -> Path:
    """Write a table in the format that its ending says, as people's programs do."""
    ending = path.suffix[1:]
    if ending in ("csv", "tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ending == "tsv" else ",", **dialect)
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, label_type: LabelType | None = None) -> list[Example]:
    return list(ExampleReader(path.name, open_tables(str(path)), label_type=label_type))


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["007", "1.10", "1e5", "None", "NA", "null", "nan", "true", " x ", '"', 'say "x"', '"x"', "a,b", "a;b", "#", "'"]
)
IN_A_LINE = CELLS.filter(lambda text: not set(text) & set("\t\r\n"))


def tables(cells: st.SearchStrategy[str]) -> st.SearchStrategy[Rows]:
    """Return tables of pairs with names of classes, or of texts alone."""
    of_pairs = st.fixed_dictionaries({"text_a": cells, "text_b": cells, "label": cells.filter(str.strip)})
    of_texts = st.fixed_dictionaries({"sentence": cells, "class": cells.filter(str.strip)})
    return st.lists(of_pairs, min_size=1, max_size=5) | st.lists(of_texts, min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables(CELLS), tables(IN_A_LINE))
def test_a_table_gives_the_same_records_from_every_kind_of_file(tmp_path: Path, rows: Rows, in_lines: Rows) -> None:
    expected = list(list_reader(rows, "class"))
    for kind in ("csv", "jsonl", "json", "parquet"):
        assert read(write(tmp_path / f"data.{kind}", rows), "class") == expected, kind
    quoted = write(tmp_path / "quoted.csv", rows, quoting=csv.QUOTE_ALL)
    assert read(quoted, "class") == expected
    assert read(write(tmp_path / "data.tsv", in_lines), "class") == list(list_reader(in_lines, "class"))
    first = [row.get("text_a", row.get("sentence", "")).strip() for row in rows]
    if any(first):
        for kind in ("csv", "jsonl", "json", "parquet"):
            assert list(InputTexts(tmp_path / f"data.{kind}")) == list(dict.fromkeys(filter(None, first))), kind


@given(
    st.lists(st.tuples(IN_A_LINE, IN_A_LINE, st.floats(0, 1).map(str) | st.integers(0, 5).map(str)), min_size=1),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_are_numbers_where_they_are_asked_for(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    table = [dict(zip(("sentence1", "sentence2", "score"), row, strict=True)) for row in rows]
    for kind in KINDS:
        for label_type in ("score", None):
            found = read(write(tmp_path / f"data.{kind}", table), label_type)
            assert found == [Example(first, second, float(score)) for first, second, score in rows], kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_type_is_guessed(tmp_path: Path, kind: str) -> None:
    """Versions, article numbers, answers and missing-looking words are classes of their own."""
    labels = ["1.1", "1.10", "007", "7", "1.0", "1", "None", "NA", "null", "true", "True", "1e3", "1000"]
    words = Words()
    rows = [{"text": words.sentence(), "label": label} for label in labels for _ in range(2)]
    path = write(tmp_path / f"data.{kind}", rows)
    assert Counter(example.label for example in read(path)) == dict.fromkeys(labels, 2), "texts have classes"
    assert Probe.read("p", path).classes == sorted(labels)
    kept = dino.filter(path, dev_share=0, balance=False, progress=False, near_duplicates=0)
    assert {example.label for example in kept} == set(labels)
    assert {example.label for example in Source(str(path), label_type="class").corpus.examples} == set(labels)


def test_numbers_and_truth_values_as_classes_are_named_as_in_json(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"text": "a", "label": true}\n{"text": "b", "label": 1}\n'
        '{"text": "c", "label": 1.0}\n{"text": "d", "label": 0.5}\n'
    )
    assert [example.label for example in read(tmp_path / "c.jsonl")] == ["true", "1", "1", "0.5"]
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [True, False]})
    frame.to_parquet(tmp_path / "c.parquet")
    assert [each.label for each in read(tmp_path / "c.parquet")] == [each.label for each in list_reader(frame)]
    assert [each.label for each in list_reader(frame)] == ["true", "false"]


# Quotes


def tsv(tmp_path: Path, lines: list[str]) -> Path:
    (tmp_path / "data.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data.tsv"


@pytest.mark.parametrize("stray", [(3,), (3, 17), (0, 59)], ids=str)
def test_a_stray_quote_in_a_tsv_loses_no_row(tmp_path: Path, stray: tuple[int, ...]) -> None:
    words = Words()
    texts = [words.sentence() for _ in range(60)]
    rows = [f"{words.sentence()}\t{text}\t{number % 3 / 2}" for number, text in enumerate(texts)]
    for number in stray:
        rows[number] = '"' + rows[number]
    path = tsv(tmp_path, ["sentence1\tsentence2\tscore", *rows])
    assert len(read(path)) == len(Source(str(path)).corpus.examples) == ScoredPairs.read("x", path).size == 60
    assert len(list(InputTexts(path))) == 120
    assert len({line for line, _ in texts_of(path)}) == 60
    assert read(path)[stray[0]].text_a.startswith('"')
    reader = ExampleReader("data.tsv", open_tables(str(path)))
    assert len(list(reader)) == 60
    said = f"data.tsv: 60 rows read, quotes are part of the texts (the first in line {stray[0] + 2})"
    assert reader.rows_read.told == said


def test_a_quotation_over_two_lines_of_a_tsv_stays_in_its_cells(tmp_path: Path) -> None:
    path = tsv(tmp_path, ["text_a\ttext_b", '"I came\tx', "I saw\ty", 'z\tI won"'])
    assert [example.texts for example in read(path)] == [('"I came', "x"), ("I saw", "y"), ("z", 'I won"')]


def test_quotes_that_all_close_are_those_of_a_table(tmp_path: Path) -> None:
    path = tsv(tmp_path, ["text_a\ttext_b", '"two\nlines"\t"a ""b"""', "x\ty"])
    assert [example.texts for example in read(path)] == [("two\nlines", 'a "b"'), ("x", "y")]
    assert open_tables(str(path))[0].read_as == "quotes stand around cells (the first in line 2)"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", 'text,label\nx,1\n"y,2\nz,3\n', "a.csv, line 3: a quote does not close"),
        ("a.csv", 'text,label\n"x" y,1\n', "a.csv, line 2: ',' expected after '\"'"),
        ("a.csv", "text,label\nx,1\ny, and z,2\n", "a.csv, line 3: 3 cells, but there are 2 columns (text, label)"),
        ("a.tsv", "text\tlabel\nx\n", "a.tsv, line 2: 1 cells, but there are 2 columns"),
        ("a.csv", "words,label\nx,1\n", "a.csv, line 1: text_a is missing (the columns are words, label)"),
        ("a.csv", "text,text\nx,1\n", "a.csv, line 1: two columns have the name 'text'"),
        ("a.csv", "\n", "a.csv: is empty"),
        ("a.json", '[\n{"text": "x"},\n{"text": 5}\n]', 'a.json, line 3: "text" must be a string (it is 5)'),
        ("a.json", '[{"text": "x"},\n{"text": "y"}', "a.json, line 2: the array does not end"),
        ("a.json", '[{"text": "x"}\n{"text": "y"}]', "a.json, line 2: not JSON (a comma is missing"),
        ("a.json", '[{"text": "x"}]\n[1]', "a.json, line 2: there is more behind the array"),
        ("a.json", '[{"text": "x"},\n{"text": }]', "a.json, line 2: not JSON (Expecting value)"),
        ("a.json", "[1]", "a.json, line 1: must be a JSON object"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"words": "y"}\n', "a.jsonl, line 2: text_a is missing (the columns are words)"),
        ("a.parquet", "PAR1", "a.parquet: cannot be read"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "a.csv: is a pointer of git-lfs"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    for command in (read, lambda path: Source(str(path)).corpus, lambda path: Probe.read("x", path)):
        with pytest.raises(DataError) as caught:
            command(tmp_path / name)
        assert said in str(caught.value)


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "txt"])
def test_a_file_may_name_its_encoding(tmp_path: Path, encoding: str, ending: str) -> None:
    content = {"jsonl": '{"text": "Straße 東京"}\n', "json": '[{"text": "Straße 東京"}]', "txt": "Straße 東京\n"}
    path = tmp_path / f"data.{ending}"
    path.write_bytes(content.get(ending, "text\nStraße 東京\n").encode(encoding))
    assert list(InputTexts(path)) == ["Straße 東京"]
    assert [example.text_a for example in Source(str(path)).corpus.examples] == ["Straße 東京"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Das Café ist groß, und die Straße führt über München"),
        ("cp1251", "Привет, мир. Это обычный русский текст"),
        ("cp932", "今日はいい天気ですね。明日は雨が降るでしょう。"),
        ("gb18030", "今天天气很好,我们去公园散步吧。"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "data.csv").write_bytes(f"text,label\nplain,a\n{text},b\n".encode(encoding))
    for command in (
        read,
        lambda path: list(InputTexts(path)),
        lambda path: Probe.read("p", path),
        lambda path: list(texts_of(path)),
    ):
        with pytest.raises(DataError, match=rf"data\.csv, line 3: byte \d+ is not UTF-8; it looks like {encoding}"):
            command(tmp_path / "data.csv")


def test_archives_and_documents_are_no_tables(tmp_path: Path) -> None:
    for start, said in ((b"\x1f\x8b\x08", "a gzip archive"), (b"PK\x03\x04", "a zip archive"), (b"%PDF-1.7", "a PDF")):
        (tmp_path / "data.csv").write_bytes(start + b"\x00" * 20)
        with pytest.raises(DataError, match=rf"data\.csv: is {said}"):
            read(tmp_path / "data.csv")


# Layouts


STS_ROWS = 'main-news\theadlines\t2015\t1\t4.5\tA dog runs.\tA "dog" sprints.\textra\nmain\tf\t2015\t2\t0\tX y.\tZ w.\n'


def test_the_sts_benchmark_is_known_without_a_header(tmp_path: Path) -> None:
    expected = [Example("A dog runs.", 'A "dog" sprints.', 4.5), Example("X y.", "Z w.", 0.0)]
    for name in ("stsb.tsv", "sts-dev.csv"):
        (tmp_path / name).write_text(STS_ROWS)
        assert read(tmp_path / name) == Source(str(tmp_path / name), label_type="score").corpus.examples == expected
        assert list(InputTexts(tmp_path / name)) == ["A dog runs.", 'A "dog" sprints.', "X y.", "Z w."]
    (tmp_path / "scored.tsv").write_text("4.5\tA dog runs.\tA dog sprints.\n0\tX y.\tZ w.\n")
    assert [example.label for example in read(tmp_path / "scored.tsv")] == [4.5, 0.0]


def test_columns_are_found_by_name_whatever_the_case_or_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('Index;Sentence1 ;SENTENCE2;Score\n1;"a;b";c;0,5\n')
    with pytest.raises(DataError, match=r'line 2: "Score" must be a number \(it is "0,5"\)'):
        read(tmp_path / "a.csv", "score")
    (tmp_path / "a.csv").write_text('Index;Sentence1 ;SENTENCE2;Score\n1;"a;b";c;0.5\n')
    assert read(tmp_path / "a.csv") == [Example("a;b", "c", 0.5)]
    assert list(InputTexts(tmp_path / "a.csv")) == ["a;b", "c"]


def test_json_may_be_an_array_or_strings_or_objects_over_lines(tmp_path: Path) -> None:
    for content in ('["x", "y"]', '"x"\n"y"\n', '{\n"text": "x"\n}\n{\n"text": "y"}'):
        (tmp_path / "a.json").write_text(content)
        assert [example.text_a for example in read(tmp_path / "a.json")] == ["x", "y"]
    (tmp_path / "a.jsonl").write_text('[{"text_a": "x", "text_b": "y", "label": 1}]')
    assert read(tmp_path / "a.jsonl") == [Example("x", "y", 1.0)], "whatever the ending"


# Counts


def test_rows_that_are_left_out_are_counted_and_named(tmp_path: Path) -> None:
    words = Words()
    sentences = [words.sentence() for _ in range(20)]
    lines = [
        "text,label",
        *(f"{sentence},{'ab'[number % 2]}" for number, sentence in enumerate(sentences)),
        " ,a",
        ",b",
    ]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    listener = Listener()
    list(InputTexts(tmp_path / "data.csv"))
    source = Source(str(tmp_path / "data.csv"), skip_blank=True)
    assert source.corpus.rows_read is not None
    assert source.corpus.rows_read.told == "data.csv: 22 rows read, 2 left out: without text (line 22 and 1 more)"
    kept = dino.filter(tmp_path / "data.csv", run=tmp_path / "run", dev_share=0, progress=listener)
    assert "data.csv: 22 rows read" in listener.notes
    assert kept.funnel.total("read") == 22
    (read_rows,) = kept.record.rows_read
    assert (read_rows.source, read_rows.rows) == ("data.csv", 22)


def test_rows_that_nobody_could_classify_are_left_out(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=["e", "n"])}
    )
    rows = {"premise": ["a", "b", "c"], "hypothesis": ["x", "y", "z"], "label": [0, -1, None]}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "snli.parquet")
    reader = ExampleReader("snli", open_tables(str(tmp_path / "snli.parquet")))
    assert list(reader) == [Example("a", "x", "e")]
    assert reader.rows_read.told == "snli: 3 rows read, 2 left out: without a class (row 2 and 1 more)"


def test_an_empty_label_is_none_and_said(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text_a,text_b,label\na,b,1\nc,d,\n")
    with pytest.raises(DataError, match=r"data\.csv, line 3: has no label, but .*line 2 has one"):
        read(tmp_path / "data.csv")
    with pytest.raises(DataError, match=r"data\.csv, line 3: has no label"):
        dino.filter(tmp_path / "data.csv", progress=False)


# Tables of other programs


def test_columns_of_other_programs_are_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,sample,input\nthe dog runs,a,S-1,x\nthe cat sits,b,S-2,y\n")
    reader = ExampleReader("a.csv", open_tables(str(tmp_path / "a.csv")))
    assert [example.label for example in reader] == ["a", "b"]
    assert reader.rows_read.told == "a.csv: 2 rows read, columns not used: sample, input"
    (tmp_path / "a.jsonl").write_text('{"text_a": "the dog runs", "label": "a", "sample": "S-1"}\n')
    assert read(tmp_path / "a.jsonl") == [Example("the dog runs", None, "a")]
    examples = [Example("a b", "c d", 1.0, -1.25, 0.5, 3, 0), Example("e f", "g h", 0.0)]
    pandas.DataFrame(map(asdict, examples)).to_csv(tmp_path / "ours.csv", index=False)
    assert read(tmp_path / "ours.csv") == examples, "what a frame wrote is read back"


def test_names_of_classes_that_look_like_numbers_are_names() -> None:
    names = {"label": ["1", "2", "3"]}
    assert [with_class_names({"label": value}, names)["label"] for value in ("1", "3", 0, 2)] == ["1", "3", "1", "3"]
    assert with_class_names({"label": "0.9"}, names) == {"label": "0.9"}
    assert with_class_names({"label": -1}, names)["label"] is UNDECIDED


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_zero_bytes_are_no_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "gold.txt").write_bytes("\n".join(f"the dog {n} runs" for n in range(9)).encode(encoding))
    for command in (lambda path: list(texts_of(path)), lambda path: list(InputTexts(path))):
        with pytest.raises(DataError, match=r"gold\.txt: is not UTF-8, as it is full of zero bytes"):
            command(tmp_path / "gold.txt")


def test_quotes_of_the_sts_benchmark_stay_where_lines_have_sources_behind(tmp_path: Path) -> None:
    lines = [
        *('4.75\tThe economy grew .\t"It has grown .', '2.8\tHe said so .\tIt lost , he said ."'),
        *("1.0\tA man sings .\tA dog runs .", "3.0\tA cat .\tA cat sits .\thttp://a\thttp://b"),
    ]
    (tmp_path / "sts-train.csv").write_text("".join(f"main-news\tMSRpar\t2012\t0695\t{line}\n" for line in lines))
    found = read(tmp_path / "sts-train.csv")
    assert [example.label for example in found] == [4.75, 2.8, 1.0, 3.0]
    assert found[0].text_b == '"It has grown .'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "0.5,hello,world\n0.4,I came, saw,and won\n", "line 2: 4 cells, but there are 3 columns"),
        ("a.csv", "sentence1;sentence2;score\na;b;0,5\n", "line 2: 'score' must be a number (it is \"0,5\")"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": "80%"}\n', "line 1: 'score' must be a number"),
        ("a.csv", "text_a,text_b,label\na,b,1\nc,d,other\n", 'line 3: the label is "other", and that of'),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert said in str(caught.value)


def test_pairs_that_annotators_did_not_agree_on_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "snli.jsonl").write_text(
        '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}\n'
        '{"gold_label": "-", "sentence1": "c", "sentence2": "d"}\n'
    )
    reader = ExampleReader("snli", open_tables(str(tmp_path / "snli.jsonl")))
    assert list(reader) == [Example("a", "b", "neutral")]
    assert reader.rows_read.told == "snli: 2 rows read, 1 left out: without a class (line 2)"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    doubled = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"])
    parquet.write_table(doubled, tmp_path / "a.parquet")
    frame = pandas.DataFrame([["x", "y"]], columns=["text", "text"])
    for command in (lambda: read(tmp_path / "a.parquet"), lambda: list(list_reader(frame))):
        with pytest.raises(DataError, match="two columns have the name 'text'"):
            command()  # type: ignore[no-untyped-call]


def test_tables_of_arrow_have_two_kinds_and_odd_columns(tmp_path: Path) -> None:
    odd = pa.array([[("k", "v")]], type=pa.map_(pa.string(), pa.string()))
    table = pa.table({"text": ["x"], "label": pa.array(["a"], pa.dictionary(pa.int8(), pa.string())), "meta": odd})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert read(tmp_path / name) == [Example("x", None, "a")], name


def test_texts_that_are_missing_are_left_out_in_every_kind_of_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "one", "label": "a"},
        {"text": None, "label": None},
        {"text": "", "label": "b"},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("text,label\none,a\n,\n,b\n")
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        source = Source(str(tmp_path / name), skip_blank=True)
        assert [example.text_a for example in source.corpus.examples] == ["one"]
        assert source.corpus.rows_read is not None
        assert [(each.reason, each.rows) for each in source.corpus.rows_read.left_out] == [("without text", 2)], name


def test_a_folder_of_tables_is_a_dataset_packed_or_not(tmp_path: Path) -> None:
    words = Words()
    rows = [f'"{words.sentence()} b\t{words.sentence()}\t0.3' for _ in range(20)]
    rows += [f'{words.sentence()} d"\t{words.sentence()}\t0.2' for _ in range(20)]
    content = "\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train.tsv").write_text(content)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train.tsv.gz").write_bytes(gzip.compress(content.encode()))
    expected = read(tmp_path / "plain" / "train.tsv")
    assert len(expected) == 40
    (tmp_path / "commas").mkdir()
    (tmp_path / "commas" / "train.csv.gz").write_bytes(gzip.compress(b'text,label\n"one, two",a\nthree,b\n'))
    assert [(each.text_a, each.label) for each in read(tmp_path / "commas")] == [("one, two", "a"), ("three", "b")]
    for name in ("plain", "packed"):
        assert read(tmp_path / name) == expected, name
        assert (
            dino.filter(tmp_path / name, dev_share=0, without=["stop string"], progress=False).funnel.total("read")
            == 40
        )
        assert {text for _, text in texts_of(Path(exclusion_files([str(tmp_path / name)], tmp_path)[0]))} >= {
            text for example in expected for text in example.texts
        }
    assert "plain: is a dataset; name the folder to write with --run" in refused("filter", tmp_path / "plain")
    with pytest.raises(DataError, match=r"train\[:2\] is no whole split, and its files are text; choose from train"):
        open_tables(str(tmp_path / "plain"), split="train[:2]")


def test_scores_are_asked_for_in_every_way_of_reading(tmp_path: Path) -> None:
    lines = [{"text_a": "a b c", "text_b": "d e f", "label": label} for label in (1, "related")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for command in (
        lambda: read(tmp_path / "a.jsonl", "score"),
        lambda: dino.filter(tmp_path / "a.jsonl", label_type="score", progress=False),
        lambda: list(list_reader(lines, "score")),
    ):
        with pytest.raises(DataError, match=r'"label" must be a number \(it is "related"\)'):
            command()


def test_lines_of_json_may_end_otherwise_and_be_encoded_otherwise(tmp_path: Path) -> None:
    words = Words()
    lines = [json.dumps({"text_a": words.sentence(), "text_b": words.sentence(), "label": n % 2}) for n in range(40)]
    (tmp_path / "lf.jsonl").write_text("\n".join(lines))
    (tmp_path / "cr.jsonl").write_bytes("\r".join(lines).encode())
    (tmp_path / "utf16.jsonl").write_bytes("\n".join(lines).encode("utf-16"))
    kept = {
        name: list(dino.filter(tmp_path / name, progress=False)) for name in ("lf.jsonl", "cr.jsonl", "utf16.jsonl")
    }
    assert kept["cr.jsonl"] == kept["utf16.jsonl"] == kept["lf.jsonl"]


def test_every_command_takes_columns_of_other_names(tmp_path: Path, toy_encoder: Path) -> None:
    words = Words()
    rows = [{"Text": words.sentence(), "Art": "ab"[number % 2]} for number in range(20)]
    path, columns = write(tmp_path / "de.csv", rows), {"text_a": "Text", "label": "art"}
    expected = [Example(row["Text"], None, row["Art"]) for row in rows]
    kept = dino.filter(path, column={"label": "Art"}, dev_share=0, balance=False, progress=False)
    assert sorted(kept, key=str) == sorted(expected, key=str)
    assert dino.evaluate(str(toy_encoder), data=path, column=columns, progress=False).rows[0].size == 20
    assert list(InputTexts(path, columns={"text_a": "Art"})) == ["a", "b"]
    with pytest.raises(dino.OptionError, match="column: says how data is read, and there is none"):
        dino.evaluate(str(toy_encoder), suite="pocket", column=columns, progress=False)
    with pytest.raises(DataError, match=r"line 2: has no label \(columns not used: Art\); .*column='label=NAME'"):
        dino.filter(path, progress=False)


# The order of a filter


def test_what_is_kept_does_not_depend_on_how_the_json_was_written(tmp_path: Path) -> None:
    words = Words()
    pairs = [(words.sentence(), words.sentence(), number % 3 / 2) for number in range(90)]
    rows: list[dict[str, Any]] = [{"text_a": a, "text_b": b, "label": label} for a, b, label in pairs]
    writings = {
        "plain.jsonl": [json.dumps(row) for row in rows],
        "tight.jsonl": [json.dumps(row, separators=(",", ":")) for row in rows],
        "strings.jsonl": [json.dumps({**row, "label": f"{row['label']:g}"}) for row in rows],
        "turned.jsonl": [json.dumps(dict(reversed(row.items()))) for row in rows],
        "more.jsonl": [json.dumps({**row, "source": number}) for number, row in enumerate(rows)],
    }
    results = []
    for name, lines in writings.items():
        (tmp_path / name).write_text("\n".join(lines))
        kept = dino.filter(tmp_path / name, target_per_label=9, progress=False)
        results.append((list(kept), list(kept.dev)))
    for kind in ("csv", "tsv", "parquet", "json"):
        kept = dino.filter(
            write(tmp_path / f"data.{kind}", [{**row, "label": str(row["label"])} for row in rows]),
            target_per_label=9,
            progress=False,
        )
        results.append((list(kept), list(kept.dev)))
    kept = dino.filter(pairs, target_per_label=9, progress=False)
    assert all(result == (list(kept), list(kept.dev)) for result in results)


# The Hub


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train.csv\n{}---\n"
CLASSES = """dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': good
"""


def test_text_files_of_the_hub_are_read_by_the_same_rules(tmp_path: Path) -> None:
    words = Words()
    labels = ["1.1", "1.10", "007", "NA"]
    texts = [words.sentence() for _ in labels]
    guessed = "".join(f'"{text}",{label}\n' for text, label in zip(texts, labels, strict=True))
    declared = "".join(f"{text},{number}\n" for text, number in zip(texts, (0, 1, -1, 1), strict=True))
    program = (
        "from dino_pipeline.input_texts import InputTexts; from dino_pipeline.training.corpus import Source\n"
        "print([each.label for each in Source('me/versions').corpus.examples], len(list(InputTexts('me/versions'))))\n"
        "corpus = Source('me/classes').corpus\n"
        "print([each.label for each in corpus.examples], corpus.rows_read.told)"
    )
    with local_hub() as hub:
        for name, card, rows in (("versions", CARD.format(""), guessed), ("classes", CARD.format(CLASSES), declared)):
            files = {"README.md": card.encode(), "data/train.csv": f"text,label\n{rows}".encode()}
            hub.repos[f"datasets/me/{name}"] = Repo(commits=[{".gitattributes": b"", **files}])
        env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        found = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.splitlines() == [
        f"{labels} 4",
        "['bad', 'good', 'good'] me/classes, train: 4 rows read, 1 left out: without a class (line 4)",
    ], found.stderr
