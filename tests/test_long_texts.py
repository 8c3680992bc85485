"""A text that is too long is named, with its place and size, at every door; a long one that is none goes through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from datasets import Dataset

import dino_pipeline as dino
from dino_pipeline.errors import DinoError
from dino_pipeline.examples import read_examples
from dino_pipeline.filtering.contamination import texts_of
from dino_pipeline.readers import list_reader
from dino_pipeline.spec_file import load_spec
from dino_pipeline.text import LONGEST_TEXT
from tests.pairs import Words

TEXT = "word " * 1_000_000
SIZE = "has 5,000,000 characters, and a text has 1,000,000 at most"
PAIRS = [{"text_a": f"{name} is here today.", "text_b": "Something else.", "label": 1.0} for name in ("Ann", "Bob")]
LONG = [*PAIRS, {"text_a": "Short.", "text_b": TEXT, "label": 1.0}]


def jsonl(folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LONG))
    return path


def csv(folder: Path) -> Path:
    pandas.DataFrame(LONG).to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


def parquet(folder: Path) -> Path:
    pandas.DataFrame(LONG).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def table(folder: Path) -> Path:
    path = folder / "data.tsv"
    path.write_text("".join(f"1.0\t{row['text_a']}\t{row['text_b']}\n" for row in LONG))
    return path


def dataset(folder: Path) -> Path:
    (folder / "set").mkdir()
    pandas.DataFrame(LONG).to_parquet(folder / "set" / "train.parquet")
    return folder / "set"


SOURCES: dict[str, Callable[[Path], Any]] = {
    "JSON": jsonl,
    "CSV": csv,
    "Parquet": parquet,
    "a dataset": dataset,
    "TSV": table,
    "a list": lambda folder: LONG,
    "a frame": lambda folder: pandas.DataFrame(LONG),
    "datasets": lambda folder: Dataset.from_list(LONG),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_text_that_is_too_long_is_named_at_every_door(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    doors: list[Callable[[], object]] = [
        lambda: dino.filter(source, progress=False, workers=1),
        lambda: dino.finetune(source, progress=False, steps=1, batch_size=2),
        lambda: dino.evaluate("pocket", data=source, progress=False),
    ]
    for door in doors:
        with pytest.raises(DinoError) as error:
            door()
        assert SIZE in str(error.value) and "cut it into documents" in str(error.value)
        assert any(place in str(error.value) for place in ("line 3", "line 4", "row 3", "example 2")), error.value
        assert len(str(error.value)) < 1000
    if kind == "JSON":
        with pytest.raises(DinoError, match=SIZE):
            read_examples(source)
        with pytest.raises(DinoError, match=SIZE):
            list(texts_of(source))


def test_a_spec_and_a_name_of_a_class_have_bounds_too(tmp_path: Path) -> None:
    labels = {"1": {"instruction": f'{TEXT}"'}}
    with pytest.raises(DinoError, match="instruction: has 5,000,001 characters"):
        load_spec({"task_name": "t", "labels": labels})
    with pytest.raises(DinoError, match=f'"label" {SIZE}'):
        list(list_reader([{"text_a": "a", "label": TEXT}]))


@pytest.mark.slow
def test_texts_of_200_000_characters_go_through(tmp_path: Path) -> None:
    words = Words()
    long = [" ".join(words.sentence() for _ in range(3600))[:200_000] for _ in range(4)]
    hard = ["a" * 200_000, "e" + "\u0301" * 199_999, "a@" * 100_000, "漢字仮名" * 50_000, "one two three " * 14_000]
    rows = [{"text_a": words.sentence(), "text_b": words.sentence(), "label": float(at % 2)} for at in range(300)]
    rows += [{"text_a": text, "text_b": words.sentence(), "label": float(at % 2)} for at, text in enumerate(long)]
    rows += [{"text_a": words.sentence(), "text_b": text, "label": 1.0} for text in hard]
    assert len(long[0]) < LONGEST_TEXT
    done = dino.filter(rows, progress=False, workers=1, max_chars=LONGEST_TEXT, balance=False)
    assert {each.text_a for each in done.train} & {*long}
    assert not {each.text_b for each in done.train} & {*hard}
    dino.finetune(rows, progress=False, steps=1, batch_size=8)
    scores = dino.evaluate("pocket", data=rows, progress=False)
    assert scores.rows[0].size == len(rows)
