"""Digests: of files, and of all that a run's folder is to hold unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from dino_pipeline.errors import DataError, OutputError, RunError
from dino_pipeline.examples import write_bytes


def shard_files(folder: Path) -> list[Path]:
    """Return a folder's shards in order."""
    return sorted(folder.glob("*.jsonl"))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def digest_files(paths: Sequence[Path]) -> str:
    """Return a hash of the files' names and contents, in order."""
    return combined({path: file_digest(path) for path in paths})


def combined(digests: dict[Path, str]) -> str:
    """Return a hash of files' names and SHA-256, in order."""
    digest = hashlib.sha256()
    for file, found in digests.items():
        digest.update(f"{file.name}\0".encode())
        digest.update(bytes.fromhex(found))
    return digest.hexdigest()[:16]


class Checksums:
    """The SHA-256 of a folder's files, in one file beside them that ``sha256sum --check`` reads.

    A file's line is added once the file is there, so that one without a line is one that was never finished.

    Args:
        folder: that which the names are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "SHA256SUMS"
        self.known: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self.file.read_bytes().split(b"\n"):  # the last may be cut short
                digest, _, name = line.partition(b"  ")
                if len(digest) == 64 and name:
                    self.known[name.decode(errors="replace")] = digest.decode(errors="replace")

    def add(self, *paths: Path) -> None:
        """Add files as they are now.

        Raises:
            OutputError: the disk is full or refuses.
        """
        found = {self._name(path): file_digest(path) for path in paths}
        new = "".join(f"{digest}  {name}\n" for name, digest in found.items() if self.known.get(name) != digest)
        if not new:
            return
        try:
            with open(self.file, "ab") as file:
                begins = "\n" if file.tell() and not self._ends_whole() else ""
                file.write((begins + new).encode())  # lost in a power cut, it only has shards written once more
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written: {error.strerror}; make room and run again") from error
        self.known |= found

    def _ends_whole(self) -> bool:
        with open(self.file, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def has(self, *paths: Path) -> bool:
        """Whether all files were finished and are still there."""
        return all(path.exists() and self._name(path) in self.known for path in paths)

    def spoilt(self, *paths: Path) -> Path | None:
        """Return the first file that is not what it was when it was added, None if all are."""
        return next((path for path in paths if self.known.get(self._name(path)) != file_digest(path)), None)

    def check(self, digests: dict[Path, str]) -> None:
        """Compare the SHA-256 of files with what they were.

        Raises:
            RunError: a file is not what it was when it was finished.
        """
        for path, digest in digests.items():
            if self.known.get(self._name(path), digest) != digest:
                raise RunError(
                    f"{path}: is not what was written ({self.file.name} has another checksum); "
                    "run the same dino generate again, which writes it anew"
                )

    def tidy(self) -> None:
        """Put the lines in the order of names, one each, without files that are gone."""
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self.known.items()) if (self.folder / name).exists()]
        write_bytes(self.file, "".join(lines).encode())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
