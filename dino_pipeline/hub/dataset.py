"""A run as a dataset repository: Parquet, the card, the spec, the report, and where all of it comes from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCardData

from dino_pipeline.hub.card import README, Kept, card
from dino_pipeline.hub.dataset_card import Publication, body
from dino_pipeline.hub.manifest import seal
from dino_pipeline.hub.tables import Shape, Split, shape_of, splits, write
from dino_pipeline.report.page import Report
from dino_pipeline.run import Run

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


@dataclass(frozen=True)
class Written:
    """A split on disk."""

    split: Split
    files: list[Path]
    rows: int


def write_dataset(run: Run, publication: Publication, report: Report, folder: Path, kept: Kept) -> None:
    """Write the whole repository into an empty folder.

    Args:
        run: whose dataset.
        publication: what is wanted.
        report: the run's.
        folder: where to write.
        kept: of the card that stood there before.

    Raises:
        DataError: there is nothing to publish, or it cannot be read.
        OutputError: the folder cannot be written.
    """
    shape = shape_of(run)
    with run.scratch("publish") as scratch:
        written = [Written(split, *write(split, folder, scratch)) for split in splits(run, shape, raw=publication.raw)]
    shutil.copy(run.report, folder / "report.html")
    shutil.copytree(run.pictures, folder / "pictures")
    if run.spec.exists():
        shutil.copy(run.spec, folder / "spec.json")
    if publication.again.needs_inputs:
        shutil.copy(run.inputs, folder / "inputs.jsonl")
    rows = {f"{each.split.config}/{each.split.name}": each.rows for each in written}
    front = _front(run, publication, shape, written)
    text = card(front, body(run, publication, report, shape, rows), kept)
    (folder / README).write_text(text, encoding="utf-8")
    made_by = run.stage("generate") or run.stage("filter")
    more = {"made_with": made_by["versions"], "rows": rows, "lacks": publication.again.lacks}
    seal(run, folder, "dataset", **more, repository=publication.repository)


def _front(run: Run, publication: Publication, shape: Shape, written: Sequence[Written]) -> dict[str, Any]:
    spec, generated = run.spec_fields(), bool(run.stage("generate"))
    rows = sum(each.rows for each in written if each.split.config == "default")
    by_config = {name: list(group) for name, group in groupby(written, key=lambda each: each.split.config)}
    data = DatasetCardData(
        language=spec.get("language"),
        license=publication.license,
        pretty_name=publication.repository.rpartition("/")[2],
        size_categories=size_category(rows),
        task_categories=["sentence-similarity" if shape.paired else "text-classification"],
        annotations_creators=["machine-generated"] if generated else None,
        language_creators=["machine-generated"] if generated else None,
        source_datasets=["original"] if generated else None,
        tags=[*(["synthetic", "dino"] if generated else []), "sentence-transformers"],
        configs=[_config(name, of_config) for name, of_config in by_config.items()],
    )
    infos = {name: _info(name, of_config) for name, of_config in by_config.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return dict(data.to_dict())


def _config(name: str, written: Sequence[Written]) -> dict[str, Any]:
    files = [
        {"split": each.split.name, "path": [f"{each.split.folder}/{file.name}" for file in each.files]}
        for each in written
    ]
    return {"config_name": name, "data_files": files, **({"default": True} if name == "default" else {})}


def _info(name: str, written: Sequence[Written]) -> DatasetInfo:
    features = Features.from_dict({column.name: column.feature for column in written[0].split.columns})
    found = SplitDict()
    for each in written:
        size = sum(file.stat().st_size for file in each.files)
        found.add(SplitInfo(each.split.name, num_bytes=size, num_examples=each.rows))
    total = sum(split.num_bytes for split in found.values())
    return DatasetInfo(features=features, splits=found, download_size=total, dataset_size=total, config_name=name)


def size_category(rows: int) -> str:
    """Return the Hub's word for how many rows there are."""
    if rows < 1000:
        return "n<1K"
    least = max(at for at in range(len(SIZES)) if rows >= 10 ** (at + 3))
    return f"{SIZES[least]}<n<{SIZES[least + 1]}" if least + 1 < len(SIZES) else "n>1T"
