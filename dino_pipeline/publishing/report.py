"""How does a run become one self-contained HTML page, with a PNG of each picture; what does it show of the encoder?"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dino_pipeline import __version__
from dino_pipeline.cards.card import effective
from dino_pipeline.cards.document import (
    Block,
    DataTable,
    FactList,
    Paragraph,
    Picture,
    Section,
    number,
    read_template,
    render_html,
)
from dino_pipeline.display import visible
from dino_pipeline.errors import DataError, RunError
from dino_pipeline.evaluation.compare import Comparison
from dino_pipeline.evaluation.evaluate import candidates_of
from dino_pipeline.evaluation.scores import COLUMNS, ScoresFile
from dino_pipeline.files import write_bytes
from dino_pipeline.filtering.losses import losses_of
from dino_pipeline.measures import measure_title
from dino_pipeline.models import STATIC, ModelRef
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.publish_options import ReportOptions
from dino_pipeline.publishing import charts, report_data
from dino_pipeline.publishing.report_data import ReportSource, SectionMissing
from dino_pipeline.publishing.run_texts import OpenedRun, RunTexts, in_order
from dino_pipeline.record import public_record
from dino_pipeline.record_base import StageRecord
from dino_pipeline.run import Run
from dino_pipeline.stage_records import EvaluateRecord, FinetuneRecord, GenerateRecord, HistoryPoint

MOST_CAUSES = 6
"""Causes of losses that are shown by themselves: the most frequent ones."""
HYPER_PARAMETERS = ("epochs", "batch_size", "learning_rate", "seed")
MOST_SCORES = 40
"""Scores that the chart shows; the table lists all."""
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Report:
    """A written report."""

    path: Path
    """The page."""
    pictures: list[Path]
    sections: dict[str, Section]
    """By id."""
    missing: dict[str, SectionMissing]
    """Why sections are left out, by title."""

    def __repr__(self) -> str:
        left_out = f", without {', '.join(self.missing)}" if self.missing else ""
        return f"Report({self.path}: {len(self.sections)} sections{left_out})"


@accepts(ReportOptions)
def report(
    run: Run | Path | str, *, progress: bool | Callable[[Progress | str], object] | Reporter = True, **options: Any
) -> Report:
    """Write report.html, a page that needs no other file, and its pictures as PNG.

    Args:
        run: the run to report on.
        progress: True shows progress; a function is called with it.

    Raises:
        DataError: a file of the run cannot be read.
        OptionError: an option is wrong.
        RunError: the folder is not a run.
    """
    chosen = ReportOptions.of(options)
    with OpenedRun.locked(run) as opened, reporter_for(progress) as reporter:
        return write_report(opened, reporter, encoders=chosen.encoder)


def write_report(
    opened: OpenedRun, reporter: Reporter, *, encoders: Sequence[str] = (), dropped: bool = True
) -> Report:
    """Write a run's report and its pictures.

    Args:
        encoders: show how similar the texts of each label are; none: the run's before and after training.
        dropped: False keeps dropped texts out of the samples.

    Raises:
        DataError: a file of the run cannot be read.
        RunError: a file of the run is damaged.
    """
    run, record = opened.run, public_record(opened.record)
    for made in (opened.record.generate, opened.record.filter):
        run.check(made)
    trained = record.finetune is not None and record.finetune.is_done
    names = encoders or ([str(run.path)] if trained else [])
    candidates = [candidate for name in names for candidate in candidates_of(name)]
    with run.scratch("report") as folder, closing(RunTexts(run, folder)) as texts:
        source = ReportSource(run, record, opened.spec, texts, candidates, reporter, dropped)
        sections, missing = _sections(source)
        html = _html(source, sections, missing)
    write_bytes(run.report, html.encode("utf-8", "replace"))
    return Report(run.report, _write_pictures(run, sections.values()), sections, missing)


def _sections(source: ReportSource) -> tuple[dict[str, Section], dict[str, SectionMissing]]:
    sections: dict[str, Section] = {}
    missing: dict[str, SectionMissing] = {}
    progress = Progress("report: sections", total=len(SECTIONS))
    for name, title, blocks_of in SECTIONS:
        try:
            sections[name] = Section(name, title, blocks_of(source))
        except SectionMissing as error:
            missing[title] = error
        progress.done += 1
        source.reporter.update(progress)
    return sections, missing


def _write_pictures(run: Run, sections: Iterable[Section]) -> list[Path]:
    """Write the PNG copies, and delete those that an earlier report left behind."""
    contents: dict[Path, bytes] = {}
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                contents[run.pictures / f"{block.name}.png"] = block.png
    for path in run.pictures.glob("*.png"):
        if path not in contents:
            path.unlink()
    for path, png in contents.items():
        write_bytes(path, png)
    return list(contents)


def _html(source: ReportSource, sections: Mapping[str, Section], missing: Mapping[str, SectionMissing]) -> str:
    script = read_template("page.js")
    return render_html(
        "page.html.j2",
        name=visible(source.run.path.resolve().name, 120),
        language=(source.spec.language if source.spec else None) or "en",
        headline=_headline(source),
        brought=source.brought,
        sections=sections.values(),
        missing=missing,
        version=__version__,
        style=read_template("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _headline(source: ReportSource) -> list[tuple[str, str]]:
    """Return the figures at the top of the page."""
    record = source.record
    counts = source.texts.counts("kept")
    headline = []
    if counts:
        unit = "pairs" if source.texts.paired else "texts"
        headline += [(unit, number(sum(counts.values()))), ("labels", str(len(counts)))]
    if record.generate:
        headline.append(("written by", visible(Path(record.generate.options.model.name).name, 60)))
    finetuned = record.finetune
    if finetuned and finetuned.is_done and finetuned.selection:
        encoder, selection = finetuned.options.encoder, finetuned.selection
        headline.append(("encoder", visible(f"{STATIC if encoder.static else ''}{Path(encoder.name).name}", 60)))
        best = "best " if finetuned.measured == "best" else ""
        headline.append((f"{best}dev {measure_title(selection.measure)}", number(selection.best)))
    return headline


def losses(source: ReportSource) -> list[Block]:
    """Return the share of each label's texts that is lost for each cause, what to do, and the inputs left out."""
    generated = source.record.generate if source.record.generate and source.record.generate.is_done else None
    filtered = source.record.filter if source.record.filter and source.record.filter.is_done else None
    found = losses_of(source.run, generated, filtered)
    labels = in_order(sorted(found.written, key=lambda label: -found.written[label])[: report_data.MOST_LABELS])
    if not labels:
        raise SectionMissing("", "{generate()} has not ended")
    shares = {cause: [100 * found.share(cause, label) for label in labels] for cause in found.lost}
    rare = [shares.pop(cause) for cause in list(shares)[MOST_CAUSES:]]
    if rare:
        shares["other reasons"] = [sum(of_label) for of_label in zip(*rare, strict=True)]
    lost = [sum(of_label) for of_label in zip(*shares.values(), strict=True)] or [0.0] * len(labels)
    left = [max(0.0, 100 - share) for share in lost]
    parts = {"are kept" if filtered else "are accepted": left, **shares}
    rows = [[visible(name, 60), *(f"{share:.1f} %" for share in of_label)] for name, of_label in parts.items()]
    picture = charts.draw_picture(
        "losses",
        "What becomes of the texts of each label",
        DataTable("Share of each label's texts", ["texts that", *(visible(label, 40) for label in labels)], rows),
        lambda panels: charts.draw_stacks(panels, parts, labels, "% of the label's"),
        height=0.4 * len(labels) + 0.8 + charts.legend_height(parts),
    )
    blocks: list[Block] = [picture]
    if generated and source.spec:
        for message, remedy in found.notes(source.spec, generated.options.sampling.max_new_tokens):
            blocks.append(Paragraph(visible(message), remedy))
    left_out = source.texts.rows(
        "SELECT reason, count(*) FROM rejected WHERE label IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    for reason, count in left_out[:MOST_CAUSES]:
        blocks.append(Paragraph(f"{number(count)} left out before writing: {visible(str(reason), 80)}"))
    return blocks


def training(source: ReportSource) -> list[Block]:
    """Return hyper-parameters, results and the curves of training."""
    trained = source.done(FinetuneRecord)
    selection, options = trained.selection, trained.options
    if selection is None:
        raise SectionMissing("run.json does not record how the checkpoint was chosen")
    measure = measure_title(selection.measure)
    items = [("objective", visible(options.objective, 80)), ("encoder", visible(options.encoder.written, 80))]
    for name in effective(options, HYPER_PARAMETERS):
        items.append((name.replace("_", " "), visible(str(getattr(options, name)), 80)))
    items += [
        ("rows", f"{number(trained.train)} to train on, {number(trained.dev)} held out"),
        ("steps", number(trained.steps)),
        ("seconds", f"{trained.seconds:.1f}"),
        (f"{trained.measured} {measure}, on {selection.on}", number(selection.best)),
    ]
    if trained.whitened != "no":
        items.append(("whitened", f"at the {trained.whitened}"))
    if selection.human_labels:
        items.append(("chosen on human labels", visible(selection.on, 80)))
    if trained.collapsed:
        items.append(("collapsed", f"cosines of different texts average {trained.mean_cosine}"))
    return [FactList(items), _training_curves(trained.history, measure)]


def _training_curves(history: Sequence[HistoryPoint], measure: str) -> Block:
    """Return a picture of the training loss and of the measure that chose the checkpoint, by step."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if losses := [(float(point.step), point.loss) for point in history if point.loss is not None]:
        curves["training loss"] = losses
    if dev := [(float(point.step), point.dev) for point in history if point.dev is not None]:
        curves[f"dev {measure}"] = dev
    by_step = [dict(points) for points in curves.values()]
    steps = sorted({point.step for point in history if (point.loss, point.dev) != (None, None)})
    rows = []
    for step in steps:
        rows.append([str(step), *(f"{values[step]:.4g}" if step in values else "-" for values in by_step)])
    return charts.draw_picture(
        "curves",
        "Loss of training, and what the checkpoint was chosen by",
        DataTable("Curves", ["step", *curves], rows),
        lambda panels: charts.draw_lines(panels, curves, "step"),
        height=2.3,
        panels=len(curves),
    )


def scores(source: ReportSource) -> list[Block]:
    """Return the encoder's scores with their intervals, next to those of baselines."""
    source.done(EvaluateRecord)
    try:
        source.run.check(source.record.evaluate)
        file = ScoresFile.read(source.run.scores)
    except (DataError, RunError) as error:
        raise SectionMissing(
            "scores.json is not there, damaged, or of another version", "run {evaluate()} again"
        ) from error
    remarks = file.human_label_remarks()
    rows = [[data, model + "*" * (model in remarks), *cells] for data, model, *cells in file.score_rows()]
    all_alike = len({score.main[0] for score in file.scores}) == 1
    drawn = []
    for score in file.scores[:MOST_SCORES]:
        measure, figure = score.main
        drawn.append((f"{score.data}: {score.model}" + ("" if all_alike else f" ({measure})"), figure))
    picture = charts.draw_picture(
        "scores",
        "Scores with their 95 % bootstrap intervals, baselines beside them",
        _cut_table("Scores; compare only rows of the same data, measure and protocol", COLUMNS, rows),
        lambda panels: charts.draw_intervals(panels, drawn, "x 100"),
        height=0.26 * len(drawn) + 0.8,
    )
    blocks: list[Block] = [picture]
    if rows := file.difference_rows():
        caption = (
            "Differences, resampled in pairs: an interval without 0 is a difference that other items would show, too"
        )
        blocks.append(_cut_table(caption, ["data", "difference", "measure", "x 100", "95 % interval"], rows))
    return [*blocks, *(Paragraph(f"* {remark}") for remark in remarks.values())]


def _cut_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> DataTable:
    return DataTable(caption, header, [[visible(cell, 120) for cell in row] for row in rows])


def comparison(source: ReportSource) -> list[Block]:
    """Return the table of objectives that were compared on this run."""
    path = source.run.comparison / "compare.json"
    if not path.exists():
        raise SectionMissing("", "{compare()} has not run")
    try:
        compared = Comparison.read(path)
    except DataError as error:
        raise SectionMissing("compare.json is damaged", error.remedy) from error
    header, *lines = compared.lines()
    caption = f"{compared.unit}, mean and range of seeds {', '.join(map(str, compared.seeds))}"
    return [DataTable(caption, header, lines), *(Paragraph(remark) for remark in compared.remarks())]


def lineage(source: ReportSource) -> list[Block]:
    """Return for each stage its inputs, options, versions, times and speed."""
    record = source.record
    blocks: list[Block] = []
    if record.generate:
        written = record.generate.options
        model = _model_facts(written.model, record.generate.model_commit)
        facts = [("spec (digest)", written.spec), *model, ("seed", str(written.seed))]
        blocks.append(_facts(record.generate, facts, _texts_per_second(record.generate)))
    if record.filter:
        blocks.append(_facts(record.filter, [("seed", str(record.filter.options.seed))], []))
    if record.finetune:
        options, seconds, rows = record.finetune.options, record.finetune.seconds, record.finetune.rows_seen or 0
        facts = [*_model_facts(options.encoder, None), ("seed", str(options.seed))]
        blocks.append(_facts(record.finetune, facts, [("rows per second", f"{rows / seconds:.0f}")] if seconds else []))
    if record.evaluate:
        blocks.append(_facts(record.evaluate, [], []))
    if not blocks:
        raise SectionMissing("run.json records nothing")
    return blocks


def _facts(record: StageRecord, origin: Facts, speed: Facts) -> FactList:
    """Return the facts of a stage, with what it was made from and how fast it was."""
    items = [("status", record.status), *((term, visible(value, 200)) for term, value in origin)]
    if record.sources:
        items.append(("made from (digest)", visible(record.sources, 300)))
    items += [(name, time) for name, time in (("started", record.started), ("ended", record.ended)) if time]
    items += speed
    if options := record.options.model_dump(mode="json"):
        items.append(("options", visible(json.dumps(options, ensure_ascii=False), 4000)))
    items.append(("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    return FactList(items, f"{{{record.stage}()}}")


def _model_facts(model: ModelRef, commit: str | None) -> Facts:
    terms = {
        "model": model.written,
        "revision": model.revision,
        "commit": commit,
        "weights (digest)": model.fingerprint,
    }
    return [(term, value) for term, value in terms.items() if value is not None]


def _texts_per_second(generated: GenerateRecord) -> Facts:
    if not generated.counts or generated.ended is None:
        return []
    seconds = (datetime.fromisoformat(generated.ended) - datetime.fromisoformat(generated.started)).total_seconds()
    written = sum(count.written for count in generated.counts.values())
    return [("texts per second", f"{written / max(seconds, 1):.0f} (start and pauses included)")]


SECTIONS: Sequence[tuple[str, str, Callable[[ReportSource], list[Block]]]] = (
    ("spec", "Task spec and prompts", report_data.spec),
    ("generation", "Generation", report_data.generation),
    ("losses", "Why texts are lost", losses),
    ("funnel", "Filter", report_data.funnel),
    ("balance", "Label balance", report_data.balance),
    ("similarity", "Similarity within pairs", report_data.similarity),
    ("lengths", "Lengths", report_data.lengths),
    ("diversity", "Duplicates and diversity", report_data.diversity),
    ("contamination", "Evaluation data", report_data.contamination),
    ("training", "Training", training),
    ("scores", "Scores", scores),
    ("comparison", "Objectives compared", comparison),
    ("samples", "Samples", report_data.samples),
    ("lineage", "Lineage", lineage),
)
"""Id, title, and the function that returns the blocks, in the order of the page."""
