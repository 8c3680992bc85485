"""What may be shown to others of a value: names, but no paths of this machine and no address of a server."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel

from dino_pipeline.models import POCKET

_ABSOLUTE_PATH = re.compile(r"(?<![\w./:])/(?:[^\s/:+\"',]+/)+([^\s/:+\"',]+)")
_FINGERPRINTS = {
    **dict.fromkeys(("name", "model", "encoder"), "fingerprint"),
    "semantic": "semantic_fingerprint",
    "adapter": "adapter_fingerprint",
}
"""Fields that name a model, and the fields that are set if it lies in a folder."""

R = TypeVar("R", bound=BaseModel)


def public_record(record: R) -> R:
    """Return a copy of a record that others may see; see `public`."""
    return type(record).model_validate(public(record.model_dump(mode="json")))


def public(value: Any) -> Any:
    """Return a JSON value in which paths of this machine are cut to their last part.

    Absolute paths are found in any string. Relative ones are found in fields that name files, and in fields that name
    a model if its fingerprint says that it lies in a folder. A server's address is left out.
    """
    if isinstance(value, dict):
        shown = {}
        for key, inner in value.items():
            fingerprint = value.get(_FINGERPRINTS.get(key, ""))
            if key == "exclude" or (fingerprint and inner != POCKET):
                shown[key] = _last_parts(inner)
            elif key == "options" and isinstance(value.get("inputs"), dict):
                # of a filter: fingerprints are among its inputs
                shown[key] = {name: public({**value["inputs"], name: option})[name] for name, option in inner.items()}
            elif key != "base_url":
                shown[key] = public(inner)
        return shown
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    return _ABSOLUTE_PATH.sub(r"\1", value) if isinstance(value, str) else value


def _last_parts(value: Any) -> Any:
    """Return the last part of a path, or of each path in a list."""
    if isinstance(value, list | tuple):
        return [_last_parts(item) for item in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value
