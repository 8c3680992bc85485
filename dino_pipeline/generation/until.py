"""How many more samples of which labels to write until each has enough that the filter keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dino_pipeline.generation.plan import More

SPARE = 1.1
"""Further samples tend to be kept a little less often than the first ones."""
LEAST_GAIN = 0.1
"""A round whose texts of a label are kept less often than those before, by this factor, is its last."""


@dataclass(frozen=True)
class Tally:
    """One label after a round."""

    written: int
    kept: int
    """What the filter keeps of it, before balance and target."""
    samples: int
    """Texts written per input, or in all; the next one's number."""

    @property
    def share(self) -> float:
        """What part of its texts is kept; never nothing, so that one may still be hoped for."""
        return max(self.kept, 1) / max(self.written, 1)


def write_until(
    target: int,
    budget: int,
    carry_out: Callable[[list[More]], Mapping[str, Tally]],
    note: Callable[[str], None],
) -> Mapping[str, Tally]:
    """Write and filter, round after round, until every label has enough or the budget is spent.

    Args:
        target: texts to keep of each label.
        budget: texts to write in all.
        carry_out: does a round: writes more, filters, and says where each label stands.
        note: is told of each round, and why the last one was the last.

    Returns:
        Where each label stands.
    """
    tallies = carry_out([])
    stuck: list[str] = []
    while short := [label for label, tally in tallies.items() if tally.kept < target and label not in stuck]:
        left = budget - sum(tally.written for tally in tallies.values())
        more = _plan(tallies, short, target, left)
        if not more:
            note(f"the budget of {budget} texts is spent")
            break
        note("; ".join(f"label {label}: {tallies[label].kept} of {target} kept" for label in short) + "; writing more")
        before, tallies = tallies, carry_out(more)
        for each in more:
            had, has = before[each.label], tallies[each.label]
            if has.kept - had.kept < LEAST_GAIN * had.share * (has.written - had.written):
                stuck.append(each.label)
                note(
                    f"label {each.label}: further samples of the same inputs are no longer kept "
                    "(--max-per-text? duplicates?); begin with more inputs, or with a larger --max-per-text"
                )
    return tallies


def _plan(tallies: Mapping[str, Tally], short: list[str], target: int, left: int) -> list[More]:
    """Return what to write next: as much as is likely to be enough, by each label's share of kept texts."""
    found = []
    for label in short:
        tally = tallies[label]
        each = tally.written / max(tally.samples, 1)  # texts a sample number stands for: the inputs
        wanted = math.ceil(SPARE * (target - tally.kept) / tally.share / max(each, 1))
        samples = min(wanted, int(left / len(short) / max(each, 1)))
        if samples:
            found.append(More(label, tally.samples, samples))
    return found
