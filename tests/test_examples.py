from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_pipeline import examples
from dino_pipeline.database import connect, json_rows, quoted
from dino_pipeline.delimited_files import read_tab_separated
from dino_pipeline.errors import DataError, OutputError
from dino_pipeline.examples import (
    Dropped,
    Example,
    parse_example,
    parse_examples,
    read_examples,
    write_dropped,
    write_examples,
)
from dino_pipeline.files import file_digest, folder_replaced, write_atomic, write_bytes
from dino_pipeline.input_texts import InputTexts
from dino_pipeline.json_files import read_json_lines
from dino_pipeline.publishing.run_texts import COLUMN_TYPES
from tests.commands import refused


def file(tmp_path: Path, content: bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_string_labels_extra_fields_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        b'\xef\xbb\xbf{"text_a": "x", "text_b": "y", "label": "0.5", "extra": [1]}\r\n'
        b'\r\n{"text_a": "\xc3\xa4", "text_b": null, "label": 1}\r\n{"label": "good", "text_a": "z"}',
    )
    assert read_examples(path) == [Example("x", "y", 0.5), Example("ä", None, 1.0), Example("z", None, "good")]
    assert read_examples(path, numeric_labels=False)[0].label == "0.5", "kept as a name"


TEXT = b'"text_a": "x", "label": 1}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "data.jsonl: holds no examples"),
        (b"\n\n", "data.jsonl: holds no examples"),
        (b'{"text_a": "x", "label": 1}\n{"text_a": "y', "data.jsonl, line 2: not JSON"),
        (b'{"text_a": "x", "label": 1}\n7', "data.jsonl, line 2: must be a JSON object"),
        (b'{"text_a": 5}', 'data.jsonl, line 1: "text_a" must be a string (it is 5)'),
        (b'{"text_a": "x", "text_b": []}', 'line 1: "text_b" must be a string (it is [])'),
        (b'{"text_a": "x", "label": NaN}', 'line 1: "label" must be a finite number or a name (it is NaN)'),
        (b'{"text_a": "x", "label": 1e999}', 'line 1: "label" must be a finite number or a name (it is Infinity)'),
        (b'{"text_a": "x", "label": [1]}', 'line 1: "label" must be'),
        (
            b'{"text_a": "x", "label": 1, "logprob": "1", "margin": 0, "input": 1, "sample": 1}',
            'line 1: "logprob" must be a finite number (it is "1")',
        ),
        (
            b'{"text_a": "x", "label": 1, "logprob": 1, "margin": 0, "input": 1.5, "sample": 1}',
            'line 1: "input" must be a whole number of 64 bits (it is 1.5)',
        ),
        (
            b'{"text_a": "x", "label": 1, "logprob": 1, "margin": 0, "input": 99999999999999999999, "sample": 1}',
            'line 1: "input" must be a whole number of 64 bits',
        ),
        (b"[1]", "line 1: must be a JSON object"),
        (b"null", "line 1: "),
        (rb'{"text_a": "x \ud83d"}', 'line 1: "text_a" holds half of a surrogate pair'),
        (b'{"text_a": "x", "label": 1' + b"0" * 400 + b"}", "line 1: "),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"text_a": ' + b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"text_a": "x", "x": ' + b"[" * 100_000, "line 1: nested too deeply"),
        pytest.param(
            b'{"text_a": "' + b"a" * 100 * 2**20 + b'"}', "line 1: is longer than 16 MiB", marks=pytest.mark.slow
        ),
        (b'\n{"text_a": "\xff"}', "line 2: byte 12 is not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_bad_file_is_refused_with_file_and_line(tmp_path: Path, content: bytes, said: str) -> None:
    """By all readers: in this process, and by the command that reads it piece by piece."""
    path = file(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert said in str(caught.value)
    assert said in refused("filter", path, "--run", tmp_path / "run")
    assert not (tmp_path / "run" / "train.jsonl").exists()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    examples = [Example("ä \u2028 \n b", 'c"d', 0.5, -1.5, 0.25, 3, 1), Example("x", None, "name")]
    write_examples(tmp_path / "sub" / "out.jsonl", examples)
    assert read_examples(tmp_path / "sub" / "out.jsonl") == examples
    write_dropped(tmp_path / "dropped.jsonl", [Dropped(examples[0], "because")])
    assert read_examples(tmp_path / "dropped.jsonl") == examples[:1]
    assert b'"reason": "because"' in (tmp_path / "dropped.jsonl").read_bytes()


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_examples(tmp_path / "out.jsonl", [Example("old")])
    before = (tmp_path / "out.jsonl").read_bytes()

    def fail(handle: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"out\.jsonl: cannot be written: No space left on device; .*make room"):
        write_atomic(tmp_path / "out.jsonl", fail)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_writers_return_the_digest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert write_examples(path, [Example("ä", None, 1.0)]) == file_digest(path)
    assert write_bytes(path, b"x") == file_digest(path)


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "v1.0"
    for content in ("old", "new"):
        with folder_replaced(folder) as new:
            (new / "file").write_text(content)
    with (
        pytest.raises(OutputError, match=r"v1\.0: cannot be written: No space left; make room"),
        folder_replaced(folder),
    ):
        raise OSError(28, "No space left")
    assert [path.name for path in tmp_path.iterdir()] == ["v1.0"]
    folder.rename(tmp_path / "v1.0.old")  # as a crash between the two renames leaves it
    with pytest.raises(KeyboardInterrupt), folder_replaced(folder):
        raise KeyboardInterrupt
    assert (folder / "file").read_text() == "new"


def test_tab_separated_cells_and_json_lines(tmp_path: Path) -> None:
    path = file(tmp_path, b'\xef\xbb\xbfa\t"b\r\n\n\tc', "cells.tsv")
    assert list(read_tab_separated(path)) == [(1, ["a", '"b']), (2, [""]), (3, ["", "c"])]
    path = file(tmp_path, b'{"x": 1}\n\n[2]\n{')
    rows = read_json_lines(path)
    assert [next(rows), next(rows)] == [(1, {"x": 1}), (3, [2])]
    with pytest.raises(DataError, match=r"data\.jsonl, line 4: not JSON"):
        next(rows)


def test_sql_reads_our_lines_and_takes_any_text(tmp_path: Path) -> None:
    path = tmp_path / "label=2" / "it's.jsonl"
    write_examples(path, [Example("a'b", None, "x", input=3)])
    rows = json_rows([path], COLUMN_TYPES)
    query = f"SELECT text_a, label, input, reason FROM {rows} WHERE text_a = " + quoted("a'b")
    with connect() as database:
        assert database.execute(query).fetchall() == [("a'b", "x", 3, None)]


STS = b'main\tf\t2012\t1\t2.5\tA "dog\tTwo cats\nmain\tf\t2012\t2\t5.0\tTwo cats\tA bird\textra\n'


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("in.txt", "\ufeffb\r\n a \n\nb\nc\u2028d\n".encode(), ["b", "a", "c\u2028d"]),
        ("in.jsonl", b'{"text_a": "x", "text_b": "z"}\n{"text_a": "y"}', ["x", "y"]),
        ("sts.csv", STS, ['A "dog', "Two cats", "A bird"]),
        ("train.tsv", b"index\tsentence1\tsentence2\tscore\n0\tA\tB\t1.0\n", ["A", "B"]),
    ],
)
def test_inputs_are_distinct_and_in_order(tmp_path: Path, name: str, content: bytes, texts: list[str]) -> None:
    assert list(InputTexts(file(tmp_path, content, name))) == texts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.txt", b"\n \n", "holds no input texts"),
        ("in.txt", b"a\nb\xff\n", "in.txt, line 2: byte 1 is not UTF-8"),
        ("in.tsv", b"a\tb\n", "in.tsv, line 1: text_a is missing (the columns are a, b)"),
        ("in.jsonl", b'{"words": "a"}', "line 1: text_a is missing (the columns are words)"),
    ],
)
def test_bad_inputs_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        list(InputTexts(file(tmp_path, content, name)))
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_examples, lambda path: list(InputTexts(path)), lambda path: list(InputTexts(path, "text"))):
        with pytest.raises(DataError, match=r"gone\.jsonl: (is not there|cannot be read: No such file)"):
            read(tmp_path / "gone.jsonl")


def test_a_pipe_can_be_read_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("b\na\nb\n",))
    writer.start()
    texts = InputTexts(pipe)
    writer.join()
    assert list(texts) == list(texts) == ["b", "a"]


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_file_of_inputs(device: str) -> None:
    with pytest.raises(DataError, match=f"{device}: is a device, which may have no end; give a file"):
        InputTexts(device)


values = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3) | st.just("0.5")


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["text_a", "text_b", "label", "logprob", "input", "other"]), values), max_size=4
    ),
    st.booleans(),
)
def test_the_fast_parser_reads_what_the_careful_one_reads(rows: list[dict[str, Any]], numeric: bool) -> None:
    lines = [json.dumps({"text_a": "x", **row}, ensure_ascii=bool(n % 2)).encode() for n, row in enumerate(rows)]

    def careful() -> list[Example]:
        return [examples._parse_carefully(line, "here", numeric) for line in lines]

    def fast() -> list[Example]:
        return [parse_example(line, lambda: "here", numeric) for line in lines]

    try:
        expected = careful()
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error))):
            fast()
        assert parse_examples(lines, numeric) is None
    else:
        assert fast() == expected
        assert parse_examples(lines, numeric) in (None, expected)
