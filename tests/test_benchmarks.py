"""Tests of the benchmark that goes from sentences to a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import dino_pipeline as dino
from benchmarks import real


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
