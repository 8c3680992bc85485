"""The report's sections about the dataset: what was asked, written, dropped and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dino_pipeline.errors import ModelError, PythonWording
from dino_pipeline.evaluation.candidates import Candidate
from dino_pipeline.evaluation.suites.pairs import WORD_OVERLAP
from dino_pipeline.evaluation.suites.suite import Embedder, cosines
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.contamination import LEAKED, WORDS
from dino_pipeline.filtering.dataset_rules import dataset_rules
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.funnel import Funnel
from dino_pipeline.progress import Reporter
from dino_pipeline.public import public
from dino_pipeline.report import charts
from dino_pipeline.report.blocks import (
    Block,
    Facts,
    Missing,
    Paragraph,
    Picture,
    Prompt,
    Samples,
    Table,
    number,
    share,
    visible,
)
from dino_pipeline.report.material import MOST_LABELS, Material
from dino_pipeline.report.texts_of_run import in_order, label_name
from dino_pipeline.text import distinct_n, normalise, word_overlap


class _FlagWording(PythonWording):
    def option(self, name: str, value: object = None) -> str:
        return f"--{name.replace('_', '-')} {value}"


_FLAGS = _FlagWording()
SLICES = 10
"""Parts of a run that are compared with one another."""
TEXTS_PER_SLICE = 1000
PAIRS_PER_LABEL = 200
"""That are embedded, to see how labels lie apart."""
KEPT_SHOWN, DROPPED_SHOWN = 40, 15
"""Samples of each label, and of each reason."""
MOST_SAMPLES = 500
"""Of what was kept, and of what was dropped: a user's own rule may give each text a reason of its own."""


def spec(material: Material) -> list[Block]:
    """What was asked."""
    fields = material.run.spec_fields()
    if not fields:
        raise Missing("the texts were brought as a file, not written from a spec")
    blocks: list[Block] = []
    if fields.get("description"):
        blocks.append(Paragraph(visible(fields["description"])))
    terms = [("task", fields["task_name"]), ("language", fields.get("language")), ("license", fields.get("license"))]
    blocks.append(Facts([(name, visible(str(value))) for name, value in terms if value]))
    for label, of_label in fields["labels"].items():
        blocks.append(_prompt(label, of_label))
    brought = "texts" in material.records.get("generate", {}).get("options", {}).get("inputs", {})
    if isinstance(fields.get("inputs"), dict) and not brought:
        inputs = fields["inputs"]
        blocks.append(Paragraph(f"The inputs <X1> were written from the spec {visible(inputs['task_name'])}:"))
        blocks += [_prompt(label, of_label) for label, of_label in inputs["labels"].items()]
    return blocks


def _prompt(label: str, of_label: Mapping[str, Any]) -> Prompt:
    against = ", ".join(of_label.get("counter_labels", ()))
    said = f"contrasted with {against}" if against else "not contrasted"
    return Prompt(visible(label, 80), visible(said, 200), visible(of_label["instruction"], 4000))


def generation(material: Material) -> list[Block]:
    """What was written: acceptance, margins, and why texts were rejected at once."""
    generated = material.stage("generate")
    rows = [
        [
            visible(label, 40),
            number(count["written"]),
            number(count["accepted"]),
            share(count["accepted"], count["written"]),
            "-" if (margin := generated.get("mean_margins", {}).get(label)) is None else f"{margin:+.3f}",
        ]
        for label, count in generated["counts"].items()
    ]
    caption = "Texts by label; the margin is the mean log-probability per token above the best counter-label's"
    blocks: list[Block] = [Table(caption, ["label", "written", "accepted", "share", "mean margin"], rows)]
    if reasons := material.texts.rows("SELECT reason, count(*) FROM rejected GROUP BY 1 ORDER BY 2 DESC, 1"):
        found = [[visible(str(reason), 80), number(count)] for reason, count in reasons[:MOST_LABELS]]
        blocks.append(Table("Rejected while writing", ["reason", "texts"], found))
    title = "How much likelier texts are under their own instruction than under the best counter-label's"
    margins = _spread(material, "written", "margin", "margins", title, "Margins", "margin (nats per token)", ".3f")
    return [*blocks, margins] if isinstance(margins, Picture) else blocks


def _spread(
    material: Material, table: str, value: str, name: str, title: str, caption: str, unit: str, form: str
) -> Picture | Table:
    """Draw how values are spread by label; the numbers alone where there is nothing to draw."""
    rows = [
        [visible(label, 40), number(int(count)), *(format(quantile, form) for quantile in quantiles)]
        for label, (count, *quantiles) in material.texts.quantiles(table, value).items()
    ]
    numbers = Table(caption, ["label", "texts", "5 %", "median", "95 %"], rows)
    found = material.texts.histogram(table, value, material.labels(table))
    if found is None:
        return numbers
    height = 2.3 + charts.legend_height(found.counts)
    return charts.picture(name, title, numbers, lambda panels: charts.histograms(panels, found, unit), height=height)


def funnel(material: Material) -> list[Block]:
    """What the filter dropped."""
    material.stage("filter")
    found = Funnel.of(material.run.record().filter).brief()
    steps, left = [], 0
    for step in found:
        if step.kind == "read":
            left = step.total
            steps.append(("read", left, 0))
        elif step.kind == "dropped" and step.total:
            left -= step.total
            steps.append((step.rule, left, step.total))
        elif step.kind in {"kept", "train", "dev"}:
            steps.append((step.kind, step.total, 0))
        elif step.kind == "added" and step.total:
            steps.append((f"{step.rule} added", step.total, 0))
    shown = [[visible(cell, 60) for cell in row] for row in found.without_idle().rows(_FLAGS)]
    numbers = Table("The filter's steps by label", found.header(), shown)
    title = "What each step of the filter left and dropped"
    height = 0.26 * len(steps) + 0.8
    return [charts.picture("funnel", title, numbers, lambda panels: charts.funnel(panels, steps), height=height)]


def balance(material: Material) -> list[Block]:
    """How many of each label there are."""
    kept, dev = material.kept(), material.texts.counts("dev")
    labels = material.labels()
    series = {"train": {label: kept[label] - dev.get(label, 0) for label in labels}, "dev": dev}
    rows = [[visible(label, 40), *(number(counts.get(label, 0)) for counts in series.values())] for label in labels]
    unit = "pairs" if material.texts.paired else "texts"
    numbers = Table(f"{unit.capitalize()} by label", ["label", *series], rows)
    height = 0.4 * len(labels) + 0.8
    title = f"How many {unit} of each label there are"
    drawn = charts.picture(
        "balance", title, numbers, lambda panels: charts.bars(panels, series, labels, unit), height=height
    )
    if len(kept) > MOST_LABELS:
        return [drawn, Paragraph(f"The {MOST_LABELS} most frequent of {len(kept)} labels.")]
    return [drawn]


def lengths(material: Material) -> list[Block]:
    """How long texts are."""
    material.kept()
    text = "text_b" if material.texts.paired else "text_a"
    title = f"How long {text} is: lengths should not give the label away"
    unit = f"characters of {text}"
    return [_spread(material, "kept", f"length({text})", "lengths", title, unit.capitalize(), unit, ".0f")]


def similarity(material: Material) -> list[Block]:
    """How similar the two texts of pairs are, label by label."""
    material.kept()
    if not material.texts.paired:
        raise Missing("these are single texts, not pairs")
    table = "dev" if "dev" in material.texts.there else "kept"
    pairs: dict[str, list[tuple[str, str]]] = {}
    for label, first, second in material.texts.drawn(table, "label, text_a, text_b", PAIRS_PER_LABEL):
        if second is not None:
            pairs.setdefault(label_name(label), []).append((first, second))
    pairs = {label: pairs[label] for label in material.labels(table) if label in pairs}
    overlap = {label: np.array([word_overlap(*pair) for pair in of_label]) for label, of_label in pairs.items()}
    found, said = {WORD_OVERLAP: overlap}, []
    for candidate in material.candidates:
        try:
            found[candidate.name] = _cosines(candidate, pairs, material.reporter)
        except ModelError as error:
            said.append(Paragraph(f"Without {candidate.name}: {public(str(error))}"))
    cuts = [0.05, 0.25, 0.5, 0.75, 0.95]
    quantiles = {
        measure: {label: np.quantile(values, cuts).tolist() for label, values in by_label.items()}
        for measure, by_label in found.items()
    }
    rows = [
        [visible(label, 40), measure, *(f"{value:.2f}" for value in values)]
        for measure, by_label in quantiles.items()
        for label, values in by_label.items()
    ]
    caption = f"Similarity of {sum(map(len, pairs.values()))} pairs of {'dev' if table == 'dev' else 'train and dev'}"
    numbers = Table(caption, ["label", "measure", "5 %", "25 %", "median", "75 %", "95 %"], rows)
    title = "How similar the two texts of a pair are, by label: the further apart the boxes, the more there is to learn"
    height = 0.35 * len(pairs) + 1.0
    drawn = charts.picture(
        "similarity", title, numbers, lambda panels: charts.boxes(panels, quantiles), height=height, panels=len(found)
    )
    return [drawn, *said]


def _cosines(
    candidate: Candidate, pairs: Mapping[str, Sequence[tuple[str, str]]], reporter: Reporter
) -> dict[str, Any]:
    embedder = Embedder(candidate.name, candidate.load(), 64, reporter)
    embedder.cache(text for of_label in pairs.values() for pair in of_label for text in pair)
    return {label: cosines(embedder, of_label) for label, of_label in pairs.items()}


def diversity(material: Material) -> list[Block]:
    """Whether the generator kept on writing new texts."""
    generated = material.stage("generate")
    text, place = ("text_b", "input") if material.texts.paired else ("text_a", "sample")
    parts = _slices(material, text, place)
    if not parts:
        raise Missing(f"the texts of {material.run.path.name} are not there any more")
    rows = [
        [str(at), number(count), f"{one:.3f}", f"{two:.3f}", f"{100 * repeated:.1f} %"]
        for at, (count, one, two, repeated) in enumerate(parts, start=1)
    ]
    caption = f"Parts of the run, in the order of {'inputs' if place == 'input' else 'samples'}"
    numbers = Table(caption, ["part", "texts", "distinct-1", "distinct-2", "repeats dropped"], rows)
    found = {
        "distinct-2": [(at, two) for at, (_, _, two, _) in enumerate(parts, start=1)],
        "repeats dropped (%)": [(at, 100 * repeated) for at, (*_, repeated) in enumerate(parts, start=1)],
    }
    title = (
        "Diversity over the run: fewer distinct pairs of words, or more repeats, towards its end mean that it runs dry"
    )
    blocks: list[Block] = [
        charts.picture(
            "diversity",
            title,
            numbers,
            lambda panels: charts.lines(panels, found, "part of the run", from_zero=True),
            height=2.3,
            panels=2,
        )
    ]
    drawn = [text for (text,) in material.texts.drawn("written", text, 4 * TEXTS_PER_SLICE, by="1")]
    items = [(f"distinct-{size}, {len(drawn)} texts", f"{distinct_n(drawn, size):.3f}") for size in (1, 2, 3)]
    items.append(("distinct texts among them", share(len({normalise(each) for each in drawn}), len(drawn))))
    if (cosine := material.records.get("finetune", {}).get("mean_cosine")) is not None:
        items.append(("mean cosine of different texts, trained encoder", f"{cosine:.3f}"))
    if generated.get("inputs") is not None:
        items.append(("inputs", number(generated["inputs"])))
    return [*blocks, Facts(items)]


def _slices(material: Material, text: str, place: str) -> list[tuple[int, float, float, float]]:
    """Return for each part of the run: texts, distinct-1, distinct-2 and the share that was dropped as repeated."""
    (last,) = material.texts.rows(f"SELECT max({place}) FROM written")[0]
    if last is None:
        return []
    part = f"({place} * {SLICES} // {last + 1})"
    drawn: dict[int, list[str]] = {}
    for at, each in material.texts.drawn("written", f"{part}, {text}", TEXTS_PER_SLICE, by=part):
        drawn.setdefault(at, []).append(each)
    counts = dict(material.texts.rows(f"SELECT {part}, count(*) FROM written GROUP BY 1"))
    reasons = ", ".join(f"'{rule.name}'" for rule in dataset_rules(FilterOptions()) if rule.is_duplicate_rule)
    repeated = dict(
        material.texts.rows(
            f"SELECT {part}, count(*) FROM dropped WHERE reason IN ({reasons}) AND {place} IS NOT NULL GROUP BY 1"
        )
    )
    return [
        (counts[at], distinct_n(texts, 1), distinct_n(texts, 2), repeated.get(at, 0) / counts[at])
        for at, texts in sorted(drawn.items())
    ]


def contamination(material: Material) -> list[Block]:
    """Whether evaluation data was kept out."""
    filtered = material.stage("filter")
    excluded = filtered["options"]["exclude"]
    if not excluded:
        return [Paragraph("Nothing was compared with evaluation data (dino filter --exclude).")]
    count = Funnel.of(material.run.record().filter).total("dropped", LEAKED)
    return [
        Facts(
            [
                ("compared with", visible(", ".join(excluded), 1000)),
                (f"texts that held one of it, nearly, or {WORDS} words of one", f"{number(count)}, all dropped"),
            ]
        )
    ]


def samples(material: Material) -> list[Block]:
    """Texts to look at."""
    counts = material.kept()
    fields = "label, text_a, text_b, logprob, margin, reason, evidence"
    each = max(1, min(KEPT_SHOWN, MOST_SAMPLES // len(counts)))
    kept = material.texts.drawn("kept", fields, each, most=MOST_SAMPLES)
    most = MOST_SAMPLES if material.shows_dropped else 0
    dropped = material.texts.drawn("dropped", fields, DROPPED_SHOWN, by="reason", most=most)
    dropped = [row for row in dropped if row[5] not in WITHHELD_REASONS]
    rows = [*(_sample(row, "kept") for row in kept), *(_sample(row, "dropped") for row in dropped)]
    fates = ["kept", "dropped", *dict.fromkeys(row["reason"] for row in rows if row["reason"])]
    labels = in_order({row["label"] for row in rows})
    dropped_count = sum(material.texts.counts("dropped").values())
    said = f"Drawn from {number(sum(counts.values()))} kept and {number(dropped_count)} dropped."
    return [Paragraph(said), Samples(rows, labels, fates, material.texts.paired)]


def _sample(row: tuple[Any, ...], fate: str) -> dict[str, str]:
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
