"""The table in any file that users bring, by its ending: JSON, CSV, TSV, Parquet, Arrow, plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from dino_pipeline.delimited_files import DELIMITERS, DelimitedFile
from dino_pipeline.errors import DataError, first_line
from dino_pipeline.json_files import JsonDocument, JsonLines, is_document
from dino_pipeline.rows import ROWS_AT_A_TIME, TEXT, FileTable, Row, Table, check_names, with_class_names, with_missing
from dino_pipeline.text_files import as_data_errors, read_lines

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch, Schema

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TEXT_ENDINGS = (*JSON_ENDINGS, ".csv", ".tsv", ".txt")
TABLE_ENDINGS = (*TEXT_ENDINGS, ".parquet", ".arrow", ".feather")
KINDS = {
    **dict.fromkeys(JSON_ENDINGS, "json"),
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".parquet", ".arrow", ".feather"), "columnar"),
}
"""Kind of the tables in files, by ending."""


def open_file(path: Path, kind: str = "auto") -> Table:
    """Return the table in a file.

    Args:
        path: the file.
        kind: ``json``, ``csv``, ``tsv``, ``text``, ``columnar``, or ``auto``: by the ending; files with other endings
            hold a text a line.

    Raises:
        DataError: the file is not there, or is not what its ending says.
    """
    if kind == "auto":
        kind = KINDS.get(path.suffix.lower(), "text")
    if kind == "json":
        return JsonDocument(path) if is_document(path) else JsonLines(path)
    if kind in ("csv", "tsv"):
        return DelimitedFile.open(path, DELIMITERS if kind == "csv" else "\t")
    return ColumnarFile(path) if kind == "columnar" else TextLines(path)


@dataclass(frozen=True)
class TextLines(FileTable):
    """A file with a text a line. Blank lines are not texts."""

    @cached_property
    def read_as(self) -> str:  # type: ignore[override]
        first = next((row[TEXT] for _, row in self.rows()), "")
        return "tabs are part of the texts (in a .tsv file they part cells)" if "\t" in first else ""

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(read_lines(self.path), start=1):
            if text := line.strip():
                yield number, {TEXT: text}

    def cells(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the parts of each line that tabs separate: pairs, in some files."""
        for number, row in self.rows():
            yield number, row[TEXT].split("\t")


@dataclass(frozen=True)
class ColumnarFile(FileTable):
    """A Parquet file, or an Arrow file of either kind."""

    unit: ClassVar[str] = "row"

    def rows(self) -> Iterator[tuple[int, Row]]:
        import pyarrow

        number = 0
        try:
            with as_data_errors(self.path), open(self.path, "rb") as file:
                for batch in _batches(file):
                    names = batch.schema.names
                    check_names(names, self.name)
                    classes = _class_names(batch.schema)
                    plain = [name for name in names if _is_plain(batch.schema.field(name).type)]
                    for row in batch.select(plain).to_pylist():
                        number += 1
                        yield number, with_class_names(with_missing(row), classes)
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.path}: cannot be read ({first_line(error)}); is it whole?") from error


def _batches(file: IO[bytes]) -> Iterator[RecordBatch]:
    """Yield the batches of rows of a Parquet file, an Arrow file, or an Arrow stream as `datasets` writes it."""
    from pyarrow import ipc, parquet

    start = file.read(6)
    file.seek(0)
    if start.startswith(b"PAR1"):
        yield from parquet.ParquetFile(file).iter_batches(ROWS_AT_A_TIME)
    elif start == b"ARROW1":
        reader = ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from ipc.open_stream(file)


def _class_names(schema: Schema) -> dict[str, list[str]]:
    """Return the columns that hold numbers of classes, as `datasets` notes them in the file, with their names."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (ValueError, TypeError, KeyError, AttributeError):  # there is no such note, or another program's
        return {}


def _is_plain(kind: DataType) -> bool:
    """Return whether a column may hold texts, labels or lists of texts; others, such as dates, are not read."""
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    return bool(is_text or is_number or types.is_boolean(kind) or types.is_null(kind))
