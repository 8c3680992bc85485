"""What does a report show of the dataset: prompts, counts, dropped texts, lengths, similarity, diversity, samples?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dino_pipeline.cards.document import (
    Block,
    DataTable,
    FactList,
    Paragraph,
    Picture,
    PromptText,
    SampleTable,
    document_wording,
    number,
    percent,
)
from dino_pipeline.display import visible
from dino_pipeline.errors import PYTHON, ModelError, Wording, worded
from dino_pipeline.evaluation.evaluate import Candidate
from dino_pipeline.evaluation.suites.suite import WORD_OVERLAP, Embedder, cosines
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.contamination import LEAKED, WORDS
from dino_pipeline.filtering.dataset_rules import dataset_rules
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.funnel import Funnel
from dino_pipeline.progress import Reporter
from dino_pipeline.publishing import charts
from dino_pipeline.publishing.run_texts import RunTexts, in_order, label_name
from dino_pipeline.record import RunRecord, public
from dino_pipeline.record_base import StageRecord
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import FilterRecord, GenerateRecord
from dino_pipeline.text import distinct_n, normalise, word_overlap

AnyRecord = TypeVar("AnyRecord", bound=StageRecord)

MOST_LABELS = 12
"""Labels that pictures and samples show: the most frequent ones."""
SLICES = 10
"""Parts of a run whose diversity is compared."""
TEXTS_PER_SLICE = 1000
PAIRS_PER_LABEL = 200
"""Pairs that are embedded for the section on similarity."""
KEPT_SHOWN, DROPPED_SHOWN = 40, 15
"""Samples of each label, and of each reason."""
MOST_SAMPLES = 500
"""Samples of kept and of dropped texts. A user's own rule may give each text a reason of its own."""


class SectionMissing(Exception):  # noqa: N818
    """A section has nothing to show.

    Args:
        reason: why, shown as it is.
        remedy: a template of `errors.worded`, shown after the reason.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def worded(self, wording: Wording) -> str:
        """Return reason and remedy for one kind of caller."""
        return "; ".join(part for part in (self.reason, worded(self.remedy, wording)) if part)

    def __str__(self) -> str:
        return self.worded(PYTHON)

    __repr__ = __str__


@dataclass(frozen=True)
class ReportSource:
    """Everything that the sections of a report are made from."""

    run: Run
    record: RunRecord
    """As others may see it: without paths of this machine."""
    spec: TaskSpec | None
    texts: RunTexts
    candidates: Sequence[Candidate]
    """Encoders that show how similar the texts of each label are."""
    reporter: Reporter
    shows_dropped: bool = True
    """False keeps dropped texts out of the samples."""

    @property
    def brought(self) -> bool:
        """Whether the run's texts were brought, so that nothing is to be generated."""
        return self.record.generate is None and self.record.filter is not None

    def done(self, kind: type[AnyRecord]) -> AnyRecord:
        """Return the record of a stage.

        Raises:
            SectionMissing: the stage has not run, or has not ended.
        """
        record = self.record.of(kind.stage)
        if kind is GenerateRecord and self.brought:
            raise SectionMissing("the texts were brought, not generated here")
        if not isinstance(record, kind) or not record.is_done:
            raise SectionMissing("", f"{{{kind.stage}()}} has not {'ended' if record else 'run'}")
        return record

    def kept(self) -> dict[str, int]:
        """Return the number of kept texts by label.

        Raises:
            SectionMissing: the filter kept nothing, or has not run.
        """
        if counts := self.texts.counts("kept"):
            return counts
        self.done(FilterRecord)
        raise SectionMissing("the filter kept nothing")

    def labels(self, table: str = "kept") -> list[str]:
        """Return the labels that are shown, in order: the `MOST_LABELS` most frequent ones of a table."""
        counts = self.texts.counts(table)
        return in_order(sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS])


def spec(source: ReportSource) -> list[Block]:
    """Return the task spec and its prompts."""
    spec = source.spec
    if spec is None:
        raise SectionMissing("the texts were brought, not written from a spec")
    blocks: list[Block] = []
    if spec.description:
        blocks.append(Paragraph(visible(spec.description)))
    terms = [("task", spec.task_name), ("language", spec.language), ("license", spec.license)]
    blocks.append(FactList([(name, visible(value)) for name, value in terms if value]))
    blocks += _prompts(spec)
    generated = source.record.generate
    brought = generated and generated.options.inputs and generated.options.inputs.texts
    if isinstance(spec.inputs, TaskSpec) and not brought:
        blocks.append(Paragraph(f"The inputs <X1> were written from the spec {visible(spec.inputs.task_name)}:"))
        blocks += _prompts(spec.inputs)
    return blocks


def _prompts(spec: TaskSpec) -> list[PromptText]:
    prompts = []
    for label, label_spec in spec.labels.items():
        counter_labels = ", ".join(label_spec.counter_labels)
        contrast = f"contrasted with {counter_labels}" if counter_labels else "not contrasted"
        instruction = visible(label_spec.instruction, 4000)
        prompts.append(PromptText(visible(label, 80), visible(contrast, 200), instruction))
    return prompts


def generation(source: ReportSource) -> list[Block]:
    """Return how many texts were written and accepted, and their margins."""
    generated = source.done(GenerateRecord)
    rows = []
    for label, count in generated.counts.items():
        margin, share = generated.mean_margins.get(label), percent(count.accepted, count.written)
        cells = [number(count.written), number(count.accepted), share, "-" if margin is None else f"{margin:+.3f}"]
        rows.append([visible(label, 40), *cells])
    caption = "Texts by label; the margin is the mean log-probability per token above the best counter-label's"
    blocks: list[Block] = [DataTable(caption, ["label", "written", "accepted", "share", "mean margin"], rows)]
    title = "How much likelier texts are under their own instruction than under the best counter-label's"
    margins = _distribution(source, "written", "margin", "margins", title, "Margins", "margin (nats per token)", ".3f")
    return [*blocks, margins] if isinstance(margins, Picture) else blocks


def _distribution(
    source: ReportSource, table: str, value: str, name: str, title: str, caption: str, unit: str, number_format: str
) -> Picture | DataTable:
    """Return a picture of an SQL expression's distribution by label; only its numbers if all values are the same."""
    rows = [
        [visible(label, 40), number(int(count)), *(format(quantile, number_format) for quantile in quantiles)]
        for label, (count, *quantiles) in source.texts.quantiles(table, value).items()
    ]
    numbers = DataTable(caption, ["label", "texts", "5 %", "median", "95 %"], rows)
    histogram = source.texts.histogram(table, value, source.labels(table))
    if histogram is None:
        return numbers
    height = 2.3 + charts.legend_height(histogram.counts)
    return charts.draw_picture(
        name, title, numbers, lambda panels: charts.draw_histogram(panels, histogram, unit), height=height
    )


def funnel(source: ReportSource) -> list[Block]:
    """Return how many texts each step of the filter dropped and left."""
    funnel = Funnel.of(source.done(FilterRecord)).brief()
    steps: list[tuple[str, int, int]] = []
    left = 0
    for step in funnel:
        if step.kind == "read":
            left = step.total
            steps.append((step.kind, left, 0))
        elif step.kind == "dropped" and step.total:
            left -= step.total
            steps.append((step.rule, left, step.total))
        elif step.kind in {"kept", "train", "dev"}:
            steps.append((step.kind, step.total, 0))
        elif step.kind == "added" and step.total:
            steps.append((f"{step.rule} added", step.total, 0))
    rows = [[visible(cell, 60) for cell in row] for row in funnel.without_idle().rows(document_wording())]
    picture = charts.draw_picture(
        "funnel",
        "What each step of the filter left and dropped",
        DataTable("The filter's steps by label", funnel.header(), rows),
        lambda panels: charts.draw_funnel(panels, steps),
        height=0.26 * len(steps) + 0.8,
    )
    return [picture]


def balance(source: ReportSource) -> list[Block]:
    """Return how many texts of each label are in train and dev."""
    kept, dev = source.kept(), source.texts.counts("dev")
    labels = source.labels()
    series = {"train": {label: kept[label] - dev.get(label, 0) for label in labels}, "dev": dev}
    rows = [[visible(label, 40), *(number(counts.get(label, 0)) for counts in series.values())] for label in labels]
    unit = "pairs" if source.texts.paired else "texts"
    picture = charts.draw_picture(
        "balance",
        f"How many {unit} of each label there are",
        DataTable(f"{unit.capitalize()} by label", ["label", *series], rows),
        lambda panels: charts.draw_bars(panels, series, labels, unit),
        height=0.4 * len(labels) + 0.8,
    )
    if len(kept) > MOST_LABELS:
        return [picture, Paragraph(f"The {MOST_LABELS} most frequent of {len(kept)} labels.")]
    return [picture]


def lengths(source: ReportSource) -> list[Block]:
    """Return how long texts are, by label."""
    source.kept()
    text = "text_b" if source.texts.paired else "text_a"
    title = f"How long {text} is: lengths should not give the label away"
    unit = f"characters of {text}"
    return [_distribution(source, "kept", f"length({text})", "lengths", title, unit.capitalize(), unit, ".0f")]


def similarity(source: ReportSource) -> list[Block]:
    """Return how similar the two texts of a pair are, by label: by shared words, and by each encoder's cosine."""
    source.kept()
    if not source.texts.paired:
        raise SectionMissing("these are single texts, not pairs")
    table = "dev" if "dev" in source.texts.filled else "kept"
    pairs = _sample_of_pairs(source, table)
    overlap = {label: [word_overlap(*pair) for pair in of_label] for label, of_label in pairs.items()}
    values: dict[str, Mapping[str, Any]] = {WORD_OVERLAP: overlap}
    remarks = []
    for candidate in source.candidates:
        try:
            values[candidate.name] = _cosines(candidate, pairs, source.reporter)
        except ModelError as error:
            remarks.append(Paragraph(f"Without {candidate.name}: {public(str(error))}"))
    quantiles: dict[str, dict[str, list[float]]] = {}
    rows = []
    for measure, by_label in values.items():
        quantiles[measure] = {}
        for label, numbers in by_label.items():
            cuts = np.quantile(numbers, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
            quantiles[measure][label] = cuts
            rows.append([visible(label, 40), measure, *(f"{cut:.2f}" for cut in cuts)])
    count = sum(map(len, pairs.values()))
    caption = f"Similarity of {count} pairs of {'dev' if table == 'dev' else 'train and dev'}"
    picture = charts.draw_picture(
        "similarity",
        "How similar the two texts of a pair are, by label: the further apart the boxes, the more there is to learn",
        DataTable(caption, ["label", "measure", "5 %", "25 %", "median", "75 %", "95 %"], rows),
        lambda panels: charts.draw_boxes(panels, quantiles),
        height=0.35 * len(pairs) + 1.0,
        panels=len(values),
    )
    return [picture, *remarks]


def _sample_of_pairs(source: ReportSource, table: str) -> dict[str, list[tuple[str, str]]]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    for label, first, second in source.texts.sample(table, "label, text_a, text_b", PAIRS_PER_LABEL):
        if second is not None:
            pairs.setdefault(label_name(label), []).append((first, second))
    return {label: pairs[label] for label in source.labels(table) if label in pairs}


def _cosines(
    candidate: Candidate, pairs: Mapping[str, Sequence[tuple[str, str]]], reporter: Reporter
) -> dict[str, Any]:
    embedder = Embedder(candidate.name, candidate.load(), 64, reporter)
    embedder.cache(text for of_label in pairs.values() for pair in of_label for text in pair)
    return {label: cosines(embedder, of_label) for label, of_label in pairs.items()}


def diversity(source: ReportSource) -> list[Block]:
    """Return if texts repeat themselves more towards the end of the run."""
    generated = source.done(GenerateRecord)
    text, position = ("text_b", "input") if source.texts.paired else ("text_a", "sample")
    parts = _diversity_by_part(source, text, position)
    if not parts:
        raise SectionMissing(f"the texts of {source.run.path.name} are not there any more")
    rows, distinct, repeats = [], [], []
    for part, (count, distinct_1, distinct_2, repeated) in enumerate(parts, start=1):
        cells = [f"{distinct_1:.3f}", f"{distinct_2:.3f}", f"{100 * repeated:.1f} %"]
        rows.append([str(part), number(count), *cells])
        distinct.append((part, distinct_2))
        repeats.append((part, 100 * repeated))
    curves = {"distinct-2": distinct, "repeats dropped (%)": repeats}
    caption = f"Parts of the run, in the order of {'inputs' if position == 'input' else 'samples'}"
    picture = charts.draw_picture(
        "diversity",
        "Diversity over the run: fewer distinct pairs of words, or more repeats, towards its end mean that it runs dry",
        DataTable(caption, ["part", "texts", "distinct-1", "distinct-2", "repeats dropped"], rows),
        lambda panels: charts.draw_lines(panels, curves, "part of the run", from_zero=True),
        height=2.3,
        panels=2,
    )
    sample = [row[0] for row in source.texts.sample("written", text, 4 * TEXTS_PER_SLICE, by="1")]
    items = [(f"distinct-{size}, {len(sample)} texts", f"{distinct_n(sample, size):.3f}") for size in (1, 2, 3)]
    items.append(("distinct texts among them", percent(len({normalise(row) for row in sample}), len(sample))))
    finetuned = source.record.finetune
    if finetuned and finetuned.mean_cosine is not None:
        items.append(("mean cosine of different texts, trained encoder", f"{finetuned.mean_cosine:.3f}"))
    if generated.inputs is not None:
        items.append(("inputs", number(generated.inputs)))
    return [picture, FactList(items)]


def _diversity_by_part(source: ReportSource, text: str, position: str) -> list[tuple[int, float, float, float]]:
    """Return for each tenth of the run: texts, distinct-1, distinct-2, and the share that was dropped as repeated."""
    (last,) = source.texts.rows(f"SELECT max({position}) FROM written")[0]
    if last is None:
        return []
    part = f"({position} * {SLICES} // {last + 1})"
    samples: dict[int, list[str]] = {}
    for index, row in source.texts.sample("written", f"{part}, {text}", TEXTS_PER_SLICE, by=part):
        samples.setdefault(index, []).append(row)
    counts = dict(source.texts.rows(f"SELECT {part}, count(*) FROM written GROUP BY 1"))
    reasons = ", ".join(f"'{rule.name}'" for rule in dataset_rules(FilterOptions()) if rule.is_duplicate_rule)
    repeated = dict(
        source.texts.rows(
            f"SELECT {part}, count(*) FROM dropped WHERE reason IN ({reasons}) AND {position} IS NOT NULL GROUP BY 1"
        )
    )
    return [
        (counts[index], distinct_n(texts, 1), distinct_n(texts, 2), repeated.get(index, 0) / counts[index])
        for index, texts in sorted(samples.items())
    ]


def contamination(source: ReportSource) -> list[Block]:
    """Return which evaluation data was kept out, and how many texts were dropped for it."""
    filtered = source.done(FilterRecord)
    excluded = filtered.options.exclude
    if not excluded:
        return [Paragraph("Nothing was compared with evaluation data", "{filter()} {exclude}")]
    count = Funnel.of(filtered).total("dropped", LEAKED)
    term = f"texts that held one of it, nearly, or {WORDS} words of one"
    names = visible(", ".join(excluded), 1000)
    return [FactList([("compared with", names), (term, f"{number(count)}, all dropped")])]


def samples(source: ReportSource) -> list[Block]:
    """Return a sample of kept and dropped texts."""
    counts = source.kept()
    fields = "label, text_a, text_b, logprob, margin, reason, evidence"
    per_label = max(1, min(KEPT_SHOWN, MOST_SAMPLES // len(counts)))
    kept = source.texts.sample("kept", fields, per_label, most=MOST_SAMPLES)
    most = MOST_SAMPLES if source.shows_dropped else 0
    dropped = source.texts.sample("dropped", fields, DROPPED_SHOWN, by="reason", most=most)
    rows = [_sample_row(row, "kept") for row in kept]
    rows += [_sample_row(row, "dropped") for row in dropped if row[5] not in WITHHELD_REASONS]
    fates = ["kept", "dropped", *dict.fromkeys(row["reason"] for row in rows if row["reason"])]
    labels = in_order({row["label"] for row in rows})
    dropped_count = sum(source.texts.counts("dropped").values())
    origin = f"Drawn from {number(sum(counts.values()))} kept and {number(dropped_count)} dropped."
    return [Paragraph(origin), SampleTable(rows, labels, fates, source.texts.paired)]


def _sample_row(row: tuple[Any, ...], fate: str) -> dict[str, str]:
    label, first, second, logprob, margin, reason, evidence = row
    return {
        "fate": fate,
        "reason": visible(reason or "", 80),
        "evidence": visible(evidence or "", 120),
        "label": visible(label_name(label), 40),
        "first": visible(first or ""),
        "second": visible(second or ""),
        "logprob": "" if logprob is None else f"{logprob:.2f}",
        "margin": "" if margin is None else f"{margin:+.2f}",
    }
