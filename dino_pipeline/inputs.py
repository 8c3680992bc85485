"""Input texts that a user brings: plain text, JSONL, or the STS benchmark's TSV."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dino_pipeline.errors import DataError
from dino_pipeline.examples import LONGEST, iter_examples, too_long

FORMATS = ("auto", "text", "jsonl", "sts")


class Seen:
    """Remembers texts by their digests in a temporary file, so that memory does not grow with them."""

    def __init__(self) -> None:
        self.table = sqlite3.connect("")
        self.table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, text: str) -> bool:
        """Remember a text; return whether it is new."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return self.table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount > 0

    def close(self) -> None:
        """Forget all."""
        self.table.close()


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text where it occurs first."""
    with closing(Seen()) as seen:
        yield from (text for text in texts if seen.add(text))


def input_file(path: Path, input_format: str = "auto") -> InputFile:
    """Return a file's texts; what can be read only once, such as a pipe, is copied first."""
    if not path.exists() or path.is_file():
        return InputFile(path, input_format)
    with tempfile.NamedTemporaryFile(prefix="inputs-", suffix=path.name, delete=False) as copy:
        atexit.register(Path(copy.name).unlink, missing_ok=True)
        try:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, copy)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; give a file with one text a line") from error
    return InputFile(Path(copy.name), input_format)


@dataclass(frozen=True)
class InputFile:
    """The distinct input texts of a file, in the order of their first occurrence, read anew at each iteration.

    Iterating raises `DataError` if the file cannot be read or holds no text; the message names file and line.

    Args:
        path: the file.
        input_format: ``text`` (one a line), ``jsonl`` (``text_a`` of each object), ``sts`` (both sentences of each row
            of the STS benchmark's TSV, with or without a header), or ``auto``: by the file's ending.
    """

    path: Path
    input_format: str = "auto"

    def __iter__(self) -> Iterator[str]:
        chosen = _guess(self.path) if self.input_format == "auto" else self.input_format
        read = {"jsonl": _texts_of_examples, "text": read_lines, "sts": _sts_sentences}[chosen]
        empty = True
        for text in distinct(stripped for text in read(self.path) if (stripped := text.strip())):
            empty = False
            yield text
        if empty:
            raise DataError(f"{self.path}: holds no input texts; give a file with one text a line")


def _texts_of_examples(path: Path) -> Iterator[str]:
    return (example.text_a for example in iter_examples(path))


def _guess(path: Path) -> str:
    return {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "sts", ".csv": "sts"}.get(path.suffix.lower(), "text")


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file; raises `DataError` if it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if len(line) > LONGEST:
                    raise DataError(f"{path}, line {number}: {too_long(len(line))}")
                yield line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {_bad_byte(path)} is not UTF-8; save the file as UTF-8") from error


def _bad_byte(path: Path) -> str:
    """Say where the first byte is that is not UTF-8."""
    before = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}: byte {before + error.start}"
            before += len(line)
    return "a byte"  # the file changed meanwhile


def _sts_sentences(path: Path) -> Iterator[str]:
    """Yield both sentences of every row: columns 6 and 7, or those that a header (as in GLUE) names."""
    first, second = 5, 6
    for number, line in enumerate(read_lines(path), start=1):
        row = line.rstrip("\n").split("\t") if line.strip() else []
        if number == 1 and "sentence1" in row and "sentence2" in row:
            first, second = row.index("sentence1"), row.index("sentence2")
        elif len(row) > max(first, second):
            yield from (row[first], row[second])
        elif row:
            raise DataError(
                f"{path}, line {number}: {len(row)} tab-separated columns, but sentences are expected in columns "
                f"{first + 1} and {second + 1}; is this an STS-benchmark file? (--input-format chooses another)"
            )
