from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_pipeline.errors import DataError, RunError
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.filters import Filtered, FilterOptions, filter_examples, filter_run, random_pairs
from dino_pipeline.run import Run
from dino_pipeline.texts import normalise, word_overlap

RAW = FilterOptions(max_per_text=0, balance=False, smoothing=0, random_pairs=0, dev_share=0)


def kept(examples: list[Example], options: FilterOptions = RAW) -> list[tuple[str, str | None, object]]:
    found = filter_examples(examples, options)
    return [(example.text_a, example.text_b, example.label) for example in found.train]


def reasons(found: Filtered) -> list[tuple[str, str | None, str]]:
    return [(drop.example.text_a, drop.example.text_b, drop.reason) for drop in found.dropped]


FINE = [Example("fine", "good", 1.0), Example("fine", "bad", 0.0)]


def test_texts_equal_but_for_case_punctuation_and_width_are_no_pair() -> None:
    same = [Example("A dog.", "a DOG!", 1.0), Example("Straße ﬁn", "STRASSE fin", 1.0), Example("x  y", "x y", 0.0)]
    found = filter_examples(same + FINE, RAW)
    assert found.train == FINE
    assert [reason for _, _, reason in reasons(found)] == ["identical texts"] * 3


def test_a_duplicate_goes_and_the_first_stays() -> None:
    assert kept([Example("a", "b", 1.0), Example("A!", "b.", 1.0), *FINE])[0] == ("a", "b", 1.0)
    assert len(kept([Example("a", "b", 1.0), Example("A!", "b.", 1.0), *FINE])) == 3


def test_a_pair_under_two_labels_goes_from_both() -> None:
    found = filter_examples([Example("a", "b", 1.0), Example("a", "B", 0.0), *FINE], RAW)
    assert found.train == FINE
    assert reasons(found) == [("a", "b", "conflicting labels"), ("a", "B", "conflicting labels")]


def test_at_most_two_texts_per_input_and_label() -> None:
    many = [Example("a", f"b{number}", 1.0) for number in range(5)] + [Example("a", "c", 0.0)]
    found = filter_examples(
        many, FilterOptions(max_per_text=2, balance=False, smoothing=0, random_pairs=0, dev_share=0)
    )
    assert [example.text_b for example in found.train] == ["b0", "b1", "c"]
    assert Counter(drop.reason for drop in found.dropped) == {"more than 2 per text and label": 3}


def test_balance_caps_every_label_at_the_smallest() -> None:
    many = [Example(f"a{n}", f"b{n}", label) for label, count in ((1.0, 9), (0.5, 4), (0.0, 6)) for n in range(count)]
    many = [Example(e.text_a, f"{e.text_b} {e.label}", e.label) for e in many]
    found = filter_examples(many, FilterOptions(smoothing=0, random_pairs=0, dev_share=0))
    assert Counter(example.label for example in found.train) == {1.0: 4, 0.5: 4, 0.0: 4}
    again = filter_examples(many[::-1], FilterOptions(smoothing=0, random_pairs=0, dev_share=0))
    assert set(again.train) == set(found.train)


def test_labels_are_smoothed_as_in_the_paper() -> None:
    examples = [Example("a", "b", 1.0), Example("a", "c", 0.5), Example("a", "d", 0.0)]
    options = FilterOptions(random_pairs=0, dev_share=0)
    assert [example.label for example in filter_examples(examples, options).train] == [0.9, 0.5, 0.1]


def test_names_are_neither_smoothed_nor_paired_at_random() -> None:
    examples = [Example("film", f"review {n}", name) for n, name in enumerate(["good", "bad", "good", "bad"])]
    found = filter_examples(examples, FilterOptions(dev_share=0))
    assert sorted(str(example.label) for example in found.train) == ["bad", "bad", "good", "good"]


def test_class_labels_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", [Example(f"film {n}", f"review {n}", str(n % 2)) for n in range(20)])
    run = Run(tmp_path / "run")
    filter_run(run, FilterOptions(), source=tmp_path / "data.jsonl", numeric_labels=False)
    rows = read_examples(run.train, numeric_labels=False)
    assert {row.label for row in rows} == {"0", "1"}
    assert len(rows) == 18, "no random pairs"


def test_single_texts_are_filtered_too() -> None:
    examples = [Example("One film", None, "good"), Example("one film.", None, "good"), Example("Two", None, "bad")]
    found = filter_examples(examples, FilterOptions(dev_share=0))
    assert [example.text_a for example in found.train] == ["One film", "Two"]
    assert reasons(found) == [("one film.", None, "duplicate")]


words = st.sampled_from(["a", "b", "c", "d", "e", "f"])
labels = st.sampled_from([0.0, 0.5, 1.0])


@given(st.lists(st.tuples(words, words, labels), min_size=1, max_size=60), st.integers(0, 3))
def test_random_pairs_never_join_what_belongs_together(rows: list[tuple[str, str, float]], seed: int) -> None:
    examples = [Example(text_a, text_b, label) for text_a, text_b, label in rows]
    related: dict[str, dict[str | None, None]] = {}
    for text_a, text_b, _ in rows:
        related.setdefault(text_a, {})[text_b] = None
    made = random_pairs(examples, related, 2, seed)
    for example in made:
        assert example.text_b not in related[example.text_a]
        assert example.text_a != example.text_b
        assert example.label == 0.0
    assert max(Counter(example.text_a for example in made).values(), default=0) <= 2
    assert len({(example.text_a, example.text_b) for example in made}) == len(made)


def dataset(inputs: int) -> list[Example]:
    return [
        Example(f"Input {n}", f"Text {n} {label} {sample}", label, input=n, sample=sample)
        for n in range(inputs)
        for label in (1.0, 0.5, 0.0)
        for sample in range(3)
    ]


def test_no_text_a_stands_on_both_sides_of_the_split() -> None:
    found = filter_examples([*dataset(50), Example("INPUT 7!", "Another", 1.0)], FilterOptions(dev_share=0.2))
    sides = [{normalise(example.text_a) for example in side} for side in (found.train, found.dev)]
    assert not sides[0] & sides[1]
    generated = sum(example.input is not None for example in found.dev)
    assert 0.2 * 300 <= generated <= 0.2 * 300 + 6
    for side in (found.train, found.dev):
        texts = {example.text_b for example in side if example.input is not None}
        assert {example.text_b for example in side} == texts, "random pairs stay on their side"


def test_data_too_small_for_two_sides_is_refused() -> None:
    with pytest.raises(DataError, match="too few for a train and a dev side"):
        filter_examples(dataset(1), FilterOptions())


def test_labels_are_smoothed_by_their_scale_not_by_which_of_them_are_there() -> None:
    rows = [Example("a", "b", 0.5), Example("a", "c", 0.0)]
    found = filter_examples(rows, FilterOptions(random_pairs=0, dev_share=0))
    assert [row.label for row in found.train] == [0.5, 0.1]


def test_the_funnel_adds_up() -> None:
    found = filter_examples(dataset(20), FilterOptions())
    totals = {step: sum(counts.values()) for step, counts in found.funnel.steps}
    lost = sum(count for step, count in totals.items() if step.startswith("- "))
    assert totals["read"] == 180 == totals["kept"] + lost
    assert lost == len(found.dropped)
    assert (totals["train"], totals["dev"]) == (len(found.train), len(found.dev))
    assert found.funnel.header()[:2] == ["step", "0"]


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([*FINE, Example("a", "b")], "example 3 has no label"),
        ([*FINE, Example("a", "b", "name")], "some labels are numbers and some are names"),
        ([*FINE, Example("a", None, 1.0)], 'some examples have a "text_b" and some have none'),
        ([*FINE, Example("a", "a", 0.5)], r"no example of label 0.5 is left \(the last went as \"identical texts\"\)"),
    ],
)
def test_data_that_cannot_be_used_is_refused(examples: list[Example], said: str) -> None:
    with pytest.raises(DataError, match=said):
        filter_examples(examples, FilterOptions())


def outputs(run: Run) -> list[bytes]:
    return [path.read_bytes() for path in (run.train, run.dev, run.dropped)]


def test_a_file_is_filtered_into_a_run_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", dataset(30))
    found = []
    for name in ("one", "two"):
        run = Run(tmp_path / name)
        state, _ = filter_run(run, FilterOptions(), source=tmp_path / "data.jsonl")
        assert state == "new"
        found.append(outputs(run))
    assert found[0] == found[1]
    assert read_examples(run.train)
    assert {json.loads(line)["reason"] for line in run.dropped.read_text().splitlines()} == {
        "more than 2 per text and label"
    }


def test_filtering_again_is_up_to_date_refused_or_redone(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    write_examples(source, dataset(30))
    run = Run(tmp_path / "run")
    _, funnel = filter_run(run, FilterOptions(), source=source)
    state, stored = filter_run(run, FilterOptions(), source=source)
    assert (state, stored.rows()) == ("done", funnel.rows())
    with pytest.raises(RunError, match=r"smoothing was 0\.2, now 0\.1.*--fresh"):
        filter_run(run, FilterOptions(smoothing=0.1), source=source)
    assert filter_run(run, FilterOptions(smoothing=0.1), source=source, fresh=True)[0] == "new"
    write_examples(source, dataset(31))
    assert filter_run(run, FilterOptions(smoothing=0.1), source=source)[0] == "new"


def test_a_run_whose_texts_are_not_all_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not all written"):
        filter_run(Run(tmp_path), FilterOptions())


def test_normal_forms_and_overlap() -> None:
    assert normalise("  Héllo,\u00a0WORLD!! ") == "héllo world"
    assert normalise("?!") == "?!"
    assert word_overlap("A dog runs.", "a DOG sleeps") == pytest.approx(0.5)
