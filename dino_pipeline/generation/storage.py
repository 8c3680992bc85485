"""A copy of a run's texts at a URL, so that they outlive the machine that holds the run's folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import fsspec

from dino_pipeline.errors import OptionError, OutputError, RunError, first_line
from dino_pipeline.files import Checksums, shard_files, write_bytes
from dino_pipeline.progress import Reporter
from dino_pipeline.record import RecordError, parse_record
from dino_pipeline.run import Run

MARKS = "done"
"""Folder with a file for each complete shard. Object stores cannot rename, so this file comes last."""


class RemoteStorage:
    """A folder on any file system that fsspec knows: ``s3://bucket/run``, ``gs://...``, ``file:///...``.

    It holds run.json, spec.json, inputs.jsonl, both files of each shard under the names that they have in the run, and
    for each shard a mark with the SHA-256 of both files. A shard without a mark is incomplete.

    Raises:
        OptionError: there is no such file system, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise OptionError(first_line(error), option="storage", value=url) from error

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise any error of the file system, whose type may be anything, as an `OutputError`."""
        try:
            yield
        except (OutputError, RunError):
            raise
        except Exception as error:
            raise OutputError(
                f"{self.url}: {type(error).__name__}: {first_line(error)}. What was finished is kept in the run's "
                "folder",
                "run the same again",
            ) from error

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def clear(self, run: Run) -> None:
        """Delete the copy of a run; the marks go first, so that a removal cut short leaves no complete shards."""
        with self._named_errors():
            for name in (MARKS, run.record_file.name, run.spec.name, *_text_names(run)):
                if self.files.exists(self._path(name)):
                    self.files.rm(self._path(name), recursive=True)

    def synchronise(self, run: Run, reporter: Reporter) -> None:
        """Fetch complete shards that the run's folder lacks, and store those that the copy lacks.

        If writing the copy's record was cut short, the copy is made anew, from the run's folder.

        Raises:
            RunError: the copy is of another run, or its record is spoilt and the run's folder has none.
            OutputError: the copy cannot be read.
        """
        with self._named_errors():
            if self._is_cut_short(run):
                self.clear(run)
                reporter.note(f"{self.url}/{run.record_file.name}: was not written to its end: all is stored again")
        marks = self._marks()
        with self._named_errors():
            self._fetch_record(run)
            checksums = run.checksums
            missing = [mark for mark in marks if not checksums.has(*(run.path / name for name in mark))]
            for mark in missing:
                self._fetch(run, mark, checksums, reporter)
        if missing:
            checksums.tidy()
            reporter.note(f"{len(missing)} finished shards or inputs taken from {self.url}")
        stored = {name for mark in marks for name in mark}
        for shards, rejected in run.shard_folders:
            for path in shard_files(shards):
                pair = [rejected / path.name, path]
                if path.relative_to(run.path).as_posix() not in stored and checksums.has(*pair):
                    self.store(run, pair)

    def _record(self, run: Run) -> bytes | None:
        path = self._path(run.record_file.name)
        return self.files.cat_file(path) if self.files.exists(path) else None

    def _is_cut_short(self, run: Run) -> bool:
        """Return whether the copy's record is only a part of one, and nothing is lost with it."""
        content = self._record(run)
        try:
            if content is not None:
                json.loads(content)
        except ValueError:
            return run.record().generate is not None or not self._marks()
        return False

    def _fetch_record(self, run: Run) -> None:
        """Take over the record and the spec if the run's folder has none; refuse those of another run."""
        content = self._record(run)
        if content is None:
            return
        own = run.record().generate
        try:
            stored = parse_record(content).generate
        except RecordError as error:
            raise RunError(
                f"{self.url}/{run.record_file.name}: is not a record that this version reads ({error})",
                "restore it, use the version that wrote it, or start over with {fresh=True}",
            ) from error
        if own is not None and (stored is None or own.differences(stored)):
            raise RunError(f"{self.url}: holds another run than {run.path}", "name another place, or give {fresh=True}")
        if own is None and stored is not None:
            write_bytes(run.spec, self.files.cat_file(self._path(run.spec.name)))
            run.save(stored)

    def _marks(self) -> list[dict[str, str]]:
        """Return, for each complete shard, the SHA-256 of its files by name."""
        with self._named_errors():
            paths = sorted(self.files.find(self._path(MARKS))) if self.files.exists(self._path(MARKS)) else []
            contents = self.files.cat(paths) if paths else {}
        marks = []
        for path in paths:
            lines = contents[path].decode().splitlines()  # "SHA-256  name"
            parts = [line.partition("  ") for line in lines]
            marks.append({name: digest for digest, _, name in parts})
        return marks

    def _fetch(self, run: Run, mark: Mapping[str, str], checksums: Checksums, reporter: Reporter) -> None:
        """Fetch the files of a mark, and delete the mark if one is not what was stored."""
        for name, digest in mark.items():
            path = run.path / name
            if ".." in Path(name).parts or Path(name).parts[0] not in _text_names(run):
                raise RunError(f"{self.url}: a mark names {name}, which no run holds", "name another place")
            content = self.files.cat_file(self._path(name))
            if hashlib.sha256(content).hexdigest() != digest:
                self.files.rm_file(self._mark_path(mark))
                reporter.note(f"{self.url}/{name}: is not what was written (its checksum differs): it is written again")
                return
            write_bytes(path, content)
        checksums.add(*(run.path / name for name in mark))

    def _mark_path(self, names: Iterable[str]) -> str:
        """Return the path of the mark of some files; the last one names it."""
        return self._path(f"{MARKS}/{[*names][-1].replace('/', '-')}")

    def store_record(self, run: Run) -> None:
        """Store run.json, spec.json and, once they are complete, the inputs."""
        with self._named_errors():
            self.files.makedirs(self.root, exist_ok=True)
            for path in (run.spec, run.record_file):
                self.files.pipe_file(self._path(path.name), path.read_bytes())
        if run.checksums.has(run.inputs):
            self.store(run, [run.inputs])

    def store(self, run: Run, paths: Sequence[Path]) -> None:
        """Store files that belong together; their mark comes last."""
        names = [path.relative_to(run.path).as_posix() for path in paths]
        with self._named_errors():
            contents = {name: path.read_bytes() for name, path in zip(names, paths, strict=True)}
            mark = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
            mark_path = self._mark_path(names)
            if self.files.exists(mark_path) and self.files.cat_file(mark_path) == mark.encode():
                return
            for folder in {self._path(name).rpartition("/")[0] for name in (*names, f"{MARKS}/mark")}:
                self.files.makedirs(folder, exist_ok=True)
            for name, content in contents.items():
                self.files.pipe_file(self._path(name), content)
            self.files.pipe_file(mark_path, mark.encode())


def _text_names(run: Run) -> list[str]:
    """Return the names of a run's inputs and of the folders of its shards."""
    return [run.inputs.name, *(folder.name for folder in run.text_folders)]
