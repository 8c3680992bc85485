"""Why are texts of each label lost, from the first word to the filter's last rule, and what helps against it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dino_pipeline.database import connect, json_rows
from dino_pipeline.examples import iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.dataset_rules import dataset_rules
from dino_pipeline.filtering.text_rules import PromptParts, text_rules
from dino_pipeline.progress import Reporter
from dino_pipeline.run import Run
from dino_pipeline.spec import LabelSpec, TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import FilterRecord, GenerateRecord
from dino_pipeline.text import plain_label

MOST_LOST = 0.2
"""A larger share of a label's texts that is lost for one cause is worth a note."""
FEWEST = 20
"""Texts of a label from which shares are measured."""
COPY, TO_LIMIT, BREAK, PROMPT = "copy the input", "run to the token limit", "break the line", "repeat the prompt"
TOO_LONG, REPEAT, SURPLUS = "are too long", "repeat earlier texts", "are more than needed"
CAUSES = {
    "identical texts": COPY,
    "near-copy": COPY,
    "no stop string": TO_LIMIT,
    "newline": BREAK,
    "copied instruction": PROMPT,
    "too long": TOO_LONG,
    **{rule.name: REPEAT for rule in dataset_rules(FilterOptions()) if rule.is_duplicate_rule},
    **{rule.name: SURPLUS for rule in dataset_rules(FilterOptions()) if rule.is_balancing},
}
"""What the reasons of generation and the filter's rules say of a text. Other reasons stand for themselves."""

Reasons = Counter[tuple[str, str]]
"""Number of texts by reason and label."""


@dataclass(frozen=True)
class Losses:
    """How many texts of each label were written, and how many of them were lost, by cause."""

    written: Mapping[str, int]
    lost: Mapping[str, Mapping[str, int]]
    """By cause, the most frequent one first, and by label."""

    @classmethod
    def of(cls, written: Mapping[str, int], reasons: Reasons) -> Losses:
        """Return the losses for the causes that reasons stand for."""
        lost: dict[str, Counter[str]] = {}
        for (reason, label), count in reasons.items():
            lost.setdefault(CAUSES.get(reason, reason), Counter())[plain_label(label)] += count
        causes = sorted(lost, key=lambda cause: -lost[cause].total())
        return cls(
            {plain_label(label): count for label, count in written.items()}, {name: lost[name] for name in causes}
        )

    def share(self, cause: str, label: str) -> float:
        """Return the share of a label's texts that is lost for a cause."""
        return self.lost.get(cause, {}).get(label, 0) / max(self.written.get(label, 0), 1)

    def notes(self, spec: TaskSpec, max_new_tokens: int) -> Iterator[tuple[str, str]]:
        """Yield what is worth a note: a message, and a remedy as a template of `errors.worded`.

        Args:
            spec: has written the texts.
            max_new_tokens: the token limit that they had.
        """
        for name, rule in spec.labels.items():
            label = plain_label(name)
            if self.written.get(label, 0) < FEWEST:
                continue
            for cause in self.lost:
                share, remedies = self.share(cause, label), _remedies(cause, name, rule, spec, max_new_tokens)
                if share > MOST_LOST and remedies:
                    ways = f"{', '.join(remedies[:-1])}, or {remedies[-1]}" if remedies[1:] else remedies[0]
                    yield f'label "{name}": {share:.0%} of its texts {cause}', f"try {ways}"


def _remedies(cause: str, name: str, rule: LabelSpec, spec: TaskSpec, max_new_tokens: int) -> list[str]:
    """Return what helps a label against a cause, the best first; nothing for a cause that no remedy is known for."""
    more = {
        COPY: "another wording of the instruction",
        TO_LIMIT: f"a larger {{max_new_tokens}} than {max_new_tokens}",
        BREAK: '"newlines": true in the spec, if texts may hold newlines',
        PROMPT: "another wording of the instruction",
        TOO_LONG: "a larger {max_chars}, or a smaller {max_new_tokens}",
    }
    if cause not in more:
        return []
    remedies = [] if rule.examples or cause == TOO_LONG else ['worked examples in the spec ("examples")']
    if cause == PROMPT and rule.examples:
        remedies.append("other worked examples, and more of them")
    if cause == COPY and spec.is_scored:
        nearest = max(spec.labels, key=float)
        if nearest not in (name, *rule.counter_labels):
            remedies.append(f'a contrast with label {nearest} ("counter_labels")')
    return [*remedies, more[cause]]


def losses_of(run: Run, generated: GenerateRecord | None, filtered: FilterRecord | None) -> Losses:
    """Return the losses of a run's texts: those that generation rejected and those that the filter dropped.

    Args:
        run: holds the rejected texts.
        generated: None if the texts were brought.
        filtered: None counts only what generation rejected.
    """
    written: Counter[str] = Counter()
    reasons: Reasons = Counter()
    if generated:
        written.update({label: count.written for label, count in generated.counts.items()})
        reasons.update(rejected(run))
    for step in filtered.funnel if filtered else ():
        counts = {f"{label:g}" if isinstance(label, float) else label: count for label, count in step.counts}
        if step.kind == "read" and not generated:
            written.update(counts)
        elif step.kind == "dropped":
            reasons.update({(step.rule, label): count for label, count in counts.items()})
    return Losses.of(written, reasons)


def losses_of_trial(run: Run, spec: TaskSpec, generated: GenerateRecord) -> Losses:
    """Return the losses of texts that are not filtered: by generation, and by the filter's rules about single texts."""
    reasons = rejected(run)
    rules = text_rules(FilterOptions(), PromptParts(spec.stop, spec.fields))
    for path in shard_files(run.shards):
        for example in iter_examples(path):
            if found := next(filter(None, (rule.check(example) for rule in rules)), None):
                reasons[found.partition(": ")[0], str(example.label)] += 1
    return Losses.of({label: count.written for label, count in generated.counts.items()}, reasons)


def rejected(run: Run) -> Reasons:
    """Count the texts that generation rejected. Inputs that it left out have no label and are not counted.

    What cannot be read counts as not there: nothing but advice depends on it.
    """
    import duckdb

    files = [path for path in shard_files(run.rejected) if path.stat().st_size]
    if not files:
        return Counter()
    rows = json_rows(files, {"reason": "VARCHAR", "label": "VARCHAR"})
    sql = f"SELECT reason, label, count(*) FROM {rows} WHERE label IS NOT NULL GROUP BY ALL ORDER BY ALL"
    with connect() as database:
        try:
            return Counter({(reason, label): count for reason, label, count in database.execute(sql).fetchall()})
        except duckdb.Error:
            return Counter()


def note_losses(run: Run, filtered: FilterRecord, reporter: Reporter) -> None:
    """Note why a run's texts are lost, and what to do about it. Texts that were brought have no spec to improve."""
    generated = run.record().generate
    if generated is None or not run.spec.exists():
        return
    losses = losses_of(run, generated, filtered)
    for message, remedy in losses.notes(load_spec(run.spec), generated.options.sampling.max_new_tokens):
        reporter.note(message, remedy)
