"""The lines of a text file: its encoding, and what is wrong if it has none."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from dino_pipeline.errors import DataError, system_reason
from dino_pipeline.files import LINE_TOO_LONG, MAX_LINE

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings that a file names itself, by its first bytes."""
OTHER_FILES = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"PK\x03\x04": "a zip archive or an Office document; unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"\xd0\xcf\x11\xe0": "an old Office document; save it as CSV",
    b"PAR1": "a Parquet file; let its name end in .parquet",
    b"ARROW1": "an Arrow file; let its name end in .arrow",
    b"%PDF": "a PDF document; save its text",
}
"""What a file without text is, by its first bytes, and what to do."""
POINTER = b"version https://git-lfs"
LEGACY = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "mac_roman"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949", "utf_16_le", "utf_16_be"),
)
"""Encodings that a file which is not UTF-8 may have, the usual ones first."""
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
"""Bytes that no text holds."""
SAMPLE = 2**16
"""Bytes from which an encoding is guessed."""


def encoding_of(path: Path) -> str:
    """Return the encoding that a file's first bytes name, else UTF-8.

    Raises:
        DataError: the file cannot be read, or is no text.
    """
    with as_data_errors(path), open(path, "rb") as file:
        start = file.read(4096)
    named = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if named is not None:
        return named
    if start.startswith(POINTER):
        raise DataError(f"{path}: is a pointer of git-lfs, not the file; fetch it with git lfs pull")
    is_binary = bool(CONTROL.search(start[:64])) or not start[:64].isascii()
    for first, what in OTHER_FILES.items():
        if is_binary and start.startswith(first):
            raise DataError(f"{path}: is {what}")
    if 4 * start.count(0) >= len(start) > 0:  # each character takes two bytes or four
        likely = likely_encoding(start)
        what = f"; it looks like {likely}" if likely else ""
        raise DataError(f"{path}: is not UTF-8, as it is full of zero bytes{what}", "save the file as UTF-8")
    return "utf-8"


def has_plain_lines(path: Path) -> bool:
    """Return whether a file is UTF-8 and its lines end in line feeds. Several processes can then read parts of it."""
    with as_data_errors(path), open(path, "rb") as file:
        start = file.read(SAMPLE)
    return encoding_of(path).startswith("utf-8") and start.count(b"\r") == start.count(b"\r\n")


def read_lines(path: Path, *, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file: UTF-8, with or without a byte-order mark, or UTF-16 or UTF-32 with one.

    Args:
        path: the file.
        newline: as `open` takes it; ``"\\n"`` lets only a line feed end a line.

    Raises:
        DataError: the file cannot be read, has another encoding, or too long a line.
    """
    with open_text(path, newline=newline) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), ""), start=1):
            if len(line) > MAX_LINE:
                raise DataError(f"{path}, line {number}: {LINE_TOO_LONG}")
            yield line


@contextmanager
def open_text(path: Path, *, newline: str | None = None) -> Iterator[IO[str]]:
    """Give a text file; see `read_lines`.

    Raises:
        DataError: the file cannot be read, or has another encoding: in the block, too.
    """
    encoding = encoding_of(path)
    with as_data_errors(path):
        try:
            with open(path, encoding=encoding, newline=newline) as file:
                yield file
        except UnicodeError as error:
            raise _not_decoded(path, encoding) from error


@contextmanager
def as_data_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {system_reason(error)}") from error


def _not_decoded(path: Path, encoding: str) -> DataError:
    """Return the error for a file that is not in the encoding that it should be in."""
    if encoding.startswith(("utf-16", "utf-32")):
        return DataError(f"{path}: begins as {encoding.upper()} but is not", "save the file as UTF-8")
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                start = max(0, offset + error.start - SAMPLE // 2)
                file.seek(start)
                likely = likely_encoding(file.read(SAMPLE))
                what = f"; it looks like {likely}" if likely else ""
                return DataError(
                    f"{path}, line {number}: byte {error.start} is not UTF-8{what}", "save the file as UTF-8"
                )
            offset += len(line)
    return DataError(f"{path}: changed while it was read", "try again")


def likely_encoding(content: bytes) -> str | None:
    """Return the encoding that bytes most probably have, None if nothing fits.

    It is good enough for advice. Of a few words in Latin script, nobody can tell which code page they have.
    """
    from charset_normalizer import from_bytes

    best = from_bytes(content, cp_isolation=list(LEGACY)).best()
    if best is None:
        return None
    return LEGACY[0] if LEGACY[0] in best.could_be_from_charset else best.encoding
