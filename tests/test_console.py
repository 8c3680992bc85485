"""What a stage tells, on a terminal."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dino_pipeline.errors import OptionError
from dino_pipeline.progress import Console, LabelCount, Progress, SilentReporter, reporter_for


@pytest.mark.parametrize("progress", [None, 0, 1, "yes"])
def test_progress_is_true_false_a_function_or_a_reporter(progress: Any) -> None:
    message = r"^progress.*: must be True, False, a function or a Reporter"
    with pytest.raises(OptionError, match=message), reporter_for(progress):
        pass
    with reporter_for(reporter := SilentReporter()) as given:
        assert given is reporter


def test_a_terminal_shows_a_bar_for_each_stage_and_notes_above_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console()
    counts = {"1": LabelCount(written=4, accepted=3, margin_sum=1.5, margins=3), "0": LabelCount()}
    console.update(Progress("texts", 8, 2, resumed=2))
    console.note("one label is slow")
    console.update(Progress("texts", 8, 6, resumed=2, labels=counts, extra="so far"))
    console.update(Progress("inputs", 3, 3))
    console.close()
    texts, inputs = capsys.readouterr().err.split("inputs:", 1)
    above, below = texts.split("note: one label is slow\n")
    assert "texts:" in above and "texts:" in below
    assert "texts:  75%|" in below and "6/8" in below and "1 75% (+0.50), so far" in below
    assert "inputs: 100%|" in f"inputs:{inputs}" and "3/3" in inputs
