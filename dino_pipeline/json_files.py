"""The rows of JSON files: an object or a string a line, or an array of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dino_pipeline.errors import DataError, short
from dino_pipeline.rows import TEXT, Row
from dino_pipeline.text_files import opened, read_lines


@dataclass(frozen=True)
class JsonLines:
    """A file with a JSON object, or a string, a line."""

    path: Path
    unit: ClassVar[str] = "line"
    read_as: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, value in self.values():
            yield number, _json_row(value, f"{self.path}, line {number}")

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield the number and the JSON value of each line that is not blank."""
        return read_json_lines(self.path)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the number of each line that is not blank, and the line."""
        for number, line in enumerate(read_lines(self.path), start=1):
            if line.strip():
                yield number, line


@dataclass(frozen=True)
class JsonValues:
    """A file with an array of JSON objects or strings, or with objects that go over several lines."""

    path: Path
    unit: ClassVar[str] = "line"
    read_as: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, value in self.values():
            yield number, _json_row(value, f"{self.path}, line {number}")

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield each item of the array, or each value where there is no array, with the line on which it begins.

        Raises:
            DataError: something is not JSON.
        """
        with opened(self.path) as file:
            text = file.read()
        decoder = json.JSONDecoder()
        at, line, counted = _after_blanks(text, 0), 1, 0
        is_array = text.startswith("[", at)
        at = _after_blanks(text, at + is_array)
        end = "]" if is_array else ""
        while at < len(text) and not (end and text.startswith(end, at)):
            line, counted = line + text.count("\n", counted, at), at
            try:
                value, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                raise DataError(f"{self.path}, line {error.lineno}: not JSON ({error.msg})") from error
            except RecursionError as error:
                raise DataError(f"{self.path}, line {line}: nested too deeply; an example is a flat object") from error
            yield line, value
            at = self._after_separator(text, at, end)
        line += text.count("\n", counted, at)
        if end and not text.startswith(end, at):
            raise DataError(f"{self.path}, line {line}: the array does not end; is the file cut off?")
        if end and _after_blanks(text, at + 1) < len(text):
            remedy = "give one array of objects, or one object a line"
            raise DataError(f"{self.path}, line {line}: there is more behind the array", remedy)

    def _after_separator(self, text: str, at: int, end: str) -> int:
        """Return where the next value, or the array's end, begins."""
        at = _after_blanks(text, at)
        if end and text.startswith(",", at):
            return _after_blanks(text, at + 1)
        if end and at < len(text) and not text.startswith(end, at):
            line = 1 + text.count("\n", 0, at)
            raise DataError(f"{self.path}, line {line}: not JSON (a comma is missing between two items)")
        return at


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def holds_values(path: Path) -> bool:
    """Return whether a JSON file is no file of JSON lines: it holds an array, or its first line is no whole value."""
    for line in read_lines(path):
        if line.strip():
            return line.lstrip().startswith("[") or (path.suffix.lower() == ".json" and line.strip() in ("{", "{}"))
    return False


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON value of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is not JSON.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


def parse_json(text: str, where: str) -> Any:
    """Return a JSON value.

    Raises:
        DataError: the text is not JSON; the message begins with ``where``.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply; an example is a flat object") from error
    except ValueError as error:
        raise DataError(
            f"{where}: not JSON ({error}); is the line cut off?", "give one JSON object per line"
        ) from error


def _json_row(value: Any, where: str) -> Row:
    if isinstance(value, str):
        return {TEXT: value}
    if not isinstance(value, dict):
        raise DataError(f'{where}: must be a JSON object such as {{"text_a": ...}} (it is {short(value)})')
    return value
