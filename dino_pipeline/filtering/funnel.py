"""How many examples of each label were left after each step of the filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Label = float | str
Counts = dict[Label, int]
MOST_COLUMNS = 12
MOST_REASONS = 80


@dataclass
class Funnel:
    """The steps, in order, and what is left or dropped in each."""

    steps: list[tuple[str, Counts]] = field(default_factory=list)
    available: Counts = field(default_factory=dict)
    """What is kept before labels are brought to a target or to the same number."""

    def add(self, step: str, counts: Counts) -> None:
        """Note what is left, or dropped, in a step."""
        self.steps.append((step, counts))

    def labels(self) -> list[Label]:
        """Return all labels in a fixed order."""
        return _in_order({label: 0 for _, counts in self.steps for label in counts})

    def rows(self) -> list[list[str]]:
        """Return the funnel as a table: a step a row, a label a column, and the total."""
        labels = self.labels()
        return [
            [step, *(str(counts.get(label, 0)) for label in labels), str(sum(counts.values()))]
            for step, counts in self.steps
        ]

    def totals(self) -> dict[str, int]:
        """Return how many are left, or dropped, in each step, whatever their labels."""
        return {step: sum(counts.values()) for step, counts in self.steps}

    def brief(self) -> Funnel:
        """Return it with the rarest reasons as one where there are many: a user's own rule may give any number."""
        totals = self.totals()
        dropping = [step for step, count in totals.items() if step.startswith("- ") and count]
        rare = dict.fromkeys(sorted(dropping, key=lambda step: -totals[step])[MOST_REASONS:])
        if not rare:
            return self
        together: Counter[Label] = Counter()
        for step, counts in self.steps:
            together.update(counts if step in rare else {})
        steps = [each for each in self.steps if each[0] not in rare]
        steps.insert([step for step, _ in steps].index("kept"), (f"- {len(rare)} other reasons", dict(together)))
        return Funnel(steps)

    def header(self) -> list[str]:
        """Return the column titles of `rows`."""
        return ["step", *(f"{label:g}" if isinstance(label, float) else str(label) for label in self.labels()), "all"]

    def to_json(self) -> list[Any]:
        """Return the funnel as run.json holds it."""
        return [[step, [list(item) for item in counts.items()]] for step, counts in self.steps]

    @staticmethod
    def of_json(steps: Sequence[Any]) -> Funnel:
        """Return the funnel that run.json holds."""
        return Funnel([(step, dict(counts)) for step, counts in steps])


def by_tenths(counts: Counts, scale: tuple[float, float]) -> Counts:
    """Return counts in order; where there are many numbers for labels, those of one tenth of the scale together."""
    if len(counts) <= MOST_COLUMNS or any(isinstance(label, str) for label in counts):
        return {label: counts[label] for label in _in_order(counts)}
    low, high = scale
    found: Counts = {}
    for label, count in counts.items():
        tenth = round(low + round((float(label) - low) / (high - low), 1) * (high - low), 6)
        found[tenth] = found.get(tenth, 0) + count
    return {label: found[label] for label in _in_order(found)}


def _in_order(counts: Counts) -> list[Label]:
    return sorted(counts, key=lambda label: (isinstance(label, str), label))
