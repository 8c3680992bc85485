"""Bring run.json of format 2 to format 3: one type for models, one for the steps of the funnel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_MODEL_FIELDS = ("revision", "fingerprint", "dtype", "adapter", "adapter_fingerprint", "quantize", "trust_remote_code")
_FILTER_INPUTS = ("source", "numeric_labels", "stop", "fields", "excluded", "semantic_fingerprint")
_WOULD_DROP = re.compile(r"\(--(min-(?:margin|logprob)) (\S+) would drop\)")


def upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run.json of format 2 as format 3 has it.

    Wrongly typed parts raise whatever they do, or are refused by the types afterwards.
    """
    stages: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "generate": _generate,
        "filter": _filter,
        "finetune": _finetune,
        "evaluate": dict,
    }
    result: dict[str, Any] = {"format": 3}
    for name, upgrade in stages.items():
        if name in found and found[name]["status"] != "clearing":
            result[name] = upgrade(found[name])
    return result


def _model(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Take the fields of a model out of flat options."""
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
    """Return a step of the funnel whose kind was part of the words that it was shown by."""
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
