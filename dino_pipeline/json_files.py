"""The rows of JSON files: an object or a string a line, or an array of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dino_pipeline.errors import DataError, short
from dino_pipeline.files import MAX_LINE
from dino_pipeline.rows import TEXT, FileTable, Row
from dino_pipeline.text_files import open_text, read_lines


@dataclass(frozen=True)
class JsonFile(FileTable):
    """Base of the two kinds: values of any shape, which are rows if they are objects or strings."""

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield each JSON value with the line on which it begins.

        Raises:
            DataError: something is not JSON.
        """
        raise NotImplementedError

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, value in self.values():
            if isinstance(value, str):
                yield number, {TEXT: value}
            elif isinstance(value, dict):
                yield number, value
            else:
                wanted = 'must be a JSON object such as {"text_a": ...}'
                raise DataError(f"{self.path}, line {number}: {wanted} (it is {short(value)})")

    def cells(self) -> Iterator[tuple[int, Sequence[Any]]]:
        for number, value in self.values():
            yield number, [value]


@dataclass(frozen=True)
class JsonLines(JsonFile):
    """A file with a value a line."""

    def values(self) -> Iterator[tuple[int, Any]]:
        for number, line in self.lines():
            yield number, _parsed(line, f"{self.path}, line {number}")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the number of each line that is not blank, and the line."""
        for number, line in enumerate(read_lines(self.path), start=1):
            if line.strip():
                yield number, line


@dataclass(frozen=True)
class JsonDocument(JsonFile):
    """A file with an array of values, or with values that go over several lines. It is read as a whole."""

    def values(self) -> Iterator[tuple[int, Any]]:
        with open_text(self.path) as file:
            text = file.read()
        decoder = json.JSONDecoder()
        at, line, counted = _after_blanks(text, 0), 1, 0
        end = "]" if text.startswith("[", at) else ""
        at = _after_blanks(text, at + len(end))
        while at < len(text) and not (end and text.startswith(end, at)):
            line, counted = line + text.count("\n", counted, at), at
            try:
                value, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                raise DataError(f"{self.path}, line {error.lineno}: not JSON ({error.msg})") from error
            except (RecursionError, ValueError) as error:
                raise _not_json(error, f"{self.path}, line {line}") from error
            yield line, value
            at = self._after_separator(text, at, end)
        if end:
            self._check_end(text, at)

    def _after_separator(self, text: str, at: int, end: str) -> int:
        """Return where the next value, or the array's end, begins."""
        at = _after_blanks(text, at)
        if not end or at == len(text) or text.startswith(end, at):
            return at
        if not text.startswith(",", at):
            raise self._wrong(text, at, "not JSON (a comma is missing between two items)")
        at = _after_blanks(text, at + 1)
        if text.startswith(end, at):
            raise self._wrong(text, at, "not JSON (there is no item behind the last comma)")
        return at

    def _check_end(self, text: str, at: int) -> None:
        """Raise `DataError` if an array does not end where the file does."""
        if at == len(text):
            raise self._wrong(text, at, "the array does not end; is the file cut off?")
        if (behind := _after_blanks(text, at + 1)) < len(text):
            error = self._wrong(text, behind, "there is more behind the array")
            error.remedy = "give one array of objects, or one object a line"
            raise error

    def _wrong(self, text: str, at: int, what: str) -> DataError:
        return DataError(f"{self.path}, line {1 + text.count(chr(10), 0, at)}: {what}")


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def is_document(path: Path) -> bool:
    """Return whether a JSON file has to be read as a whole: it begins with an array, or with a part of an object."""
    with open_text(path) as file:
        first = next(filter(str.strip, iter(partial(file.readline, MAX_LINE), "")), "")
        rest = file.read(1)
    if first.lstrip().startswith("["):
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return first.lstrip().startswith("{") and first.rstrip().endswith(("{", ",", "[", ":")) and bool(rest)
    return False


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON value of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is not JSON.
    """
    return JsonLines(path).values()


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (RecursionError, ValueError) as error:
        raise _not_json(error, where) from error


def _not_json(error: Exception, where: str) -> DataError:
    if isinstance(error, RecursionError):
        return DataError(f"{where}: nested too deeply; an example is a flat object")
    return DataError(f"{where}: not JSON ({error}); is the line cut off?", "give one JSON object per line")
