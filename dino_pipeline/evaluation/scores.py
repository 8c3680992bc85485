"""What scores.json holds, and how tables show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_pipeline.measures import measure_title

FORMAT = 1
"""Of scores.json."""
COLUMNS = ("data", "model", "size", "measure", "value", "95 % interval", "protocol")
"""Of `score_rows`."""


def read_scores(path: Path) -> dict[str, Any] | None:
    """Return what a scores.json holds; None if it is not there, damaged, or of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def chosen_on_human_labels(found: Mapping[str, Any]) -> dict[str, str]:
    """Return a remark on each model whose checkpoint was chosen on human labels."""
    chosen = {each["name"]: each["chosen_on_human_labels"] for each in found["models"]}
    return {name: f"{name}: its checkpoint was chosen on human labels ({on})" for name, on in chosen.items() if on}


def score_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return each score by its main measure as the cells of `COLUMNS`."""
    rows = []
    for score in found["scores"]:
        measure, value = next(iter(score["measures"].items()))
        shown = "-" if value["value"] is None else f"{value['value']:.2f}"
        protocol = ", ".join(f"{key}: {value}" for key, value in score["protocol"].items())
        named = [score["data"], score["model"], str(score["size"]), measure_title(measure)]
        rows.append([*named, shown, interval_text(value), protocol])
    return rows


def difference_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return of each difference: data, the two models, measure, difference and its interval."""
    return [
        [
            each["data"],
            f"{each['model']} - {each['minus']}",
            measure_title(each["measure"]),
            "-" if each["difference"] is None else f"{each['difference']:+.2f}",
            interval_text(each),
        ]
        for each in found["differences"]
    ]


def interval_text(found: Mapping[str, Any]) -> str:
    """Return the interval of a value or difference."""
    return "-" if found["low"] is None else f"{found['low']:.2f} .. {found['high']:.2f}"
