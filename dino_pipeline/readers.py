"""Examples in whatever users bring: which column is which, and how a cell becomes a value. One set of rules for all.

- Columns have the record's names, usual other ones (`COLUMN_NAMES`), or those that the user says.
- Labels are numbers where a score is asked for, or where pairs have labels that all spell numbers. Else they are the
  names of classes, as they stand there.
- An empty label is none. Rows of classified data that nobody could classify are left out, and counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from dino_pipeline.delimited_files import DelimitedFile
from dino_pipeline.errors import DataError, first_line, short
from dino_pipeline.examples import COLUMN_NAMES, FIELDS, PROVENANCE, Example, example_of, parse_example
from dino_pipeline.json_files import JsonLines
from dino_pipeline.rows import (
    UNDECIDED,
    ClassifiedRows,
    DatasetRows,
    LeftOut,
    ListRows,
    Row,
    RowsRead,
    Table,
    class_names,
    place,
)
from dino_pipeline.tables import TABLE_ENDINGS, TEXT_ENDINGS, open_file

LabelType = Literal["score", "class"]
Content = Literal["scored pairs", "classified pairs", "pairs", "classified texts", "texts"]
NO_CLASS, NO_TEXT = "without a class", "without text"
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
    """The examples of tables, in order. Each iteration reads them again, and counts.

    Args:
        name: of the data, for notes and the record.
        tables: where the rows are.
        columns: columns that are ``text_a``, ``text_b`` and ``label``, where their names do not say.
        label_type: ``score``: every label must be a number; ``class``: all are names; None: see the module.
        skip_blank: leave out rows without text.
        one_kind: refuse rows of another kind than the first, say pairs among texts.
        labelled: refuse rows without a label.
    """

    name: str
    tables: Sequence[Table]
    columns: Mapping[str, str] = field(default_factory=dict)
    label_type: LabelType | None = None
    skip_blank: bool = False
    one_kind: bool = True
    labelled: bool = False
    _rows: int = 0
    _left_out: dict[str, LeftOut] = field(default_factory=dict)
    _first: tuple[str, Example] | None = None
    _roles_of: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)
    """Columns of the record's fields, by the columns of a row."""

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
                    raise DataError(f"{place(table, number)}: has no label", "give each example one")
                if self.one_kind:
                    self._check_kind(example, table, number)
                yield example

    @property
    def rows_read(self) -> RowsRead:
        """Return how many rows the last iteration read, and which it left out."""
        read_as = "; ".join(dict.fromkeys(table.read_as for table in self.tables if table.read_as))
        return RowsRead(source=self.name, rows=self._rows, left_out=tuple(self._left_out.values()), read_as=read_as)

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
        """Return whether the first row has the record's own names, and each is a line of JSON."""
        if self.columns:
            return False
        for table in self.tables:
            if not isinstance(table, JsonLines):
                return False
            for _, row in table.values():
                is_object = isinstance(row, dict) and "text_a" in row
                return is_object and all(role == column for role, column in roles_in(tuple(row), {}, "").items())
        return False

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
                both = (
                    of_pairs or roles.get("text_b", "").lower() == "sentence2" or not getattr(table, "has_header", True)
                )
                if both and "text_b" not in roles:
                    raise DataError(f"{where}: a second text is missing", "{input_format} chooses another format")
                example = example_of(
                    {role: row[roles[role]] for role in ("text_a", "text_b")[: 1 + both]}, where, False
                )
                texts = [text.strip() for text in example.texts]
                if not any(texts):
                    self._leave_out(NO_TEXT, table, number)
                yield from filter(None, texts)

    def _examples_of(self, table: Table) -> Iterator[tuple[int, Example]]:
        numeric_labels, must_be_number = self.numeric_labels, self.label_type == "score"
        if self.holds_records and isinstance(table, JsonLines):
            found = self._records(table, numeric_labels)
        else:
            found = self._converted(table, numeric_labels)
        for number, example in found:
            if must_be_number and isinstance(example.label, str):
                raise DataError(f'{place(table, number)}: "label" must be a number (it is {short(example.label)})')
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
            values = {role: row[column] for role, column in self._roles(row, table, number).items()}
            if values.get("label") is UNDECIDED:
                self._leave_out(NO_CLASS, table, number)
            else:
                yield number, example_of(values, where, numeric_labels)

    def _roles(self, row: Row, table: Table, number: int) -> dict[str, str]:
        """Return the column of each of the record's fields that a row has."""
        columns = tuple(row)
        if columns not in self._roles_of:
            self._roles_of[columns] = roles_in(columns, self.columns, place(table, number))
        return self._roles_of[columns]

    def _check_header(self, table: Table) -> None:
        """Raise `DataError` if a header names no column of texts."""
        if isinstance(table, DelimitedFile):
            roles_in(table.columns, self.columns, place(table, 1))

    def _leave_out(self, reason: str, table: Table, number: int) -> None:
        before = self._left_out.get(reason) or LeftOut(reason=reason, rows=0, first=f"{table.unit} {number}")
        self._left_out[reason] = before.model_copy(update={"rows": before.rows + 1})

    def _check_kind(self, example: Example, table: Table, number: int) -> None:
        if self._first is None:
            self._first = place(table, number), example
        first_place, first = self._first
        if content_of(example) != content_of(first):
            raise DataError(
                f"{place(table, number)}: belongs to {content_of(example)}, {first_place} to {content_of(first)} "
                f"(their labels are {short(example.label)} and {short(first.label)})",
                "give each kind in a file of its own",
            )


def roles_in(columns: Sequence[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the column of each of the record's fields that is among some columns.

    Raises:
        DataError: there is no column of first texts, or not the one that the user named.
    """
    for column in given.values():
        if column not in columns:
            raise DataError(f"{where}: has no column {column}, only {', '.join(map(str, columns))}")
    names = {str(column).strip().lower(): column for column in reversed(columns) if column not in given.values()}
    roles = {name: names[name] for name in PROVENANCE if name in names}
    for role, usual in COLUMN_NAMES.items():
        found = [names[name] for name in usual if name in names]
        if role in given or found:
            roles[role] = given.get(role) or found[0]
    if "text_a" not in roles:
        raise DataError(
            f"{where}: text_a is missing (the columns are {', '.join(map(str, columns)) or 'none'})",
            "rename them to text_a, text_b and label; for training, {column=text_a=NAME} names one, too",
        )
    return roles


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
    if isinstance(source, Mapping):
        if "train" not in source:
            names = ", ".join(map(str, source)) or "none"
            raise DataError(f"a dict of {names}: is not a list of examples", "give a list, a dataset or a frame")
        source = source["train"]  # a split of a datasets.DatasetDict
    if not isinstance(source, Iterable):
        raise DataError(f"{short(source)}: holds no examples", "give a list of examples, a dataset or a frame")
    table: Table
    if hasattr(source, "features") and hasattr(source, "column_names"):
        table = DatasetRows(name, source)  # type: ignore[arg-type]
    elif hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas frame
        table = ListRows(source.to_dict(orient="records"), FIELDS)
    else:
        table = ListRows(list(source), FIELDS)
    return ExampleReader(name, [table], columns or {}, label_type)


# Files, folders and the Hub


def open_tables(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None
) -> list[Table]:
    """Return the tables of a file, or of a dataset in a folder or on the Hub.

    Args:
        name: a file, a folder that `datasets` reads, or a Hub id.
        split: of a folder or a Hub id; a file has only one.
        config: of a folder or a Hub id.
        revision: of a Hub id.

    Raises:
        DataError: there is no such file or dataset, or it cannot be read.
    """
    path = Path(name)
    if path.is_file():
        return [open_file(path)]
    if not path.exists() and path.suffix.lower() in TABLE_ENDINGS:
        raise DataError(f"{name}: is not there", "name another file")
    with _dataset_errors(name):
        return _dataset_tables(name, split, config, revision)


def _dataset_tables(name: str, split: str, config: str | None, revision: str | None) -> list[Table]:
    """Return the tables of a dataset. Its text files are read by our own rules, as `datasets` guesses types."""
    from datasets import load_dataset, load_dataset_builder

    builder = load_dataset_builder(name, config, revision=revision)
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    if not files or any(Path(file).suffix.lower() not in TEXT_ENDINGS for file in files):
        return [DatasetRows(name, load_dataset(name, config, split=split, revision=revision))]
    classes = class_names(builder.info.features)
    tables = [open_file(_here(file)) for file in files]
    return [ClassifiedRows(table, classes) for table in tables] if classes else tables


def _here(file: str) -> Path:
    """Return the path of a dataset's file, which is fetched if it is on the Hub."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    if "://" not in file:
        return Path(file)
    place = HfFileSystem().resolve_path(file)
    return Path(hf_hub_download(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision))


@contextlib.contextmanager
def _dataset_errors(name: str) -> Iterator[None]:
    """Turn the errors of `datasets` into `DataError`."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except (DatasetNotFoundError, OSError) as error:
        raise DataError(
            f"{name}: is neither a file or folder here nor a dataset that can be had from the Hub "
            f"({first_line(error)})",
            "give a run's folder, a file, or a Hub id",
        ) from error
    except (DatasetsError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{name}: cannot be read as a dataset ({first_line(error)})", "see {split}, {config} and {revision}"
        ) from error
