"""How do a run's examples become Parquet files, in the columns that other tools expect?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from dino_pipeline.errors import DataError, OutputError, first_line
from dino_pipeline.examples import PROVENANCE, REASONS
from dino_pipeline.files import connect, json_rows, quoted, quoted_list, shard_files
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.publishing.report_source import COLUMN_TYPES, OpenedRun
from dino_pipeline.run import Run
from dino_pipeline.text import as_number

SHARD = 512 * 2**20
"""Bytes of JSONL in a Parquet file, at most."""
MEMORY = "1GB"
THREADS = 2
"""A constant, so that the bytes do not depend on the machine."""
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
class DataShape:
    """Which kind of examples a run holds."""

    paired: bool
    """True for pairs, False for single texts."""
    classes: tuple[str, ...] | None
    """Names of the classes; None if labels are similarities."""


def shape_of(opened: OpenedRun) -> DataShape:
    """Return the shape of a run's examples.

    Raises:
        DataError: the run has no filtered examples.
    """
    run, filtered = opened.run, opened.record.filter
    if not run.train.exists() or not run.train.stat().st_size:
        raise DataError(f"{run.train}: does not exist, or is empty", "run {filter()} first")
    with connect() as db:
        source = json_rows([run.train, *([run.held_out] if run.held_out else [])], COLUMN_TYPES)
        (pairs,) = db.execute(f"SELECT count(text_b) FROM {source}").fetchall()[0]
        labels = [label for (label,) in db.execute(f"SELECT DISTINCT label FROM {source}").fetchall()]
    numeric = filtered is None or filtered.inputs.numeric_labels
    if numeric and all(as_number(label) is not None for label in labels):
        return DataShape(pairs > 0, None)
    order = {label: index for index, label in enumerate(opened.spec.labels)} if opened.spec else {}
    return DataShape(pairs > 0, tuple(sorted(labels, key=lambda label: (order.get(label, len(order)), label))))


def splits_of(run: Run, shape: DataShape, *, raw: bool) -> list[DatasetSplit]:
    """Return the splits that are published.

    With ``raw``, written and dropped texts are, too, with their provenance. Texts that were dropped as personal data or
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
    return f"{texts} NOT IN (SELECT {texts} FROM {json_rows(dropped, COLUMN_TYPES)} WHERE reason IN {WITHHELD_REASONS})"


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
    """Write a split as Parquet files whose names hold their number and count. The same rows give the same bytes.

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
    numbered = f"SELECT *, row_number() OVER () AS place FROM {json_rows(split.sources, COLUMN_TYPES)}"
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
