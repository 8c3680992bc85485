"""What of a value may be shown to others: names, but no paths of this machine."""

from __future__ import annotations

import re
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w./:])/(?:[^\s/:+\"',]+/)+([^\s/:+\"',]+)")
_FINGERPRINTS = {
    "model": "fingerprint",
    "encoder": "fingerprint",
    "semantic": "semantic_fingerprint",
    "adapter": "adapter_fingerprint",
}
"""Fields that name a model, and those that say that it lay in a folder."""


def public(value: Any) -> Any:
    """Return a JSON value in which paths of this machine are cut to their last part, to be shown to others.

    Fields that may hold relative paths are known by their names, and models in folders by their fingerprints; a
    server's address is left out.
    """
    if isinstance(value, dict):
        paths = {
            name
            for name, fingerprint in _FINGERPRINTS.items()
            if value.get(fingerprint) and value.get(name) != "pocket"
        }
        return {
            key: _names(each) if key in paths or key == "exclude" else public(each)
            for key, each in value.items()
            if key != "base_url"
        }
    if isinstance(value, list | tuple):
        return [public(each) for each in value]
    return _ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def _names(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_names(each) for each in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value
