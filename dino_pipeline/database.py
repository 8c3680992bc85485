"""DuckDB: opening a database, how it reads files, and what its errors mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_pipeline.errors import MAKE_ROOM, OutputError, first_line, write_remedy
from dino_pipeline.odd_paths import beside, plain_path
from dino_pipeline.stopping import interrupt_when_stopped

if TYPE_CHECKING:
    import duckdb

_WRITING = re.compile("write|truncate|create|No space|too large", re.IGNORECASE)
"""What errors of input and output say where a file is written."""
_MESSAGE = re.compile(r'"exception_message":("(?:[^"\\]|\\.)*")')
_QUOTED = re.compile(r"\".*\"|(?<!\w)'.*'", re.DOTALL)
MAX_JSON_LINE = 64 * 2**20
"""In bytes, of a line that DuckDB reads."""
NO_HIVE_PARTITIONING = "hive_partitioning = false"
"""A folder named label=2 in a path is only a folder; DuckDB would make a column of it."""


def connect(
    file: Path | None = None, *, memory: str | None = None, threads: int | None = None, spill: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """Open a database and turn DuckDB's progress bar off.

    Args:
        file: where the database is stored; None keeps it in memory. Beneath a folder whose name DuckDB misreads, it is
            kept in memory, too, and spilled beside ``file``.
        memory: limit, such as ``1GB``; DuckDB spills to disk above it.
        threads: number of threads; None lets DuckDB choose.
        spill: folder to spill into; None lets DuckDB choose one next to ``file``.
    """
    import duckdb

    if file is not None and re.search(r"[\\?]", os.path.realpath(file)):  # a link to it would be resolved
        spill, file = spill or beside(file, ".spilled"), None
    folder = None if spill is None else plain_path(spill)
    settings: dict[str, Any] = {"memory_limit": memory, "threads": threads, "temp_directory": folder}
    given = {name: value for name, value in settings.items() if value is not None}
    with write_errors(file or spill):
        database = duckdb.connect(":memory:" if file is None else plain_path(file), config=given)
    database.execute("SET enable_progress_bar = false")
    interrupt_when_stopped(database)
    return database


@contextmanager
def write_errors(place: Path | None, room: str = MAKE_ROOM) -> Iterator[None]:
    """Turn the errors of a database that cannot be written, or finds no room, into `OutputError`; others pass.

    Args:
        place: what is written, for the message.
        room: what to do if there is no room; see `errors.write_remedy`.
    """
    import duckdb

    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException) as error:
        if isinstance(error, duckdb.IOException) and not _WRITING.search(_without_paths(error)):
            raise
        reason = database_reason(error)
        message = f"{place or 'the database'}: cannot be written ({reason})"
        raise OutputError(message, write_remedy(error, room)) from error


def _without_paths(error: BaseException) -> str:
    """Return what a database says is wrong, without what it quotes: a path may hold any words."""
    found = _MESSAGE.search(str(error))
    return _QUOTED.sub("", str(json.loads(found[1])) if found else str(error))


def database_reason(error: BaseException) -> str:
    """Return what a database says is wrong, without the form in which it reports errors of other threads."""
    line = first_line(error)
    found = _MESSAGE.search(line)
    return str(json.loads(found[1])) if found else line


def json_rows(paths: Sequence[Path], columns: Mapping[str, str]) -> str:
    """Return the table expression that reads JSON lines from files, in order.

    Args:
        paths: the files, at least one.
        columns: names and SQL types; other fields are ignored, missing ones are NULL.
    """
    types = ", ".join(f"{name}: {quoted(kind)}" for name, kind in columns.items())
    options = f"format='newline_delimited', columns={{{types}}}, maximum_object_size={MAX_JSON_LINE}"
    return f"read_json({quoted_list(map(plain_path, paths))}, {options}, {NO_HIVE_PARTITIONING})"


def parquet_rows(paths: Sequence[Path]) -> str:
    return f"read_parquet({quoted_list(map(plain_path, paths))}, {NO_HIVE_PARTITIONING})"


def quoted_list(texts: Iterable[str]) -> str:
    """Return texts as a SQL list of strings."""
    return f"[{', '.join(map(quoted, texts))}]"


def quoted(text: str) -> str:
    """Return a text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"
