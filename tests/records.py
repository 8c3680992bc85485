"""Records of stages for tests, every field at a value that a small run would have."""

from __future__ import annotations

from typing import Any

from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.stage_records import GenerateRecord, GenerateSettings


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
