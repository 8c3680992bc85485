"""What a stage tells: on a terminal, and of texts that become alike."""

from __future__ import annotations

import gc
import sys
import threading
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that consoles read; their own thread sleeps."""
    now = [100.0]
    monkeypatch.setattr("dino_pipeline.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("dino_pipeline.progress.TICK", 1000.0)
    return now


def test_no_ten_seconds_pass_without_a_sign(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for _ in range(60):
        clock[0] += 0.5
        console.tick()
    console.doing("loading a model")
    for _ in range(30):
        clock[0] += 0.5
        console.tick()
    console.update(Progress("texts", 100, 0))
    for _ in range(30):
        clock[0] += 0.5
        console.tick()
    console.update(Progress("texts", 100, 40))
    clock[0] += 10
    console.tick()
    console.close()
    clock[0] += 100
    console.tick()
    assert capsys.readouterr().err.splitlines() == [
        "starting: 4 seconds",
        "starting: 14 seconds",
        "starting: 24 seconds",
        "loading a model: 4 seconds",
        "loading a model: 14 seconds",
        "texts: 0/100, 9 seconds",
        "texts: 40/100, 1.6/s, 38 seconds left",
    ]


def test_the_thread_of_a_console_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_pipeline.progress.TICK", 0.01)
    before = set(threading.enumerate())
    closed, dropped = Console(), Console()
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    closed.close()
    del dropped
    gc.collect()
    for thread in threads:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_time_left_counts_what_labels_cost() -> None:
    """Texts of label 0 take 30 tokens under three prompts, those of label 1 take 10 under one."""
    counts = {
        "1": LabelCount(total=100, prompts=1, written=100, tokens=900, resumed=10),
        "0": LabelCount(total=100, prompts=3, written=10, tokens=300),
    }
    progress = Progress("texts", 200, 110, resumed=10, labels=counts)
    done, left = 90 * 10 + 10 * 90, 90 * 90
    assert progress.seconds_left(60.0) == pytest.approx(60 * left / done)
    counts["0"].total = 0  # not known
    assert progress.seconds_left(60.0) == pytest.approx(60 * 90 / 100)
    assert Progress("texts", 200, 10, resumed=10).seconds_left(60.0) is None
    assert Progress("texts", 10, 10).seconds_left(60.0) is None
