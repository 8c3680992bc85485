"""The report's sections about the encoder: its training, its scores, and where everything comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.compare import Row, as_table, remarks
from dino_pipeline.evaluation.scores import COLUMNS, ScoresFile
from dino_pipeline.measures import measure_title
from dino_pipeline.report import charts
from dino_pipeline.report.blocks import Block, Facts, Missing, Paragraph, Table, number, visible
from dino_pipeline.report.material import Material
from dino_pipeline.training.model_card import counting

STAGES = ("generate", "filter", "finetune", "evaluate")
SHOWN = ("objective", "encoder", "epochs", "batch_size", "learning_rate", "seed")
MOST_SCORES = 40
"""That are drawn."""


def training(material: Material) -> list[Block]:
    """How training went."""
    trained = material.stage("finetune")
    chosen, options = trained["selection"], trained["options"]
    measure = measure_title(chosen["measure"])
    items = [(name.replace("_", " "), visible(str(options[name]), 80)) for name in counting(options, SHOWN)]
    items += [
        ("rows", f"{number(trained['train'])} to train on, {number(trained['dev'])} held out"),
        ("steps", number(trained["steps"])),
        ("seconds", f"{trained['seconds']:.1f}"),
        (f"best {measure}, on {chosen['on']}", number(chosen["best"])),
    ]
    if chosen["human_labels"]:
        items.append(("chosen on human labels", visible(chosen["on"], 80)))
    if trained["collapsed"]:
        items.append(("collapsed", f"cosines of different texts average {trained['mean_cosine']}"))
    blocks: list[Block] = [Facts(items)]
    history = trained["history"]
    curves = {
        "training loss": [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        f"dev {measure}": [(entry["step"], entry["dev"]) for entry in history if "dev" in entry],
    }
    found = {name: points for name, points in curves.items() if points}
    steps = sorted({step for points in found.values() for step, _ in points})
    by_step = {name: dict(points) for name, points in found.items()}
    rows = [[str(step), *(_value(values.get(step)) for values in by_step.values())] for step in steps]
    numbers = Table("Curves", ["step", *found], rows)
    title = "Loss of training, and what the checkpoint was chosen by"
    drawn = charts.picture(
        "curves", title, numbers, lambda panels: charts.lines(panels, found, "step"), height=2.3, panels=len(found)
    )
    return [*blocks, drawn]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def scores(material: Material) -> list[Block]:
    """What the encoder is worth, beside baselines."""
    material.stage("evaluate")
    try:
        found = ScoresFile.read(material.run.scores)
    except DataError as error:
        raise Missing("scores.json is not there, damaged, or of another version; run dino evaluate again") from error
    human = found.human_label_remarks()
    rows = [[data, model + "*" * (model in human), *more] for data, model, *more in found.score_rows()]
    numbers = _shown("Scores; compare only rows of the same data, measure and protocol", COLUMNS, rows)
    mains = [(score, *score.main) for score in found.scores]
    of_one_kind = len({measure for _, measure, _ in mains}) == 1
    drawn = [
        (f"{score.data}: {score.model}" + ("" if of_one_kind else f" ({measure})"), value.model_dump())
        for score, measure, value in mains[:MOST_SCORES]
    ]
    title = "Scores with their 95 % bootstrap intervals, baselines beside them"
    height = 0.26 * len(drawn) + 0.8
    blocks: list[Block] = [
        charts.picture("scores", title, numbers, lambda panels: charts.intervals(panels, drawn, "x 100"), height=height)
    ]
    if rows := found.difference_rows():
        caption = (
            "Differences, resampled in pairs: an interval without 0 is a difference that other items would show, too"
        )
        blocks.append(_shown(caption, ["data", "difference", "measure", "x 100", "95 % interval"], rows))
    return [*blocks, *(Paragraph(f"* {remark}") for remark in human.values())]


def _shown(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(caption, header, [[visible(cell, 120) for cell in row] for row in rows])


def comparison(material: Material) -> list[Block]:
    """How objectives compare."""
    path = material.run.comparison / "compare.json"
    if not path.exists():
        raise Missing("dino compare has not run")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in found["rows"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Missing("compare.json is damaged; run dino compare again") from error
    sets = list(dict.fromkeys(name for row in rows for name in row.scores or ()))
    header, *lines = as_table(rows, sets)
    caption = f"{found['unit']}, mean and range of seeds {', '.join(map(str, found['seeds']))}"
    return [Table(caption, header, lines), *(Paragraph(remark) for remark in remarks(rows))]


def lineage(material: Material) -> list[Block]:
    """What everything was made from, with what, when and how fast."""
    blocks: list[Block] = []
    for name in STAGES:
        record = material.records.get(name)
        if not record:
            continue
        items = [("status", record["status"]), *_origin(record)]
        if record.get("sources"):
            items.append(("made from (digest)", visible(record["sources"], 300)))
        items += [(key, str(record[key])) for key in ("started", "ended") if key in record]
        items += _throughput(name, record)
        options = json.dumps(record["options"], ensure_ascii=False)
        items += [("options", visible(options, 4000))] if record["options"] else []
        items.append(("versions", ", ".join(f"{key} {value}" for key, value in record.get("versions", {}).items())))
        blocks.append(Facts(items, f"dino {name}"))
    if not blocks:
        raise Missing("run.json records nothing")
    return blocks


def _origin(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = record["options"]
    terms: list[tuple[str, Any]] = [
        ("spec (digest)", options.get("spec")),
        ("model", options.get("model") or options.get("encoder")),
        ("revision", options.get("revision")),
        ("commit", record.get("model_commit")),
        ("weights (digest)", options.get("fingerprint")),
        ("seed", options.get("seed")),
    ]
    return [(term, visible(str(value), 200)) for term, value in terms if value is not None]


def _throughput(name: str, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    if name == "finetune" and record.get("seconds"):
        return [("rows per second", f"{record['rows_seen'] / record['seconds']:.0f}")]
    counts = record.get("counts")
    if not counts or "ended" not in record:
        return []
    seconds = (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()
    written = sum(count["written"] for count in counts.values())
    return [("texts per second", f"{written / max(seconds, 1):.0f} (start and pauses included)")]
