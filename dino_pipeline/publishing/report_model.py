"""What does a report show of the encoder: its training, its scores, and the lineage of everything?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from dino_pipeline.cards.document import Block, DataTable, FactList, Paragraph, number, visible
from dino_pipeline.cards.model_card import effective
from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.compare import ComparisonFile, table_lines
from dino_pipeline.evaluation.compare import remarks as row_remarks
from dino_pipeline.evaluation.scores import COLUMNS, ScoresFile
from dino_pipeline.measures import measure_title
from dino_pipeline.models import ModelRef
from dino_pipeline.publishing import charts
from dino_pipeline.publishing.report_source import ReportSource, SectionMissing
from dino_pipeline.stage_records import GenerateRecord, HistoryPoint, StageRecord

Facts = list[tuple[str, str]]

HYPER_PARAMETERS = ("epochs", "batch_size", "learning_rate", "seed")
MOST_SCORES = 40
"""Scores that the chart shows; the table lists all."""


def training(source: ReportSource) -> list[Block]:
    """Return hyper-parameters, results and the curves of training."""
    trained = source.finetuned()
    selection, options = trained.selection, trained.options
    if selection is None:
        raise SectionMissing("run.json does not record how the checkpoint was chosen")
    measure = measure_title(selection.measure)
    items = [("objective", visible(options.objective, 80)), ("encoder", visible(options.encoder.name, 80))]
    for name in effective(options, HYPER_PARAMETERS):
        items.append((name.replace("_", " "), visible(str(getattr(options, name)), 80)))
    items += [
        ("rows", f"{number(trained.train)} to train on, {number(trained.dev)} held out"),
        ("steps", number(trained.steps)),
        ("seconds", f"{trained.seconds:.1f}"),
        (f"best {measure}, on {selection.on}", number(selection.best)),
    ]
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
    rows = [[str(step), *(_four_digits(values.get(step)) for values in by_step)] for step in steps]
    return charts.draw_picture(
        "curves",
        "Loss of training, and what the checkpoint was chosen by",
        DataTable("Curves", ["step", *curves], rows),
        lambda panels: charts.draw_lines(panels, curves, "step"),
        height=2.3,
        panels=len(curves),
    )


def _four_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def scores(source: ReportSource) -> list[Block]:
    """Return the encoder's scores with their intervals, next to those of baselines."""
    source.evaluated()
    try:
        file = ScoresFile.read(source.run.scores)
    except DataError as error:
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
        compared = ComparisonFile.read(path)
    except DataError as error:
        raise SectionMissing("compare.json is damaged", error.remedy) from error
    sets = list(dict.fromkeys(name for row in compared.rows for name in row.scores or ()))
    header, *lines = table_lines(compared.rows, sets)
    caption = f"{compared.unit}, mean and range of seeds {', '.join(map(str, compared.seeds))}"
    return [DataTable(caption, header, lines), *(Paragraph(remark) for remark in row_remarks(compared.rows))]


def lineage(source: ReportSource) -> list[Block]:
    """Return for each stage its inputs, options, versions, times and speed."""
    record = source.record
    blocks: list[Block] = []
    if record.generate:
        blocks.append(_facts(record.generate, _texts_facts(record.generate), _texts_per_second(record.generate)))
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
    """Return the facts of a stage.

    Args:
        record: of the stage.
        origin: what it was made from.
        speed: how fast it was.
    """
    items = [("status", record.status), *((term, visible(value, 200)) for term, value in origin)]
    if record.sources:
        items.append(("made from (digest)", visible(record.sources, 300)))
    items += [(name, time) for name, time in (("started", record.started), ("ended", record.ended)) if time]
    items += speed
    if options := record.options.model_dump(mode="json"):
        items.append(("options", visible(json.dumps(options, ensure_ascii=False), 4000)))
    items.append(("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    return FactList(items, f"{{{record.stage}()}}")


def _texts_facts(generated: GenerateRecord) -> Facts:
    options = generated.options
    model = _model_facts(options.model, generated.model_commit)
    return [("spec (digest)", options.spec), *model, ("seed", str(options.seed))]


def _model_facts(model: ModelRef, commit: str | None) -> Facts:
    terms = {"model": model.name, "revision": model.revision, "commit": commit, "weights (digest)": model.fingerprint}
    return [(term, value) for term, value in terms.items() if value is not None]


def _texts_per_second(generated: GenerateRecord) -> Facts:
    if not generated.counts or generated.ended is None:
        return []
    seconds = (datetime.fromisoformat(generated.ended) - datetime.fromisoformat(generated.started)).total_seconds()
    written = sum(count.written for count in generated.counts.values())
    return [("texts per second", f"{written / max(seconds, 1):.0f} (start and pauses included)")]
