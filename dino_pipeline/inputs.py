"""Input texts that a user brings: plain text, JSONL, or the STS benchmark's TSV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from dino_pipeline.errors import DataError
from dino_pipeline.examples import read_examples

FORMATS = ("auto", "text", "jsonl", "sts")


def read_inputs(path: str | Path, input_format: str = "auto") -> list[str]:
    """Return the distinct input texts of a file, in the order of their first occurrence.

    Args:
        path: the file.
        input_format: ``text`` (one a line), ``jsonl`` (``text_a`` of each object), ``sts`` (both sentences of each row
            of the STS benchmark's TSV, with or without a header), or ``auto``: by the file's ending.

    Raises:
        DataError: the file cannot be read or holds no text; the message names file and line.
    """
    chosen = _guess(Path(path)) if input_format == "auto" else input_format
    if chosen == "jsonl":
        texts: Iterator[str] = (example.text_a for example in read_examples(path))
    else:
        content = _read(path)
        texts = iter(io.StringIO(content, newline=None)) if chosen == "text" else _sts_sentences(path, content)
    found = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not found:
        raise DataError(f"{path}: holds no input texts; give a file with one text a line")
    return found


def _guess(path: Path) -> str:
    return {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "sts", ".csv": "sts"}.get(path.suffix.lower(), "text")


def _read(path: str | Path) -> str:
    try:
        raw = Path(path).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _sts_sentences(path: str | Path, content: str) -> Iterator[str]:
    """Yield both sentences of every row: columns 6 and 7, or those that a header (as in GLUE) names."""
    first, second = 5, 6
    for number, line in enumerate(io.StringIO(content, newline=None), start=1):
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
