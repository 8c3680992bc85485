"""Datasets as DINO's authors publish them go through the filter and the training as they are."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import dino_pipeline as dino
from dino_pipeline.encoder_options import FinetuneOptions
from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example, read_examples
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.filter_source import run_source
from dino_pipeline.filtering.filter_stage import look
from dino_pipeline.run import Run
from dino_pipeline.text import normalise
from dino_pipeline.training.objectives import get_objective
from dino_pipeline.training.training_texts import training_texts
from tests.commands import refused
from tests.pairs import Words, dropped, filtered, funnel, kept, raw, reasons, record_of
from tests.test_filters import generated
from tests.toys import Listener

Rows = list[tuple[str, str, float]]


def published(inputs: int = 100, most: int = 2, smoothing: float = 0.2) -> Rows:
    """Return scored pairs as the authors' post-processing leaves them: in any order, random pairs at the end."""
    words, rng = Words(5), random.Random(42)
    rows: Rows = []
    for _ in range(inputs):
        text_a = words.sentence()
        for label in (1.0, 0.5, 0.0):
            rows += [(text_a, words.sentence(), label * (1 - smoothing) + smoothing / 3 * 1.5) for _ in range(most)]
    rng.shuffle(rows)
    inputs_left = dict.fromkeys(text_a for text_a, *_ in rows)
    return rows + [(text_a, rng.choice(rows)[1], 0) for text_a in inputs_left for _ in range(most)]


def write(path: Path, rows: Rows, label: type = float) -> Path:
    fields = ("text_a", "text_b", "label")
    lines = [json.dumps(dict(zip(fields, (a, b, label(y) if y else 0), strict=True))) for a, b, y in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def examples(rows: Rows) -> list[Example]:
    return [Example(text_a, text_b, float(label)) for text_a, text_b, label in rows]


def sides(run: Run) -> tuple[set[str], set[str]]:
    """Return the texts of train and of dev in normal form."""
    train, dev = (
        {normalise(text) for row in read_examples(path) for text in row.texts} for path in (run.train, run.dev)
    )
    return train, dev


@pytest.mark.parametrize("label", [float, str])
def test_a_published_dataset_stays_as_it_is(tmp_path: Path, label: type) -> None:
    rows, listener = published(), Listener()
    file = write(tmp_path / "sts-dino.jsonl", rows, label)
    pairs = dino.filter(file, run=tmp_path / "run", progress=listener)
    read, note, left_out = listener.notes
    assert read == "sts-dino.jsonl: 800 rows read"
    assert note.startswith(
        "the labels 0.1, 0.5, 0.9 are smoothed already, and the 200 pairs of label 0 join texts at random: nothing is "
        "smoothed or added a second time"
    )
    assert "random pairs are left out, which join a text of train with one of dev" in left_out
    run = Run(tmp_path / "run")
    assert record_of(run).processed.random_pairs == 200
    steps = funnel(run)
    assert "+ random pairs" not in steps
    assert steps["kept"] | {0.0: 0} == {0.0: 0, 0.1: 200, 0.5: 200, 0.9: 200}
    assert {key: count for key, count in steps["dev"].items() if key} == {0.1: 20, 0.5: 20, 0.9: 20}
    assert {row["label"] for row in dropped(run)} == {0.0}, "random pairs alone"
    assert sum(sum(step.values()) for name, step in steps.items() if name in ("kept",) or name[0] == "-") == 800
    train, dev = sides(run)
    assert not train & dev
    assert {row.label for row in [*pairs.train, *pairs.dev]} == {0.0, 0.1, 0.5, 0.9}
    assert dino.filter(file, run=tmp_path / "run", progress=False).outcome == "done"


def test_whatever_share_of_it_a_file_holds(tmp_path: Path) -> None:
    rows = published(200)
    random.Random(1).shuffle(rows)
    sample = filtered(tmp_path / "sample", examples(rows[: len(rows) * 9 // 10]), FilterOptions())
    assert record_of(sample).processed.random_pairs > 300
    smoothed = filtered(tmp_path / "smoothed", examples([row for row in rows if row[2]]), FilterOptions())
    assert {label for _, _, label in kept(smoothed)} == {"0", "0.1", "0.5", "0.9"}
    assert record_of(smoothed).processed.random_pairs == 0
    assert sum(funnel(smoothed)["+ random pairs"].values()) == 400


@pytest.mark.parametrize("smoothing", [0.2, 0.1])
def test_what_the_filter_wrote_is_recognised(tmp_path: Path, smoothing: float) -> None:
    first = filtered(tmp_path, Words().pairs(60), FilterOptions(smoothing=smoothing))
    again = filtered(tmp_path / "again", read_examples(first.train), FilterOptions(dev_share=0))
    assert kept(again) == kept(first)
    finer = [replace(pair, label=at % 5 / 4) for at, pair in enumerate(Words(1).pairs(60))]
    first = filtered(tmp_path / "finer", finer, FilterOptions(smoothing=smoothing))
    unbalanced = FilterOptions(dev_share=0, balance=False)
    again = filtered(tmp_path / "finer again", read_examples(first.train), unbalanced)
    assert kept(again) == kept(first)


def test_people_give_such_scores_too(tmp_path: Path) -> None:
    """Their pairs of score 0 are of texts of their own, or there are as many as there happen to be."""
    words, rng = Words(), random.Random(1)
    own_texts = [Example(words.sentence(), words.sentence(), rng.choice((0.0, 0.1, 0.5, 0.9))) for _ in range(300)]
    listed = []
    for _ in range(30):
        candidates = [words.sentence() for _ in range(8)]
        for text_a in [words.sentence() for _ in range(4)]:
            listed += [Example(text_a, text_b, rng.choice((0.0, 0.0, 0.1, 0.5, 0.9))) for text_b in candidates]
    grades = [Example(each.text_a, each.text_b, rng.choice((0.1, 0.3, 0.9))) for each in own_texts]
    for number, genuine in enumerate((own_texts, listed, grades)):
        run = filtered(tmp_path / str(number), genuine, raw(labels="hard", dev_share=0.1))
        assert not record_of(run).processed.labels
    run = filtered(tmp_path, own_texts, FilterOptions(balance=False))
    assert {"0.08", "0.1", "0.18", "0.5", "0.82"} >= {label for *_, label in kept(run)} - {"0"}
    asked = filtered(tmp_path, examples(published()), FilterOptions(labels="smoothed", dev_share=0))
    assert {label for *_, label in kept(asked)} == {"0", "0.1", "0.18", "0.5", "0.82"}, "because the user says so"


def test_of_a_random_pair_and_a_written_one_the_written_one_stays(tmp_path: Path) -> None:
    rows = published()
    text_a, text_b, label = next(row for row in rows if row[2] > 0.8)
    run = filtered(tmp_path, examples([*rows, (text_b, text_a, 0)]), FilterOptions())
    assert (text_b, text_a, 0.0) in reasons(run)
    assert reasons(run)[text_b, text_a, 0.0] == "random pair of related texts"
    assert (text_a, text_b, label) not in reasons(run)


def test_training_takes_a_published_dataset_as_it_is(tmp_path: Path) -> None:
    rows = published(40)
    text_a, text_b, _ = next(row for row in rows if row[2] > 0.8)
    file = write(tmp_path / "sts-dino.jsonl", [*rows, (text_a, text_b + "!", 0)])
    texts = training_texts(file, FinetuneOptions())
    assert len(texts.train.corpus.examples) == len(rows) + 1
    said = "the labels 0.1, 0.5, 0.9 are smoothed already, and the 81 pairs of label 0 join texts at random"
    assert texts.rows(get_objective("dino")).remarks == (f"{said}: they are taken as they are",)
    triplets = texts.rows(get_objective("triplets"))
    assert any(remark.startswith(said) and "random texts are negatives" in remark for remark in triplets.remarks)
    columns = triplets.columns
    for anchor, positive, negative in zip(*(columns[name] for name in ("anchor", "positive", "negative")), strict=True):
        assert normalise(positive) != normalise(negative), anchor
    run = filtered(tmp_path / "run", Words().pairs(40), FilterOptions())
    assert not training_texts(run.path, FinetuneOptions()).rows(get_objective("dino")).remarks, "it is known"


def linked(kind: str) -> list[Example]:
    """Return pairs of which a few link nearly all."""
    words = Words(2)
    pairs = words.pairs(60, samples=1)
    inputs = list(dict.fromkeys(pair.text_a for pair in pairs))
    if kind == "bridges":
        return pairs + [Example(one, other, 0.5) for one, other in pairwise(inputs)]
    if kind == "a common answer":
        return pairs + [Example(text_a, "It depends on the weather.", 0.5) for text_a in inputs]
    if kind == "a chain":
        sentences = [words.sentence() for _ in range(200)]
        return [Example(*pair, at % 2) for at, pair in enumerate(pairwise(sentences))]
    raise AssertionError(kind)


@pytest.mark.parametrize(("kind", "most"), [("bridges", 10), ("a common answer", 8), ("a chain", 3)])
def test_a_few_pairs_that_link_all_are_left_out(tmp_path: Path, kind: str, most: int) -> None:
    pairs, listener = linked(kind), Listener()
    result = dino.filter(pairs, run=tmp_path, progress=listener, balance=False, random_pairs=0, near_duplicates=0)
    run = Run(tmp_path)
    train, dev = sides(run)
    assert not train & dev
    lost = Counter(row["reason"] for row in dropped(run))
    assert 0 < lost["between train and dev"] <= most
    assert len(result.dev) >= 0.07 * len(pairs)
    assert (
        f"{lost['between train and dev']} pairs are left out, which join a text of train with one of dev"
        in (listener.notes[-1])
    )
    again = filtered(tmp_path / "again", pairs[::-1], FilterOptions(balance=False, random_pairs=0, near_duplicates=0))
    assert sides(again) == (train, dev)


def grid(firsts: Sequence[str], seconds: Sequence[str]) -> list[Example]:
    return [
        Example(one, other, float((at + to) % 2)) for at, one in enumerate(firsts) for to, other in enumerate(seconds)
    ]


def test_where_all_is_linked_by_much_there_is_no_dev_side(tmp_path: Path) -> None:
    words = Words()
    one, other = ([words.sentence() for _ in range(12)] for _ in range(2))
    options = raw(dev_share=0.1)
    with pytest.raises(DataError, match=r"so many texts in common that .*; give more with texts of their own, or dev"):
        filtered(tmp_path, grid(one, other), options)
    with pytest.raises(DataError, match=r"6 examples are too few .*; give more, or dev_share=0"):
        filtered(tmp_path, Words().pairs(1), options)
    with pytest.raises(DataError, match=r"6 examples are too few .*; generate more, or dev_share=0"):
        look(generated(tmp_path / "own", Words().pairs(1)), options)


def test_remedies_fit_what_the_user_has(tmp_path: Path) -> None:
    same = [Example("A dog.", "a DOG!", 1.0), *examples([("A cat sleeps.", "It rains.", 0.0)])]
    file = write(tmp_path / "data.jsonl", [(each.text_a, each.text_b or "", float(str(each.label))) for each in same])
    said = refused("filter", file, "--run", tmp_path / "run")
    assert 'no example of label 1 is left (the last was dropped as "identical texts")' in said
    assert "keep these with --without 'identical texts'" in said
    assert "spec" not in said and "generate" not in said
    run = generated(tmp_path / "own", same)
    with pytest.raises(DataError, match="generate more, or read the instruction of that label in the spec"):
        look(run, FilterOptions(), source=run_source(run))
    torn = [Example("A dog.", "It barks.", 1.0), Example("A dog.", "It barks.", 0.0)]
    with pytest.raises(DataError, match="give other examples of that label, or leave the label out"):
        filtered(tmp_path, [*torn, *same[1:]], FilterOptions())
