"""Are the files that a stage has finished still what it wrote? Size and time tell first, then the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dino_pipeline.errors import DataError, system_reason
from dino_pipeline.files import Checksums, file_digest, files_below, shard_files
from dino_pipeline.record_base import FinishedFile

EDITABLE = "README.md"
"""Name of files that people may edit: the card of a model."""
GONE = "no longer exists"
OTHER_CHECKSUM = "is not what was written (its checksum differs)"


class Damage(NamedTuple):
    """A finished file that is not what it was."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def finished_files(folder: Path, outputs: Iterable[Path]) -> dict[str, FinishedFile]:
    """Return files, and those in folders, as they are now, by their name in the run's folder.

    Raises:
        DataError: a file cannot be read.
    """
    finished = {}
    for output in outputs:
        for path in files_below(output):
            if path.name != EDITABLE:
                found = path.stat()
                finished[path.relative_to(folder).as_posix()] = FinishedFile(
                    sha256=file_digest(path), size=found.st_size, modified=found.st_mtime_ns
                )
    return finished


def damaged_files(folder: Path, files: Mapping[str, FinishedFile], *, every_byte: bool = False) -> Iterator[Damage]:
    """Yield the files that are missing or changed.

    Args:
        folder: the run's.
        files: as they were when they were finished, by their name in the folder.
        every_byte: read all bytes; False reads only the files whose time has changed.
    """
    for name, finished in files.items():
        path = folder / name
        try:
            found = path.stat()
            if found.st_size != finished.size:
                yield Damage(path, f"is not what was written ({found.st_size} bytes in place of {finished.size})")
            elif (every_byte or found.st_mtime_ns != finished.modified) and file_digest(path) != finished.sha256:
                yield Damage(path, OTHER_CHECKSUM)
        except (FileNotFoundError, NotADirectoryError):
            yield Damage(path, GONE)
        except OSError as error:
            yield Damage(path, f"cannot be read: {system_reason(error)}")
        except DataError as error:
            yield Damage(path, error.message.removeprefix(f"{path}: "))


def damaged_texts(checksums: Checksums, inputs: Path, folders: Iterable[Path]) -> Iterator[Damage]:
    """Yield the inputs, and the files in folders of shards, that are missing, changed, or not the run's."""
    places = {folder: shard_files(folder) for folder in folders}
    if checksums.recorded(inputs):
        places[inputs] = [inputs] if inputs.exists() else []
    for place, paths in places.items():
        digests = {}
        for path in paths:
            try:
                digests[path] = file_digest(path)
            except DataError as error:
                yield Damage(path, error.message.removeprefix(f"{path}: "))
        unreadable = set(paths) - set(digests)
        for found in damaged_shards(checksums, place, digests):
            if found.path not in unreadable:
                yield found


def damaged_shards(checksums: Checksums, folder: Path, digests: Mapping[Path, str]) -> Iterator[Damage]:
    """Yield the files of a folder of shards that are missing, changed, or not the run's.

    Args:
        checksums: of the run.
        folder: in the run; or the file of inputs.
        digests: the SHA-256 of each file that is in the folder now.
    """
    for path in checksums.files_of(folder):
        if path not in digests:
            yield Damage(path, GONE)
    for path, digest in digests.items():
        recorded = checksums.recorded(path)
        if recorded is None:
            yield Damage(path, f"was not written here ({checksums.file.name} does not name it)")
        elif recorded != digest:
            yield Damage(path, OTHER_CHECKSUM)
