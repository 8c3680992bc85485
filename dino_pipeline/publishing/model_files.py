"""How does a run's encoder become a model repository: the encoder, its card with scores, and its training data?"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from dino_pipeline.cards.card import README, GeneratorLicense, HandWritten, ModelCard, card_text, texts_origin
from dino_pipeline.cards.hub import address, run_manifest, seal
from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.scores import COLUMNS, ScoresFile
from dino_pipeline.examples import iter_examples
from dino_pipeline.measures import measure_title
from dino_pipeline.models import POCKET, load_encoder, model_fingerprint
from dino_pipeline.publishing.report_source import OpenedRun
from dino_pipeline.record import public_record
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FinetuneRecord, PublishedDataset
from dino_pipeline.training.objectives import get_objective

WIDGET_SENTENCES = 3
"""Sentences that the model's page offers for comparison."""
TASKS = {"probe": "text-classification", "retrieval": "text-retrieval"}
"""The Hub's name of the task that a suite measures; other suites measure sentence similarity."""


def write_model(
    opened: OpenedRun,
    folder: Path,
    hand_written: HandWritten,
    *,
    repository: str,
    license: str | None,
    dataset: PublishedDataset | None,
    generator: GeneratorLicense | None,
    widgets: bool,
) -> None:
    """Write a model's repository into an empty folder: encoder, card and lineage.

    Args:
        opened: the run whose encoder is published.
        folder: where to write.
        hand_written: parts of the earlier card that are kept.
        repository: ``user/name``.
        license: of the encoder, if known.
        dataset: the dataset that it was trained on, if that is published.
        generator: the license of the model that wrote its training texts; None if none did.
        widgets: put held-out pairs on the model's page.
    """
    run, record = opened.run, public_record(opened.record)
    finetuned, evaluated = record.finetune, record.evaluate
    assert finetuned is not None  # nothing is published that was not trained
    shutil.copytree(run.model, folder, dirs_exist_ok=True)
    objective, model = get_objective(finetuned.options.objective), load_encoder(str(run.model))
    scores, own_name = _own_scores(run) if evaluated and evaluated.is_done else (None, "")
    card = ModelCard(
        title=repository.rpartition("/")[2],
        dimension=model.get_embedding_dimension(),
        max_length=model.max_seq_length,
        finetuned=finetuned,
        origin=texts_origin(record, opened.spec),
        citation=objective.citation,
        prompts=bool(objective.prompts),
        repository=repository,
        license=license,
        dataset=dataset,
        dataset_address=address(dataset.repository, "dataset") if dataset and dataset.repository else "",
        generator_license=generator,
        score_columns=COLUMNS,
        scores=scores.score_rows() if scores else (),
        remarks=list(scores.human_label_remarks().values()) if scores else (),
    )
    base = finetuned.options.encoder
    front = {
        **card.front_matter(),
        "base_model": base.name if base.name != POCKET and base.fingerprint is None else None,
        "widget": (_widgets(run) or None) if widgets else None,
        "datasets": [dataset.repository] if dataset else None,
        "model-index": eval_results_to_model_index(card.title, _results(scores, own_name)) if scores else None,
    }
    (folder / README).write_text(card_text(front, card.body(), hand_written), encoding="utf-8")
    manifest = run_manifest(record, "model", repository)
    manifest = manifest.updated(dataset=dataset, made_with=finetuned.versions, lacks=_lacks(finetuned, dataset))
    seal(folder, record, manifest)


def _lacks(finetuned: FinetuneRecord, dataset: PublishedDataset | None) -> list[str]:
    """Return, in words, what training again needs and is not published."""
    options = finetuned.options
    lacks = [] if dataset else [f"what it was trained on, {options.data}"]
    if options.encoder.name != POCKET and options.encoder.fingerprint:
        lacks.append(f"the encoder {options.encoder.name}, a folder")
    return lacks


def _widgets(run: Run) -> list[dict[str, Any]]:
    """Return a held-out text and its partners, in the format of the Hub's page; empty if no text has several."""
    partners: dict[str, list[str]] = {}
    for example in iter_examples(run.dev):
        partners.setdefault(example.text_a, []).append(example.text_b or "")
    for text, sentences in partners.items():
        if len(sentences) > 1:
            return [{"source_sentence": text, "sentences": sentences[:WIDGET_SENTENCES]}]
    return []


def _own_scores(run: Run) -> tuple[ScoresFile, str] | tuple[None, str]:
    """Return the scores of this encoder, of the encoder before training and of baselines, and its name there.

    Return None and an empty name if scores.json holds no scores of this encoder.
    """
    try:
        file = ScoresFile.read(run.scores)
    except DataError:  # the report says so
        return None, ""
    fingerprint = model_fingerprint(str(run.model))
    own = next((model.name for model in file.models if model.fingerprint == fingerprint), "")
    if not own:
        return None, ""
    others = {model.name for model in file.models} - {own, f"{own.removesuffix(' finetuned')} before"}
    return file.updated(scores=tuple(score for score in file.scores if score.model not in others)), own


def _results(file: ScoresFile, model: str) -> list[EvalResult]:
    """Return an encoder's scores in the Hub's format, with their intervals and protocol."""
    results = []
    for score in file.scores:
        if score.model != model:
            continue
        for measure, figure in score.measures.items():
            if figure.value is None:
                continue
            interval = [bound and round(bound, 2) for bound in (figure.low, figure.high)]
            result = EvalResult(
                task_type=TASKS.get(score.suite, "sentence-similarity"),
                dataset_type=re.sub(r"[^a-z0-9]+", "-", score.data.lower()).strip("-"),
                dataset_name=score.data,
                dataset_revision=score.digest,
                metric_type=measure,
                metric_name=measure_title(measure),
                metric_value=round(figure.value, 2),
                metric_args={"interval_95": interval, **score.protocol},
            )
            results.append(result)
    return results
