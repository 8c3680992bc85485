"""The texts that a language model writes about: those of a user's file, each once, in order."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from dino_pipeline.dataset_tables import open_tables
from dino_pipeline.errors import DataError, system_reason
from dino_pipeline.readers import ExampleReader
from dino_pipeline.rows import RowsRead
from dino_pipeline.stopping import at_end
from dino_pipeline.tables import open_file

FORMATS = {"auto": "auto", "text": "text", "jsonl": "json", "sts": "tsv"}
"""Kind of table by the name of an input format."""


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


class InputTexts:
    """The distinct texts of a file or dataset, in the order of their first occurrence. Each iteration reads it again.

    Iterating raises `DataError` if it cannot be read or holds no text; the message names file and line.

    Args:
        source: a file, a folder that `datasets` reads, or a Hub id. A pipe is copied to a temporary file first, as it
            can be read only once. A device is refused.
        input_format: ``text`` (one a line), ``jsonl`` (the first text of each object), ``sts`` (both sentences of each
            row of the STS benchmark's TSV, with or without a header), or ``auto``: by the file's ending.
        columns: see `ExampleReader`.
    """

    def __init__(
        self, source: str | Path, input_format: str = "auto", columns: Mapping[str, str] | None = None
    ) -> None:
        self.source, self.input_format, self.columns = source, input_format, columns or {}
        path = Path(source)
        if path.is_char_device() or path.is_block_device():
            raise DataError(f"{source}: is a device, which may have no end", "give a file with one text per line")
        if path.exists() and not path.is_file() and not path.is_dir():
            path = _copied(path)
        self.path = path
        self.reader: ExampleReader | None = None

    def __iter__(self) -> Iterator[str]:
        is_file = self.path.is_file() or self.input_format != "auto"
        kind = FORMATS[self.input_format]
        if kind == "tsv" and self.path.suffix.lower() == ".csv":  # the first line tells what separates its cells
            kind = "csv"
        tables = [open_file(self.path, kind)] if is_file else open_tables(str(self.source))
        self.reader = ExampleReader(self.path.name, tables, self.columns)
        empty = True
        for text in distinct(self.reader.texts(of_pairs=self.input_format == "sts")):
            empty = False
            yield text
        if empty:
            raise DataError(f"{self.source}: holds no input texts", "give a file with one text per line")

    @property
    def rows_read(self) -> RowsRead | None:
        """Return what the last iteration read, None before the first."""
        return self.reader.rows_read if self.reader else None


def _copied(pipe: Path) -> Path:
    with tempfile.NamedTemporaryFile(prefix="inputs-", suffix=pipe.name, delete=False) as copy:
        at_end(partial(Path(copy.name).unlink, missing_ok=True))
        try:
            with open(pipe, "rb") as source:
                shutil.copyfileobj(source, copy)
        except OSError as error:
            raise DataError(
                f"{pipe}: cannot be read: {system_reason(error)}", "give a file with one text per line"
            ) from error
    return Path(copy.name)
