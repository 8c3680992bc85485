"""What is read of a run to report on and publish it: record, spec, its texts in a database, and these as Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from dino_pipeline.database import connect, json_rows, quoted, quoted_list, write_errors
from dino_pipeline.errors import DataError, RunError, first_line, system_reason
from dino_pipeline.examples import FIELDS, PROVENANCE, REASONS
from dino_pipeline.files import shard_files
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.odd_paths import plain_path
from dino_pipeline.record import RunRecord
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.text import as_number, plain_label

MEMORY = "1GB"
"""That a database may take before it spills to disk."""
BINS = 24
SHARD = 512 * 2**20
"""Bytes of JSONL in a Parquet file, at most."""
THREADS = 2
"""A constant, so that the bytes of Parquet files do not depend on the machine."""
COLUMN_TYPES = {
    "text_a": "VARCHAR",
    "text_b": "VARCHAR",
    "label": "VARCHAR",
    "logprob": "DOUBLE",
    "margin": "DOUBLE",
    "input": "BIGINT",
    "sample": "BIGINT",
    "reason": "VARCHAR",
    "evidence": "VARCHAR",
}
"""The SQL type of each field of an example, and of a dropped one."""
assert tuple(COLUMN_TYPES) == (*FIELDS, *REASONS)
STRING = {"dtype": "string", "_type": "Value"}
FLOAT = {"dtype": "float64", "_type": "Value"}
INTEGER = {"dtype": "int64", "_type": "Value"}


@dataclass(frozen=True)
class OpenedRun:
    """A run with its record and its task spec, each read once."""

    run: Run
    record: RunRecord
    spec: TaskSpec | None
    """None if the texts came from a file."""

    @classmethod
    @contextmanager
    def locked(cls, run: Run | Path | str) -> Iterator[OpenedRun]:
        """Hold a run's folder for this process, and read its record and its spec.

        Raises:
            RunError: the folder is not a run, its run.json is damaged, or another process holds it.
            SpecError: its spec.json is damaged.
        """
        found = Run.of(run)
        if found is None or not found.is_run:
            remedy = "give a run's folder; {run=FOLDER} makes a stage keep one"
            if isinstance(run, str | Path | Run):
                remedy = "name a folder that {generate()} or {filter()} wrote"
            raise RunError(f"{run.path if isinstance(run, Run) else run}: is not a run", remedy)
        with found.locked():
            spec = load_spec(found.spec) if found.spec.exists() else None
            yield cls(found, found.record(), spec)


@dataclass(frozen=True)
class Histogram:
    """The distribution of a value by label."""

    edges: Sequence[float]
    """Of the bins; one more than there are bins."""
    counts: dict[str, list[int]]
    """Values in each bin, by label."""


class RunTexts:
    """A run's texts as tables of a database: written, rejected, kept (train and dev), dropped, dev.

    ``folder`` is for temporary files of the database.

    Raises:
        DataError: a file cannot be read.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.db = connect(folder / "report.duckdb", memory=MEMORY)
        files = {
            "written": shard_files(run.shards),
            "rejected": shard_files(run.rejected),
            "kept": [path for path in (run.train, run.dev) if path.exists()],
            "dev": [run.dev] if run.dev.exists() else [],
            "dropped": [run.dropped] if run.dropped.exists() else [],
        }
        self.filled = {name for name, paths in files.items() if any(path.stat().st_size for path in paths)}
        try:
            with write_errors(folder):
                for name, paths in files.items():
                    self._load(name, paths if name in self.filled else [])
        except BaseException:
            self.close()
            raise

    def _load(self, name: str, paths: Sequence[Path]) -> None:
        columns = ", ".join(f"{field} {kind}" for field, kind in COLUMN_TYPES.items())
        self.db.execute(f"CREATE TABLE {name} ({columns})")
        if not paths:
            return
        try:
            self.db.execute(f"INSERT INTO {name} FROM {json_rows(paths, COLUMN_TYPES)}")
        except duckdb.TransactionException:
            raise
        except duckdb.Error as error:
            names = ", ".join(map(str, paths))
            raise DataError(f"{names}: cannot be read ({first_line(error)})", "make it again") from error

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self.db.execute(sql).fetchall()

    def counts(self, table: str) -> dict[str, int]:
        """Return the number of a table's rows by label, in the order of labels."""
        counts: Counter[str] = Counter()
        for label, count in self.rows(f"SELECT label, count(*) FROM {table} GROUP BY 1"):
            counts[label_name(label)] += count
        return {label: counts[label] for label in in_order(counts)}

    @cached_property
    def paired(self) -> bool:
        """Return True if the texts are pairs."""
        return any(self.rows(f"SELECT count(text_b) FROM {table}")[0][0] for table in ("kept", "written"))

    def histogram(self, table: str, value: str, labels: Sequence[str]) -> Histogram | None:
        """Return the distribution of an SQL expression by label, in bins of equal width.

        The bins span the middle 99 % of all values; the outer bins count the values beyond them. Return None if all
        values are the same, or if there are none.
        """
        bounds = f"quantile_cont({value}, 0.005), quantile_cont({value}, 0.995)"
        low, high = self.rows(f"SELECT {bounds} FROM {table} WHERE {value} IS NOT NULL")[0]
        if low is None or high <= low:
            return None
        width = (high - low) / BINS
        position = f"greatest(0, least({BINS - 1}, floor(({value} - {low}) / {width})))::INTEGER"
        counts: dict[str, list[int]] = {}
        for label, position_, count in self.rows(
            f"SELECT label, {position}, count(*) FROM {table} WHERE {value} IS NOT NULL GROUP BY 1, 2"
        ):
            counts.setdefault(label_name(label), [0] * BINS)[position_] += count
        edges = [low + edge * width for edge in range(BINS + 1)]
        return Histogram(edges, {label: counts[label] for label in labels if label in counts})

    def quantiles(self, table: str, value: str) -> dict[str, list[float]]:
        """Return the count and the 5th, 50th and 95th percentile of an SQL expression, by label."""
        sql = f"SELECT label, count({value}), quantile_cont({value}, [0.05, 0.5, 0.95]) FROM {table} GROUP BY 1"
        by_label = {label_name(label): [count, *cuts] for label, count, cuts in self.rows(sql) if cuts}
        return {label: by_label[label] for label in in_order(by_label)}

    def sample(
        self, table: str, fields: str, count: int, by: str = "label", most: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Return up to ``count`` rows for each value of ``by``, and up to ``most`` in all.

        The choice looks random, and is the same whenever the table holds the same rows.
        """
        order = "md5(concat_ws(chr(0), text_a, text_b, label)), input, sample, logprob, margin"
        return self.rows(
            f"SELECT {fields} FROM {table} QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {order}) <= {count} "
            f"ORDER BY {by}, {order} LIMIT {'ALL' if most is None else most}"
        )


def label_name(label: str | None) -> str:
    """Return a label as tables show it: ``1.0`` is 1."""
    return plain_label(label) if label else "(empty)"


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels in order: numbers by size, then names by letter."""
    return sorted(labels, key=lambda label: (as_number(label) is None, as_number(label) or 0.0, label))


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

    ``scratch`` is for temporary files of the database.

    Raises:
        DataError: a source cannot be read.
        OutputError: a file cannot be written.
    """
    (folder / split.folder).mkdir(parents=True, exist_ok=True)
    try:
        size = sum(path.stat().st_size for path in split.sources)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({system_reason(error)})", "run {filter()} again") from error
    count = max(1, -(-size // SHARD))
    files = [folder / split.folder / f"{split.name}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    features = {"info": {"features": {column.name: column.feature for column in split.columns}}}
    options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{huggingface: {quoted(json.dumps(features))}}}"
    database = scratch / f"{split.config}-{split.name}.duckdb"
    with connect(database, memory=MEMORY, threads=THREADS) as db:
        try:
            with write_errors(folder):
                rows = _copy(db, _query(split), files, options)
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
        ((rows,),) = db.execute(f"COPY ({query}) TO {quoted(plain_path(files[0]))} ({options})").fetchall()
        return int(rows)
    ((rows,),) = db.execute(f"CREATE TABLE rows AS {query}").fetchall()
    per_file = -(-rows // len(files))
    for index, file in enumerate(files):
        bounds = f"rowid >= {index * per_file} AND rowid < {(index + 1) * per_file}"
        db.execute(f"COPY (SELECT * FROM rows WHERE {bounds} ORDER BY rowid) TO {quoted(plain_path(file))} ({options})")
    return int(rows)
