from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dino_pipeline.errors import DataError, OptionError, OutputError, RunError
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.files import write_json
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering import example_table, file_pieces
from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.filtering.filter import rules
from dino_pipeline.filtering.filter_source import file_source
from dino_pipeline.filtering.filter_stage import available, filter_run, look, recorded_options
from dino_pipeline.funnel import Funnel
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import LabelTotals
from dino_pipeline.text import normalise, word_overlap
from tests.commands import files, refused
from tests.conftest import TOY_SPEC
from tests.pairs import RAW, Words, dropped, filtered, funnel, kept, outputs, raw, reasons, record_of
from tests.records import generate_record

FINE = [Example("fine", "good", 1.0), Example("fine", "bad", 0.0)]
FINE_KEPT = [("fine", "bad", "0"), ("fine", "good", "1")]


def test_texts_equal_but_for_case_punctuation_and_width_are_no_pair(tmp_path: Path) -> None:
    same = [Example("A dog.", "a DOG!", 1.0), Example("Straße ﬁn", "STRASSE fin", 1.0), Example("x  y", "x y", 0.0)]
    run = filtered(tmp_path, same + FINE)
    assert kept(run) == FINE_KEPT
    assert list(reasons(run).values()) == ["identical texts"] * 3


def test_of_duplicates_one_stays_and_the_others_name_it(tmp_path: Path) -> None:
    single = [Example("One film", None, "good"), Example("one film.", None, "good"), Example("Two", None, "bad")]
    run = filtered(tmp_path, single, numeric_labels=False)
    assert [text for text, *_ in kept(run)] == ["One film", "Two"]
    assert list(reasons(run).values()) == ["duplicate"]
    same = [Example("a", "b", 1.0, sample=2), Example("A!", "b.", 1.0, sample=1), Example("B", "A", 1.0, sample=3)]
    run = filtered(tmp_path, same + FINE)
    assert kept(run) == [("A!", "b.", "1"), *FINE_KEPT]
    stays = {"text_a": "A!", "text_b": "b.", "label": 1.0, "input": None, "sample": 1}
    assert [(row["reason"], row["duplicate_of"]) for row in dropped(run)] == [("duplicate", stays)] * 2


def test_a_pair_under_two_labels_goes_from_both_also_when_swapped(tmp_path: Path) -> None:
    torn = [Example("a", "b", 1.0), Example("a", "B", 0.0), Example("c", "d", 1.0), Example("d", "c", 0.5)]
    run = filtered(tmp_path, [*torn, *FINE, Example("fine", "fair", 0.5)])
    assert kept(run) == [FINE_KEPT[0], ("fine", "fair", "0.5"), FINE_KEPT[1]]
    assert {(row["reason"], row["evidence"]) for row in dropped(run)} == {
        ("conflicting labels", "under 0.0 and 1.0"),
        ("conflicting labels", "under 0.5 and 1.0"),
    }


def test_classes_have_a_direction(tmp_path: Path) -> None:
    """A premise and a hypothesis may change places, and then stand in another relation."""
    pairs = [Example("a", "b", "entailment"), Example("b", "a", "neutral"), Example("c", "d", "neutral")]
    run = filtered(tmp_path, [*pairs, Example("d", "c", "neutral")], numeric_labels=False)
    assert not dropped(run)


def test_at_most_two_texts_per_input_and_label(tmp_path: Path) -> None:
    many = [Example("a", f"b{number}", 1.0, sample=number) for number in range(5)] + [Example("a", "c", 0.0)]
    run = filtered(tmp_path, many, raw(max_per_text=2))
    assert [text_b for _, text_b, _ in kept(run)] == ["b0", "b1", "c"]
    assert Counter(reasons(run).values()) == {"more than 2 per text and label": 3}


def test_balance_caps_every_label_at_the_smallest(tmp_path: Path) -> None:
    many = [
        Example(f"a{n}", f"b{n} {label}", label)
        for label, count in ((1.0, 9), (0.5, 4), (0.0, 6))
        for n in range(count)
    ]
    run = filtered(tmp_path / "one", many, raw(balance=True))
    assert Counter(label for *_, label in kept(run)) == {"1": 4, "0.5": 4, "0": 4}
    assert kept(filtered(tmp_path / "two", many[::-1], raw(balance=True))) == kept(run)


def test_a_target_is_kept_to_and_what_is_missing_said(tmp_path: Path) -> None:
    many = [Example(f"a{n}", f"b{n} {label}", label) for label, count in ((1.0, 9), (0.0, 4)) for n in range(count)]
    run = filtered(tmp_path, many, raw(target_per_label=6))
    assert Counter(label for *_, label in kept(run)) == {"1": 6, "0": 4}
    assert record_of(run).missing == ((0.0, 2),)
    assert record_of(run).available == ((0.0, 4), (1.0, 9))
    run = filtered(tmp_path, many, raw(target_per_label=3, balance=True))
    assert Counter(label for *_, label in kept(run)) == {"1": 3, "0": 3}


def test_labels_are_hard_or_smoothed_as_in_the_paper(tmp_path: Path) -> None:
    examples = [Example("a", "b", 1.0), Example("a", "c", 0.5), Example("a", "d", 0.0)]
    smoothed, some, hard = (
        [label for *_, label in kept(filtered(tmp_path, rows, options))]
        for rows, options in (
            (examples, raw(labels="smoothed")),
            (examples[1:], raw(labels="smoothed")),
            (examples, RAW),
        )
    )
    assert (smoothed, hard) == (["0.9", "0.5", "0.1"], ["1", "0.5", "0"])
    assert some == ["0.5", "0.1"], "by their scale, not by which of them are there"


@pytest.mark.parametrize("names", [("good", "bad"), ("0", "1")])
def test_names_are_neither_smoothed_nor_paired_at_random(tmp_path: Path, names: tuple[str, str]) -> None:
    examples = [Example(f"film {n}", f"review {n}", names[n % 2]) for n in range(20)]
    numeric = names == ("good", "bad")  # what is no number is a name whatever was said
    run = filtered(tmp_path, examples, raw(labels="smoothed", random_pairs=2, dev_share=0.1), numeric_labels=numeric)
    labels = [label for *_, label in kept(run)]
    assert (set(labels), len(labels)) == (set(names), 18), "no random pairs"


words = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
labels = st.sampled_from([0.0, 0.5, 1.0])


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(words, words, labels), min_size=1, max_size=60), st.integers(0, 3))
@example([(one, other, 1.0) for one, other in zip("abcdefgh", "bcdefgha", strict=True)], 0)
def test_random_pairs_join_nothing_related(tmp_path: Path, rows: list[tuple[str, str, float]], seed: int) -> None:
    """In neither direction."""
    examples = [Example(text_a, text_b, label) for text_a, text_b, label in rows]
    try:
        run = filtered(tmp_path, examples, raw(random_pairs=2, seed=seed, labels="smoothed"))
    except DataError:  # nothing is left of a label
        return
    made = [(text_a, text_b) for text_a, text_b, label in kept(run) if label == "0"]
    pairs = {frozenset(pair) for pair in made}
    assert not pairs & {frozenset((text_a, text_b)) for text_a, text_b, _ in rows}
    assert all(len(pair) == 2 for pair in pairs), "no text with itself"
    assert len(pairs) == len(made)
    assert max(Counter(text_a for text_a, _ in made).values(), default=0) <= 2


def test_every_input_gets_its_random_pairs(tmp_path: Path) -> None:
    run = filtered(tmp_path, Words().pairs(200), raw(random_pairs=3, labels="smoothed"))
    made = Counter(text_a for text_a, _, label in kept(run) if label == "0")
    assert sorted(made.values()) == [3] * 200


def test_no_text_stands_on_both_sides_of_the_split(tmp_path: Path) -> None:
    pairs = Words().pairs(50)
    more = [Example(pairs[6].text_a.upper(), "Another", 1.0), Example("Further", pairs[0].text_b, 0.5)]
    run = filtered(tmp_path, [*pairs, *more], raw(dev_share=0.2, random_pairs=2))
    rows = [read_examples(path) for path in (run.train, run.dev)]
    sides = [{normalise(text) for row in side for text in (row.text_a, row.text_b or "")} for side in rows]
    assert not sides[0] & sides[1]
    generated = sum(example.logprob is not None for example in rows[1])
    assert 0.2 * 300 <= generated <= 0.2 * 300 + 13


def test_what_hangs_together_by_many_texts_stays_together(tmp_path: Path) -> None:
    """A chain: each pair's second text is the next one's first."""
    chain = [Example(f"link {n}", f"link {n + 1}", float(n % 2)) for n in range(20)]
    others = [Example(f"alone {n}", f"apart {n}", float(n % 2)) for n in range(30)]
    run = filtered(tmp_path, chain + others, raw(dev_share=0.2))
    dev = [row.text_a for row in read_examples(run.dev)]
    assert len(dev) == 10
    assert not [text for text in dev if text.startswith("link")], "the chain is larger than dev"


def test_data_too_small_for_two_sides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few for a train and a dev side"):
        filtered(tmp_path, Words().pairs(1), raw(dev_share=0.1))


def test_the_funnel_adds_up(tmp_path: Path) -> None:
    run = filtered(tmp_path, Words().pairs(20, samples=3), FilterOptions())
    totals = {step: sum(counts.values()) for step, counts in funnel(run).items()}
    lost = sum(count for step, count in totals.items() if step.startswith("- "))
    assert totals["read"] == 180 == totals["kept"] + lost
    assert lost == len(dropped(run)) == totals["- more than 2 per text and label"]
    assert totals["+ random pairs"] == 40
    assert totals["train"] + totals["dev"] == totals["kept"] + 40
    assert totals["train"] == len(read_examples(run.train))
    assert totals["(min_logprob='5%' would drop)"] == 6
    assert totals["(min_margin=0 would drop)"] == 0


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([*FINE, Example("a", "b")], r"data.jsonl, line 3: has no label"),
        ([*FINE, Example("a", "b", "name")], "some labels are numbers, such as 0, and some are names"),
        ([*FINE, Example("a", None, 1.0)], 'some examples have a "text_b" and some have none'),
        (
            [*FINE, Example("a", "a", 0.5)],
            r"no example of label 0.5 is left \(the last was dropped as \"identical texts\"\)",
        ),
        ([], "holds no examples"),
    ],
)
def test_unusable_data_is_refused_and_nothing_written(tmp_path: Path, examples: list[Example], said: str) -> None:
    with pytest.raises(DataError, match=said):
        filtered(tmp_path, examples)
    assert not list((tmp_path / "run").glob("*"))


def test_an_error_names_its_line_in_whatever_piece_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_pieces, "PIECE", 500)
    monkeypatch.setattr(example_table, "LINES", 7)
    lines = [json.dumps({"text_a": f"text {n}", "text_b": f"other {n}", "label": n % 2}) for n in range(100)]
    lines[5] = ""
    lines[70] = '{"text_a": "cut off'
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"data.jsonl, line 71: not JSON"):
        filter_run(Run(tmp_path / "run"), RAW, source=file_source(tmp_path / "data.jsonl"))
    lines[70] = ""
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    filter_run(Run(tmp_path / "run"), RAW, source=file_source(tmp_path / "data.jsonl"))
    assert len(read_examples(Run(tmp_path / "run").train)) == 98


def messy(seed: int) -> list[Example]:
    """Return pairs with something for every rule, in an order drawn by the seed."""
    words = Words(1)
    pairs = words.pairs(300, samples=3)
    for pair in pairs[:200]:
        pairs.append(Example(pair.text_a.upper(), pair.text_b, pair.label, margin=-0.1, input=pair.input, sample=7))
        pairs.append(Example(pair.text_b or "", pair.text_a, 1.0 - float(pair.label or 0)))
        pairs.append(Example(pair.text_a[:-2] + "x.", words.sentence(), pair.label, input=pair.input, sample=8))
        pairs.append(Example(words.sentence(), f"Mail to a{len(pairs)}@b.org {words.sentence()}", 0.5, sample=9))
    random.Random(seed).shuffle(pairs)
    return pairs


@pytest.mark.slow
def test_the_same_bytes_for_any_order_processes_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FilterOptions(min_logprob=("5%",), dev_share=0.2)
    first = outputs(filtered(tmp_path / "one", messy(0), options))
    assert all(first)
    monkeypatch.setattr(file_pieces, "PIECE", 50_000)
    monkeypatch.setattr(example_table, "PARALLEL_FROM", 1)
    for seed, runtime in enumerate((FilterRuntime(workers=2, memory="200MB"), FilterRuntime(workers=1)), start=1):
        assert outputs(filtered(tmp_path / f"{seed}", messy(seed), options, runtime)) == first
        monkeypatch.setattr(file_pieces, "PIECE", 20_000)


def test_thresholds_are_absolute_or_shares_for_all_labels_or_one(tmp_path: Path) -> None:
    examples = [
        Example(f"a{n}", f"b{n} {label}", label, margin=n / 10 if label != 1.0 else None, logprob=-n / 10)
        for label in (1.0, 0.0)
        for n in range(10)
    ]
    run = filtered(tmp_path, examples, raw(min_margin=("0.25",)))
    assert Counter(reasons(run).values()) == {"low margin": 3}, "what has no margin stays"
    assert dropped(run)[0]["evidence"].startswith("margin 0.")
    run = filtered(tmp_path, examples, raw(min_logprob=("20%", "0=-0.45")))
    gone = sorted((row["label"], row["logprob"]) for row in dropped(run))
    assert gone == [(0.0, -0.9), (0.0, -0.8), (0.0, -0.7), (0.0, -0.6), (0.0, -0.5), (1.0, -0.9), (1.0, -0.8)]


def test_each_rule_alone_is_counted_and_nothing_written(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", [Example("A dog runs.", "a dog RUNS", 1.0)] * 2 + Words().pairs(5))
    found = look(Run(tmp_path / "run"), FilterOptions(ablate=True), source=file_source(tmp_path / "data.jsonl"))
    steps = Funnel.of(found)
    alone = [steps.total("dropped", rule) for rule in ("identical texts", "duplicate", "balance")]
    assert (steps.total("read"), *alone) == (32, 2, 1, 2)
    found = look(Run(tmp_path / "run"), FilterOptions(), source=file_source(tmp_path / "data.jsonl"))
    assert Funnel.of(found).counts("dropped", "duplicate") == {}
    assert found.available
    assert not list((tmp_path / "run").iterdir())


def test_personal_data_is_flagged_dropped_or_kept(tmp_path: Path) -> None:
    pairs = [*Words().pairs(5), Example("Ask me.", "Write to jo@example.org", 1.0)]
    run = filtered(tmp_path, pairs)
    (flagged,) = [json.loads(line) for line in run.flagged.read_text().splitlines()]
    assert (flagged["reason"], flagged["evidence"]) == ("personal data", "e-mail address jo@example.org")
    assert funnel(run)["(flagged: personal data)"] == {1.0: 1}
    run = filtered(tmp_path, pairs, raw(pii="drop"))
    assert list(reasons(run).values()) == ["personal data"]
    assert not run.flagged.read_text()
    run = filtered(tmp_path, pairs, raw(pii="keep"))
    assert not run.flagged.read_text() + run.dropped.read_text()


@pytest.fixture
def my_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the current folder, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_rules.py"
    sys.modules.pop("my_rules", None)


def test_a_rule_of_ones_own(tmp_path: Path, my_rules: Path) -> None:
    my_rules.write_text(
        "def shouting(example):\n    return 'shouting: ' + example.text_b if example.text_b.isupper() else None\n"
        "def late(example):\n    return shouting(example)\n"
        "def never(example):\n    return None\n"
        "def broken(example):\n    return 1 / 0\n"
        "def sound(example):\n    return False\n"
        "from functools import partial\nmade = partial(shouting)\n"
    )
    loud = [*FINE, Example("a", "HELP", 1.0)]
    run = filtered(tmp_path, loud, raw(rule=("my_rules:never", "my_rules:shouting", "my_rules:late")))
    assert [(row["reason"], row["evidence"]) for row in dropped(run)] == [("shouting", "HELP")]
    steps = funnel(run)
    assert steps["- shouting"] == {1.0: 1}
    assert steps["- too long"] == steps["- my_rules:never"] == {}, "rules that drop nothing stand there, too"
    assert steps["- my_rules:late"] == {}, "another rule was there before"
    assert "- my_rules:shouting" not in steps
    steps = funnel(filtered(tmp_path, loud, raw(rule=("my_rules:made",))))
    assert steps["- shouting"] == {1.0: 1}
    assert "- my_rules:made" not in steps
    wrong: dict[tuple[str, ...], tuple[type[Exception], str]] = {
        ("my_rules:sound",): (DataError, r"my_rules:sound failed .*returned False; return None, or the reason"),
        ("my_rules:broken",): (DataError, r"line 1: the rule my_rules:broken failed \(ZeroDivisionError"),
        ("my_rules:no",): (OptionError, r"rule='my_rules:no': cannot be imported \(AttributeError"),
        ("json:decoder",): (OptionError, "rule='json:decoder': is not a function"),
        ("my_rules:made",) * 41: (OptionError, "41 rules, 40 at most"),
    }
    for rule, (error, said) in wrong.items():
        with pytest.raises(error, match=said):
            filtered(tmp_path, FINE, raw(rule=rule))


def test_filtering_again_is_up_to_date_refused_or_redone_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    source, pairs = tmp_path / "data.jsonl", Words().pairs(30)
    write_examples(source, pairs)
    run = Run(tmp_path / "run")
    _, first = filter_run(run, FilterOptions(), source=file_source(source))
    written = run.train.stat().st_ino
    state, stored = filter_run(run, FilterOptions(), source=file_source(source))
    assert (state, stored.funnel, run.train.stat().st_ino) == ("done", first.funnel, written)
    assert record_of(run).inputs.source == "data.jsonl"
    assert recorded_options(run) == FilterOptions()
    with pytest.raises(RunError, match=r"smoothing was 0\.2, now 0\.1.*fresh=True"):
        filter_run(run, FilterOptions(smoothing=0.1), source=file_source(source))
    assert filter_run(run, FilterOptions(smoothing=0.1, fresh=True), source=file_source(source))[0] == "new"
    write_examples(source, pairs[:-1])
    assert filter_run(run, FilterOptions(smoothing=0.1), source=file_source(source))[0] == "new"
    before, record = outputs(run), record_of(run)
    write_examples(source, [Example("a", "b", "x"), *pairs])
    with pytest.raises(DataError):
        filter_run(run, FilterOptions(smoothing=0.1), source=file_source(source))
    assert (outputs(run), record_of(run)) == (before, record)


def generated(folder: Path, examples: Sequence[Example], accepted: int = 1) -> Run:
    """Return a run with texts of its own."""
    run = Run(folder)
    write_examples(run.shards / "00000.jsonl", examples)
    run.checksums.add(run.shards / "00000.jsonl")
    write_json(run.spec, TOY_SPEC)
    counts = {label: LabelTotals(written=1, accepted=count) for label, count in (("1", 1), ("0", accepted))}
    run.finish(generate_record(counts=counts))
    return run


def test_a_run_of_its_own_texts_is_filtered_and_asked_again(tmp_path: Path) -> None:
    pairs = Words().pairs(12)
    run, before = generated(tmp_path / "run", pairs), files(tmp_path / "run")
    assert recorded_options(run) == FilterOptions()
    seen = look(run, raw())
    assert (files(run.path), Funnel.of(seen).total("train")) == (before, 72)
    there = available(run, raw(target_per_label=3, balance=True), FilterRuntime())
    assert there == {1.0: 24, 0.5: 24, 0.0: 24}
    assert files(run.path) == before
    state, made = filter_run(run, raw())
    assert (state, made.funnel, record_of(run).inputs.source) == ("new", seen.funnel, "shards")
    spec = TaskSpec.model_validate(TOY_SPEC)
    assert recorded_options(run).recorded() == raw().recorded()
    assert (record_of(run).inputs.stop, record_of(run).inputs.fields) == (spec.stop, spec.fields)
    assert filter_run(run, raw())[0] == "done"
    write_examples(tmp_path / "data.jsonl", pairs)
    with pytest.raises(OptionError, match=r"has texts of its own; name another folder with run for .*data"):
        filter_run(run, raw(), source=file_source(tmp_path / "data.jsonl"))
    write_examples(run.shards / "00000.jsonl", pairs[:-1])
    with pytest.raises(RunError, match=r"00000.jsonl: is not what was written"):
        filter_run(run, raw())


def test_a_label_without_texts_is_refused_unless_there_will_be_more(tmp_path: Path) -> None:
    run = generated(tmp_path / "run", [each for each in Words().pairs(12) if each.label], accepted=0)
    with pytest.raises(DataError, match=r"no text of label 0 was accepted; .*rejected says why"):
        filter_run(run, raw())
    assert available(run, raw(), FilterRuntime()) == {1.0: 24, 0.5: 24}
    all_gone = generated(tmp_path / "gone", [*Words().pairs(4), Example("a", "a", 2.0)])
    with pytest.raises(DataError, match=r"no example of label 2 is left"):
        look(all_gone, raw())
    assert available(all_gone, raw(), FilterRuntime()) == {1.0: 8, 0.5: 8, 0.0: 8}


@pytest.mark.parametrize(
    "changed", ["numeric_labels", "excluded", pytest.param("semantic_fingerprint", marks=pytest.mark.slow)]
)
def test_what_the_filter_works_with_is_recorded_and_compared(tmp_path: Path, changed: str) -> None:
    (tmp_path / "encoder").mkdir()
    gold, encoder = tmp_path / "gold.jsonl", tmp_path / "encoder" / "config.json"
    source, numeric = tmp_path / "data.jsonl", True
    write_examples(source, Words().pairs(8))
    write_examples(gold, FINE)
    encoder.write_text("{}")
    semantic = str(encoder.parent) if changed == "semantic_fingerprint" else None
    options = raw(semantic=semantic, exclude=(str(gold),))
    runtime = FilterRuntime(embed=lambda texts: np.eye(len(texts), dtype=np.float32), excluded=(str(gold),))
    run = Run(tmp_path / "run")
    filter_run(run, options, runtime, source=file_source(source))
    assert filter_run(run, options, runtime, source=file_source(source))[0] == "done"
    match changed:
        case "numeric_labels":
            numeric = False
        case "excluded":
            write_examples(gold, FINE[:1])
        case "semantic_fingerprint":
            encoder.write_text("{ }")
    with pytest.raises(RunError, match=f"filter was begun with other options: {changed} was"):
        filter_run(run, options, runtime, source=file_source(source, numeric))


def test_what_was_cut_short_between_two_renames_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "data.jsonl"
    write_examples(source, Words().pairs(30))
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    filter_run(whole, FilterOptions(seed=2), source=file_source(source))
    filter_run(cut, FilterOptions(seed=1), source=file_source(source))
    replace = Path.replace

    def fail_at_the_third(path: Path, target: Path) -> Path:
        if path.parent.name == "ready" and path.name == "flagged.jsonl":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        filter_run(cut, FilterOptions(seed=2, fresh=True), source=file_source(source))
    monkeypatch.undo()
    assert outputs(cut) != outputs(whole)
    with cut.locked():
        assert outputs(cut) == outputs(whole)
        assert record_of(cut).options.seed == 2
    (cut.path / "ready").mkdir()
    with cut.locked():
        assert not (cut.path / "ready").exists(), "empty, as a kill left it"


def test_a_run_whose_texts_are_not_all_written_is_refused(tmp_path: Path) -> None:
    for how in ((), ("--dry-run",), ("--ablate",)):
        assert "its texts are not all written" in refused("filter", tmp_path, *how)


@pytest.mark.slow
def test_bad_amounts_of_memory_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="memory='lots'"):
        filtered(tmp_path, FINE, runtime=FilterRuntime(memory="lots"))
    with pytest.raises(OutputError, match="raise memory"):
        filtered(tmp_path, Words().pairs(2_000), FilterOptions(), runtime=FilterRuntime(memory="1MB"))


def test_a_look_names_the_file_and_takes_labels_as_told(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    write_examples(source, [*FINE, Example("c", "d", "neutral")])
    with pytest.raises(DataError, match=r"data\.jsonl: some labels are numbers, such as 0, and some are names"):
        look(Run(tmp_path / "run"), raw(), source=file_source(source))
    names = look(Run(tmp_path / "run"), raw(), source=file_source(source, False))
    assert Funnel.of(names).counts("kept") == {"0": 1, "1": 1, "neutral": 1}


def test_rules_are_described_with_their_options() -> None:
    options = FilterOptions(exclude=("gold",), pii="drop", without=("near-copy",), rule=("m:f",))
    on, default = ({rule.name: rule for rule in rules(each)} for each in (options, FilterOptions()))
    evaluation = "a text of evaluation data: the same, nearly, or 13 words of it"
    assert on["in evaluation data"] == ("in evaluation data", evaluation, "{exclude}", True)
    assert default["in evaluation data"] == ("in evaluation data", evaluation, "{exclude}", False)
    assert on["m:f"] == ("m:f", "your own", "{rule}", True)
    for name, option in {
        "too short": "{min_chars}",
        "too long": "{max_chars}",
        "not text": "{max_symbols}",
        "near-copy": "{without=near-copy}",
        "personal data": "{pii=drop}",
    }.items():
        assert on[name].option == option
        off = (name == "near-copy", name == "personal data")
        assert (not on[name].is_on, not default[name].is_on) == off


def test_normal_forms_and_overlap() -> None:
    assert normalise("  Héllo,\u00a0WORLD!! ") == "héllo world"
    assert normalise("It's 5_000!") == "it s 5 000"
    assert normalise("?!") == "?!"
    assert word_overlap("A dog runs.", "a DOG sleeps") == pytest.approx(0.5)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_short_way_to_a_normal_form_is_the_long_one(text: str) -> None:
    assert normalise(text + "é").removesuffix("é").strip() == normalise(text).strip() or not any(map(str.isalnum, text))


def test_scores_of_many_grades_are_neither_balanced_nor_missed(tmp_path: Path) -> None:
    """Such as people's scores, or posterior labels that are filtered again."""
    words = Words()
    graded = [Example(words.sentence(), words.sentence(), n / 100) for n in range(101)]
    run = filtered(tmp_path, [*graded, Example("A dog runs.", "a DOG runs", 0.123)], raw(balance=True, dev_share=0.2))
    assert [row["label"] for row in dropped(run)] == [0.123]
    assert len(funnel(run)["read"]) == 11
    assert sum(funnel(run)["train"].values()) + sum(funnel(run)["dev"].values()) == 101
    classes = [Example(f"text {n}", f"other {n}", f"class {n % 20}") for n in range(60)]
    assert len(funnel(filtered(tmp_path, classes, numeric_labels=False))["train"]) == 20, "classes are, by name"


def test_random_pairs_have_the_lowest_score_of_the_scale(tmp_path: Path) -> None:
    pairs = [Example(f"text {n}", f"other {n}", label) for n, label in enumerate([-1.0, 0.0, 1.0] * 9)]
    run = filtered(tmp_path, pairs, raw(random_pairs=1))
    assert funnel(run)["+ random pairs"] == {-1.0: 27}
    assert Counter(label for *_, label in kept(run)) == {"-1": 36, "0": 9, "1": 9}


def test_neither_the_source_nor_a_strangers_files_are_overwritten(tmp_path: Path) -> None:
    write_examples(tmp_path / "train.jsonl", Words().pairs(20))
    with pytest.raises(OptionError, match=r"train.jsonl: is what the filter would write, too; name another folder"):
        filter_run(Run(tmp_path), FilterOptions(), source=file_source(tmp_path / "train.jsonl"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dev.jsonl").write_text("precious")
    with pytest.raises(RunError, match=r"dev.jsonl: was not made by a recorded filter; move it away, or .*fresh=True"):
        filter_run(Run(tmp_path / "mine"), FilterOptions(), source=file_source(tmp_path / "train.jsonl"))
    assert (tmp_path / "mine" / "dev.jsonl").read_text() == "precious"
    with pytest.raises(DataError, match="is not a file that can be read twice"):
        filter_run(Run(tmp_path / "mine"), FilterOptions(), source=file_source(Path("/dev/stdin")))
    filter_run(Run(tmp_path / "mine"), FilterOptions(fresh=True), source=file_source(tmp_path / "train.jsonl"))
    assert (tmp_path / "mine" / "dev.jsonl").read_text() != "precious"


def test_a_changed_rule_of_ones_own_is_a_changed_option(tmp_path: Path, my_rules: Path) -> None:
    my_rules.write_text("def rule(example):\n    return None\n")
    write_examples(tmp_path / "data.jsonl", FINE)
    run, options = Run(tmp_path / "run"), raw(rule=("my_rules:rule",))
    filter_run(run, options, source=file_source(tmp_path / "data.jsonl"))
    my_rules.write_text("def rule(example):\n    return 'no'\n")
    with pytest.raises(RunError, match="rule_digest was"):
        filter_run(run, options, source=file_source(tmp_path / "data.jsonl"))


def test_a_threshold_without_anything_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"min_margin: .*data.jsonl holds no margin"):
        filtered(tmp_path, FINE, raw(min_margin=("0.5",)))
