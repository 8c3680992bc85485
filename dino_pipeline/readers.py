"""Examples in whatever users bring: which column is which, and how a cell becomes a value. One set of rules for all.

- Columns have the record's names, usual other ones (`COLUMN_NAMES`), or those that the user says.
- Labels are numbers if a score is asked for. If nobody says what labels are, those of pairs that spell numbers are
  numbers. All others are the names of classes, as they stand in the file.
- An empty label is none. Rows of classified data that nobody could classify are left out, and counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dino_pipeline.delimited_files import DelimitedFile
from dino_pipeline.errors import DataError, short
from dino_pipeline.examples import COLUMN_NAMES, FIELDS, PROVENANCE, Example, example_of, parse_example
from dino_pipeline.json_files import JsonLines
from dino_pipeline.rows import (
    UNDECIDED,
    DatasetRows,
    LeftOut,
    ListRows,
    Row,
    RowsRead,
    Table,
    check_names,
    place,
)
from dino_pipeline.text import LONGEST_TEXT, as_number, excess
from dino_pipeline.text_files import has_plain_lines

LabelType = Literal["score", "class"]
Content = Literal["scored pairs", "classified pairs", "pairs", "classified texts", "texts"]
LOOKED_AT = 1000
"""Rows that tell whether a file holds records."""
SCORE_NAMES = ("score", "similarity_score", "similarity")
"""Columns of labels that are numbers."""
NOBODY_AGREED = "-"
"""The class of pairs that their annotators could not agree on, as SNLI writes it."""
NO_CLASS, NO_TEXT = "without a class", "without text"
TOO_LONG = f"with a text of more than {LONGEST_TEXT:,} characters"
"""Why rows are left out."""


def content_of(example: Example) -> Content:
    """Return what kind of data an example belongs to."""
    has_class = isinstance(example.label, str)
    if example.text_b is None:
        return "classified texts" if has_class else "texts"
    if example.label is None:
        return "pairs"
    return "classified pairs" if has_class else "scored pairs"


@dataclass
class ExampleReader:
    """The examples of tables, in order, all of the kind of the first. Each iteration reads them again, and counts.

    Args:
        name: of the data, for notes and the record.
        tables: where the rows are.
        columns: columns that are ``text_a``, ``text_b`` and ``label``, where their names do not say.
        label_type: ``score``: every label must be a number; ``class``: all are names; None: see the module.
        skip_blank: leave out rows without text.
        labelled: refuse rows without a label.
    """

    name: str
    tables: Sequence[Table]
    columns: Mapping[str, str] = field(default_factory=dict)
    label_type: LabelType | None = None
    skip_blank: bool = False
    labelled: bool = False
    _rows: int = field(default=0, init=False)
    _left_out: dict[str, LeftOut] = field(default_factory=dict, init=False)
    _first: tuple[str, Example] | None = field(default=None, init=False)
    _roles_of: dict[tuple[Hashable, ...], dict[str, Hashable]] = field(default_factory=dict, init=False)
    """Columns of the record's fields, by the columns of a row."""
    _unused: dict[str, None] = field(default_factory=dict, init=False)
    """Columns that are none of the record's fields."""

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples.

        Raises:
            DataError: a table cannot be read, or a row is not an example; the message names its place.
        """
        self._rows, self._left_out, self._first = 0, {}, None
        for table in self.tables:
            self._check_header(table)
            for number, example in self._examples_of(table):
                if self.skip_blank and not all(text.strip() for text in example.texts):
                    self._leave_out(NO_TEXT, table, number)
                    continue
                if self.labelled and example.label is None:
                    columns = f" (columns not used: {', '.join(self._unused)})" if self._unused else ""
                    raise DataError(
                        f"{place(table, number)}: has no label{columns}", "give each one, or {column=label=NAME}"
                    )
                self._check_kind(example, table, number)
                yield example

    @property
    def rows_read(self) -> RowsRead:
        """Return how many rows the last iteration read, and which it left out."""
        read_as = "; ".join(dict.fromkeys(table.read_as for table in self.tables if table.read_as))
        return RowsRead(
            source=self.name,
            rows=self._rows,
            left_out=tuple(self._left_out.values()),
            read_as=read_as,
            unused=tuple(self._unused),
        )

    @cached_property
    def numeric_labels(self) -> bool:
        """Return whether labels that spell numbers are numbers, which depends on the first row if nobody says."""
        if self.label_type is not None:
            return self.label_type == "score"
        for table in self.tables:
            for number, row in table.rows():
                second = self._roles(row, table, number).get("text_b")
                return second is not None and row[second] is not None
        return True

    @cached_property
    def holds_records(self) -> bool:
        """Return whether each line is a record of ours: JSON with our own names, as far as the first rows tell."""
        if self.columns or not self.tables:
            return False
        for table in self.tables:
            if not isinstance(table, JsonLines) or not has_plain_lines(table.path):
                return False
            for _, row in islice(table.values(), LOOKED_AT):
                if not (isinstance(row, dict) and "text_a" in row):
                    return False
                provenance = [name for name in PROVENANCE if name in row]
                roles = roles_in(tuple(row), {}, "")
                if len(provenance) not in (0, len(PROVENANCE)) or any(role != name for role, name in roles.items()):
                    return False
        return True

    def texts(self, *, of_pairs: bool = False) -> Iterator[str]:
        """Yield the first text of each row without space around it; of the STS benchmark's files, both.

        Args:
            of_pairs: yield both texts of every row.

        Raises:
            DataError: a table cannot be read, or a row has no text; the message names its place.
        """
        self._rows, self._left_out = 0, {}
        for table in self.tables:
            self._check_header(table)
            for number, row in table.rows():
                self._rows += 1
                where = place(table, number)
                roles = self._roles(row, table, number)
                is_sts = str(roles.get("text_b")).strip().lower() == "sentence2" or _is_without_header(table)
                if (of_pairs or is_sts) and "text_b" not in roles:
                    raise DataError(f"{where}: a second text is missing", "{input_format} chooses another format")
                wanted = ("text_a", "text_b") if of_pairs or is_sts else ("text_a",)
                example = example_of({role: row[roles[role]] for role in wanted}, where, False, bounded=False)
                texts = [text.strip() for text in example.texts]
                if not all(texts):
                    self._leave_out(NO_TEXT, table, number)
                if any(map(excess, texts)):
                    self._leave_out(TOO_LONG, table, number)
                yield from (text for text in texts if text and not excess(text))

    def _examples_of(self, table: Table) -> Iterator[tuple[int, Example]]:
        numeric_labels, must_be_number = self.numeric_labels, self.label_type == "score"
        if self.holds_records and isinstance(table, JsonLines):
            found = self._records(table, numeric_labels)
        else:
            found = self._converted(table, numeric_labels)
        for number, example in found:
            if must_be_number and isinstance(example.label, str):
                label = self._column_of("label")
                raise DataError(f"{place(table, number)}: {label} must be a number (it is {short(example.label)})")
            yield number, example

    def _records(self, table: JsonLines, numeric_labels: bool) -> Iterator[tuple[int, Example]]:
        """Yield the examples of a file of records, which takes a fifth of the time of `_converted`."""
        for number, line in table.lines():
            self._rows += 1
            yield number, parse_example(line.encode(), partial(place, table, number), numeric_labels)

    def _converted(self, table: Table, numeric_labels: bool) -> Iterator[tuple[int, Example]]:
        for number, row in table.rows():
            self._rows += 1
            where = place(table, number)
            roles = self._roles(row, table, number)
            values = {role: row[column] for role, column in roles.items()}
            for name in PROVENANCE:  # a table of text holds them as text
                if isinstance(values.get(name), str):
                    values[name] = as_number(values[name]) if values[name].strip() else None
            label = values.get("label")
            if label is UNDECIDED or (label == NOBODY_AGREED and roles["label"] == "gold_label"):
                self._leave_out(NO_CLASS, table, number)
                continue
            try:
                example = example_of(values, where, numeric_labels)
            except DataError as error:  # it names the record's field
                message = error.message
                for role in roles:
                    message = message.replace(f'"{role}"', self._column_of(role))
                raise DataError(message, error.remedy) from error
            if example.label is None and not any(text.strip() for text in example.texts):
                self._leave_out(NO_TEXT, table, number)
                continue
            if isinstance(example.label, str) and self.label_type is None and example.text_b is not None:
                self._check_score(roles, example.label, where)
            yield number, example

    def _check_score(self, roles: Mapping[str, Hashable], label: str, where: str) -> None:
        """Raise `DataError` if the label of a pair stands in a column of scores and is no number."""
        column = str(roles["label"])
        if column.strip().lower() in SCORE_NAMES:
            remedy = "write scores as 0.5; if these are names of classes, give {label_type=class}"
            raise DataError(f"{where}: {column!r} must be a number (it is {short(label)})", remedy)

    def _roles(self, row: Row, table: Table, number: int) -> dict[str, Hashable]:
        """Return the column of each of the record's fields that a row has."""
        columns = tuple(row)
        if columns not in self._roles_of:
            roles = roles_in(columns, self.columns, place(table, number))
            self._roles_of[columns] = roles
            unused = [str(column) for column in columns if column and column not in roles.values()]
            self._unused.update(dict.fromkeys([] if _is_without_header(table) else unused))
        return self._roles_of[columns]

    def _column_of(self, role: str) -> str:
        """Return the column of a field, as messages name it."""
        columns = [str(roles[role]) for roles in self._roles_of.values() if role in roles]
        return f'"{columns[-1] if columns else role}"'

    def _check_header(self, table: Table) -> None:
        """Raise `DataError` if a header names no column of texts."""
        if isinstance(table, DelimitedFile):
            roles_in(table.columns, self.columns, place(table, table.header or 1))

    def _leave_out(self, reason: str, table: Table, number: int) -> None:
        where = f"{Path(table.name).name}, " if len(self.tables) > 1 else ""
        before = self._left_out.get(reason) or LeftOut(reason=reason, rows=0, first=f"{where}{table.unit} {number}")
        self._left_out[reason] = before.model_copy(update={"rows": before.rows + 1})

    def _check_kind(self, example: Example, table: Table, number: int) -> None:
        if self._first is None:
            self._first = place(table, number), example
        first_place, first = self._first
        if content_of(example) == content_of(first):
            return
        where = place(table, number)
        for name, here, there in (
            ("second text", example.text_b, first.text_b),
            ("label", example.label, first.label),
        ):
            if (here is None) != (there is None):
                lacking, other = (where, first_place) if here is None else (first_place, where)
                raise DataError(f"{lacking}: has no {name}, but {other} has one", "fill it in, or leave the row out")
        raise DataError(
            f"{where}: the label is {short(example.label)}, and that of {first_place} is {short(first.label)}; "
            "some are numbers and some are names",
            "give each kind in a file of its own, or say that all are names ({label_type=class}, {data=probe=FILE})",
        )


def roles_in(columns: Sequence[Hashable], given: Mapping[str, str], where: str) -> dict[str, Hashable]:
    """Return the column of each of the record's fields that is among some columns.

    What only generation knows counts if all of it is there: other people's tables have columns such as ``input``.

    Raises:
        DataError: there is no column of first texts, or not the one that the user named.
    """
    shown = ", ".join(map(str, columns)) or "none"
    names = {str(column).strip().lower(): column for column in reversed(columns)}
    chosen: dict[str, Hashable] = {}
    for role, name in given.items():
        if name not in columns and str(name).strip().lower() not in names:
            raise DataError(f"{where}: has no column {name}, only {shown}")
        chosen[role] = name if name in columns else names[str(name).strip().lower()]
    free = {name: column for name, column in names.items() if column not in chosen.values()}
    roles = {name: free[name] for name in PROVENANCE if set(PROVENANCE) <= free.keys()}
    for role, usual in COLUMN_NAMES.items():
        found = [free[name] for name in usual if name in free]
        if role in chosen or found:
            roles[role] = chosen[role] if role in chosen else found[0]
    if "text_a" not in roles:
        raise DataError(
            f"{where}: text_a is missing (the columns are {shown})",
            "rename them to text_a, text_b and label, or name them: {column=text_a=NAME}",
        )
    return roles


def _is_without_header(table: Table) -> bool:
    return isinstance(table, DelimitedFile) and not table.header


def split_of(source: Any, names: Sequence[str]) -> Any:
    """Return the first of some splits that a `datasets.DatasetDict`, or another dict, has; other data as it is.

    Raises:
        DataError: it is a dict without them.
    """
    if not isinstance(source, Mapping):
        return source
    for name in names:
        if name in source:
            return source[name]
    found = ", ".join(map(str, source)) or "none"
    remedy = f"give a list, a dataset, a frame, or a dict with {' or '.join(names)}"
    raise DataError(f"a dict of {found}: is not a list of examples", remedy)


def list_reader(
    source: Any,
    label_type: LabelType | None = None,
    *,
    name: str = "the examples",
    columns: Mapping[str, str] | None = None,
) -> ExampleReader:
    """Return a reader of data that a Python user hands in.

    Args:
        source: a list of `Example`, of dicts with a text, of ``(text_a, text_b, label)`` or ``(text_a, text_b)``
            tuples, or of single texts; a `datasets.Dataset`; a pandas frame. Of a `datasets.DatasetDict`, the split
            ``train`` is taken.
        label_type: see `ExampleReader`.
        name: of the data.
        columns: see `ExampleReader`.

    Raises:
        DataError: the source is none of these.
    """
    if isinstance(source, str):
        raise DataError(f"{short(source)}: is one text", "give a list of texts or examples")
    source = split_of(source, ("train",))
    if not isinstance(source, Iterable):
        raise DataError(f"{short(source)}: holds no examples", "give a list of examples, a dataset or a frame")
    table: Table
    if hasattr(source, "features") and hasattr(source, "column_names"):
        table = DatasetRows(name, source)  # type: ignore[arg-type]
    elif hasattr(source, "to_dicts"):  # a polars frame
        table = ListRows(source.to_dicts(), FIELDS, name)
    elif hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas frame
        check_names(list(source.columns), name)
        table = ListRows(source.to_dict(orient="records"), FIELDS, name)
    else:
        table = ListRows(list(source), FIELDS, name)
    return ExampleReader(name, [table], columns or {}, label_type)
