"""Pieces of JSONL files that processes read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_pipeline.errors import DataError, system_reason
from dino_pipeline.examples import BYTE_ORDER_MARK

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
    shown_as: str = ""
    """Name of the data from which the file was written, a row a line; errors name it."""

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
            raise DataError(f"{self.file}: cannot be read: {system_reason(error)}") from error
        return (content if self.start else content.removeprefix(BYTE_ORDER_MARK)).split(b"\n")

    def place(self, line: int) -> str:
        """Return the file and the line number of one of the piece's lines."""
        lines_before, bytes_left, block = 0, self.start, b"\n"
        with open(self.file, "rb") as file:
            while bytes_left and (block := file.read(min(bytes_left, BLOCK))):
                lines_before += block.count(b"\n")
                bytes_left -= len(block)
        lines_before += not block.endswith(b"\n")  # the line that begins before the piece
        index = lines_before + line
        return f"{self.shown_as}, row {index + 1} of those read" if self.shown_as else f"{self.file}, line {index + 1}"


def pieces(files: Sequence[Path], *, shown_as: str = "") -> list[FilePiece]:
    """Return the pieces of all files, each of about `PIECE` bytes; ``shown_as``: see `FilePiece`."""
    all_pieces: list[FilePiece] = []
    for file in files:
        size = file.stat().st_size
        for start in range(0, size, PIECE):
            all_pieces.append(FilePiece(len(all_pieces), file, start, min(size, start + PIECE), shown_as))
    return all_pieces
