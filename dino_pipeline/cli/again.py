"""The commands that make a run's dataset again, spelt out from what run.json records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dino_pipeline.cli.base import COMMAND_LINE
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.public import public

if TYPE_CHECKING:
    from dino_pipeline.cards.dataset_card import Rebuild
    from dino_pipeline.run import Run

FOLDER = "../again"
SERVER = "http://127.0.0.1:8000/v1"
"""Where a server of one's own is often found: that of the run is nobody else's business."""


def commands(run: Run) -> Rebuild:
    """Return the commands for a folder that holds ``spec.json``."""
    from dino_pipeline.cards.dataset_card import Rebuild

    generated, filtered = public(run.stage("generate")), public(run.stage("filter"))
    if not generated or filtered.get("status") != "done":
        return Rebuild()
    options = generated["options"]
    values = {**options, **options["sampling"], "revision": options["revision"] or generated.get("model_commit")}
    brought = "texts" in options.get("inputs", {})
    if options.get("engine") == "openai":
        values |= {"base_url": SERVER, "scorer": _scorer_of(options)}
        values |= {"decay": None, "floor": None}  # a server cannot debias
    elif options["model"] != "pocket":
        values.setdefault("chat", "off")
    values["inputs"] = None
    if brought:
        values |= {"inputs": "inputs.jsonl", "input_format": "jsonl", "num_inputs": None}
    values["more"] = [f"{each['label']}={each['samples']}" for each in generated.get("more", [])]
    found = [
        ["dino", "generate", "spec.json", "--run", FOLDER, *_generate_flags(values)],
        ["dino", "filter", FOLDER, *_filter_flags(run)],
    ]
    return Rebuild(found, brought, _lacks(run))


def _scorer_of(options: Mapping[str, Any]) -> str | None:
    scorer = options.get("scorer")
    return scorer["model"] if isinstance(scorer, dict) else scorer


def _lacks(run: Run) -> list[str]:
    from dino_pipeline.filtering.contamination import HUB_SETS

    options, filtered = public(run.stage("generate")["options"]), public(run.stage("filter")["options"])
    lacks = [f"the rule {rule}" for rule in filtered["custom"]]
    lacks += [f"the file {name}" for name in filtered["exclude"] if name not in {"pocket", *HUB_SETS}]
    if options["model"] != "pocket" and options["fingerprint"]:
        lacks.append(f"the generator {options['model']}, a folder")
    if options.get("adapter_fingerprint"):
        lacks.append(f"the adapter {options['adapter']}, a folder")
    if options.get("engine") == "openai":
        lacks.append(f"a server of the model {options['model']} under the address that is given, with seeds that hold")
    if isinstance(scorer := options.get("scorer"), dict) and scorer["model"] != "pocket" and scorer["fingerprint"]:
        lacks.append(f"the scorer {scorer['model']}, a folder")
    if filtered["semantic_fingerprint"]:
        lacks.append(f"the encoder {filtered['semantic']}, a folder")
    return lacks


def _filter_flags(run: Run) -> list[str]:
    """Return the options of the filter that are not at their defaults."""
    filtered = run.record().filter
    assert filtered is not None
    found: list[str] = []
    for name, value in public(filtered.options.recorded()).items():
        if value == FilterOptions().recorded()[name]:
            continue
        for each in value if isinstance(value, list) else [value]:
            found += COMMAND_LINE.option(name, each).split(" ", 1)
    return found


def _generate_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the options of the generate stage that are not at their defaults."""
    defaults, found = GenerateOptions(), list[str]()
    for name in GenerateOptions.model_fields:
        value = values.get(name)
        if value is None or value == getattr(defaults, name):
            continue
        for each in value if isinstance(value, list) else [str(value)]:
            found += COMMAND_LINE.option(name, each).split(" ", 1)
    return found
