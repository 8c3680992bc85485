"""The rows of CSV and TSV files: what separates cells, what quotes mean, and where the names of columns stand."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dino_pipeline.errors import DataError, first_line, short
from dino_pipeline.files import MAX_LINE
from dino_pipeline.rows import Row
from dino_pipeline.text import as_number
from dino_pipeline.text_files import opened, read_lines

DELIMITERS = ",;\t"
"""What may stand between the cells of a CSV file."""
STS_BENCHMARK = ("genre", "file", "year", "number", "label", "text_a", "text_b")
"""Columns of the STS benchmark's files, which have no header and may have more columns behind."""
SCORED_PAIRS = ("label", "text_a", "text_b")
"""Columns of a file without a header whose first cell is a number."""


@dataclass(frozen=True)
class DelimitedFile:
    """A CSV or TSV file, with a header or in the layout of the STS benchmark."""

    path: Path
    delimiter: str
    quoted: bool
    """Whether a cell in quotes may hold delimiters, line ends and doubled quotes. Else quotes are part of the text."""
    columns: tuple[str, ...]
    has_header: bool
    read_as: str = ""
    unit: ClassVar[str] = "line"

    @classmethod
    def open(cls, path: Path, delimiters: str) -> DelimitedFile:
        """Return a file, after looking at its first line and, in a TSV file, at its quotes.

        Args:
            path: the file.
            delimiters: what may stand between cells. Of several, that which gives the first line the most cells.

        Raises:
            DataError: the file cannot be read, is empty, or has neither a header nor a known layout.
        """
        first_lines = {delimiter: _first_row(path, delimiter) for delimiter in delimiters}
        delimiter = max(delimiters, key=lambda each: len(first_lines[each]))  # the first one, if several fit
        first, quoted, notes = first_lines[delimiter], True, []
        if not first:
            raise DataError(f"{path}: is empty")
        if delimiter == "\t":
            quoted, note = tab_separated_quotes(path)
            notes.append(note)
            if not quoted:
                first = next((cells for _, cells in read_tab_separated(path) if cells != [""]), first)
        if delimiter == ";":
            notes.append("separated by semicolons")
        layout = _layout_without_header(first)
        if layout:
            notes.append(f"without a header: {', '.join(layout)}")
        columns = layout or tuple(cell.strip() for cell in first)
        return cls(path, delimiter, quoted, columns, not layout, "; ".join(filter(None, notes)))

    def __post_init__(self) -> None:
        named = [column for column in self.columns if column]
        if repeated := [column for at, column in enumerate(named) if column in named[:at]]:
            raise DataError(f"{self.path}, line 1: two columns have the name {repeated[0]!r}; each needs its own")

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        cells_of = self.cells()
        if self.has_header:
            next(cells_of)
        for number, cells in cells_of:
            if len(cells) < len(self.columns) or (len(cells) > len(self.columns) and self.has_header):
                raise DataError(
                    f"{self.path}, line {number}: {len(cells)} cells, but there are {len(self.columns)} columns "
                    f"({', '.join(self.columns)}); the last cell is {short(cells[-1])}",
                    "put cells that hold the separator in quotes" if self.quoted else "",
                )
            yield number, dict(zip(self.columns, cells, strict=False))

    def cells(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the first line and the cells of each row that is not blank, the header included."""
        rows = read_quoted(self.path, self.delimiter) if self.quoted else read_tab_separated(self.path)
        has_cells = len(self.columns) > 1
        for number, cells in rows:
            is_blank = not cells or (len(cells) == 1 and not cells[0].strip() and (has_cells or not self.quoted))
            if not is_blank:
                yield number, cells


def _layout_without_header(first: list[str]) -> tuple[str, ...]:
    """Return the columns of a file whose first row is of a layout that has no header; nothing if it is a header."""
    for layout in (STS_BENCHMARK, SCORED_PAIRS):
        is_right_size = len(first) == len(layout) or (len(first) > len(layout) and layout is STS_BENCHMARK)
        if is_right_size and as_number(first[layout.index("label")]) is not None:
            return layout
    return ()


def _first_row(path: Path, delimiter: str) -> list[str]:
    """Return the cells of the first line that is not blank, whether its quotes are right or not."""
    for line in read_lines(path, newline=""):
        if line.strip():
            return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
    return []


def read_quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each row (RFC 4180).

    Raises:
        DataError: a quote does not close, or is followed by more text.
    """
    csv.field_size_limit(MAX_LINE)
    with opened(path, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            number = rows.line_num + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                what = "a quote does not close" if "end of data" in str(error) else first_line(error)
                remedy = "double the quotes in a cell and put it in quotes, or give JSONL"
                raise DataError(f"{path}, line {number}: {what}", remedy) from error
            if cells is None:
                return
            yield number, cells


def read_tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line; quotes have no meaning, and a blank line is one blank cell.

    Only a line feed ends a line: texts hold other characters that count as line ends elsewhere.

    Raises:
        DataError: the file cannot be read.
    """
    for number, line in enumerate(read_lines(path, newline="\n"), start=1):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def tab_separated_quotes(path: Path) -> tuple[bool, str]:
    """Return whether quotes have their meaning in a TSV file, and a note if some cell begins with one.

    They have it if every one closes at the end of a cell. If that would join lines of a file all of whose lines have
    as many cells as the first, they are part of the text: a sentence may begin a quotation and a later one end it.
    """
    widths = set()
    first_quote = 0
    for number, cells in read_tab_separated(path):
        if any(cells):
            widths.add(len(cells))
        if not first_quote and any(cell.startswith('"') for cell in cells):
            first_quote = number
    if not first_quote:
        return True, ""
    as_text = f"quotes are part of the texts (the first in line {first_quote})"
    joins = False
    try:
        for _, cells in read_quoted(path, "\t"):
            joins = joins or any("\n" in cell or "\t" in cell for cell in cells)
    except DataError:
        return False, as_text
    is_regular = len(widths) == 1 and widths != {1}
    if joins and is_regular:
        return False, as_text
    return True, f"quotes stand around cells (the first in line {first_quote})"
