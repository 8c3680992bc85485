"""Generate and filter in turn until there is enough; further texts of a label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dino_pipeline.examples import read_examples
from dino_pipeline.generation.generate import LabelYield, write_until_target
from dino_pipeline.stage_records import ExtraSamples
from tests.commands import answer, files, invoke
from tests.test_spec import SPECS


class World:
    """Keeps a share of each label's texts, up to a limit."""

    def __init__(self, shares: dict[str, float], limit: int = 10**9) -> None:
        self.shares, self.limit, self.samples = shares, limit, dict.fromkeys(shares, 5)
        self.rounds: list[Sequence[ExtraSamples]] = []

    def __call__(self, more: Sequence[ExtraSamples]) -> dict[str, LabelYield]:
        self.rounds.append(more)
        for each in more:
            assert each.first == self.samples[each.label]
            self.samples[each.label] += each.samples
        written = {label: 100 * samples for label, samples in self.samples.items()}
        return {
            label: LabelYield(written[label], min(self.limit, int(share * written[label])), self.samples[label])
            for label, share in self.shares.items()
        }


def test_only_what_is_short_is_written_and_about_as_much_as_is_missing() -> None:
    world, notes = World({"1": 0.9, "0": 0.3}), list[str]()
    found = write_until_target(400, 10_000, world, lambda message, remedy: notes.append(message))
    assert all(tally.kept >= 400 for tally in found.values())
    assert world.rounds == [[], [ExtraSamples(label="0", first=5, samples=10)]]
    assert notes == ["label 0: 150 of 400 kept; writing more"]


def test_the_budget_is_not_exceeded() -> None:
    world, notes = World({"1": 0.9, "0": 0.01}), list[str]()
    found = write_until_target(400, 2_000, world, lambda message, remedy: notes.append(message))
    assert sum(tally.written for tally in found.values()) <= 2_000
    assert notes[-1] == "the budget of 2000 texts is spent"


def test_it_ends_when_more_samples_help_no_more() -> None:
    world, notes = World({"1": 0.9, "0": 0.9}, limit=420), list[str]()
    write_until_target(500, 100_000, world, lambda message, remedy: notes.append(message))
    assert len(world.rounds) == 2
    assert "label 1: further samples of the same inputs are no longer kept" in notes[-2]


@pytest.mark.slow
def test_a_run_grows_until_the_target_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = ["generate", str(SPECS / "sts-x2.json"), "--run", "run", "--num-inputs", "16", "--samples", "1"]
    done = answer(*call, "--until-target", "24")
    assert done.exit_code == 0, done.stderr
    assert "writing more" in done.stderr
    rows = [
        json.loads(line)
        for side in ("train", "dev")
        for line in (tmp_path / "run" / f"{side}.jsonl").read_text().splitlines()
    ]
    assert Counter(row["label"] for row in rows if row["input"] is not None) == {0.9: 24, 0.5: 24, 0.1: 24}
    before = files(tmp_path / "run")
    again = answer(*call, "--until-target", "24")
    assert "texts are up to date" in again.stdout
    assert files(tmp_path / "run") == before
    upto = answer("filter", "run", "--target-per-label", "24")
    assert "up to date" in upto.stdout
    more = answer(*call, "--until-target", "38")
    assert more.exit_code == 0, more.stderr
    assert "further samples of the same inputs are no longer kept" in more.stderr
    assert "missing" in more.stdout
    small = answer(*call, "--until-target", "38", "--budget", "40")
    assert (small.exit_code, "the first round alone writes 48 texts" in small.stderr) == (2, True)
    refused = answer(*call, "--budget", "5")
    assert (refused.exit_code, "--until-target" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_further_texts_are_written_once_and_only_as_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    call = ["generate", f"{SPECS / 'sts-x2.json'}", "--run", f"{run}", "--num-inputs", "4", "--samples", "1"]
    invoke(*call, "--more", "0.5=2")
    invoke(*call, "--more", "0.5=2", "--more", "1=1", "--more", "0.5=1")
    before = files(run)
    texts = [example for path in sorted((run / "shards").iterdir()) for example in read_examples(path)]
    assert max(example.sample or 0 for example in texts if example.label == 0.5) == 3
    for known in ([], ["--more", "0.5=2"], ["--more", "0.5=2", "--more", "1=1", "--more", "0.5=1"]):
        assert "texts are up to date" in invoke(*call, *known)
    refusals = {
        ("--more", "0.5=3"): "give --more 0.5=2 --more 1=1 --more 0.5=1 first",
        ("--more", "0.7=3"): "--more 0.7=3: there is no such label; choose from 1, 0.5, 0",
        ("--more", "0.5=0"): "--more 0.5=0: is not LABEL=N",
        (
            "--more",
            "0.5=2",
            "--until-target",
            "3",
        ): "--more: cannot be combined with a target; leave out --more or",
    }
    for options, said in refusals.items():
        refused = answer(*call, *options)
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.output
    assert files(run) == before
