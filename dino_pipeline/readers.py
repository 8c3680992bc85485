"""One reader for each kind of file that users bring."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_pipeline.errors import DataError, first_line
from dino_pipeline.examples import BYTE_ORDER_MARK, iter_examples
from dino_pipeline.files import MAX_LINE, line_too_long

if TYPE_CHECKING:
    from datasets import Dataset


TABLE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}
"""File endings of tables, and the format under which `datasets` reads them."""
JSON_ENDINGS = frozenset({".json", ".jsonl"})


def read_lines(path: Path, *, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, with or without a byte-order mark.

    Args:
        path: the file.
        newline: as `open` takes it; ``"\\n"`` lets only a line feed end a line.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has too long a line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, start=1):
                if len(line) > MAX_LINE:
                    raise DataError(f"{path}, line {number}: {line_too_long(len(line))}")
                yield line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {_first_bad_byte(path)} is not UTF-8", "save the file as UTF-8") from error


def _first_bad_byte(path: Path) -> str:
    """Return line and offset of the first byte that is not UTF-8."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}: byte {offset + error.start}"
            offset += len(line)
    return "a byte"  # the file has changed since


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
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})", "give one JSON object per line") from error


def read_tab_separated(path: Path, *, newline: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line; quotes have no meaning, and a blank line is one blank cell.

    Args:
        path: the file.
        newline: see `read_lines`.

    Raises:
        DataError: the file cannot be read.
    """
    for number, line in enumerate(read_lines(path, newline=newline), start=1):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def load_table(name: str, config: str | None = None, *, split: str = "train", revision: str | None = None) -> Dataset:
    """Return a table from a file or folder that `datasets` reads, or from the Hub.

    Args:
        name: a file (Parquet, CSV, TSV, Arrow, JSON lines), a folder or a Hub id.
        config: of a folder or a Hub id.
        split: of a folder or a Hub id; a file has only one.
        revision: of a Hub id.

    Raises:
        DataError: there is no such file or dataset, or `datasets` cannot read it.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    path = Path(name)
    suffix = path.suffix.lower()
    if not path.exists() and suffix in {*JSON_ENDINGS, ".txt", *TABLE_FORMATS}:
        raise DataError(f"{name}: is not there", "make it with {filter()}, or name another file")
    try:
        if path.is_file():
            options = {"delimiter": "\t"} if suffix == ".tsv" else {}
            return load_dataset(TABLE_FORMATS.get(suffix, "json"), data_files=name, split="train", **options)
        return load_dataset(name, config, split=split, revision=revision)
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


class DistinctTexts:
    """A set of texts that keeps their digests in a temporary file, because there may be more than fit in memory."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE texts (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, text: str) -> bool:
        """Add a text and return whether it is new."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return self._table.execute("INSERT OR IGNORE INTO texts VALUES (?)", (digest,)).rowcount > 0

    def close(self) -> None:
        """Delete the temporary file."""
        self._table.close()


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text once, where it occurs first."""
    with closing(DistinctTexts()) as known:
        yield from (text for text in texts if known.add(text))


def input_file(path: Path, input_format: str = "auto") -> InputFile:
    """Return a file's input texts. A pipe, which can be read only once, is copied to a temporary file first."""
    if not path.exists() or path.is_file():
        return InputFile(path, input_format)
    with tempfile.NamedTemporaryFile(prefix="inputs-", suffix=path.name, delete=False) as copy:
        atexit.register(Path(copy.name).unlink, missing_ok=True)
        try:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, copy)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read: {error.strerror}", "give a file with one text per line"
            ) from error
    return InputFile(Path(copy.name), input_format)


@dataclass(frozen=True)
class InputFile:
    """The distinct input texts of a file, in the order of their first occurrence. Each iteration reads the file again.

    Iterating raises `DataError` if the file cannot be read or holds no text; the message names file and line.

    Args:
        path: the file.
        input_format: ``text`` (one a line), ``jsonl`` (``text_a`` of each object), ``sts`` (both sentences of each row
            of the STS benchmark's TSV, with or without a header), or ``auto``: by the file's ending.
    """

    path: Path
    input_format: str = "auto"

    def __iter__(self) -> Iterator[str]:
        empty = True
        for text in distinct(stripped for text in self._texts() if (stripped := text.strip())):
            empty = False
            yield text
        if empty:
            raise DataError(f"{self.path}: holds no input texts", "give a file with one text per line")

    def _texts(self) -> Iterator[str]:
        ending = self.path.suffix.lower()
        if self.input_format == "jsonl" or (self.input_format == "auto" and ending in JSON_ENDINGS):
            return (example.text_a for example in iter_examples(self.path))
        if self.input_format == "sts" or (self.input_format == "auto" and ending in {".tsv", ".csv"}):
            return _sts_sentences(self.path)
        return read_lines(self.path)


def _sts_sentences(path: Path) -> Iterator[str]:
    """Yield both sentences of every row: columns 6 and 7, or those that a header names, as in GLUE."""
    first, second = 5, 6
    for number, cells in read_tab_separated(path):
        if number == 1 and "sentence1" in cells and "sentence2" in cells:
            first, second = cells.index("sentence1"), cells.index("sentence2")
        elif not any(cell.strip() for cell in cells):
            continue
        elif len(cells) > max(first, second):
            yield from (cells[first], cells[second])
        else:
            raise DataError(
                f"{path}, line {number}: {len(cells)} tab-separated columns, but sentences are expected in columns "
                f"{first + 1} and {second + 1}; is this an STS-benchmark file?",
                "{input_format} chooses another format",
            )


PIECE = 8 * 2**20
"""Bytes of a file that a process reads at a time."""
BLOCK = 2**20
"""Bytes read at a time to count lines."""


@dataclass(frozen=True)
class FilePiece:
    """The lines of a file that begin in a range of bytes."""

    number: int
    file: Path
    start: int
    end: int
    is_list: bool = False
    """The file was written from a list, an example a line; errors name the place in the list."""

    def lines(self) -> list[bytes]:
        """Return the lines. A line that begins before the range belongs to the piece before.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open(self.file, "rb") as file:
                file.seek(max(0, self.start - 1))
                if self.start:
                    file.readline()
                content = file.read(max(0, self.end - file.tell()))
                if content and not content.endswith(b"\n"):
                    content += file.readline()
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read: {error.strerror}") from error
        return (content if self.start else content.removeprefix(BYTE_ORDER_MARK)).split(b"\n")

    def place(self, line: int) -> str:
        """Return the file and the line number of one of the piece's lines, or the example's index in the list."""
        lines_before, bytes_left, block = 0, self.start, b"\n"
        with open(self.file, "rb") as file:
            while bytes_left and (block := file.read(min(bytes_left, BLOCK))):
                lines_before += block.count(b"\n")
                bytes_left -= len(block)
        lines_before += not block.endswith(b"\n")  # the line that begins before the piece
        index = lines_before + line
        return f"example {index}" if self.is_list else f"{self.file}, line {index + 1}"


def pieces(files: Sequence[Path], *, are_lists: bool = False) -> list[FilePiece]:
    """Return the pieces of all files, each of about `PIECE` bytes; ``are_lists``: see `FilePiece.is_list`."""
    all_pieces: list[FilePiece] = []
    for file in files:
        size = file.stat().st_size
        for start in range(0, size, PIECE):
            all_pieces.append(FilePiece(len(all_pieces), file, start, min(size, start + PIECE), are_lists))
    return all_pieces
