"""A run's folder: its files, its record, and what a stage has to do there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from dino_pipeline.dataset_tables import ending_of
from dino_pipeline.errors import OutputError, RunError, first_line, short
from dino_pipeline.files import Checksums, remove, write_bytes, write_json
from dino_pipeline.processes import locked
from dino_pipeline.record import RecordError, RunRecord, now, parse_record, versions
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import FilterRecord, GenerateRecord, StageRecord, TextsOrigin
from dino_pipeline.tables import TABLE_ENDINGS

State = Literal["new", "resumed", "done"]
READY_RECORD = "record.json"
CHECKSUMS = "SHA256SUMS"
LINEAGE = "lineage.json"
"""File of a published folder that says where it comes from."""


def is_unpublished(path: Path) -> bool:
    """Return whether a path is a folder that can be a run.

    A published folder also holds a run.json, a copy; its lineage.json tells it from a run.
    """
    return path.is_dir() and not (path / LINEAGE).exists()


def is_data_folder(path: Path) -> bool:
    """Return whether a folder holds tables and no run: a dataset that `datasets` reads."""
    if not path.is_dir() or (path / "run.json").exists():
        return False
    files = [*path.glob("*.*"), *path.glob("data/*.*")]
    return any(ending_of(str(file)) in TABLE_ENDINGS for file in files)


def _result(record: StageRecord) -> dict[str, JsonValue]:
    """Return what a record says of the result, without the circumstances in which it was made."""
    circumstances = {"status", "settings", "versions", "started", "ended"}
    return record.model_dump(mode="json", exclude=circumstances)  # type: ignore[no-any-return]


class At:
    """The path of a file or folder of a run, given its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layout: Layout, owner: type | None = None) -> Path:
        return layout.path / self.name


@dataclass(frozen=True)
class Layout:
    """The files and folders of a run."""

    path: Path

    record_file = At("run.json")
    """The record of each stage; see `record`."""
    spec = At("spec.json")
    """The task spec, inputs spec included."""
    inputs = At("inputs.jsonl")
    """The texts that fill <X1>."""
    shards = At("shards")
    """Accepted texts, in files of fixed content."""
    rejected = At("rejected")
    """Texts that generation rejected, with the reasons: one file for each shard."""
    input_shards = At("input-shards")
    """Accepted texts of the spec that writes the inputs."""
    input_rejected = At("input-rejected")
    """Rejected texts of the spec that writes the inputs."""
    received = At("received.jsonl")
    """Texts of a server that no shard holds yet."""
    train = At("train.jsonl")
    """Pairs to train on."""
    dev = At("dev.jsonl")
    """Pairs to choose the best checkpoint on."""
    dropped = At("dropped.jsonl")
    """Pairs that the filter stage did not keep, with reasons."""
    flagged = At("flagged.jsonl")
    """Kept pairs that a user may want to look at: personal data."""
    label_scores = At("label-scores")
    """How likely the generator finds each pair under every label."""
    model = At("model")
    """The trained bi-encoder."""
    checkpoints = At("checkpoints")
    """Training's own checkpoints; gone once the model is there."""
    scores = At("scores.json")
    """What evaluation found."""
    comparison = At("compare")
    """Trainings by several objectives, and their table."""
    report = At("report.html")
    """What a reader should know of the run, on one page."""
    pictures = At("pictures")
    """The report's pictures, a PNG each."""
    estimate = At("estimate.json")
    """What a preview found the texts to take."""
    hub = At("hub")
    """The dataset and the model as they are published."""

    def outputs(self, stage: str) -> list[Path]:
        """Return the files and folders that a stage makes; without them it is not done."""
        return {
            "generate": [self.spec, self.shards],
            "filter": [self.train, self.dev, self.dropped, self.flagged],
            "finetune": [self.model],
            "evaluate": [self.scores],
        }[stage]

    def partial(self, stage: str) -> list[Path]:
        """Return the files and folders that a later call of an unfinished stage goes on with."""
        return {
            "generate": [self.inputs, *self.text_folders, self.received, self.path / CHECKSUMS],
            "finetune": [self.checkpoints],
        }.get(stage, [])

    @property
    def is_run(self) -> bool:
        return self.record_file.exists() and is_unpublished(self.path)

    @property
    def held_out(self) -> Path | None:
        """The pairs that are not trained on, None where there are none."""
        return self.dev if self.dev.exists() and self.dev.stat().st_size else None

    @property
    def shard_folders(self) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """Return the folders of shards of texts and of inputs, each with the folder of its rejected texts."""
        return (self.shards, self.rejected), (self.input_shards, self.input_rejected)

    @property
    def text_folders(self) -> list[Path]:
        """The folders of `shard_folders`, in one list."""
        return [folder for folders in self.shard_folders for folder in folders]


class Run(Layout):
    """A folder that holds one dataset and everything made from it."""

    @classmethod
    def of(cls, source: object) -> Run | None:
        """Return the run that a folder, a `Run` or the result of a stage stands for, None if it is something else.

        Raises:
            RunError: the source is the result of an earlier call, and the run was overwritten by a later one.
        """
        if isinstance(source, Run):
            return source
        run = cls(Path(source)) if isinstance(source, str | Path) else getattr(source, "run", None)
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
            raise RunError(f"{self.record_file}: cannot be read: {error.strerror}") from error
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
        """Raise `RunError` unless the run still holds the files that belong to the record of a finished stage."""
        if not self.path.is_dir():
            raise RunError(f"{self.path}: no longer exists", "move it back, or call {" + record.stage + "()} again")
        current = self.record().of(record.stage)
        if current is None or _result(current) != _result(record):
            raise RunError(
                f"{self.path}: was overwritten: it holds the result of a later {record.stage}",
                "use the result of the later call",
            )
        if missing := [path for path in self.outputs(record.stage) if not path.exists()]:
            raise RunError(f"{missing[0]}: no longer exists", "call {" + record.stage + "()} again")

    def save(self, record: StageRecord) -> None:
        """Put the record of a stage into run.json."""
        self._write(self.record().with_stage(record))

    def finish(self, record: StageRecord) -> StageRecord:
        """Record that a stage has ended, and return its record."""
        done = record.updated(status="done", ended=now())
        self.save(done)
        return done

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
                raise RunError(
                    f"{strays[0]}: was not made by a recorded {record.stage}",
                    "move it away, or delete it with {fresh=True}",
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
        return "done" if before.is_done and all(path.exists() for path in outputs) else "resumed"

    def begin(self, record: StageRecord, *, fresh: bool = False) -> State:
        """Return what a stage has to do, as `state_of`, and record that it has begun unless it is done.

        If the stage starts over, the unfinished work of an earlier call is deleted. Finished outputs stay until the
        stage replaces them.
        """
        state = self.state_of(record, fresh=fresh)
        if state == "done":
            return state
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
            raise OutputError(f"{folder}: cannot be written: {error.strerror}", "choose another folder") from error
        try:
            yield folder
        except OSError as error:
            file, reason = error.filename or folder, error.strerror or first_line(error)
            if Path(str(file)).resolve().is_relative_to(self.path.resolve()):
                raise OutputError(f"{file}: cannot be written: {reason}", "make room and run again") from error
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
        done = record.updated(status="done", ended=now())
        write_json(folder / READY_RECORD, {"stage": record.stage, "record": done.model_dump(mode="json")})
        for path in folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
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
            ready = json.loads(record_file.read_text(encoding="utf-8"))
            # read as a run.json with this stage alone, so that it is checked like one
            content = {"format": RunRecord().format, ready["stage"]: ready["record"]}
            record = parse_record(json.dumps(content)).of(ready["stage"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{record_file}: is damaged ({error})", f"delete {self._ready} and run again") from error
        assert record is not None
        for path in sorted(self._ready.iterdir()):
            if path.name != READY_RECORD:
                path.replace(self.path / path.name)
        self._write(self._known(fresh=True).with_stage(record))
        remove(self._ready)

    def _write(self, record: RunRecord) -> None:
        content = record.model_dump_json(indent=2, exclude_none=False)
        write_bytes(self.record_file, f"{content}\n".encode())

    def _known(self, *, fresh: bool) -> RunRecord:
        """Return what run.json holds; if the stage starts over, a damaged one counts as empty."""
        try:
            return self.record()
        except RunError:
            if fresh:
                return RunRecord()
            raise
