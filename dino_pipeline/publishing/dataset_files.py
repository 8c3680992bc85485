"""How does a run become a dataset repository: Parquet in the columns that other tools expect, and its front matter?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCardData

from dino_pipeline.cards.card import README, FrontMatter, GeneratorLicense, HandWritten, card_text
from dino_pipeline.cards.dataset_card import DatasetCard, dataset_card_body
from dino_pipeline.cards.hub import address
from dino_pipeline.cards.manifest import run_manifest, seal
from dino_pipeline.errors import DataError, OutputError, first_line
from dino_pipeline.examples import PROVENANCE, REASONS
from dino_pipeline.files import shard_files
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.funnel import Funnel
from dino_pipeline.publishing.rebuild import rebuild_of
from dino_pipeline.publishing.report import Report
from dino_pipeline.publishing.report_source import OpenedRun
from dino_pipeline.record import RunRecord, public_record
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.sql import COLUMN_TYPES, connect, json_rows, quoted, quoted_list
from dino_pipeline.text import as_number

Rows = Mapping[str, int]
"""Numbers of rows by ``configuration/split``."""
SHARD = 512 * 2**20
"""Bytes of JSONL in a Parquet file, at most."""
MEMORY = "1GB"
THREADS = 2
"""A constant, so that the bytes do not depend on the machine."""
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
STRING = {"dtype": "string", "_type": "Value"}
FLOAT = {"dtype": "float64", "_type": "Value"}
INTEGER = {"dtype": "int64", "_type": "Value"}


@dataclass(frozen=True)
class ParquetColumn:
    """A column of a published split."""

    name: str
    sql: str
    """An expression over the fields of an example."""
    feature: Mapping[str, Any]
    """The column's type, as `datasets` writes it."""


@dataclass(frozen=True)
class DatasetSplit:
    """The rows of one split of one configuration."""

    config: str
    name: str
    sources: Sequence[Path]
    """JSONL files."""
    columns: Sequence[ParquetColumn]
    where: str = "true"
    """The SQL condition of the rows that are published."""

    @property
    def folder(self) -> str:
        """Return the name of the folder of its files."""
        return "data" if self.config == "default" else self.config


@dataclass(frozen=True)
class WrittenSplit:
    """A split and its files."""

    split: DatasetSplit
    files: list[Path]
    rows: int


@dataclass(frozen=True)
class DatasetRequest:
    """The wishes for a published dataset."""

    repository: str
    """``user/name``."""
    license: str | None
    generator: GeneratorLicense | None
    """Of the model that wrote the texts; None if none did."""
    encoder: str | None
    """The repository of the encoder that was trained on it, if that is or was published."""
    raw: bool
    """Publish written and dropped texts, too."""


@dataclass(frozen=True)
class DataShape:
    """The kind of examples that a run holds."""

    paired: bool
    """True for pairs, False for single texts."""
    classes: tuple[str, ...] | None
    """Names of the classes; None if labels are similarities."""


def write_dataset(
    opened: OpenedRun, request: DatasetRequest, report: Report, folder: Path, hand_written: HandWritten
) -> None:
    """Write a dataset's repository into an empty folder: Parquet, card, spec, report and lineage.

    Args:
        opened: the run that is published.
        request: repository, license and what the card names.
        report: of the run, as it was just written.
        folder: where to write.
        hand_written: parts of the earlier card that are kept.

    Raises:
        DataError: there is nothing to publish, or it cannot be read.
        OutputError: the folder cannot be written.
    """
    run, record, spec = opened.run, public_record(opened.record), opened.spec
    shape = shape_of(opened)
    with run.scratch("publish") as scratch:
        written = [write_split(split, folder, scratch) for split in splits_of(run, shape, raw=request.raw)]
    shutil.copy(run.report, folder / "report.html")
    shutil.copytree(run.pictures, folder / "pictures")
    if spec:
        shutil.copy(run.spec, folder / "spec.json")
    rows = {f"{split.split.config}/{split.split.name}": split.rows for split in written}
    card = _card(record, spec, request, report, shape, rows)
    if card.rebuild.needs_inputs:
        shutil.copy(run.inputs, folder / "inputs.jsonl")
    front = dataset_front_matter(
        written,
        shape,
        name=card.title,
        language=spec.language if spec else None,
        license=request.license,
        generated=record.generate is not None,
    )
    (folder / README).write_text(card_text(front, dataset_card_body(card), hand_written), encoding="utf-8")
    made_with = (record.generate or card.filtered).versions
    manifest = run_manifest(record, "dataset", request.repository)
    manifest = manifest.updated(rows=rows, made_with=made_with, lacks=card.rebuild.missing)
    seal(folder, record, manifest)


def _card(
    record: RunRecord, spec: TaskSpec | None, request: DatasetRequest, report: Report, shape: DataShape, rows: Rows
) -> DatasetCard:
    assert record.filter is not None  # nothing is published that was not filtered
    funnel = Funnel.of(record.filter)
    return DatasetCard(
        repository=request.repository,
        description=spec.description if spec else None,
        rows=rows,
        encoder=request.encoder,
        encoder_address=address(request.encoder, "model") if request.encoder else "",
        generator_license=request.generator,
        generated=record.generate,
        filtered=record.filter,
        classes=shape.classes is not None,
        random_pairs=funnel.total("added", "random pairs"),
        flagged=funnel.total("flagged", "personal data"),
        withheld=sum(funnel.total("dropped", reason) for reason in WITHHELD_REASONS) if request.raw else 0,
        sections=report.sections,
        rebuild=rebuild_of(record),
    )


def shape_of(opened: OpenedRun) -> DataShape:
    """Return the shape of a run's examples.

    Raises:
        DataError: the run has no filtered examples.
    """
    run, filtered = opened.run, opened.record.filter
    if not run.train.exists() or not run.train.stat().st_size:
        raise DataError(f"{run.train}: does not exist, or is empty", "run {filter()} first")
    with connect() as db:
        source = json_rows([run.train, *([run.held_out] if run.held_out else [])])
        (pairs,) = db.execute(f"SELECT count(text_b) FROM {source}").fetchall()[0]
        labels = [label for (label,) in db.execute(f"SELECT DISTINCT label FROM {source}").fetchall()]
    numeric = filtered is None or filtered.inputs.numeric_labels
    if numeric and all(as_number(label) is not None for label in labels):
        return DataShape(pairs > 0, None)
    order = {label: index for index, label in enumerate(opened.spec.labels)} if opened.spec else {}
    return DataShape(pairs > 0, tuple(sorted(labels, key=lambda label: (order.get(label, len(order)), label))))


def splits_of(run: Run, shape: DataShape, *, raw: bool) -> list[DatasetSplit]:
    """Return the splits that are published.

    Args:
        run: the run that is published.
        shape: of its examples.
        raw: publish written and dropped texts too, with their provenance. Texts that were dropped as personal data or
            as evaluation data are in no split.
    """
    columns = _training_columns(shape)
    splits = [DatasetSplit("default", "train", [run.train], columns)]
    if run.held_out:
        splits.append(DatasetSplit("default", "validation", [run.held_out], columns))
    if not raw:
        return splits
    dropped = [run.dropped] if run.dropped.exists() and run.dropped.stat().st_size else []
    if written := shard_files(run.shards):
        columns = _example_columns(shape, PROVENANCE)
        splits.append(DatasetSplit("raw", "train", written, columns, _not_withheld(dropped)))
    if dropped:
        columns = _example_columns(shape, (*PROVENANCE, *REASONS))
        splits.append(DatasetSplit("dropped", "train", dropped, columns, f"reason NOT IN {WITHHELD_REASONS}"))
    return splits


def _not_withheld(dropped: Sequence[Path]) -> str:
    """Return the SQL condition of texts that were not dropped as personal data or evaluation data."""
    if not dropped:
        return "true"
    texts = "struct_pack(a := text_a, b := coalesce(text_b, ''))"
    return f"{texts} NOT IN (SELECT {texts} FROM {json_rows(dropped)} WHERE reason IN {WITHHELD_REASONS})"


def _training_columns(shape: DataShape) -> list[ParquetColumn]:
    """Return the columns that sentence-transformers and `datasets` expect."""
    texts = [ParquetColumn("sentence1", "text_a", STRING), ParquetColumn("sentence2", "text_b", STRING)]
    if not shape.paired:
        texts = [ParquetColumn("text", "text_a", STRING)]
    if shape.classes is None:
        return [*texts, ParquetColumn("score", "label::DOUBLE", FLOAT)]
    feature = {"names": list(shape.classes), "_type": "ClassLabel"}
    index = f"list_position({quoted_list(shape.classes)}, label)::BIGINT - 1"
    return [*texts, ParquetColumn("label", index, feature)]


def _example_columns(shape: DataShape, more: Sequence[str]) -> list[ParquetColumn]:
    """Return the fields of an example as columns: texts, label, and ``more``."""
    columns = [ParquetColumn("text_a", "text_a", STRING)]
    if shape.paired:
        columns.append(ParquetColumn("text_b", "text_b", STRING))
    if shape.classes is None:
        columns.append(ParquetColumn("label", "label::DOUBLE", FLOAT))
    else:
        columns.append(ParquetColumn("label", "label", STRING))
    features = {"VARCHAR": STRING, "DOUBLE": FLOAT, "BIGINT": INTEGER}
    return [*columns, *(ParquetColumn(name, name, features[COLUMN_TYPES[name]]) for name in more)]


def write_split(split: DatasetSplit, folder: Path, scratch: Path) -> WrittenSplit:
    """Write a split as Parquet files whose names hold their number and count.

    The same rows give the same bytes.

    Args:
        split: the split to write.
        folder: the dataset's folder.
        scratch: for temporary files of the database.

    Raises:
        DataError: a source cannot be read.
        OutputError: a file cannot be written.
    """
    (folder / split.folder).mkdir(parents=True, exist_ok=True)
    try:
        size = sum(path.stat().st_size for path in split.sources)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})", "run {filter()} again") from error
    count = max(1, -(-size // SHARD))
    files = [folder / split.folder / f"{split.name}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    features = {"info": {"features": {column.name: column.feature for column in split.columns}}}
    options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{huggingface: {quoted(json.dumps(features))}}}"
    database = scratch / f"{split.config}-{split.name}.duckdb"
    with connect(database, memory=MEMORY, threads=THREADS) as db:
        try:
            rows = _copy(db, _query(split), files, options)
        except duckdb.IOException as error:
            raise OutputError(
                f"{folder}: cannot be written ({first_line(error)})", "make room and run again"
            ) from error
        except duckdb.Error as error:
            names = ", ".join(map(str, split.sources[:3]))
            raise DataError(f"{names}: cannot be read ({first_line(error)})", "run {filter()} again") from error
    return WrittenSplit(split, files, rows)


def _query(split: DatasetSplit) -> str:
    columns = ", ".join(f'{column.sql} AS "{column.name}"' for column in split.columns)
    # the condition may become a join, which loses the order of rows
    numbered = f"SELECT *, row_number() OVER () AS place FROM {json_rows(split.sources)}"
    return f"SELECT {columns} FROM ({numbered}) WHERE {split.where} ORDER BY place"


def _copy(db: duckdb.DuckDBPyConnection, query: str, files: Sequence[Path], options: str) -> int:
    """Write the rows of a query into files of equal length; return the number of rows."""
    if len(files) == 1:
        ((rows,),) = db.execute(f"COPY ({query}) TO {quoted(files[0])} ({options})").fetchall()
        return int(rows)
    ((rows,),) = db.execute(f"CREATE TABLE rows AS {query}").fetchall()
    per_file = -(-rows // len(files))
    for index, file in enumerate(files):
        bounds = f"rowid >= {index * per_file} AND rowid < {(index + 1) * per_file}"
        db.execute(f"COPY (SELECT * FROM rows WHERE {bounds} ORDER BY rowid) TO {quoted(file)} ({options})")
    return int(rows)


def dataset_front_matter(
    written: Sequence[WrittenSplit], shape: DataShape, *, name: str, language: str | None, license: str | None,
    generated: bool,
) -> FrontMatter:  # fmt: skip
    """Return the fields of a dataset card's front matter that the Hub and `datasets` read.

    Args:
        written: the splits, ordered by configuration.
        shape: of the examples.
        name: the dataset's name on its page.
        language: of its texts, if known.
        license: of its texts, if known.
        generated: True if a language model wrote the texts.
    """
    by_config = {config: list(splits) for config, splits in groupby(written, key=lambda split: split.split.config)}
    data = DatasetCardData(
        language=language,
        license=license,
        pretty_name=name,
        size_categories=size_category(sum(split.rows for split in by_config["default"])),
        task_categories=["sentence-similarity" if shape.paired else "text-classification"],
        annotations_creators=["machine-generated"] if generated else None,
        language_creators=["machine-generated"] if generated else None,
        source_datasets=["original"] if generated else None,
        tags=[*(["synthetic", "dino"] if generated else []), "sentence-transformers"],
        configs=[_config(config, splits) for config, splits in by_config.items()],
    )
    infos = {config: _info(config, splits) for config, splits in by_config.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return dict(data.to_dict())


def _config(name: str, written: Sequence[WrittenSplit]) -> dict[str, Any]:
    data_files = []
    for split in written:
        paths = [f"{split.split.folder}/{file.name}" for file in split.files]
        data_files.append({"split": split.split.name, "path": paths})
    return {"config_name": name, "data_files": data_files, **({"default": True} if name == "default" else {})}


def _info(name: str, written: Sequence[WrittenSplit]) -> DatasetInfo:
    features = Features.from_dict({column.name: column.feature for column in written[0].split.columns})
    splits = SplitDict()
    for split in written:
        size = sum(file.stat().st_size for file in split.files)
        splits.add(SplitInfo(split.split.name, num_bytes=size, num_examples=split.rows))
    total = sum(info.num_bytes for info in splits.values())
    return DatasetInfo(features=features, splits=splits, download_size=total, dataset_size=total, config_name=name)


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows, for example ``1K<n<10K``."""
    if rows < 1000:
        return "n<1K"
    lower = max(index for index in range(len(SIZES)) if rows >= 10 ** (index + 3))
    return f"{SIZES[lower]}<n<{SIZES[lower + 1]}" if lower + 1 < len(SIZES) else "n>1T"
