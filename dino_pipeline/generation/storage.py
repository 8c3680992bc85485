"""A run's texts kept at a URL as well, so that they outlive the machine that the run's folder is on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from dino_pipeline.errors import OptionError, OutputError, RunError, first_line
from dino_pipeline.examples import Example
from dino_pipeline.files import Checksums, file_digest, shard_files, write_bytes, write_json
from dino_pipeline.generation.plan import Job, Shard
from dino_pipeline.generation.writer import Hands, Stored
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.run import Run

MARKS = "done"
"""A folder with a file for each shard that is there as a whole: object stores rename nothing, so this comes last."""


class Storage:
    """A folder on any file system that fsspec knows: ``s3://bucket/run``, ``gs://...``, ``file:///...``.

    It holds run.json, spec.json and inputs.jsonl, the shards' two files each under the names that they have in the
    run, and for each shard a mark with the SHA-256 of both. What has no mark is not there.

    Raises:
        OptionError: there is no such file system, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise OptionError(f"--storage {url}: {first_line(error)}") from error

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Name what a file system raises, which may be anything."""
        try:
            yield
        except (OutputError, RunError):
            raise
        except Exception as error:
            raise OutputError(
                f"{self.url}: {type(error).__name__}: {first_line(error)}; what was finished is kept in the run's "
                "folder: run the same again"
            ) from error

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def clear(self, run: Run) -> None:
        """Delete what is there of a run; marks go first, so that what a removal cut short leaves is not believed."""
        with self._errors():
            for name in (MARKS, run.record_file.name, run.spec.name, *_texts(run)):
                if self.files.exists(self._at(name)):
                    self.files.rm(self._at(name), recursive=True)

    def meet(self, run: Run, reporter: Reporter) -> None:
        """Bring into a run's folder what is there and not here, and put there what is here and not there.

        Raises:
            RunError: another run is there.
            OutputError: it cannot be read.
        """
        marks = self._marks()
        with self._errors():
            self._fetch_state(run)
            sums = run.checksums
            missing = [mark for mark in marks if not sums.has(*(run.path / name for name in mark))]
            for mark in missing:
                self._fetch(run, mark, sums, reporter)
        if missing:
            sums.tidy()
            reporter.note(f"{len(missing)} finished shards or inputs taken from {self.url}")
        there = {name for mark in marks for name in mark}
        for shards, rejected in run.shard_folders:
            for path in shard_files(shards):
                pair = [rejected / path.name, path]
                if path.relative_to(run.path).as_posix() not in there and sums.has(*pair):
                    self.put(run, pair)

    def _fetch_state(self, run: Run) -> None:
        if self.files.exists(self._at(run.record_file.name)):
            there = json.loads(self.files.cat_file(self._at(run.record_file.name)))
            here = run.stage("generate").get("options")
            if here is not None and here != there.get("generate", {}).get("options"):
                raise RunError(f"{self.url}: holds another run than {run.path}; name another place, or --fresh")
            if here is None:
                write_bytes(run.spec, self.files.cat_file(self._at(run.spec.name)))
                own = {name: there[name] for name in ("format", "generate") if name in there}
                write_json(run.record_file, {**run.records(), **own})

    def _marks(self) -> list[dict[str, str]]:
        """Return for each shard that is there the SHA-256 of its files by their names."""
        with self._errors():
            paths = sorted(self.files.find(self._at(MARKS))) if self.files.exists(self._at(MARKS)) else []
            contents = self.files.cat(paths) if paths else {}
        lines = [contents[path].decode().splitlines() for path in paths]
        return [{name: digest for digest, _, name in (line.partition("  ") for line in of)} for of in lines]

    def _fetch(self, run: Run, mark: Mapping[str, str], sums: Checksums, reporter: Reporter) -> None:
        for name, digest in mark.items():
            if ".." in Path(name).parts or Path(name).parts[0] not in _texts(run):
                raise RunError(f"{self.url}: its mark names {name}, which no run holds; name another place")
            write_bytes(run.path / name, self.files.cat_file(self._at(name)))
            if file_digest(run.path / name) != digest:
                (run.path / name).unlink()
                self.files.rm_file(self._mark(mark))
                reporter.note(f"{self.url}/{name}: is not what was written (another checksum): written anew")
                return
        sums.add(*(run.path / name for name in mark))

    def _mark(self, names: Iterable[str]) -> str:
        return self._at(f"{MARKS}/{[*names][-1].replace('/', '-')}")

    def put_state(self, run: Run) -> None:
        """Store run.json, spec.json and, once they are all there, the inputs."""
        with self._errors():
            self.files.makedirs(self.root, exist_ok=True)
            for path in (run.spec, run.record_file):
                self.files.pipe_file(self._at(path.name), path.read_bytes())
        if run.checksums.has(run.inputs):
            self.put(run, [run.inputs])

    def put(self, run: Run, paths: Sequence[Path]) -> None:
        """Store files that belong together; the mark comes last."""
        names = [path.relative_to(run.path).as_posix() for path in paths]
        with self._errors():
            mark = self._mark(names)
            content = "".join(f"{file_digest(path)}  {name}\n" for path, name in zip(paths, names, strict=True))
            if self.files.exists(mark) and self.files.cat_file(mark) == content.encode():
                return
            for folder in {self._at(name).rpartition("/")[0] for name in (*names, f"{MARKS}/mark")}:
                self.files.makedirs(folder, exist_ok=True)
            for path, name in zip(paths, names, strict=True):
                self.files.pipe_file(self._at(name), path.read_bytes())
            self.files.pipe_file(mark, content.encode())


def _texts(run: Run) -> list[str]:
    """Return the names of a run's inputs and of the folders of its shards."""
    return [run.inputs.name, *(folder.name for folder in run.text_folders)]


@dataclass(frozen=True)
class StoredHands:
    """Hands whose shards are put at a URL, too."""

    hands: Hands
    storage: Storage
    run: Run

    def write(self, job: Job, shards: Iterable[Shard], reporter: Reporter, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files, and store each."""
        self.storage.put_state(self.run)

        def both(shard: Shard, accepted: Sequence[Example]) -> None:
            stored(shard, accepted)
            self.storage.put(self.run, shard.files)

        self.hands.write(job, shards, reporter, progress, both)

    def facts(self) -> Mapping[str, Any]:
        """Return what the hands have to tell."""
        return self.hands.facts()
