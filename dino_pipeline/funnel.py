"""How many examples of each label every step of a filter read, dropped, kept or added, and how that is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dino_pipeline.errors import PYTHON, Wording, worded
from dino_pipeline.progress import table, table_html
from dino_pipeline.stage_records import FilterRecord, FunnelStep, Label, StepKind

Counts = dict[Label, int]
MAX_LABELS = 12
"""More labels than this are the grades of a score, which are counted by tenths of their scale."""
MAX_REASONS = 80
"""Reasons that `Funnel.brief` shows one by one."""


@dataclass(frozen=True)
class Funnel:
    """The steps of a filter, in order."""

    steps: tuple[FunnelStep, ...] = ()

    @classmethod
    def of(cls, record: FilterRecord | None) -> Funnel:
        """Return the funnel that a record holds, an empty one if there is no record."""
        return cls(record.funnel if record else ())

    def __iter__(self) -> Iterator[FunnelStep]:
        return iter(self.steps)

    def total(self, kind: StepKind, rule: str = "") -> int:
        """Return the examples of a step over all labels, 0 if there is no such step."""
        return sum(step.total for step in self.steps if (step.kind, step.rule) == (kind, rule))

    def counts(self, kind: StepKind, rule: str = "") -> Counts | None:
        """Return the examples of a step by label, None if there is no such step."""
        return next((dict(step.counts) for step in self.steps if (step.kind, step.rule) == (kind, rule)), None)

    def labels(self) -> list[Label]:
        """Return all labels, numbers in order before names in order."""
        return sorted_labels(label for step in self.steps for label, _ in step.counts)

    def header(self) -> list[str]:
        """Return the column titles of `rows`."""
        return ["step", *(f"{label:g}" if isinstance(label, float) else label for label in self.labels()), "all"]

    def rows(self, wording: Wording = PYTHON) -> list[list[str]]:
        """Return the table of the funnel: a row for each step, a column for each label, and one for their sum.

        Args:
            wording: writes the names of options.
        """
        labels = self.labels()
        rows = []
        for step in self.steps:
            counts = dict(step.counts)
            rows.append([step_title(step, wording), *(str(counts.get(label, 0)) for label in labels), str(step.total)])
        return rows

    def without_idle(self) -> Funnel:
        """Return the funnel without the rules that dropped nothing."""
        return Funnel(tuple(step for step in self.steps if step.kind != "dropped" or step.total))

    def idle_rules(self) -> list[str]:
        """Return the names of the rules that dropped nothing."""
        return [step.rule for step in self.steps if step.kind == "dropped" and not step.total]

    def brief(self) -> Funnel:
        """Return the funnel with all but the `MAX_REASONS` most frequent reasons as one step.

        The user's own rules may give any number of reasons.
        """
        dropping = [step for step in self.steps if step.kind == "dropped" and step.total]
        rare = sorted(dropping, key=lambda step: -step.total)[MAX_REASONS:]
        if not rare:
            return self
        together: Counter[Label] = Counter()
        for step in rare:
            together.update(dict(step.counts))
        steps = [step for step in self.steps if step not in rare]
        kept = next(number for number, step in enumerate(steps) if step.kind == "kept")
        others = FunnelStep(kind="dropped", rule=f"{len(rare)} other reasons", counts=tuple(together.items()))
        steps.insert(kept, others)
        return Funnel(tuple(steps))

    def __str__(self) -> str:
        return table(self.header(), self.without_idle().rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table_html("", self.header(), self.without_idle().rows())


def step_title(step: FunnelStep, wording: Wording = PYTHON) -> str:
    """Return how a step is shown: ``- near-copy``, ``+ random pairs``, ``(min_margin=0 would drop)``."""
    match step.kind:
        case "dropped":
            return f"- {step.rule}"
        case "added":
            return f"+ {step.rule}"
        case "would_drop":
            return f"({worded('{' + step.rule + '}', wording)} would drop)"
        case "flagged":
            return f"(flagged: {step.rule})"
        case _:
            return step.kind


def by_tenths(counts: Counts, scale: tuple[float, float]) -> Counts:
    """Return counts in the order of labels; more than `MAX_LABELS` scores are counted by tenths of their scale."""
    if len(counts) <= MAX_LABELS or any(isinstance(label, str) for label in counts):
        return {label: counts[label] for label in sorted_labels(counts)}
    low, high = scale
    tenths: Counter[Label] = Counter()
    for label, count in counts.items():
        share = round((float(label) - low) / (high - low), 1)
        tenths[round(low + share * (high - low), 6)] += count
    return {label: tenths[label] for label in sorted_labels(tenths)}


def sorted_labels(labels: Iterable[Label]) -> list[Label]:
    """Return distinct labels in order, numbers before names."""
    return sorted(dict.fromkeys(labels), key=lambda label: (isinstance(label, str), label))
