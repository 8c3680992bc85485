"""A run: its run.json, what each stage was made with, and whether it is up to date."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_pipeline import __version__
from dino_pipeline.digests import Checksums
from dino_pipeline.errors import OutputError, RunError, short
from dino_pipeline.examples import write_json
from dino_pipeline.layout import Layout
from dino_pipeline.lock import locked

State = Literal["new", "resumed", "done"]
LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "datasets",
    "accelerate",
    "numpy",
    "scikit-learn",
    "duckdb",
    "rensa",
)
RECORD = "record.json"
FORMAT = 2
"""Of run folders; 1, which no release wrote, had no checksums."""


@dataclass(frozen=True)
class Stage:
    """What a stage is asked to make, and of what."""

    name: str
    options: dict[str, Any]
    """All that decides what it makes."""
    outputs: Sequence[Path]
    """What it makes; without them it is not done."""
    partial: Sequence[Path] = ()
    """Work that a later call goes on with; removed when starting anew."""
    sources: str = ""
    """Digest of what it reads; where that has changed since, the stage starts anew."""

    def record(self) -> dict[str, Any]:
        """Return what run.json is to hold of the stage, its results aside."""
        return {
            "status": "done",
            "options": _as_read(self.options),
            "sources": self.sources,
            "versions": versions(),
            "started": _now(),
        }


class Run(Layout):
    """A folder that holds one dataset and what was made of it."""

    @property
    def checksums(self) -> Checksums:
        """The SHA-256 of what generation wrote, read anew."""
        return Checksums(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and bring it in order: see `lock.locked`."""
        with locked(self.path):
            self._settle()
            yield

    def records(self) -> dict[str, Any]:
        """Return run.json's content, empty if there is none yet."""
        try:
            found: dict[str, Any] = json.loads(self.record_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{self.record_file}: cannot be read ({error}); mend it or start over with --fresh"
            ) from error
        if not isinstance(found, dict):
            raise RunError(f"{self.record_file}: is no object; mend it or start over with --fresh")
        if (made := found.get("format", 1)) != FORMAT:
            raise RunError(
                f"{self.record_file}: is of format {made!r}, and this dino_pipeline knows {FORMAT}; "
                "use the version that wrote it, or another folder"
            )
        return found

    def _write(self, records: dict[str, Any]) -> None:
        write_json(self.record_file, {**records, "format": FORMAT})

    def spec_fields(self) -> dict[str, Any]:
        """Return the task spec's fields, empty where the run has no spec."""
        if not self.spec.exists():
            return {}
        try:
            found: dict[str, Any] = json.loads(self.spec.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.spec}: cannot be read ({error}); mend it, or generate with --fresh") from error
        return found

    @property
    def numeric_labels(self) -> bool:
        """Whether labels that spell a number are numbers, as the filter was told; else all are classes."""
        return bool(self.stage("filter").get("options", {}).get("numeric_labels", True))

    def stage(self, name: str) -> dict[str, Any]:
        """Return what is recorded of a stage, empty if it never ran."""
        found: dict[str, Any] = self.records().get(name, {})
        return found

    def forget(self, name: str) -> None:
        """Drop what is recorded of a stage."""
        self._write({other: record for other, record in self.records().items() if other != name})

    def begin(
        self, stage: Stage, *, fresh: bool = False, settings: dict[str, Any] | None = None, **results: Any
    ) -> State:
        """Decide what a stage has to do, and record that it has begun.

        Args:
            stage: what it is asked for.
            fresh: start over whatever is there.
            settings: what only changes speed; recorded, never compared.
            results: recorded at once.

        Returns:
            "done" if the outputs are there and were made with these options from these sources, "resumed" if that was
            begun and not finished, else "new".

        Raises:
            RunError: the stage was begun with other options, or left work that no record explains.
        """
        state = self.check(stage, fresh=fresh)
        if state == "done":
            return state
        records = self._known(fresh=fresh)
        if state == "new":
            # said first: a removal cut short must not pass for finished work
            self._write({**records, stage.name: {"status": "clearing", "options": {}, "sources": stage.sources}})
            for path in stage.partial:
                remove(path)
        records[stage.name] = {**stage.record(), "status": "running", "settings": settings or {}, **results}
        self._write(records)
        return state

    def check(self, stage: Stage, *, fresh: bool = False) -> State:
        """Say what a stage has to do, and change nothing; see `begin`."""
        records = self._known(fresh=fresh)
        before = records.get(stage.name, {})
        there = any(path.exists() for path in (*stage.partial, *stage.outputs))
        if before and there and before["status"] != "clearing" and not fresh and before["sources"] == stage.sources:
            self._refuse_other(stage.name, before["options"], _as_read(stage.options))
            whole = before["status"] == "done" and all(path.exists() for path in stage.outputs)
            return "done" if whole else "resumed"
        if not before and not fresh and (strays := [path for path in stage.partial if path.exists()]):
            raise RunError(f"{strays[0]}: made by no recorded {stage.name}; move it away, or --fresh to delete it")
        return "new"

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give an empty folder inside the run's that is gone afterwards.

        Raises:
            OutputError: it cannot be made, or written to.
        """
        folder = self.path / f"{name}.part"
        try:
            remove(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error
        try:
            yield folder
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}; make room and run again") from error
        finally:
            remove(folder)

    def replace(self, name: str, folder: Path, record: dict[str, Any]) -> None:
        """Put all files of a folder, and a stage's record, in the place of those before, all or none.

        What is cut short after the first rename is brought to its end when the run is next `locked`.
        """
        write_json(folder / RECORD, {"stage": name, "record": {**record, "ended": _now()}})
        for path in folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        folder.replace(self._ready)
        self._settle()

    @property
    def _ready(self) -> Path:
        return self.path / "ready"

    def _settle(self) -> None:
        """Bring a `replace` to its end."""
        if not self._ready.exists():
            return
        if not (self._ready / RECORD).exists():  # all is in place, and only the folder is left
            remove(self._ready)
            return
        found = json.loads((self._ready / RECORD).read_text())
        for path in sorted(self._ready.iterdir()):
            if path.name != RECORD:
                path.replace(self.path / path.name)
        self._write({**self._known(fresh=True), found["stage"]: found["record"]})
        remove(self._ready)

    def note(self, name: str, **results: Any) -> None:
        """Record results of a stage."""
        records = self.records()
        records[name] = {**records[name], **results}
        self._write(records)

    def finish(self, name: str, **results: Any) -> None:
        """Record that a stage has ended, with its results."""
        self.note(name, status="done", ended=_now(), **results)

    def _known(self, *, fresh: bool) -> dict[str, Any]:
        """Return run.json's content; where all starts over, an unreadable one counts for nothing."""
        try:
            return self.records()
        except RunError:
            if fresh:
                return {}
            raise

    def _refuse_other(self, name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        differing = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
        if differing:
            said = "; ".join(f"{key} was {short(before.get(key))}, now {short(now.get(key))}" for key in differing)
            raise RunError(
                f"{self.path}: {name} was begun with other options: {said}. "
                "Give the same options to go on, another folder, or --fresh to start over"
            )


def _as_read(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with the types that JSON gives back, so that they compare."""
    found: dict[str, Any] = json.loads(json.dumps(options))
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that decide results."""
    found = {"dino_pipeline": __version__}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found
