"""A run's encoder as a model repository: the encoder, its card with scores, and what it was trained on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from dino_pipeline.encoders import load_encoder
from dino_pipeline.evaluation.scores import COLUMNS, ScoresFile
from dino_pipeline.examples import iter_examples
from dino_pipeline.hub.card import README, Kept, card
from dino_pipeline.hub.licenses import GeneratorLicense
from dino_pipeline.hub.manifest import seal
from dino_pipeline.hub.markdown import table
from dino_pipeline.hub.upload import address
from dino_pipeline.measures import measure_title
from dino_pipeline.models import model_fingerprint
from dino_pipeline.public import public
from dino_pipeline.run import Run
from dino_pipeline.training.finetune import lineage
from dino_pipeline.training.model_card import body, front_matter
from dino_pipeline.training.objective import get_objective

WIDGETS = 3
"""Sentences to compare with, on the model's page."""
TASKS = {"probe": "text-classification", "retrieval": "text-retrieval"}
"""The Hub's word for what a suite measures, where it is not similarity."""


@dataclass(frozen=True)
class ModelPublication:
    """What a user wants of a published encoder."""

    repository: str
    """``user/name``."""
    license: str | None
    dataset: Mapping[str, str] | None
    """Repository and commit of what it was trained on, if that is published."""
    generator: GeneratorLicense | None = None
    """Of the model that wrote what it was trained on; None if none did."""
    widgets: bool = False
    """Whether held-out pairs are put on its page, to try it with."""


def write_model(run: Run, wanted: ModelPublication, folder: Path, kept: Kept) -> None:
    """Write the whole repository into an empty folder.

    Args:
        run: whose encoder.
        wanted: what is wanted.
        folder: where to write.
        kept: of the card that stood there before.
    """
    trained = run.stage("finetune")
    shutil.copytree(run.model, folder, dirs_exist_ok=True)
    objective = get_objective(trained["options"]["objective"])
    name = wanted.repository.rpartition("/")[2]
    of = lineage(load_encoder(str(run.model)), run, objective)
    of = replace(of, address=wanted.repository, name=name, license=wanted.license)
    scores = _scores(run)
    front = {
        **front_matter(of),
        "base_model": _base_model(trained["options"]["encoder"]),
        "widget": (_widgets(run) or None) if wanted.widgets else None,
        "datasets": [wanted.dataset["repository"]] if wanted.dataset else None,
        "model-index": eval_results_to_model_index(name, _results(*scores)) if scores else None,
    }
    origin = [_data(wanted.dataset)] if wanted.dataset else []
    if wanted.generator:
        origin.append(wanted.generator.said)
    text = body(of, origin, [_evaluation(scores[1])] if scores else [])
    (folder / README).write_text(card(front, text, kept), encoding="utf-8")
    more = {"made_with": trained["versions"], "dataset": wanted.dataset, "repository": wanted.repository}
    seal(run, folder, "model", **more, lacks=_lacks(trained, wanted))


def _lacks(trained: Mapping[str, Any], wanted: ModelPublication) -> list[str]:
    """Return what training again needs and is nowhere published."""
    options = public(trained["options"])
    lacks = [] if wanted.dataset else [f"what it was trained on, {options['data']}"]
    if options["encoder"] != "pocket" and options["fingerprint"]:
        lacks.append(f"the encoder {options['encoder']}, a folder")
    return lacks


def _widgets(run: Run) -> list[dict[str, Any]]:
    """Return a held-out text and what was written for it, as the Hub's page takes them."""
    by_first: dict[str, list[str]] = {}
    for example in iter_examples(run.dev):
        by_first.setdefault(example.text_a, []).append(example.text_b or "")
    several = [(first, seconds) for first, seconds in by_first.items() if len(seconds) > 1]
    return [{"source_sentence": first, "sentences": seconds[:WIDGETS]} for first, seconds in several[:1]]


def _base_model(encoder: str) -> str | None:
    """Return an encoder's id on the Hub; a folder, or what is embedded here, has none."""
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", encoder) and encoder != "pocket" and not Path(encoder).exists()
    return encoder if on_hub else None


def _scores(run: Run) -> tuple[str, ScoresFile] | None:
    """Return the encoder's name in scores.json, and the scores of it, of it before training and of the baselines."""
    record = run.record().evaluate
    if record is None or not record.is_done:
        return None
    file = ScoresFile.read(run.scores)
    now = model_fingerprint(str(run.model))
    own = next((each.name for each in file.models if each.fingerprint == now), None)
    if own is None:
        return None
    others = {each.name for each in file.models} - {own, f"{own.removesuffix(' finetuned')} before"}
    shown = file.updated(scores=tuple(score for score in file.scores if score.model not in others))
    return own, shown


def _results(name: str, scores: ScoresFile) -> list[EvalResult]:
    """Return the trained encoder's scores as the Hub takes them, each with its interval and protocol."""
    return [
        EvalResult(
            task_type=TASKS.get(score.suite, "sentence-similarity"),
            dataset_type=re.sub(r"[^a-z0-9]+", "-", score.data.lower()).strip("-"),
            dataset_name=score.data,
            dataset_revision=score.digest,
            metric_type=measure,
            metric_name=measure_title(measure),
            metric_value=round(value.value, 2),
            metric_args={
                "interval_95": [each and round(each, 2) for each in (value.low, value.high)],
                **score.protocol,
            },
        )
        for score in scores.scores
        if score.model == name
        for measure, value in score.measures.items()
        if value.value is not None
    ]


def _data(dataset: Mapping[str, str]) -> str:
    page = address(dataset["repository"], "dataset")
    at = f"commit [{dataset['commit'][:10]}]({page}/tree/{dataset['commit']})" if dataset.get("commit") else ""
    return f"## Training data\n\n[{dataset['repository']}]({page}){', ' if at else ''}{at}."


def _evaluation(scores: ScoresFile) -> str:
    remarks = "".join(f"\n\n{remark}." for remark in scores.human_label_remarks().values())
    return f"## Scores\n\n{table(COLUMNS, scores.score_rows())}{remarks}"
