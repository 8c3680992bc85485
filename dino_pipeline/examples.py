"""`Example`, the record that all stages share, and its JSONL files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jsonlines
import msgspec

from dino_pipeline.errors import DataError, short
from dino_pipeline.files import MAX_LINE, line_too_long, write_json_lines
from dino_pipeline.text import as_number, has_lone_surrogate

_INT64 = 2**63
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
REASONS = ("reason", "evidence")
"""The fields that a dropped example has in addition."""
COLUMN_TYPES = {
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
"""The SQL type of each field of `FIELDS` and `REASONS`."""
assert tuple(COLUMN_TYPES) == (*FIELDS, *REASONS)


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
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if content.strip():
                    yield parse_example(content, partial("{}, line {}".format, path, number), numeric_labels)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


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
        raise DataError(f"{where()}: {line_too_long(len(line))}")
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
    valid_label = example.label is None or type(example.label) is (float if numeric_labels else str)
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
    return Example(
        text_a=_text(row, "text_a", where, required=True) or "",
        text_b=_text(row, "text_b", where),
        label=_label(row.get("label"), where, numeric_labels),
        logprob=_number(row, "logprob", where),
        margin=_number(row, "margin", where),
        input=_index(row, "input", where),
        sample=_index(row, "sample", where),
    )


def _text(row: dict[str, Any], field: str, where: str, required: bool = False) -> str | None:
    value = row.get(field)
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise DataError(f'{where}: "{field}" holds half of a surrogate pair', "write the whole character")
        return value
    if value is None and not required:
        return None
    if field not in row:
        raise DataError(f'{where}: "{field}" is missing (the fields are {", ".join(map(repr, row)) or "none"})')
    raise DataError(f'{where}: "{field}" must be a string (it is {short(value)})')


def _label(value: Any, where: str, numeric: bool) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str) and not (numeric and as_number(value) is not None):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _is_finite(value):
        raise DataError(f'{where}: "label" must be a finite number or a name (it is {short(value)})')
    return float(value) if numeric else str(value)


def _number(row: dict[str, Any], field: str, where: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise DataError(f'{where}: "{field}" must be a finite number (it is {short(value)})')
    return float(value)


def _is_finite(value: float | str) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _index(row: dict[str, Any], field: str, where: str) -> int | None:
    value = row.get(field)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < _INT64):
        return value
    raise DataError(f'{where}: "{field}" must be a whole number of 64 bits (it is {short(value)})')


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """Write examples as JSONL, atomically, and return the file's SHA-256."""
    return write_json_lines(path, map(asdict, examples))


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> str:
    """Write dropped examples with their reasons as JSONL, atomically, and return the file's SHA-256."""
    return write_json_lines(path, map(dropped_row, dropped))


def dropped_row(dropped: Dropped) -> dict[str, object]:
    """Return the JSON object of a dropped example."""
    return {**asdict(dropped.example), "reason": dropped.reason}
