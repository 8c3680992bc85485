"""How DuckDB reads our JSONL files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RECORD = {
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
"""The record's fields, those of dropped examples too, and what each is in a table."""
LONGEST_LINE = 64 * 2**20
"""In bytes."""
LITERAL = "hive_partitioning = false"
"""A folder called label=2 is no column."""


def records(paths: Sequence[Path]) -> str:
    """Return what a query selects from to read JSONL files of our own, in order."""
    columns = ", ".join(f"{field}: '{kind}'" for field, kind in RECORD.items())
    options = f"format='newline_delimited', columns={{{columns}}}, maximum_object_size={LONGEST_LINE}, {LITERAL}"
    return f"read_json({listed(paths)}, {options})"


def listed(texts: Sequence[Path] | Sequence[str]) -> str:
    """Return paths, or any texts, as a SQL list."""
    return f"[{', '.join(map(quoted, texts))}]"


def quoted(text: Path | str) -> str:
    """Return a path, or any text, as a SQL string."""
    return "'" + str(text).replace("'", "''") + "'"
