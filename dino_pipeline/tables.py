"""The table in any file that users bring, by its ending: JSON, CSV, TSV, Parquet, Arrow, plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dino_pipeline.delimited_files import DELIMITERS, DelimitedFile
from dino_pipeline.errors import DataError, first_line
from dino_pipeline.json_files import JsonLines, JsonValues, holds_values
from dino_pipeline.rows import (
    ROWS_AT_A_TIME,
    TEXT,
    DatasetRows,
    Row,
    Table,
    class_names,
    with_class_names,
    with_missing,
)
from dino_pipeline.text_files import read_lines, reading

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
DELIMITED_ENDINGS = (".csv", ".tsv")
TEXT_ENDINGS = (*JSON_ENDINGS, *DELIMITED_ENDINGS, ".txt")
TABLE_ENDINGS = (*TEXT_ENDINGS, ".parquet", ".arrow")


def open_file(path: Path, kind: str = "auto") -> Table:
    """Return the table in a file.

    Args:
        path: the file.
        kind: ``json``, ``delimited``, ``text``, ``parquet``, ``arrow``, or ``auto``: by the ending; other endings hold
            a text a line.

    Raises:
        DataError: the file is not there, or is not what its ending says.
    """
    ending = path.suffix.lower()
    if kind == "auto":
        kinds = dict.fromkeys(JSON_ENDINGS, "json") | dict.fromkeys(DELIMITED_ENDINGS, "delimited")
        kind = {**kinds, ".parquet": "parquet", ".arrow": "arrow"}.get(ending, "text")
    if kind == "json":
        return JsonValues(path) if holds_values(path) else JsonLines(path)
    if kind == "delimited":
        return DelimitedFile.open(path, "\t" if ending != ".csv" else DELIMITERS)
    if kind in ("parquet", "arrow"):
        return ColumnarFile(path)
    return TextLines(path)


@dataclass(frozen=True)
class TextLines:
    """A file with a text a line. Blank lines are not texts."""

    path: Path
    unit: ClassVar[str] = "line"
    read_as: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(read_lines(self.path), start=1):
            if text := line.strip():
                yield number, {TEXT: text}


@dataclass(frozen=True)
class ColumnarFile:
    """A Parquet file, or an Arrow file as `datasets` writes it."""

    path: Path
    unit: ClassVar[str] = "row"
    read_as: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        import pyarrow
        from datasets import Dataset, Features
        from pyarrow import parquet

        try:
            with reading(self.path):
                if self.path.suffix.lower() == ".arrow":
                    yield from DatasetRows(self.name, Dataset.from_file(str(self.path))).rows()
                    return
                with parquet.ParquetFile(self.path) as file:
                    classes = class_names(Features.from_arrow_schema(file.schema_arrow))
                    number = 0
                    for batch in file.iter_batches(ROWS_AT_A_TIME):
                        for row in batch.to_pylist():
                            number += 1
                            yield number, with_class_names(with_missing(row), classes)
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.path}: cannot be read ({first_line(error)}); is it whole?") from error
