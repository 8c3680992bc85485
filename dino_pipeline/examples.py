"""`Example`, the record that all stages share: its JSONL files, and what Python users get back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, overload

import jsonlines
import msgspec

from dino_pipeline.errors import DataError, short, system_reason
from dino_pipeline.files import LINE_TOO_LONG, MAX_LINE, write_json_lines
from dino_pipeline.progress import table_html
from dino_pipeline.text import LONGEST_TEXT, as_number, excess, has_lone_surrogate

if TYPE_CHECKING:
    import datasets
    import pandas

_INT64 = 2**63
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, with its label and what generation knows about it."""

    text_a: str
    text_b: str | None = None
    """The second text; None for single-text tasks."""
    label: float | str | None = None
    """A number in similarity tasks, else the label's name; None for inputs."""
    logprob: float | None = None
    """Mean natural-log probability per token of the generated text under its own instruction, before debiasing."""
    margin: float | None = None
    """``logprob`` minus the same under the best counter-label; None without counter-labels."""
    input: int | None = None
    """Index of the input; None if the spec takes no inputs."""
    sample: int | None = None
    """Index of the sample among those of the same input and label."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Both texts, or the only one."""
        return (self.text_a,) if self.text_b is None else (self.text_a, self.text_b)


@dataclass(frozen=True, slots=True)
class Dropped:
    """An example that was not kept, and the reason."""

    example: Example
    reason: str


FIELDS = tuple(field.name for field in fields(Example))
"""Names of the record's fields, in the order in which files hold them."""
PROVENANCE = FIELDS[3:]
"""The fields that only generation knows: logprob, margin, input, sample."""
COLUMN_NAMES = {
    "text_a": (
        *("text_a", "sentence1", "premise", "anchor", "query", "question"),
        *("text", "sentence", "document", "content"),
    ),
    "text_b": ("text_b", "sentence2", "hypothesis", "positive", "passage", "answer", "code"),
    "label": ("label", "score", "similarity_score", "similarity", "class", "gold_label", "is_duplicate"),
}
"""Names under which other people's data holds a field; the first that is there counts."""
CUT_IT = "cut it into documents, or leave the row out"
"""Remedy for a text that is too long."""
REASONS = ("reason", "evidence")
"""The fields that a dropped example has in addition."""


def read_examples(path: str | Path, *, numeric_labels: bool = True) -> list[Example]:
    """Return the examples of a JSONL file. Fields other than the record's are ignored.

    Args:
        path: UTF-8, with or without a byte-order mark, any line ends.
        numeric_labels: turn labels that spell a number into numbers.

    Raises:
        DataError: the file is empty, or a line is not an example; the message names file and line.
    """
    examples = list(iter_examples(path, numeric_labels=numeric_labels))
    if not examples:
        raise DataError(f"{path}: holds no examples", "give a file with one JSON object per line")
    return examples


def iter_examples(path: str | Path, *, numeric_labels: bool = True) -> Iterator[Example]:
    """Yield the examples of a JSONL file, which may be empty; see `read_examples`."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if content.strip():
                    yield parse_example(content, partial("{}, line {}".format, path, number), numeric_labels)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {system_reason(error)}") from error


_DECODER = msgspec.json.Decoder(Example)
_LIST_DECODER = msgspec.json.Decoder(list[Example])


def parse_example(line: bytes, where: Callable[[], str], numeric_labels: bool) -> Example:
    """Return the example that a line of JSON holds.

    Args:
        line: UTF-8.
        where: returns file and line for error messages; called only for errors.
        numeric_labels: turn labels that spell a number into numbers.

    Raises:
        DataError: the line is not an example.
    """
    if len(line) > MAX_LINE:
        raise DataError(f"{where()}: {LINE_TOO_LONG}")
    try:
        example = _DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # the careful parser converts, or names the mistake
        return _parse_carefully(line, where(), numeric_labels)
    return example if _is_valid(example, numeric_labels) else _parse_carefully(line, where(), numeric_labels)


def parse_examples(lines: Sequence[bytes], numeric_labels: bool) -> list[Example] | None:
    """Return the examples of many lines at once; None if one of them needs the care of `parse_example`."""
    if max(map(len, lines), default=0) > MAX_LINE:
        return None
    try:
        examples = _LIST_DECODER.decode(b"[" + b",".join(lines) + b"]")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    valid = len(examples) == len(lines) and all(_is_valid(example, numeric_labels) for example in examples)
    return examples if valid else None


def _is_valid(example: Example, numeric_labels: bool) -> bool:
    """Return whether a decoded example is what `_parse_carefully` would make of its line."""
    label = example.label
    if len(example.text_a) > LONGEST_TEXT or len(example.text_b or "") > LONGEST_TEXT:
        return False
    valid_label = label is None or (type(label) is (float if numeric_labels else str) and label != "")
    return valid_label and abs(example.input or 0) < _INT64 and abs(example.sample or 0) < _INT64


def _parse_carefully(line: bytes, where: str, numeric_labels: bool) -> Example:
    try:
        row = jsonlines.Reader([line.decode("utf-8")]).read()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply; an example is a flat object") from error
    except jsonlines.InvalidLineError as error:
        cause = error.__cause__ or error
        raise DataError(f"{where}: not JSON ({cause}); is the line cut off?") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: must be a JSON object such as {{"text_a": ...}} (it is {short(row)})')
    return example_of(row, where, numeric_labels)


def example_of(row: Mapping[str, object], where: str, numeric_labels: bool, *, bounded: bool = True) -> Example:
    """Return the example that a row holds; fields other than the record's are ignored.

    Args:
        row: values by the record's fields.
        where: file and line for error messages.
        numeric_labels: turn labels that spell a number into numbers.
        bounded: refuse texts longer than `LONGEST_TEXT`; False leaves that to the caller.

    Raises:
        DataError: a field holds a wrong value.
    """
    return Example(
        text_a=_text(row, "text_a", where, required=True, bounded=bounded) or "",
        text_b=_text(row, "text_b", where, bounded=bounded),
        label=_label(row.get("label"), where, numeric_labels),
        logprob=_number(row, "logprob", where),
        margin=_number(row, "margin", where),
        input=_index(row, "input", where),
        sample=_index(row, "sample", where),
    )


def _text(
    row: Mapping[str, object], field: str, where: str, *, required: bool = False, bounded: bool = True
) -> str | None:
    value = row.get(field)
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise DataError(f'{where}: "{field}" holds half of a surrogate pair', "write the whole character")
        if bounded and (problem := excess(value)):
            raise DataError(f'{where}: "{field}" {problem}', CUT_IT)
        return value
    if value is None and field in row:
        return "" if required else None
    if value is None and not required:
        return None
    if field not in row:
        raise DataError(f'{where}: "{field}" is missing (the fields are {", ".join(map(repr, row)) or "none"})')
    raise DataError(f'{where}: "{field}" must be a string (it is {short(value)})')


def _label(value: object, where: str, numeric: bool) -> float | str | None:
    """Return a label: a number if it may be one and spells one, else a name; None for an empty one.

    As a name, a number is written without a fraction of zero, and a truth value as in JSON.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    number = as_number(value) if isinstance(value, str) else value
    if isinstance(value, str) and (number is None or not numeric):
        if has_lone_surrogate(value):
            raise DataError(f'{where}: "label" holds half of a surrogate pair', "write the whole character")
        if problem := excess(value):
            raise DataError(f'{where}: "label" {problem}', "give each class a short name")
        return value
    if not _is_finite(number):
        raise DataError(f'{where}: "label" must be a finite number or a name (it is {short(value)})')
    assert isinstance(number, int | float)
    if numeric:
        return float(number)
    return str(int(number)) if number == int(number) else repr(number)


def _number(row: Mapping[str, object], field: str, where: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if not _is_finite(value):
        raise DataError(f'{where}: "{field}" must be a finite number (it is {short(value)})')
    return float(value)  # type: ignore[arg-type]


def _is_finite(value: object) -> bool:
    """Return whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _index(row: Mapping[str, object], field: str, where: str) -> int | None:
    """Return a whole number. In a table where some are missing, pandas makes floats of them."""
    value = row.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < _INT64):
        return value
    raise DataError(f'{where}: "{field}" must be a whole number of 64 bits (it is {short(value)})')


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def canonical_line(example: Example) -> bytes:
    """Return the JSON of an example as `write_examples` writes it, without the line end.

    It is the same however the line was written from which the example was read.
    """
    return _ENCODE({name: getattr(example, name) for name in FIELDS}).encode()


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """Write examples as JSONL, atomically, and return the file's SHA-256."""
    return write_json_lines(path, map(asdict, examples))


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> str:
    """Write dropped examples with their reasons as JSONL, atomically, and return the file's SHA-256."""
    return write_json_lines(path, map(dropped_row, dropped))


def dropped_row(dropped: Dropped) -> dict[str, object]:
    return {**asdict(dropped.example), "reason": dropped.reason}


SHOWN = 5
"""Examples that a notebook shows."""


class ExampleList(Sequence[Example]):
    """Examples in a fixed order. Base of the results of stages.

    Args:
        examples: the examples.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> ExampleList: ...

    def __getitem__(self, index: int | slice) -> Example | ExampleList:
        return ExampleList(self.examples[index]) if isinstance(index, slice) else self.examples[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"

    @property
    def summary(self) -> str:
        """Return what the list holds, in a line."""
        return f"{len(self)} examples"

    def to_dicts(self) -> list[dict[str, object]]:
        """Return the examples as dicts with the record's fields."""
        return [asdict(example) for example in self]

    def to_dataset(self) -> datasets.Dataset:
        """Return the examples as a `datasets.Dataset`, one column per field."""
        from datasets import Dataset

        return Dataset.from_list(self.to_dicts()) if len(self) else Dataset.from_dict({name: [] for name in FIELDS})

    def to_pandas(self) -> pandas.DataFrame:
        """Return the examples as a pandas frame, one column per field."""
        import pandas

        return pandas.DataFrame(self.to_dicts(), columns=list(FIELDS))

    def _repr_html_(self) -> str:
        header = ("text_a", "text_b", "label")
        rows = []
        for example in self[:SHOWN]:
            values = [getattr(example, name) for name in header]
            rows.append(["" if value is None else str(value) for value in values])
        return table_html(self.summary, header, rows)
