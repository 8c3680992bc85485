"""Records of stages for tests, every field at a value that a small run would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from dino_pipeline.files import write_bytes
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.record import RunRecord
from dino_pipeline.record_base import StageRecord
from dino_pipeline.run import Run
from dino_pipeline.stage_records import (
    FinetuneRecord,
    GenerateRecord,
    GenerateSettings,
    SelectionRecord,
    TrainingSettings,
)

AnyRecord = TypeVar("AnyRecord", bound=StageRecord)


def write_record(folder: Path, *records: StageRecord) -> None:
    """Make a folder a run that holds the records of some stages."""
    record = RunRecord()
    for each in records:
        record = record.with_stage(each)
    write_bytes(folder / "run.json", record.model_dump_json().encode())


def recorded(run: Run, kind: type[AnyRecord]) -> AnyRecord:
    """Return the record of a stage that ran."""
    record = run.record().of(kind.stage)
    assert isinstance(record, kind)
    return record


def chosen_by(run: Run) -> SelectionRecord:
    """Return how a run's best checkpoint was chosen."""
    selection = recorded(run, FinetuneRecord).selection
    assert selection is not None
    return selection


def generate_record(settings: dict[str, Any] | None = None, **results: Any) -> GenerateRecord:
    """Return the record of a finished generate stage.

    Args:
        settings: options that differ.
        results: fields of the record that differ.
    """
    options = {
        "spec": "0123456789abcdef",
        "labels": ("1", "0"),
        "model": ModelRef(name="pocket", fingerprint="0123456789abcdef", dtype="float32"),
        "samples": 1,
        "seed": 42,
        "sampling": Sampling(),
        **(settings or {}),
    }
    return GenerateRecord(**{"options": GenerateSettings(**options), "status": "done", **results})


def finetune_record(encoder: str = "pocket", **changes: Any) -> FinetuneRecord:
    """Return the record of a finished training."""
    options = TrainingSettings(
        objective="dino",
        encoder=ModelRef(name=encoder),
        epochs=1,
        batch_size=32,
        learning_rate=2e-5,
        weight_decay=0,
        warmup=0,
        schedule="linear",
        pooling="mean",
        bf16=False,
        faithful=False,
        seed=42,
        data="run",
        class_labels=False,
        language="en",
        split_sentences=False,
    )
    return FinetuneRecord(options=options, status="done").updated(**changes)
