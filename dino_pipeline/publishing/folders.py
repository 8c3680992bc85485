"""How do a run's dataset and its encoder become folders for the Hub, each with its card?"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCardData, EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from dino_pipeline.cards.card import (
    README,
    FrontMatter,
    GeneratorLicense,
    HandWritten,
    ModelCard,
    card_text,
    texts_origin,
)
from dino_pipeline.cards.document import render_markdown
from dino_pipeline.cards.hub import address, run_manifest, seal
from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.scores import COLUMNS, ScoresFile
from dino_pipeline.examples import iter_examples
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.funnel import Funnel
from dino_pipeline.measures import measure_title
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.models import POCKET, STATIC, ModelRef, load_encoder, max_length_of
from dino_pipeline.publish_options import PublishOptions
from dino_pipeline.publishing.rebuild import rebuild_of
from dino_pipeline.publishing.report import Report
from dino_pipeline.publishing.run_texts import DataShape, OpenedRun, WrittenSplit, shape_of, splits_of, write_split
from dino_pipeline.record import public_record
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import FilterRecord, FinetuneRecord, GenerateRecord, PublishedDataset
from dino_pipeline.training.objectives import citation, get_objective

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
WIDGET_SENTENCES = 3
"""Sentences that the model's page offers for comparison."""
TASKS = {"probe": "text-classification", "retrieval": "text-retrieval"}
"""The Hub's name of the task that a suite measures; other suites measure sentence similarity."""


@dataclass(frozen=True)
class Licenses:
    """Under which license texts or an encoder are published, and what the generator's allows."""

    published: str | None
    """None if it is not known."""
    generator: GeneratorLicense | None
    """None if no generator wrote the texts."""


def write_dataset(
    opened: OpenedRun,
    report: Report,
    options: PublishOptions,
    licenses: Licenses,
    encoder: str | None,
    folder: Path,
    hand_written: HandWritten,
) -> None:
    """Write a dataset's repository into an empty folder: Parquet, card, spec, report and lineage.

    Args:
        opened: the run that is published.
        report: of the run, as it was just written.
        options: name the repository, and whether written and dropped texts are published, too.
        encoder: the repository of the encoder that was trained on it, if that is or was published.
        hand_written: parts of the earlier card that are kept.

    Raises:
        DataError: there is nothing to publish, or it cannot be read.
        OutputError: the folder cannot be written.
    """
    run, record, spec = opened.run, public_record(opened.record), opened.spec
    generated, filtered = record.generate, record.filter
    assert filtered is not None  # nothing is published that was not filtered
    shape, rebuild, funnel = shape_of(opened), rebuild_of(record), Funnel.of(filtered)
    with run.scratch("publish") as scratch:
        written = [write_split(split, folder, scratch) for split in splits_of(run, shape, raw=options.raw)]
    _copy_files(opened, folder, with_inputs=rebuild.needs_inputs)
    body = render_markdown(
        "dataset_card.md.j2",
        title=options.repo.rpartition("/")[2],
        repository=options.repo,
        row_counts=[(part.split.config, part.split.name, part.rows) for part in written],
        encoder=encoder,
        encoder_address=address(encoder, "model") if encoder else "",
        spec=spec,
        shape=shape,
        generated=generated,
        making=_making(generated) if generated else (),
        generator_license=licenses.generator,
        filtered=filtered,
        filter_options=_filter_options(filtered),
        funnel=funnel,
        withheld=sum(funnel.total("dropped", reason) for reason in WITHHELD_REASONS) if options.raw else 0,
        sections=report.sections,
        rebuild=rebuild,
    )
    front = _front_matter(written, shape, spec, options.repo, licenses.published, is_generated=generated is not None)
    (folder / README).write_text(card_text(front, body, hand_written), encoding="utf-8")
    manifest = run_manifest(record, "dataset", options.repo).updated(
        rows={f"{part.split.config}/{part.split.name}": part.rows for part in written},
        made_with=(generated or filtered).versions,
        lacks=rebuild.missing,
    )
    seal(folder, record, manifest)


def _copy_files(opened: OpenedRun, folder: Path, *, with_inputs: bool) -> None:
    """Copy those files of a run that are published as they are."""
    run = opened.run
    shutil.copy(run.report, folder / "report.html")
    shutil.copytree(run.pictures, folder / "pictures")
    if opened.spec:
        shutil.copy(run.spec, folder / "spec.json")
    if with_inputs:
        shutil.copy(run.inputs, folder / "inputs.jsonl")


def _making(generated: GenerateRecord) -> list[list[str]]:
    """Return how the texts were written, as rows of a table."""
    options, model = generated.options, generated.options.model
    values: dict[str, object] = {
        "generator": model.name,
        "revision": model.revision,
        "commit": generated.model_commit,
        "weights (digest)": model.fingerprint,
        "spec (digest)": options.spec,
        "inputs": generated.inputs,
        "texts per input and label": options.samples,
        **options.sampling.model_dump(),
        "seed": options.seed,
        "dtype": model.dtype,
        "chat": "on" if model.chat else None,
        "adapter": model.adapter,
        "quantize": model.quantize,
        "engine": options.engine if options.engine != "transformers" else None,
        "best_of": options.best_of if options.best_of != 1 else None,
        **(generated.server.model_dump() if generated.server else {}),
        "scorer": options.scorer.name if isinstance(options.scorer, ModelRef) else options.scorer,
    }
    return [[name.replace("_", " "), str(value)] for name, value in values.items() if value is not None]


def _filter_options(filtered: FilterRecord) -> list[list[str]]:
    """Return the filter's options as rows of a table."""
    rows = []
    for name, value in filtered.options.recorded().items():
        if value not in (None, []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append([name.replace("_", " "), shown])
    return rows


def _front_matter(
    written: Sequence[WrittenSplit],
    shape: DataShape,
    spec: TaskSpec | None,
    repository: str,
    license: str | None,
    *,
    is_generated: bool,
) -> FrontMatter:
    """Return the fields of the front matter that the Hub and `datasets` read; splits are ordered by configuration."""
    by_config = {config: list(parts) for config, parts in groupby(written, key=lambda part: part.split.config)}
    data = DatasetCardData(
        language=spec.language if spec else None,
        license=license,
        pretty_name=repository.rpartition("/")[2],
        size_categories=size_category(sum(part.rows for part in by_config["default"])),
        task_categories=["sentence-similarity" if shape.paired else "text-classification"],
        annotations_creators=["machine-generated"] if is_generated else None,
        language_creators=["machine-generated"] if is_generated else None,
        source_datasets=["original"] if is_generated else None,
        tags=[*(["synthetic", "dino"] if is_generated else []), "sentence-transformers"],
        configs=[_config(config, parts) for config, parts in by_config.items()],
    )
    infos = {config: _info(config, parts) for config, parts in by_config.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return dict(data.to_dict())


def _config(name: str, written: Sequence[WrittenSplit]) -> FrontMatter:
    data_files = []
    for part in written:
        paths = [f"{part.split.folder}/{file.name}" for file in part.files]
        data_files.append({"split": part.split.name, "path": paths})
    return {"config_name": name, "data_files": data_files, **({"default": True} if name == "default" else {})}


def _info(name: str, written: Sequence[WrittenSplit]) -> DatasetInfo:
    features = Features.from_dict({column.name: column.feature for column in written[0].split.columns})
    splits = SplitDict()
    for part in written:
        size = sum(file.stat().st_size for file in part.files)
        splits.add(SplitInfo(part.split.name, num_bytes=size, num_examples=part.rows))
    total = sum(info.num_bytes for info in splits.values())
    return DatasetInfo(features=features, splits=splits, download_size=total, dataset_size=total, config_name=name)


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows, for example ``1K<n<10K``."""
    if rows < 1000:
        return "n<1K"
    lower = max(index for index in range(len(SIZES)) if rows >= 10 ** (index + 3))
    return f"{SIZES[lower]}<n<{SIZES[lower + 1]}" if lower + 1 < len(SIZES) else "n>1T"


def write_model(
    opened: OpenedRun,
    options: PublishOptions,
    licenses: Licenses,
    dataset: PublishedDataset | None,
    folder: Path,
    hand_written: HandWritten,
) -> None:
    """Write a model's repository into an empty folder: encoder, card and lineage.

    Args:
        opened: the run whose encoder is published.
        options: name the repository, and whether held-out pairs are put on the model's page.
        dataset: the dataset that it was trained on, if that is published.
        hand_written: parts of the earlier card that are kept.
    """
    run, record = opened.run, public_record(opened.record)
    finetuned, evaluated = record.finetune, record.evaluate
    assert finetuned is not None  # nothing is published that was not trained
    shutil.copytree(run.model, folder, dirs_exist_ok=True)
    repository, objective = options.repository("model"), get_objective(finetuned.options.objective)
    model = load_encoder(str(run.model))
    scores, own_name = _own_scores(run) if evaluated and evaluated.is_done else (None, "")
    card = ModelCard(
        title=repository.rpartition("/")[2],
        dimension=model.get_embedding_dimension(),
        max_length=max_length_of(model),
        finetuned=finetuned,
        origin=texts_origin(record, opened.spec),
        citation=citation(objective, finetuned),
        prompts=bool(objective.prompts),
        repository=repository,
        license=licenses.published,
        dataset=dataset,
        dataset_address=address(dataset.repository, "dataset") if dataset and dataset.repository else "",
        generator_license=licenses.generator,
        score_columns=COLUMNS,
        scores=scores.score_rows() if scores else (),
        remarks=list(scores.human_label_remarks().values()) if scores else (),
    )
    base = finetuned.options.encoder
    front = {
        **card.front_matter(),
        "base_model": base.name if base.name != POCKET and base.fingerprint is None else None,
        "widget": (_widgets(run) or None) if options.widgets else None,
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
    if options.sentences:
        lacks.append(f"the sentences {options.sentences}")
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
    before = f"{own.removesuffix(' finetuned').removeprefix(STATIC)} before"
    others = {model.name for model in file.models} - {own, before}
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
