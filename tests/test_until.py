"""Generate and filter in turn until there is enough; further texts of a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dino_pipeline.examples import read_examples
from dino_pipeline.generation.generate import LabelYield, write_until_target
from dino_pipeline.run import Run
from dino_pipeline.stage_records import ExtraSamples
from tests.commands import answer, files, invoke, refused


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
def test_a_run_grows_until_the_target_and_says_what_is_missing(here: Path) -> None:
    call = ["generate", "sts-x2", "--run", "run", "--num-inputs", "16", "--samples", "1"]
    done = answer(*call, "--until-target", "24")
    assert done.exit_code == 0, done.stderr
    assert "writing more" in done.stderr
    rows = [*read_examples(here / "run" / "train.jsonl"), *read_examples(here / "run" / "dev.jsonl")]
    assert Counter(row.label for row in rows if row.input is not None) == {0.9: 24, 0.5: 24, 0.1: 24}
    before = files(here / "run")
    assert "texts are up to date" in invoke(*call, "--until-target", "24")
    assert files(here / "run") == before
    assert "up to date" in invoke("filter", "run", "--target-per-label", "24")
    more = answer(*call, "--until-target", "38")
    assert more.exit_code == 0, more.stderr
    assert "further samples of the same inputs are no longer kept" in more.stderr
    assert "missing" in more.stdout
    small = refused(*call, "--until-target", "38", "--budget", "40")
    assert "the first round alone writes 48 texts" in small


@pytest.mark.slow
def test_further_texts_are_written_once_and_only_as_asked(run: Run) -> None:
    call = ["generate", "sts-x2", "--run", f"{run.path}", "--num-inputs", "4", "--samples", "1"]
    invoke(*call, "--more", "0.5=2")
    invoke(*call, "--more", "0.5=2", "--more", "1=1", "--more", "0.5=1")
    before = files(run.path)
    texts = [example for path in sorted(run.shards.iterdir()) for example in read_examples(path)]
    assert max(example.sample or 0 for example in texts if example.label == 0.5) == 3
    for known in ([], ["--more", "0.5=2"], ["--more", "0.5=2", "--more", "1=1", "--more", "0.5=1"]):
        assert "texts are up to date" in invoke(*call, *known)
    assert "give --more 0.5=2 --more 1=1 --more 0.5=1 first" in refused(*call, "--more", "0.5=3")
    assert files(run.path) == before
