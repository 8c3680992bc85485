"""Showing scores: tables in which figures of different protocols are marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import click

from dino_pipeline.cli.base import or_dash
from dino_pipeline.console import table

MARK = "†"

Row = Mapping[str, Any]


def print_evaluation(found: Mapping[str, Any]) -> None:
    """Print what scores.json holds."""
    from dino_pipeline.evaluation.scores import chosen_on_human_labels, difference_rows

    chosen_on = chosen_on_human_labels(found)
    for kind, group in groupby(found["scores"], key=lambda score: score["suite"].replace("pocket", "pairs")):
        scores = list(group)
        if kind == "sts":
            _print_sts(scores, chosen_on)
        else:
            _print_sets(scores, chosen_on)
    if differences := difference_rows(found):
        click.echo(table(["data", "difference", "of", "", "95 % interval"], differences))
    for remark in chosen_on.values():
        click.echo(f"* {remark}")


def _print_sets(scores: Sequence[Row], chosen_on: Mapping[str, str]) -> None:
    """Print a line for each set and model; where protocols differ, they have columns of their own."""
    from dino_pipeline.evaluation.scores import interval_text
    from dino_pipeline.measures import measure_title

    differing = _differing(scores)
    names = list(scores[0]["measures"])
    header = ["data", "model", scores[0]["counted"], *differing, measure_title(names[0]), "95 % interval"]
    header += [measure_title(name) for name in names[1:]]
    rows = []
    for score in scores:
        first, *others = (or_dash(each["value"], ".2f") for each in score["measures"].values())
        interval = interval_text(score["measures"][names[0]])
        protocol = [score["protocol"].get(key, "-") for key in differing]
        name = score["model"] + "*" * (score["model"] in chosen_on)
        rows.append([score["data"], name, str(score["size"]), *protocol, first, interval, *others])
    click.echo(table(header, rows))


def _differing(scores: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for score in scores for key in score["protocol"])
    return [key for key in keys if len({score["protocol"].get(key) for score in scores}) > 1]


def _print_sts(scores: Sequence[Row], chosen_on: Mapping[str, str]) -> None:
    """Print a line for each model, once for each correlation, as papers do."""
    from dino_pipeline.evaluation.scores import interval_text
    from dino_pipeline.measures import measure_title

    sets = list(dict.fromkeys(score["data"] for score in scores))
    models = list(dict.fromkeys(score["model"] for score in scores))
    by_place = {(score["data"], score["model"]): score for score in scores}
    remarks = _remarks([by_place[name, models[0]] for name in sets])
    for measure in scores[0]["measures"]:
        header = [measure_title(measure), *(name + MARK * (name in remarks) for name in sets), "95 % of " + sets[-1]]
        rows = []
        for model in models:
            found = [by_place[name, model]["measures"][measure] for name in sets]
            values = [or_dash(each["value"], ".2f") for each in found]
            rows.append([model + "*" * (model in chosen_on), *values, interval_text(found[-1])])
        click.echo(table(header, rows))
    protocol = {**by_place[sets[-1], models[0]]["protocol"], **by_place[sets[0], models[0]]["protocol"]}
    click.echo(", ".join(f"{key}: {value}" for key, value in protocol.items()))
    for name, remark in remarks.items():
        click.echo(f"{MARK} {name}: {remark}")


def _remarks(scores: Sequence[Row]) -> dict[str, str]:
    """Return what makes a column incomparable with its neighbours, or with the column of that name in papers."""
    from dino_pipeline.evaluation.suites.sts import MEAN, usual_size

    found = {}
    texts = [score["protocol"]["text"] for score in scores if "sick" not in score["protocol"]]
    usual_text = max(dict.fromkeys(texts), key=texts.count) if texts else "raw"
    for score in scores:
        protocol, said = score["protocol"], []
        if score["data"] == MEAN:
            continue
        if score["size"] != usual_size(score["data"], protocol):
            said.append(f"{score['size']} pairs in place of {usual_size(score['data'], protocol)}")
        if protocol.get("sick") == "full":
            said.append("train and trial pairs too")
        if "sick" not in protocol and protocol["text"] != usual_text:
            said.append(f"text {protocol['text']}, the others {usual_text}")
        if said:
            found[score["data"]] = ", ".join(said)
    if found and scores[-1]["data"] == MEAN:
        found[MEAN] = f"of {', '.join(found)} too"
    return found


def print_published(differing: Sequence[str]) -> None:
    """Print the papers' figures, or why they may not stand beside these."""
    from dino_pipeline.evaluation.suites.sts import MEAN, PUBLISHED, SIZES

    if differing:
        click.echo(f"Published figures are of another protocol and not shown: {'; '.join(differing)}")
        return
    rows = [[name, *(or_dash(value, ".2f") for value in values)] for name, values in PUBLISHED.items()]
    click.echo(table(["published, Spearman x 100", *SIZES, MEAN], rows))
