"""Tests of the benchmarks that go from sentences to a table, and from faults to a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import dino_pipeline as dino
from benchmarks import fault_calls, faults, real
from benchmarks.fault_trials import Bench, Fault, Trial


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([], "gemma-3-270m: is not there; Gemma 3 270M is on the Hub"),
        (["gemma-3-270m"], "gemma-enc-6: is not there; any encoder will do"),
        (["gemma-3-270m", "gemma-enc-6", real.SENTENCES], f"{real.DEV}: is not there; STS-B is on the Hub"),
    ],
)
def test_it_says_how_to_get_what_is_missing(tmp_path: Path, present: list[str], message: str) -> None:
    for name in present:
        (tmp_path / name).mkdir()
    result = CliRunner().invoke(real.main, ["--models", str(tmp_path), "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert message in result.output


def test_published_data_is_read(tmp_path: Path) -> None:
    (tmp_path / real.SENTENCES).write_text("A cat sits.\n\nA dog runs.\nA cat sits.\n")
    (tmp_path / real.DEV).write_text('main\tMSRvid\t2012test\t0001\t2.5\tA "cat.\tA dog.\n')
    sentences, dev, _ = real.read_data(tmp_path, of_pocket=False, inputs=2)
    assert sentences == ["A cat sits.", "A dog runs."]
    assert dev == [('A "cat.', "A dog.", 0.5)]


@pytest.mark.parametrize(
    ("results", "cells"),
    [
        ([{"spearman": 71.0, "minutes": 1.0}], "71.0 |  | 1.0"),
        ([{"spearman": 71.0, "minutes": 1.0}, {"spearman": 72.0, "minutes": 2.0}], "71.5 | 71.0 .. 72.0 | 1.5"),
        ([{"spearman": None, "minutes": 1.0}], "0.0 |  | 1.0"),
        ([{"refused": "simcse: the encoder has no dropout"}], "refused: simcse: the encoder has no dropout | |"),
    ],
)
def test_lines_hold_mean_and_range_or_a_refusal(results: list[real.Result], cells: str) -> None:
    assert real.line("plain, simcse", "sentences", results) == f"| plain, simcse | sentences | {cells} |"


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--models", "pocket", "--samples", "1", "--seeds", "2", "--steps", "2", "--folder", str(tmp_path)]
    arguments += ["--objective", "dino", "--objective", "triplets"]
    first = CliRunner().invoke(real.main, [*arguments, "--inputs", "120"], catch_exceptions=False)
    table = (tmp_path / "table.md").read_text()
    assert table in first.output and "refused" not in table
    assert [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| ")][1:] == [
        "| word overlap",
        "| untrained",
        "| untrained, whitened",
        "| dino",
        "| triplets, whitened",
    ]
    for name in ("generate", "filter", "evaluate"):
        monkeypatch.setattr(dino, name, None)
    again = CliRunner().invoke(real.main, [*arguments, "--inputs", "120"], catch_exceptions=False)
    assert again.exit_code == 0
    assert (tmp_path / "table.md").read_text() == table
    other = CliRunner().invoke(real.main, [*arguments, "--inputs", "130"])
    assert "holds steps with inputs 120; name another with --folder" in other.output


def test_the_pairs_of_commands_and_faults_have_names_of_their_own() -> None:
    names = [f"{call.name}: {fault.name}" for call, fault in faults.pairs_of()]
    assert len(names) == len(set(names)) >= 150
    assert {call.name for call, _ in faults.pairs_of()} == set(fault_calls.CALLS)


@pytest.mark.slow
def test_a_fault_that_is_named_and_leaves_nothing_passes(tmp_path: Path) -> None:
    told = ["--all", "--only", "filter-file: nothing there", "--failures", str(tmp_path / "failures.json")]
    done = CliRunner().invoke(faults.main, told, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "1 pairs: 1 ended as they should; tracebacks 0, lost work 0, processes left 0" in done.output
    assert json.loads((tmp_path / "failures.json").read_text()) == []


@pytest.mark.slow
def test_what_a_fault_breaks_is_found(tmp_path: Path) -> None:
    def harm(trial: Trial) -> None:
        (trial.run / "note.txt").unlink()
        (trial.run / "left.part").touch()

    def work(trial: Trial) -> None:
        (trial.run / "note.txt").write_text("other")

    broken = """echo "Traceback (most recent call last):" >&2; sleep 60 & exit 3"""
    call = fault_calls.CALLS["filter-file"]
    bench = Bench(tmp_path, fault_calls.CALLS)
    fault_calls.new_state(bench.state("new"))
    bench.prepare(call, keep=False)
    (bench.state("new") / "run").mkdir()
    (bench.state("new") / "run" / "note.txt").write_text("mine")
    found = bench.tried(call, Fault("all at once", (), broken, harm, during=work, says="sorry"), 0)
    kinds = ("process left", "lost work: note.txt", "left: left.part", "traceback", "ended with 3", "does not say")
    assert [kind for kind in kinds if not any(each.startswith(kind) for each in found.problems)] == []
