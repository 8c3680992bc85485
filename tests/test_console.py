"""What a stage tells: on a terminal, and of texts that become alike."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dino_pipeline.errors import OptionError
from dino_pipeline.generation.generate_stage import WINDOW, DiversityMonitor, variety, variety_remedy
from dino_pipeline.progress import Console, LabelCount, Progress, SilentReporter, reporter_for
from tests.toys import Listener


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


def test_texts_that_become_alike_are_told_of_once_with_the_advice_that_fits() -> None:
    notes = Listener()
    found = DiversityMonitor(notes.note, variety_remedy(needs_inputs=True, top_k=5, top_p=0.9))
    found.add("1", [" ".join(f"{at}{letter}" for letter in "abcdefg") for at in range(WINDOW - 1)])
    assert found.summary == "" and not notes.notes
    found.add("1", ["One more of them is here."])
    assert found.summary.startswith("distinct-2 1.00") and found.summary.endswith("near-duplicates 0%")
    for _ in range(3):
        found.add("1", ["A man is playing a guitar in the garden."] * 200)
    assert len(notes.notes) == 1
    assert notes.notes[0].startswith('label "1": texts become alike: distinct-2')
    assert notes.notes[0].endswith(
        "(num_inputs) bring more than more samples, and so does wider sampling (top_k=0 top_p=0.95)"
    )
    assert "variables or examples in the spec" in variety_remedy(needs_inputs=False, top_k=0, top_p=0.95)
    assert "wider sampling" not in variety_remedy(needs_inputs=False, top_k=0, top_p=0.95)


def test_variety_of_texts() -> None:
    assert variety(["a b c", "a b c"]) == (0.5, 0.5)
    assert variety(["a b c", "d e f"]).distinct_2 == 1.0
    assert variety(["我们今天去学校", "我们今天去学校"]).distinct_2 == 0.5, "characters, where words are not parted"
