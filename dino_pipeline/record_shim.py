"""The record in its old form, for code that has not converted yet. It goes when the last stage has."""

from __future__ import annotations

import json
from typing import Any

from dino_pipeline.funnel import Funnel
from dino_pipeline.record_upgrade import upgraded
from dino_pipeline.stage_records import (
    EvaluateRecord,
    FilterRecord,
    FinetuneRecord,
    FunnelStep,
    GenerateRecord,
    StageRecord,
    TextsOrigin,
)

TYPES: dict[str, type[StageRecord]] = {
    each.stage: each for each in (GenerateRecord, FilterRecord, FinetuneRecord, EvaluateRecord)
}
OPTIONAL = ("chat", "adapter", "adapter_fingerprint", "quantize", "trust_remote_code")
INPUTS = ("source", "numeric_labels", "stop", "fields", "excluded", "semantic_fingerprint")
HYGIENE = ("min_chars", "max_chars", "max_symbols", "stop", "fields")


def typed(name: str, record: dict[str, Any]) -> StageRecord:
    plain = json.loads(json.dumps(record))
    return TYPES[name].model_validate(upgraded({name: plain})[name])


def old_funnel(steps: Any) -> Funnel:
    record = {"options": {"hygiene": {}, "custom": [], "custom_digest": "", **dict.fromkeys(INPUTS)}, "funnel": steps}
    plain = json.loads(json.dumps(record))
    return Funnel(tuple(FunnelStep.model_validate(step) for step in upgraded({"filter": plain})["filter"]["funnel"]))


def _flat_model(options: dict[str, Any], name: str) -> dict[str, Any]:
    model = options.pop(name)
    flat = {name: model["name"], "revision": model["revision"], "fingerprint": model["fingerprint"]}
    if name == "model":
        flat["dtype"] = model["dtype"]
    optional = {key: model[key] for key in OPTIONAL if model[key]}
    if "chat" in optional:
        optional["chat"] = "on"
    return {**flat, **optional, **options}


def as_format_2(name: str, record: StageRecord) -> dict[str, Any]:
    found: dict[str, Any] = record.model_dump(mode="json")
    options = found["options"]
    if name == "generate":
        options = _flat_model(options, "model")
        if isinstance(options["scorer"], dict):
            options["scorer"] = _flat_model({"model": options["scorer"]}, "model")
        for key, default in (("scorer", None), ("engine", "transformers"), ("best_of", 1), ("shard_size", 1024)):
            if options[key] == default:
                del options[key]
        for key in ("inputs", "input_sampling"):
            if options[key] is None:
                del options[key]
            elif key == "inputs":
                options[key] = {kind: value for kind, value in options[key].items() if value is not None}
        for key in ("usage", "server", "cost", "task", "label_type", "model_commit"):
            if found[key] is None and key != "model_commit":
                del found[key]
    elif name == "filter":
        options |= found.pop("inputs")
        options |= {"custom": options.pop("rule"), "custom_digest": options.pop("rule_digest")}
        options["hygiene"] = {key: options.pop(key) for key in HYGIENE}
        found["funnel"] = [[_shown(step), step["counts"]] for step in found["funnel"]]
        for key in ("missing", "margin_quantiles", "logprob_quantiles"):
            if not found[key]:
                del found[key]
    elif name == "finetune":
        options = _flat_model(options, "encoder")
        assert isinstance(record, FinetuneRecord)
        found["origin"] = _origin(record.origin)
        found["history"] = [{k: v for k, v in point.items() if v is not None} for point in found["history"]]
        if found["head"] is None:
            del found["head"]
        else:
            found["head"] = {k: v for k, v in found["head"].items() if v is not None}
        if found["selection"] is None:
            del found["selection"]
    found["options"] = options
    if found["ended"] is None:
        del found["ended"]
    return found


def _origin(origin: TextsOrigin) -> dict[str, Any]:
    if origin.own:
        return {"own": True}
    if origin == TextsOrigin():
        return {}
    found = origin.model_dump(mode="json", exclude={"own"})
    for name in ("generate", "filter"):
        record = getattr(origin, name)
        found[name] = as_format_2(name, record) if record else {}
    if found["dataset"]:
        found["dataset"] = {k: v for k, v in found["dataset"].items() if v}
    return found


def _shown(step: dict[str, Any]) -> str:
    if step["kind"] == "dropped":
        return f"- {step['rule']}"
    if step["kind"] == "added":
        return f"+ {step['rule']}"
    if step["kind"] == "would_drop":
        option, _, value = step["rule"].partition("=")
        return f"(--{option.replace('_', '-')} {value} would drop)"
    if step["kind"] == "flagged":
        return f"(flagged: {step['rule']})"
    return str(step["kind"])
