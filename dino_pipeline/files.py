"""Files that survive a crash: atomic writes, replacement of folders, checksums."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dino_pipeline.errors import DataError, OutputError, RunError, system_reason, write_remedy
from dino_pipeline.odd_paths import beside
from dino_pipeline.stopping import at_end_of_stop
from dino_pipeline.text import has_lone_surrogate

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_LINE = 16 * 2**20
"""Bytes (or characters) of a line of data. A longer line is neither a sentence nor a document."""
LINE_TOO_LONG = f"is longer than {MAX_LINE >> 20} MiB; cut it into documents"
"""Error text for such a line."""


def is_there(path: Path) -> bool:
    """Return whether a file that is to be written exists.

    Raises:
        OutputError: the system does not allow its name, or to look into its folder.
    """
    try:
        return path.exists()
    except OSError as error:
        raise _not_writable(path, error) from error


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, then rename it to ``path``.

    Raises:
        OutputError: the disk is full or not writable, or the path is a device or a pipe, which a file would replace.
            The old file is unchanged, the temporary file is deleted.
    """
    if is_there(path) and not path.is_file() and not path.is_dir():
        raise OutputError(f"{path}: cannot be written: is a device or a pipe", "name a file")
    temporary = beside(path, ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written: {system_reason(error)}; what was finished before is kept", write_remedy(error)
    )


def append_bytes(path: Path, content: bytes) -> None:
    """Add to the end of a file. A process that is killed meanwhile may leave a part of it.

    Raises:
        OutputError: the disk is full or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(content)
    except OSError as error:
        raise _not_writable(path, error) from error


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file atomically and return its SHA-256; see `write_atomic`."""
    write_atomic(path, lambda file: file.write(content))
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, value: Any) -> str:
    """Write one JSON value, indented, atomically, and return the file's SHA-256."""
    content = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if has_lone_surrogate(content):  # of a path that is not UTF-8
        content = json.dumps(value, indent=2, allow_nan=False)
    return write_bytes(path, f"{content}\n".encode())


def record_json(record: BaseModel) -> bytes:
    """Return a record as a file holds it: indented JSON, whatever paths it names."""
    try:
        return f"{record.model_dump_json(indent=2)}\n".encode()
    except ValueError:  # of a path that is not UTF-8, which pydantic does not write
        return f"{json.dumps(record.model_dump(mode='json'), indent=2)}\n".encode()


def write_json_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> str:
    """Write JSON objects, one per line, atomically, and return the file's SHA-256.

    The digest is computed while writing, which saves reading the file again.
    """
    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        for row in rows:
            line = json_line(row)
            digest.update(line)
            file.write(line)

    write_atomic(path, write)
    return digest.hexdigest()


def json_line(row: Mapping[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def remove(path: Path) -> None:
    """Delete a file, a link or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a file or folder to ``NAME.changed``, with a number if that exists, and return the new path.

    Raises:
        OutputError: it cannot be renamed.
    """
    names = (f"{path.name}.changed{suffix}" for suffix in itertools.chain([""], map("-{}".format, itertools.count(2))))
    try:
        aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
        return path.rename(aside)
    except OSError as error:
        raise _not_writable(path, error) from error


@contextlib.contextmanager
def folder_replaced(folder: Path) -> Iterator[Path]:
    """Give an empty folder that replaces ``folder`` when the block ends without an error.

    The new folder is ``NAME.part``; the old one is ``NAME.old`` between the two renames. If a crash happened there, the
    next call puts the old folder back first.

    Raises:
        OutputError: something cannot be written, here or in the block. The old folder is unchanged.
    """
    new, old = beside(folder, ".part"), beside(folder, ".old")
    try:
        _undo_replacement(folder, new, old)
        new.mkdir(parents=True)
        with at_end_of_stop(partial(_undo_replacement, folder, new, old)):
            yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        reason = system_reason(error)
        raise OutputError(f"{folder}: cannot be written: {reason}", write_remedy(error)) from error
    finally:
        with contextlib.suppress(OSError):
            _undo_replacement(folder, new, old)


def _undo_replacement(folder: Path, new: Path, old: Path) -> None:
    """Put the old folder back if the new one did not take its place, and delete what else is left."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for path in (new, old):
        remove(path)


def files_below(path: Path) -> list[Path]:
    """Return a file itself, or all files in a folder, in order."""
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in a folder, in order."""
    return sorted(folder.glob("*.jsonl"))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.is_fifo():
            raise DataError(f"{path}: is a pipe, which cannot be read twice")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {system_reason(error)}") from error


def digest_files(paths: Sequence[Path]) -> str:
    """Return one hash of the names and contents of files, in order."""
    return combined_digest({path: file_digest(path) for path in paths})


def combined_digest(digests: Mapping[Path, str]) -> str:
    """Return one hash of file names and their SHA-256, in order."""
    combined = hashlib.sha256()
    for path, digest in digests.items():
        combined.update(os.fsencode(path.name) + b"\0")
        combined.update(bytes.fromhex(digest))
    return combined.hexdigest()[:16]


class Checksums:
    """The SHA-256 of finished files in a folder, kept in ``SHA256SUMS``, which sha256sum can check.

    A line is added after its file is complete. A file without a line was never finished.

    Args:
        folder: the folder that holds ``SHA256SUMS``. File names are relative to it.

    Raises:
        RunError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "SHA256SUMS"
        self.known: dict[str, str] = {}
        for line in self._content().split(b"\n"):  # the last line may be cut off
            digest, _, name = line.rstrip(b"\r").partition(b"  ")
            if len(digest) == 64 and name:
                self.known[name.decode(errors="replace")] = digest.decode(errors="replace")

    def _content(self) -> bytes:
        try:
            if self.file.is_fifo():
                raise RunError(f"{self.file}: is a pipe", "move it away and run again")
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RunError(
                f"{self.file}: cannot be read: {system_reason(error)}", "move it away and run again"
            ) from error

    def add(self, *paths: Path) -> None:
        """Record files as they are now.

        Raises:
            OutputError: the disk is full or not writable.
        """
        self.add_digests({path: file_digest(path) for path in paths})

    def add_digests(self, digests: Mapping[Path, str]) -> None:
        """Record files whose SHA-256 is known, such as from `write_json_lines`; see `add`."""
        named = {self._name(path): digest for path, digest in digests.items()}
        lines = [f"{digest}  {name}\n" for name, digest in named.items() if self.known.get(name) != digest]
        if not lines:
            return
        try:
            with open(self.file, "ab") as file:
                start = "\n" if file.tell() and not self._ends_with_newline() else ""
                # no fsync: if a power cut loses a line, its shard is only written once more
                file.write((start + "".join(lines)).encode())
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written: {system_reason(error)}", write_remedy(error)) from error
        self.known |= named

    def _ends_with_newline(self) -> bool:
        with open(self.file, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def has(self, *paths: Path) -> bool:
        """Return whether all files were finished and still exist."""
        return all(path.exists() and self._name(path) in self.known for path in paths)

    def recorded(self, path: Path) -> str | None:
        """Return the SHA-256 that a file had when it was finished, None if it never was."""
        return self.known.get(self._name(path))

    def files_of(self, folder: Path) -> list[Path]:
        """Return the finished files of a folder, or a finished file itself, whether they still exist or not."""
        name = self._name(folder)
        return [self.folder / known for known in self.known if known == name or known.startswith(f"{name}/")]

    def first_changed(self, *paths: Path) -> Path | None:
        """Return the first file whose content differs from what was recorded, None if there is none."""
        return next((path for path in paths if self.known.get(self._name(path)) != file_digest(path)), None)

    def tidy(self) -> None:
        """Sort the lines by name, keep one line per file, and drop files that no longer exist."""
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self.known.items()) if (self.folder / name).exists()]
        write_bytes(self.file, "".join(lines).encode())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
