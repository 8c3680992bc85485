"""DuckDB: opening a database, reading our files in SQL, quoting texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from dino_pipeline.examples import FIELDS, REASONS

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
"""The SQL type of each field of `examples.FIELDS` and `examples.REASONS`."""
assert tuple(COLUMN_TYPES) == (*FIELDS, *REASONS)
MAX_JSON_LINE = 64 * 2**20
"""In bytes."""
NO_HIVE_PARTITIONING = "hive_partitioning = false"
"""A folder named label=2 in a path is only a folder; DuckDB would make a column of it."""


def connect(
    file: Path | None = None, *, memory: str | None = None, threads: int | None = None, spill: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """Open a database and turn DuckDB's progress bar off.

    Args:
        file: where the database is stored; None keeps it in memory.
        memory: limit, such as ``1GB``; DuckDB spills to disk above it.
        threads: number of threads; None lets DuckDB choose.
        spill: folder to spill into; None lets DuckDB choose one next to ``file``.
    """
    settings: dict[str, Any] = {"memory_limit": memory, "threads": threads, "temp_directory": spill and str(spill)}
    given = {name: value for name, value in settings.items() if value is not None}
    database = duckdb.connect(":memory:" if file is None else str(file), config=given)
    database.execute("SET enable_progress_bar = false")
    return database


def json_rows(paths: Sequence[Path], columns: Mapping[str, str] = COLUMN_TYPES) -> str:
    """Return the table expression that reads JSON lines from files, in order.

    Args:
        paths: the files, at least one.
        columns: names and SQL types; other fields are ignored, missing ones are NULL.
    """
    types = ", ".join(f"{name}: {quoted(kind)}" for name, kind in columns.items())
    options = f"format='newline_delimited', columns={{{types}}}, maximum_object_size={MAX_JSON_LINE}"
    return f"read_json({quoted_list(paths)}, {options}, {NO_HIVE_PARTITIONING})"


def parquet_rows(paths: Sequence[Path]) -> str:
    """Return the table expression that reads Parquet files."""
    return f"read_parquet({quoted_list(paths)}, {NO_HIVE_PARTITIONING})"


def quoted_list(texts: Sequence[Path] | Sequence[str]) -> str:
    """Return paths or texts as a SQL list of strings."""
    return f"[{', '.join(map(quoted, texts))}]"


def quoted(text: Path | str) -> str:
    """Return a path or a text as a SQL string."""
    return "'" + str(text).replace("'", "''") + "'"
