"""A run's folder: its files, its record, and what a stage has to do there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from dino_pipeline.damage import GONE, Damage, damaged_files, damaged_shards, damaged_texts, finished_files
from dino_pipeline.errors import (
    OutputError,
    RunError,
    as_it_is,
    first_line,
    option_given,
    short,
    stage_call,
    system_reason,
    write_remedy,
)
from dino_pipeline.files import Checksums, record_json, remove, set_aside, write_bytes, write_json
from dino_pipeline.layout import Layout
from dino_pipeline.processes import locked
from dino_pipeline.record import RecordError, RunRecord, now, parse_record, versions
from dino_pipeline.record_base import StageRecord
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import SHARDS, FilterRecord, FinetuneRecord, GenerateRecord, TextsOrigin
from dino_pipeline.stopping import at_end_of_stop

State = Literal["new", "resumed", "done"]
READY_RECORD = "record.json"


def _result(record: StageRecord) -> dict[str, JsonValue]:
    """Return what a record says of the result, without the circumstances in which it was made."""
    circumstances = {"status", "settings", "versions", "started", "ended", "files"}
    return record.model_dump(mode="json", exclude=circumstances)  # type: ignore[no-any-return]


class Run(Layout):
    """A folder that holds one dataset and everything made from it."""

    @classmethod
    def of(cls, source: object) -> Run | None:
        """Return the run that a folder, a `Run` or the result of a stage stands for, None if it is something else.

        Raises:
            RunError: the source is the result of an earlier call, and the run was overwritten by a later one; or the
                folder is that of a run whose run.json is gone.
        """
        if isinstance(source, Run):
            return source
        run = cls(Path(source)) if isinstance(source, str | Path) else getattr(source, "run", None)
        if isinstance(run, Run) and run.lacks_record:
            raise RunError(f"{run.record_file}: is missing; the folder holds the texts of a run", "bring it back")
        if not (isinstance(run, Run) and run.is_run):
            return None
        record = getattr(source, "record", None)
        if isinstance(record, GenerateRecord | FilterRecord) and getattr(source, "outcome", "") != "dry run":
            run.require(record)
        return run

    @property
    def checksums(self) -> Checksums:
        """Return the SHA-256 of the files that generation wrote, as SHA256SUMS holds them now."""
        return Checksums(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and finish a `replace` that was cut short.

        Raises:
            RunError: another process holds it.
        """
        with locked(self.path):
            self._settle()
            yield

    def record(self) -> RunRecord:
        """Return what run.json holds, an empty record if there is none yet.

        Raises:
            RunError: it cannot be read, is damaged, or is of another version.
        """
        try:
            content = self.record_file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return RunRecord()
        except OSError as error:
            raise RunError(f"{self.record_file}: cannot be read: {system_reason(error)}") from error
        try:
            return parse_record(content)
        except RecordError as error:
            raise RunError(
                f"{self.record_file}: is not a record that this version reads ({error})",
                "restore it, use the version that wrote it, or start over with {fresh=True}",
            ) from error

    def origin(self) -> TextsOrigin:
        """Return the records of the run's texts, with the language and license of its spec."""
        record = self.record()
        spec = load_spec(self.spec) if self.spec.exists() else None
        return TextsOrigin(
            generate=record.generate,
            filter=record.filter,
            language=spec.language if spec else None,
            license=spec.license if spec else None,
        )

    def require(self, record: StageRecord) -> None:
        """Raise `RunError` unless the run still holds the files that a finished stage made, as its record says."""
        if not self.path.is_dir():
            raise RunError(f"{self.path}: no longer exists", "move it back, or call {" + record.stage + "()} again")
        current = self.record().of(record.stage)
        if current is None or _result(current) != _result(record):
            raise RunError(
                f"{self.path}: was overwritten: it holds the result of a later {record.stage}",
                "use the result of the later call",
            )
        self.check(current)

    def save(self, record: StageRecord) -> None:
        """Put the record of a stage into run.json."""
        self._write(self.record().with_stage(record))

    def finish(self, record: StageRecord) -> StageRecord:
        """Record that a stage has ended, with the files that it made, and return its record."""
        made = [self.spec] if record.stage == "generate" else self.outputs(record.stage)
        done = record.updated(status="done", ended=now(), files=finished_files(self.path, made))
        self.save(done)
        return done

    def damage(self, record: StageRecord | None, *, every_byte: bool = False) -> Iterator[Damage]:
        """Yield the files of a finished stage that are missing or are not what it wrote.

        Args:
            record: of the stage. If it is not finished, or never ran (None), nothing is expected.
            every_byte: read all bytes; see `damaged_files`. Those of shards are always read.
        """
        if record is None or not record.is_done:
            return
        yield from self._damaged_outputs(record, every_byte=every_byte)
        if isinstance(record, GenerateRecord):
            yield from damaged_texts(self.checksums, self.inputs, self.text_folders)

    def _damaged_outputs(self, record: StageRecord, *, every_byte: bool = False) -> Iterator[Damage]:
        """Yield the damaged files among those that a record names, and outputs that are missing."""
        gone = [output for output in self.outputs(record.stage) if not output.exists()]
        yield from (Damage(output, GONE) for output in gone)  # a record of an earlier version names no files
        for found in damaged_files(self.path, record.files, every_byte=every_byte):
            if not any(found.path.is_relative_to(output) for output in gone):
                yield found

    def check(self, record: StageRecord | None, *paths: Path, every_byte: bool = False) -> None:
        """Raise `RunError` if a file of a finished stage is damaged.

        Args:
            record: of the stage, None if it never ran.
            paths: only these, and those in these folders; by default all that it made.
            every_byte: see `damage`.
        """
        for found in self.damage(record, every_byte=every_byte):
            if not paths or any(found.path.is_relative_to(path) for path in paths):
                assert record is not None  # else nothing is damaged
                raise RunError(f"{found}", f"{self.repair(record)}, which makes it anew")

    def check_shards(self, digests: Mapping[Path, str]) -> None:
        """Raise `RunError` unless the shards are those that generation wrote, given the SHA-256 of each one."""
        for found in damaged_shards(self.checksums, self.shards, digests):
            raise RunError(f"{found}", f"{self.repair(self.record().generate)}, which makes it anew")

    def repair(self, record: StageRecord | None) -> str:
        """Return what makes the files of a stage anew: a template of `errors.worded`."""
        brought = None
        if isinstance(record, FilterRecord) and record.inputs.source != SHARDS:
            brought = record.inputs.source
        elif isinstance(record, FinetuneRecord) and not record.origin.own:
            brought = record.options.data
        if record is None or isinstance(record, GenerateRecord):
            return f"run the same {stage_call('generate')} for {as_it_is(self.path)} again"
        if brought is None:
            return f"run the same {stage_call(record.stage, self.path)} again"
        return f"run the same {stage_call(record.stage, brought)} with {option_given('run', self.path)} again"

    @classmethod
    def check_file(cls, path: Path) -> None:
        """Raise `RunError` if a file is one that a stage of a run made, and it is damaged; other files pass."""
        run = cls(path.parent)
        if not run.is_run:
            return
        for record in run.record().stages:
            if path.name in record.files:
                run.check(record, path)

    def set_aside_damaged(self, stage: str, note: Callable[[str], object]) -> None:
        """Rename the damaged files and folders of a finished stage, so that making them anew loses nothing.

        Somebody may have changed them on purpose. Shards stay: what is damaged there is written again, file by file.

        Args:
            stage: its name.
            note: told of each damaged file.
        """
        if stage == GenerateRecord.stage:
            return
        found = list(self.damage(self._known(fresh=True).of(stage)))
        for output in self.outputs(stage):
            damaged = [each for each in found if each.path.is_relative_to(output)]
            kept = f"what is there now is kept as {set_aside(output).name}, and " if damaged and output.exists() else ""
            for each in damaged:
                note(f"{each}: {kept}it is made anew")

    def forget(self, stage: str) -> None:
        """Remove the record of a stage from run.json."""
        self._write(self.record().without(stage))

    def state_of(self, record: StageRecord, *, fresh: bool = False) -> State:
        """Return what a stage has to do, and change nothing.

        Args:
            record: what the stage is asked for: options and sources.
            fresh: start over whatever is there.

        Returns:
            "done" if its outputs were made with these options from these sources, "resumed" if that was begun, else
            "new": if it never ran, if its sources have changed, or if ``fresh``.

        Raises:
            RunError: the stage was begun with other options, or left files that no record explains.
        """
        before = self._known(fresh=fresh).of(record.stage)
        outputs, partial = self.outputs(record.stage), self.partial(record.stage)
        if before is None:
            if not fresh and (strays := [path for path in partial if path.exists()]):
                names = ", ".join(path.name for path in strays)
                raise RunError(
                    f"{self.path}: holds {names}, and no record of the {record.stage} that made them",
                    f"bring {self.record_file.name} back, move them away, or delete them with {{fresh=True}}",
                )
            return "new"
        has_files = any(path.exists() for path in (*partial, *outputs))
        if fresh or not has_files or before.status == "clearing" or before.sources != record.sources:
            return "new"
        if different := before.differences(record):
            changes = "; ".join(f"{name} was {short(old)}, now {short(new)}" for name, (old, new) in different.items())
            raise RunError(
                f"{self.path}: {record.stage} was begun with other options: {changes}",
                "give the same options to go on, choose another folder, or start over with {fresh=True}",
            )
        return "resumed" if not before.is_done or any(self._damaged_outputs(before)) else "done"

    def begin(
        self, record: StageRecord, *, fresh: bool = False, note: Callable[[str], object] = lambda text: None
    ) -> State:
        """Return what a stage has to do, as `state_of`, and record that it has begun unless it is done.

        If the stage starts over, the unfinished work of an earlier call is deleted. Finished outputs stay until the
        stage replaces them; damaged ones are set aside unless ``fresh``, which ``note`` is told.
        """
        state = self.state_of(record, fresh=fresh)
        if state == "done":
            return state
        if not fresh:
            self.set_aside_damaged(record.stage, note)
        run_record = self._known(fresh=fresh)
        started = record.updated(status="running", versions=versions(), started=now())
        if state == "new":
            # recorded before anything is deleted: a deletion cut short must not pass for finished work
            self._write(run_record.with_stage(started.updated(status="clearing")))
            for path in self.partial(record.stage):
                remove(path)
        self._write(run_record.with_stage(started))
        return state

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give an empty folder inside the run's that is deleted afterwards.

        Raises:
            OutputError: it cannot be made, or a file cannot be written or read in the block.
        """
        folder = self.path / f"{name}.part"
        try:
            remove(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {system_reason(error)}", write_remedy(error)) from error
        try:
            with at_end_of_stop(partial(remove, folder)):
                yield folder
        except OSError as error:
            file, reason = error.filename or folder, system_reason(error)
            if Path(str(file)).resolve().is_relative_to(self.path.resolve()):
                raise OutputError(f"{file}: cannot be written: {reason}", write_remedy(error)) from error
            raise OutputError(f"{file}: cannot be read or written: {reason}") from error
        finally:
            remove(folder)

    def replace(self, record: StageRecord, folder: Path) -> StageRecord:
        """Put all files of a folder, and the record of the stage that made them, in the place of those before.

        All or nothing: the folder is first renamed to ``ready``. If this is cut short later, `locked` finishes it when
        the run is next used.

        Args:
            record: of the stage.
            folder: in the run, of files only; see `scratch`.

        Returns:
            The record, marked as done.
        """
        done = record.updated(status="done", ended=now(), files=finished_files(folder, [folder]))
        write_json(folder / READY_RECORD, {"stage": record.stage, "record": done.model_dump(mode="json")})
        for path in folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        remove(self._ready)  # left where run.json was damaged
        folder.replace(self._ready)
        self._settle()
        return done

    @property
    def _ready(self) -> Path:
        return self.path / "ready"

    def _settle(self) -> None:
        """Finish a `replace` that was cut short, if there is one."""
        if not self._ready.exists():
            return
        record_file = self._ready / READY_RECORD
        if not record_file.exists():  # all files are in place; deleting the folder was cut short
            remove(self._ready)
            return
        try:
            before = self.record()
        except RunError:
            return  # the stage names what is wrong with it, and loses nothing
        try:
            ready = json.loads(record_file.read_text(encoding="utf-8"))
            # read as a run.json with this stage alone, so that it is checked like one
            content = {"format": RunRecord().format, ready["stage"]: ready["record"]}
            record = parse_record(json.dumps(content)).of(ready["stage"])
            if record is None:
                raise ValueError("it holds no record")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
            remedy = f"delete {as_it_is(self._ready)} and run again"
            raise RunError(f"{record_file}: is damaged ({problem})", remedy) from error
        for path in sorted(self._ready.iterdir()):
            if path.name != READY_RECORD:
                path.replace(self.path / path.name)
        self._write(before.with_stage(record))
        remove(self._ready)

    def _write(self, record: RunRecord) -> None:
        write_bytes(self.record_file, record_json(record))

    def _known(self, *, fresh: bool) -> RunRecord:
        """Return what run.json holds; if the stage starts over, a damaged one counts as empty."""
        try:
            return self.record()
        except RunError:
            if fresh:
                return RunRecord()
            raise
