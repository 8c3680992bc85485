"""Example, the one record that runs through every stage, and its JSONL files."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import jsonlines
import msgspec

from dino_pipeline.errors import DataError, OutputError, short
from dino_pipeline.labels import as_number

I64 = 2**63
LONGEST = 16 * 2**20
"""Bytes of a line; what is longer is no sentence and no document."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, with its label and what generation knows of it."""

    text_a: str
    text_b: str | None = None
    """The second text; None for single-text tasks."""
    label: float | str | None = None
    """A number in similarity tasks, else the label's name; None for inputs."""
    logprob: float | None = None
    """Mean natural-log probability per token of the generated text under its own instruction, before debiasing."""
    margin: float | None = None
    """``logprob`` minus the same under the best counter-label; None without counters."""
    input: int | None = None
    """Index of the input; None where there are none."""
    sample: int | None = None
    """Index of the sample among those of the same input and label."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Both texts, or the one."""
        return (self.text_a,) if self.text_b is None else (self.text_a, self.text_b)


@dataclass(frozen=True, slots=True)
class Dropped:
    """An example that was not kept, and why."""

    example: Example
    reason: str


def read_examples(path: str | Path, *, numeric_labels: bool = True) -> list[Example]:
    """Read a JSONL file of examples; fields other than the record's are ignored.

    Args:
        path: the file; UTF-8, with or without a byte-order mark, any line ends.
        numeric_labels: turn labels that are strings of a number into numbers.

    Raises:
        DataError: the file is empty, or a line is no example; the message names file and line.
    """
    examples = list(iter_examples(path, numeric_labels=numeric_labels))
    if not examples:
        raise DataError(f"{path}: holds no examples; give a file with one JSON object a line")
    return examples


def iter_examples(path: str | Path, *, numeric_labels: bool = True) -> Iterator[Example]:
    """Yield the examples of a JSONL file, which may be empty; see `read_examples`."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                if line.strip():
                    yield parse_example(line, partial("{}, line {}".format, path, number), numeric_labels)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


_DECODER = msgspec.json.Decoder(Example)
_DECODER_OF_MANY = msgspec.json.Decoder(list[Example])


def parse_example(line: bytes, where: Callable[[], str], numeric_labels: bool) -> Example:
    """Return the example that a line of JSON holds.

    Args:
        line: UTF-8.
        where: says file and line, for errors.
        numeric_labels: turn labels that are strings of a number into numbers.

    Raises:
        DataError: it is no example.
    """
    if len(line) > LONGEST:
        raise DataError(f"{where()}: {too_long(len(line))}")
    try:
        example = _DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # find out what is wrong, and name it
        return _parse(line, where(), numeric_labels)
    return example if _is_right(example, numeric_labels) else _parse(line, where(), numeric_labels)


def too_long(size: int) -> str:
    """Say that a line of so many bytes or characters is too long."""
    return f"is {size / 2**20:.0f} MiB long, more than {LONGEST >> 20}; cut it into documents"


def parse_examples(lines: Sequence[bytes], numeric_labels: bool) -> list[Example] | None:
    """Return the examples of lines that each hold one, at once; None where that needs `parse_example`'s care."""
    if max(map(len, lines), default=0) > LONGEST:
        return None
    try:
        examples = _DECODER_OF_MANY.decode(b"[" + b",".join(lines) + b"]")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    right = len(examples) == len(lines) and all(_is_right(each, numeric_labels) for each in examples)
    return examples if right else None


def _is_right(example: Example, numeric_labels: bool) -> bool:
    """Say whether a decoded example is what `_parse` would make of its line."""
    right_label = example.label is None or type(example.label) is (float if numeric_labels else str)
    return right_label and abs(example.input or 0) < I64 and abs(example.sample or 0) < I64


def _parse(line: bytes, where: str, numeric_labels: bool) -> Example:
    try:
        row = jsonlines.Reader([line.decode("utf-8")]).read()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
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
        if holds_half_a_character(value):
            raise DataError(f'{where}: "{field}" holds half of a surrogate pair; write the whole character')
        return value
    if value is None and not required:
        return None
    if field not in row:
        raise DataError(f'{where}: "{field}" is missing (the fields are {", ".join(map(repr, row)) or "none"})')
    raise DataError(f'{where}: "{field}" must be a string (it is {short(value)})')


def holds_half_a_character(text: str) -> bool:
    """Say whether there is a lone surrogate in a text, which no file can hold as UTF-8."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _label(value: Any, where: str, numeric: bool) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str) and not (numeric and as_number(value) is not None):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _finite(value):
        raise DataError(f'{where}: "label" must be a finite number or a name (it is {short(value)})')
    return float(value) if numeric else str(value)


def _number(row: dict[str, Any], field: str, where: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise DataError(f'{where}: "{field}" must be a finite number (it is {short(value)})')
    return float(value)


def _finite(value: float | str) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _index(row: dict[str, Any], field: str, where: str) -> int | None:
    value = row.get(field)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < I64):
        return value
    raise DataError(f'{where}: "{field}" must be a whole number of 64 bits (it is {short(value)})')


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSONL, atomically."""
    write_rows(path, map(asdict, examples))


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write dropped examples, each with its reason, as JSONL, atomically."""
    write_rows(path, map(dropped_row, dropped))


def dropped_row(dropped: Dropped) -> dict[str, Any]:
    """Return the JSON object of a dropped example."""
    return {**asdict(dropped.example), "reason": dropped.reason}


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented for people, atomically."""
    content = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, atomically."""
    write_atomic(path, lambda file: file.write(content))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON objects, one a line, atomically."""

    def write(file: IO[bytes]) -> None:
        for row in rows:
            file.write(as_line(row))

    write_atomic(path, write)


def as_line(row: dict[str, Any]) -> bytes:
    """Return a JSON object as a line."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it: readers see the old file or the whole new one.

    Raises:
        OutputError: the disk is full or refuses; nothing half-written stays behind.
    """
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; what was finished before is kept: make room and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)  # is there only if something went wrong
