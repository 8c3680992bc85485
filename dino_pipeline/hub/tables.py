"""A run's texts as Parquet, in the columns that others' tools expect, streamed through DuckDB."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from dino_pipeline.errors import DataError, OutputError, first_line
from dino_pipeline.examples import PROVENANCE, REASONS
from dino_pipeline.files import shard_files
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.run import Run
from dino_pipeline.sql import COLUMN_TYPES, connect, json_rows, quoted, quoted_list
from dino_pipeline.text import as_number

SHARD = 512 * 2**20
"""About so many bytes of JSONL become one Parquet file."""
MEMORY = "1GB"
THREADS = 2
"""Not those of the machine: the bytes must not depend on it."""


@dataclass(frozen=True)
class Column:
    """A column, as SQL over the record's fields, and as `datasets` knows it."""

    name: str
    sql: str
    feature: Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """Rows of one configuration of the dataset."""

    config: str
    name: str
    sources: Sequence[Path]
    columns: Sequence[Column]
    where: str = "true"
    """Which rows, as SQL."""

    @property
    def folder(self) -> str:
        """Where its files lie."""
        return "data" if self.config == "default" else self.config


@dataclass(frozen=True)
class Shape:
    """What a run's examples are like."""

    paired: bool
    classes: tuple[str, ...] | None
    """Names of the classes; None where labels are similarities."""


def shape_of(run: Run) -> Shape:
    """Find out whether a run holds pairs or texts, scores or classes.

    Raises:
        DataError: there is nothing to publish.
    """
    if not run.train.exists() or not run.train.stat().st_size:
        raise DataError(f"{run.train}: is not there, or empty; run dino filter first")
    with connect() as db:
        source = json_rows([run.train, *([run.held_out] if run.held_out else [])])
        (pairs,) = db.execute(f"SELECT count(text_b) FROM {source}").fetchall()[0]
        labels = [label for (label,) in db.execute(f"SELECT DISTINCT label FROM {source}").fetchall()]
    if run.numeric_labels and all(as_number(label) is not None for label in labels):
        return Shape(pairs > 0, None)
    order = {label: at for at, label in enumerate(run.spec_fields().get("labels", {}))}
    return Shape(pairs > 0, tuple(sorted(labels, key=lambda label: (order.get(label, len(order)), label))))


def splits(run: Run, shape: Shape, *, raw: bool) -> list[Split]:
    """Return what is published: what to train and validate on; with provenance, what was written, and dropped."""
    trained = _trained(shape)
    found = [Split("default", "train", [run.train], trained)]
    if run.held_out:
        found.append(Split("default", "validation", [run.held_out], trained))
    if raw:
        dropped = [run.dropped] if run.dropped.exists() and run.dropped.stat().st_size else []
        if written := shard_files(run.shards):
            found.append(Split("raw", "train", written, _recorded(shape, PROVENANCE), _allowed(dropped)))
        if dropped:
            columns = _recorded(shape, (*PROVENANCE, *REASONS))
            found.append(Split("dropped", "train", dropped, columns, f"reason NOT IN {WITHHELD_REASONS}"))
    return found


def _allowed(dropped: Sequence[Path]) -> str:
    """Return as SQL which rows are not among what is withheld."""
    if not dropped:
        return "true"
    texts = "struct_pack(a := text_a, b := coalesce(text_b, ''))"
    return f"{texts} NOT IN (SELECT {texts} FROM {json_rows(dropped)} WHERE reason IN {WITHHELD_REASONS})"


TEXT = {"dtype": "string", "_type": "Value"}
NUMBER = {"dtype": "float64", "_type": "Value"}
WHOLE = {"dtype": "int64", "_type": "Value"}


def _trained(shape: Shape) -> list[Column]:
    """Return the columns that sentence-transformers and `datasets` look for."""
    texts = [Column("sentence1", "text_a", TEXT), Column("sentence2", "text_b", TEXT)]
    if not shape.paired:
        texts = [Column("text", "text_a", TEXT)]
    if shape.classes is None:
        return [*texts, Column("score", "label::DOUBLE", NUMBER)]
    feature = {"names": list(shape.classes), "_type": "ClassLabel"}
    return [*texts, Column("label", f"list_position({quoted_list(shape.classes)}, label)::BIGINT - 1", feature)]


def _recorded(shape: Shape, more: Sequence[str]) -> list[Column]:
    """Return the record's own columns."""
    texts = [Column(name, name, TEXT) for name in (("text_a", "text_b") if shape.paired else ("text_a",))]
    label = Column("label", "label::DOUBLE", NUMBER) if shape.classes is None else Column("label", "label", TEXT)
    kinds = {"VARCHAR": TEXT, "DOUBLE": NUMBER, "BIGINT": WHOLE}
    return [*texts, label, *(Column(name, name, kinds[COLUMN_TYPES[name]]) for name in more)]


def write(split: Split, folder: Path, scratch: Path) -> tuple[list[Path], int]:
    """Write a split as Parquet files whose names say how many there are.

    Args:
        split: what to write.
        folder: the dataset's.
        scratch: for what does not fit in memory.

    Returns:
        The files, and how many rows they hold; the same bytes for the same rows.

    Raises:
        DataError: a source cannot be read.
        OutputError: a file cannot be written.
    """
    (folder / split.folder).mkdir(parents=True, exist_ok=True)
    try:
        size = sum(path.stat().st_size for path in split.sources)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); filter again") from error
    count = max(1, -(-size // SHARD))
    selected = ", ".join(f'{column.sql} AS "{column.name}"' for column in split.columns)
    counted = f"SELECT *, row_number() OVER () AS place FROM {json_rows(split.sources)}"  # joins lose the order
    query = f"SELECT {selected} FROM ({counted}) WHERE {split.where} ORDER BY place"
    files = [folder / split.folder / f"{split.name}-{at:05d}-of-{count:05d}.parquet" for at in range(count)]
    features = {"info": {"features": {column.name: column.feature for column in split.columns}}}
    options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{huggingface: {quoted(json.dumps(features))}}}"
    database = scratch / f"{split.config}-{split.name}.duckdb"
    with connect(database, memory=MEMORY, threads=THREADS) as db:
        try:
            if count == 1:
                ((rows,),) = db.execute(f"COPY ({query}) TO {quoted(files[0])} ({options})").fetchall()
                return files, rows
            ((rows,),) = db.execute(f"CREATE TABLE rows AS {query}").fetchall()
            each = -(-rows // count)
            for at, file in enumerate(files):
                part = f"SELECT * FROM rows WHERE rowid >= {at * each} AND rowid < {(at + 1) * each} ORDER BY rowid"
                db.execute(f"COPY ({part}) TO {quoted(file)} ({options})")
        except duckdb.IOException as error:
            raise OutputError(f"{folder}: cannot be written ({first_line(error)}); make room and run again") from error
        except duckdb.Error as error:
            names = ", ".join(map(str, split.sources[:3]))
            raise DataError(f"{names}: cannot be read ({first_line(error)}); filter again") from error
    return files, rows
