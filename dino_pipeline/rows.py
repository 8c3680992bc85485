"""What every table that users bring is read as: rows of cells by column.

A cell is what stands in the file. No type is guessed: `1.10`, `007`, `NA` and `true` in a CSV file are strings.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from dino_pipeline.errors import DataError, short
from dino_pipeline.text import as_number

if TYPE_CHECKING:
    from datasets import Dataset, Features

Row = Mapping[Hashable, Any]
"""The cells of a row by column."""
TEXT = "text_a"
"""The column of a table that has only one, and no name for it."""
ROWS_AT_A_TIME = 1000
MOST_SHOWN = 5
"""Unused columns that a note names."""


class _Undecided:
    def __repr__(self) -> str:
        return "no class"


UNDECIDED = _Undecided()
"""The cell of a row that nobody could put into a class."""


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
    unused: tuple[str, ...] = ()
    """Columns that were not used."""

    @property
    def told(self) -> str:
        """Return this in a sentence."""
        parts = [f"{self.source}: {self.rows:,} row{'s' * (self.rows != 1)} read"]
        parts += [self.read_as] if self.read_as else []
        for each in self.left_out:
            more = f" and {each.rows - 1:,} more" if each.rows > 1 else ""
            parts.append(f"{each.rows:,} left out: {each.reason} ({each.first}{more})")
        if self.unused:
            more = ", ..." if len(self.unused) > MOST_SHOWN else ""
            parts.append(f"columns not used: {', '.join(self.unused[:MOST_SHOWN])}{more}")
        return ", ".join(parts)


class Table:
    """Rows that are read anew at each iteration."""

    name: str
    """File or dataset, for messages."""
    unit: ClassVar[str]
    """What is counted: line, row or example."""
    read_as: str = ""
    """How the file was understood, where there was a choice."""

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the number of each row and its cells.

        Raises:
            DataError: something is wrong; the message names the place.
        """
        raise NotImplementedError

    def cells(self) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the number of each row and all that stands there, even in a header or in no column."""
        for number, row in self.rows():
            yield number, [*row.values()]


@dataclass(frozen=True)
class FileTable(Table):
    """Base of the tables in files."""

    path: Path
    unit: ClassVar[str] = "line"

    @property
    def name(self) -> str:  # type: ignore[override]
        return str(self.path)


def check_names(names: Sequence[Hashable], where: str) -> None:
    """Raise `DataError` if two columns have the same name; the message begins with ``where``."""
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: two columns have the name {str(name)!r}; each needs its own")
        seen.add(name)


def place(table: Table, number: int) -> str:
    """Return table and row in words: ``data.csv, line 7``."""
    return f"{table.name}, {table.unit} {number}" if table.unit != "example" else f"example {number}"


@dataclass(frozen=True)
class DatasetRows(Table):
    """The rows of a `datasets.Dataset`."""

    name: str
    dataset: Dataset = field(repr=False)
    unit: ClassVar[str] = "row"

    def rows(self) -> Iterator[tuple[int, Row]]:
        classes = class_names(self.dataset.features)
        number = 0
        for columns in self.dataset.with_format(None).iter(ROWS_AT_A_TIME):
            for cells in zip(*columns.values(), strict=True):
                number += 1
                row = with_missing(dict(zip(columns, cells, strict=True)))
                yield number, with_class_names(row, classes)


def plain(value: Any) -> Any:
    """Return a scalar of numpy, or a decimal number, as a value of Python; anything else as it is."""
    if isinstance(value, Decimal):
        return float(value)
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
    """Return a row with names for the numbers of classes, `UNDECIDED` for none and for -1. Names stay as they are."""
    if not classes:
        return row
    named = dict(row)
    for column, names in classes.items():
        value = row.get(column)
        number = -1 if value is None else as_number(str(value))
        if number is not None and number == int(number) and value not in names:
            named[column] = names[int(number)] if 0 <= number < len(names) else UNDECIDED
    return named


@dataclass(frozen=True)
class ClassifiedRows(Table):
    """A table whose numbers of classes get the names that are declared beside it."""

    table: Table
    classes: Mapping[str, Sequence[str]]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.table.name

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.table.unit

    @property
    def read_as(self) -> str:  # type: ignore[override]
        return self.table.read_as

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.table.rows():
            yield number, with_class_names(row, self.classes)


@dataclass(frozen=True)
class ListRows(Table):
    """What a Python user hands in: dicts, records, tuples or texts."""

    items: Sequence[Any] = field(repr=False)
    fields: Sequence[str]
    """Names of the cells of a tuple, and of the attributes of a record."""
    name: str = "the examples"
    unit: ClassVar[str] = "example"

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
