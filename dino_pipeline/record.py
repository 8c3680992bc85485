"""run.json: the records of all stages of a run.

The file is read once, where a run is opened (`run.Run.record`), and handed on as values. A file written by the last
version (format 2) is brought to these types when it is read.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from contextlib import suppress
from typing import Any, Literal

from pydantic import ValidationError

from dino_pipeline import __version__
from dino_pipeline.record_upgrade import upgraded
from dino_pipeline.stage_records import (
    EvaluateRecord,
    FilterRecord,
    FinetuneRecord,
    GenerateRecord,
    Record,
    StageRecord,
    TextsOrigin,
)

FORMAT: Literal[3] = 3
"""Format of run.json that is written; 2 is read, too."""
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
"""Libraries whose versions are recorded, because they decide results."""


class RunRecord(Record):
    """run.json."""

    format: Literal[3] = FORMAT
    generate: GenerateRecord | None = None
    filter: FilterRecord | None = None
    finetune: FinetuneRecord | None = None
    evaluate: EvaluateRecord | None = None

    def of(self, stage: str) -> StageRecord | None:
        """Return the record of a stage by its name, None if it never ran."""
        found: StageRecord | None = getattr(self, stage)
        return found

    def with_stage(self, record: StageRecord) -> RunRecord:
        """Return a copy with the record of one stage replaced."""
        return self.model_copy(update={record.stage: record})

    def without(self, stage: str) -> RunRecord:
        """Return a copy without the record of one stage."""
        return self.model_copy(update={stage: None})

    def texts_origin(self) -> TextsOrigin:
        """Return where the texts of the run's encoder come from; for those of the run itself, its own records."""
        if self.finetune is None:
            return TextsOrigin()
        origin = self.finetune.origin
        return origin.updated(generate=self.generate, filter=self.filter) if origin.own else origin


class RecordError(ValueError):
    """run.json holds something else than a record; the message says what."""


def parse_record(content: str | bytes) -> RunRecord:
    """Return the record that a run.json holds.

    Raises:
        RecordError: it is damaged, wrongly typed, or of another version.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RecordError("must be a JSON object")
    made_with = found.get("format", 1)
    if made_with == 2:
        found = _upgraded(found)
    elif made_with != FORMAT:
        raise RecordError(f"is of format {made_with!r}, and this version reads 2 and {FORMAT}")
    try:
        return RunRecord.model_validate_json(json.dumps(found))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise RecordError(f"{place}: {problem['msg']}") from error


def _upgraded(found: dict[str, Any]) -> dict[str, Any]:
    try:
        return upgraded(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"is damaged ({type(error).__name__}: {error})") from error


def now() -> str:
    """Return the time as records hold it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that decide results."""
    found = {"dino_pipeline": __version__}
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found
