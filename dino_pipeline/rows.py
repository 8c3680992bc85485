"""What every table that users bring is read as: rows of cells by column.

A cell is what stands in the file. No type is guessed: `1.10`, `007`, `NA` and `true` in a CSV file are strings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from dino_pipeline.errors import DataError, short
from dino_pipeline.text import as_number

if TYPE_CHECKING:
    from datasets import Dataset, Features

Row = Mapping[str, Any]
"""The cells of a row by column."""
TEXT = "text_a"
"""The column of a table that has only one, and no name for it."""
UNDECIDED = object()
"""The cell of a row that nobody could put into a class."""
ROWS_AT_A_TIME = 1000


class LeftOut(BaseModel, frozen=True, extra="forbid"):
    """Rows that a reader left out for one reason."""

    reason: str
    rows: int
    first: str
    """Place of the first of them: line 7."""


class RowsRead(BaseModel, frozen=True, extra="forbid"):
    """What was read of a user's data."""

    source: str
    """Name of the data."""
    rows: int
    left_out: tuple[LeftOut, ...] = ()
    read_as: str = ""
    """How the file was understood, where there was a choice."""

    @property
    def told(self) -> str:
        """Return this in a sentence."""
        parts = [f"{self.source}: {self.rows:,} row{'s' * (self.rows != 1)} read"]
        parts += [self.read_as] if self.read_as else []
        for each in self.left_out:
            more = f" and {each.rows - 1:,} more" if each.rows > 1 else ""
            parts.append(f"{each.rows:,} left out: {each.reason} ({each.first}{more})")
        return ", ".join(parts)


class Table(Protocol):
    """Rows that are read anew at each iteration."""

    @property
    def name(self) -> str:
        """File or dataset, for messages."""

    @property
    def unit(self) -> str:
        """What is counted: line, item, row or example."""

    @property
    def read_as(self) -> str:
        """How the file was understood, where there was a choice; else empty."""

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the number of each row and its cells. `DataError` names the place of a mistake."""


def place(table: Table, number: int) -> str:
    """Return table and row in words: ``data.csv, line 7``."""
    return f"{table.name}, {table.unit} {number}" if table.unit != "example" else f"example {number}"


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a `datasets.Dataset`."""

    name: str
    dataset: Dataset = field(repr=False)
    unit: ClassVar[str] = "row"
    read_as: ClassVar[str] = ""

    def rows(self) -> Iterator[tuple[int, Row]]:
        classes = class_names(self.dataset.features)
        number = 0
        for columns in self.dataset.iter(ROWS_AT_A_TIME):
            for cells in zip(*columns.values(), strict=True):
                number += 1
                row = with_missing(dict(zip(columns, cells, strict=True)))
                yield number, with_class_names(row, classes)


def plain(value: Any) -> Any:
    """Return a scalar of numpy as a value of Python, anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def with_missing(row: Row) -> Row:
    """Return a row of plain values; what a frame holds where there is no value (NaN, NA, NaT) is None."""
    values = {}
    for column, cell in row.items():
        value = plain(cell)
        is_missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
        values[column] = None if is_missing else value
    return values


def class_names(features: Features | None) -> dict[str, list[str]]:
    """Return the columns that hold numbers of classes, each with the names of the classes."""
    return {name: list(each.names) for name, each in (features or {}).items() if hasattr(each, "int2str")}


def with_class_names(row: Row, classes: Mapping[str, Sequence[str]]) -> Row:
    """Return a row with names for the numbers of classes, `UNDECIDED` for none and for -1."""
    if not classes:
        return row
    named = dict(row)
    for column, names in classes.items():
        value = row.get(column)
        number = -1.0 if value is None else as_number(str(value))
        if number is not None:
            named[column] = names[int(number)] if 0 <= number < len(names) else UNDECIDED
    return named


@dataclass(frozen=True)
class ClassifiedRows:
    """A table whose numbers of classes get the names that are declared beside it."""

    table: Table
    classes: Mapping[str, Sequence[str]]

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def unit(self) -> str:
        return self.table.unit

    @property
    def read_as(self) -> str:
        return self.table.read_as

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.table.rows():
            yield number, with_class_names(row, self.classes)


@dataclass(frozen=True)
class ListRows:
    """What a Python user hands in: dicts, records, tuples or texts."""

    items: Sequence[Any] = field(repr=False)
    fields: Sequence[str]
    """Names of the cells of a tuple, and of the attributes of a record."""
    name: str = "the examples"
    unit: ClassVar[str] = "example"
    read_as: ClassVar[str] = ""

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, item in enumerate(self.items):
            yield number, self._row(item, number)

    def _row(self, item: Any, number: int) -> Row:
        if isinstance(item, Mapping):
            return with_missing(item)
        if isinstance(item, str):
            return {TEXT: item}
        if isinstance(item, tuple | list) and 1 <= len(item) <= 3:
            return dict(zip(self.fields, map(plain, item), strict=False))
        if all(hasattr(item, name) for name in self.fields):
            return {name: plain(getattr(item, name)) for name in self.fields}
        remedy = "give an Example, a dict with text_a, a tuple (text_a, text_b, label), or a text"
        raise DataError(f"example {number}: is {short(item)}", remedy)
