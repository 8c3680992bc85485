"""The rows of CSV and TSV files: what separates cells, what quotes mean, and where the names of columns stand."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dino_pipeline.errors import DataError, first_line, short
from dino_pipeline.examples import COLUMN_NAMES
from dino_pipeline.files import MAX_LINE
from dino_pipeline.rows import FileTable, Row, check_names
from dino_pipeline.text import as_number
from dino_pipeline.text_files import open_text, read_lines

DELIMITERS = ",;\t"
"""What may stand between the cells of a CSV file."""
STS_BENCHMARK = ("genre", "file", "year", "number", "label", "text_a", "text_b")
"""Columns of the STS benchmark's files, which have no header and may have more columns behind."""
SCORED_PAIRS = ("label", "text_a", "text_b")
"""Columns of a file without a header whose first cell is a number."""


@dataclass(frozen=True)
class DelimitedFile(FileTable):
    """A CSV or TSV file, with a header or in a layout that has none."""

    delimiter: str = ","
    quoted: bool = True
    """Whether a cell in quotes may hold delimiters, line ends and doubled quotes. Else quotes are part of the text."""
    columns: tuple[str, ...] = ()
    header: int = 0
    """Line of the header, 0 without one."""
    understood: str = ""
    """How the file was understood, where there was a choice."""
    line_ends: list[str] = field(default_factory=list, compare=False)
    """Places of cells that hold line ends, as far as rows were read."""

    @property
    def has_names(self) -> bool:
        """Return whether the first row names a column of texts: it is a header, not data."""
        return _names_texts(self.columns)

    @property
    def read_as(self) -> str:  # type: ignore[override]
        notes = [self.understood] if self.understood else []
        if self.line_ends:
            notes.append(f"{len(self.line_ends)} cells hold line ends (the first in {self.line_ends[0]})")
        return "; ".join(notes)

    @classmethod
    def open(cls, path: Path, delimiters: str) -> DelimitedFile:
        """Return a file, after looking at its first row and, in a TSV file, at its quotes.

        Args:
            path: the file.
            delimiters: what may stand between cells. Of several, that which gives the first line the most cells.

        Raises:
            DataError: the file cannot be read, or is empty.
        """
        delimiter = max(delimiters, key=partial(_first_cells, path))  # the first one, if several fit
        quoted, note = (True, "") if delimiter != "\t" else tab_separated_quotes(path)
        notes = [note, "separated by semicolons" if delimiter == ";" else ""]
        number, first = next(cls(path, delimiter, quoted).cells(), (0, []))
        if not first:
            raise DataError(f"{path}: is empty")
        if layout := _layout_without_header(first, delimiter):
            notes.append(f"without a header: {', '.join(layout)}")
        columns = layout or tuple(cell.strip() for cell in first)
        return cls(path, delimiter, quoted, columns, 0 if layout else number, "; ".join(filter(None, notes)))

    def rows(self) -> Iterator[tuple[int, Row]]:
        check_names([column for column in self.columns if column], f"{self.path}, line {self.header}")
        may_have_more = not self.header and self.columns == STS_BENCHMARK
        self.line_ends.clear()
        for number, cells in self.cells():
            if number == self.header:
                continue
            too_many = len(cells) > len(self.columns) and not may_have_more
            if len(cells) < len(self.columns) or too_many:
                raise DataError(
                    f"{self.path}, line {number}: {len(cells)} cells, but there are {len(self.columns)} columns "
                    f"({', '.join(self.columns)}); the last cell is {short(cells[-1])}",
                    "put cells that hold the separator in quotes" if self.quoted and too_many else "",
                )
            self._look_for_line_ends(number, cells)
            yield number, dict(zip(self.columns, cells, strict=False))

    def _look_for_line_ends(self, number: int, cells: list[str]) -> None:
        """Note a cell that holds line ends.

        Raises:
            DataError: it looks like several rows that two stray quotes have joined: each of three lines or more has as
                many separators as a row.
        """
        joined = self.delimiter.join(cells)
        if "\n" not in joined:
            return
        lines = joined.splitlines()
        where = f"lines {number} to {number + len(lines) - 1}"
        separators = {line.count(self.delimiter) for line in lines}
        if len(lines) > 2 and len(self.columns) > 1 and separators == {len(self.columns) - 1}:
            raise DataError(
                f"{self.path}, {where}: a quote opens in the first and closes in the last, but each looks like a row",
                "double quotes that are part of a text and put its cell in quotes, or give JSONL",
            )
        self.line_ends.append(where)

    def cells(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the first line and the cells of each row that is not blank, the header included.

        A row with separators and nothing between them counts as blank only before the first other one.
        """
        rows = read_quoted(self.path, self.delimiter) if self.quoted else read_tab_separated(self.path)
        has_begun = False
        for number, cells in rows:
            has_begun = has_begun or any(cell.strip() for cell in cells)
            is_blank = not cells or (len(cells) == 1 and not cells[0].strip() and len(self.columns) > 1)
            if has_begun and not is_blank:
                yield number, cells


def _layout_without_header(first: list[str], delimiter: str) -> tuple[str, ...]:
    """Return the columns of a file whose first row is of a layout that has no header; nothing if it is a header.

    Cells behind the STS benchmark's columns are its own only where tabs separate them: its texts hold commas.
    """
    for layout in (STS_BENCHMARK, SCORED_PAIRS):
        may_have_more = layout is STS_BENCHMARK and delimiter == "\t"
        is_right_size = len(first) == len(layout) or (len(first) > len(layout) and may_have_more)
        if is_right_size and as_number(first[layout.index("label")]) is not None:
            return layout
    return ()


def _first_cells(path: Path, delimiter: str) -> tuple[bool, int]:
    """Return whether the first line that is not blank holds a usual name of texts, and how many cells it has."""
    csv.field_size_limit(MAX_LINE)
    for line in read_lines(path, newline=""):
        if line.strip():
            cells = next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
            return _names_texts(cells), len(cells)
    return False, 0


def _names_texts(cells: Sequence[str]) -> bool:
    return any(cell.strip().lower() in COLUMN_NAMES["text_a"] for cell in cells)


def read_quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each row (RFC 4180).

    Raises:
        DataError: a quote does not close, or is followed by more text.
    """
    csv.field_size_limit(MAX_LINE)
    with open_text(path, newline="") as file:
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
    """Return whether quotes have their meaning of CSV in a TSV file, and a note if some cell begins with one.

    They have it if every one closes at the end of a cell. If that would join lines of a file all of whose lines have
    as many cells as the first, they are part of the text: a sentence may begin a quotation and a later one end it.
    """
    first: list[str] = []
    widths = set()
    first_quote = 0
    for number, cells in read_tab_separated(path):
        if any(cells):
            first = first or cells
            widths.add(len(cells))
        if not first_quote and any(cell.startswith('"') for cell in cells):
            first_quote = number
    if not first_quote:
        return False, ""
    as_text = f"quotes are part of the texts (the first in line {first_quote})"
    joins = False
    try:
        for _, cells in read_quoted(path, "\t"):
            joins = joins or any("\n" in cell or "\t" in cell for cell in cells)
    except DataError:
        return False, as_text
    has_no_less = _layout_without_header(first, "\t") == STS_BENCHMARK and min(widths) >= len(STS_BENCHMARK)
    is_regular = has_no_less or (len(widths) == 1 and widths != {1})
    if joins and is_regular:
        return False, as_text
    return True, f"quotes stand around cells (the first in line {first_quote})"
