"""Which commands make a published dataset again?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dino_pipeline.cards.document import document_wording
from dino_pipeline.filtering.contamination import HUB_SETS
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.models import POCKET, ModelRef
from dino_pipeline.options import Options, default_of, flags_of
from dino_pipeline.record import RunRecord
from dino_pipeline.stage_records import FilterRecord, GenerateRecord

FOLDER = "../again"
"""The run that the card's commands write, seen from the published folder."""
SERVER = "http://127.0.0.1:8000/v1"
"""A usual address of a server of one's own; the address of the run's server is private."""


@dataclass(frozen=True)
class Rebuild:
    """The commands that make a dataset again, in a folder that holds its published files."""

    script: str = ""
    """For a shell, a command a line; empty if the texts came from a file."""
    needs_inputs: bool = False
    """True if the commands read ``inputs.jsonl``."""
    missing: tuple[str, ...] = ()
    """What they need and the published folder does not hold, in words."""


def rebuild_of(record: RunRecord) -> Rebuild:
    """Return the commands that make a run's dataset again; its record holds no paths of this machine."""
    generated, filtered = record.generate, record.filter
    if generated is None or filtered is None or not filtered.is_done:
        return Rebuild()
    commands = [
        _command("generate", "spec.json", {"run": FOLDER, **_chosen(GenerateOptions, _generate_values(generated))}),
        _command("filter", FOLDER, _chosen(type(filtered.options), filtered.options.recorded())),
    ]
    return Rebuild("\n".join(commands), _inputs_are_brought(generated), tuple(_missing(generated, filtered)))


def _command(stage: str, target: str, options: Mapping[str, object]) -> str:
    """Return a command as a line for a shell."""
    wording = document_wording()
    words = [wording.stage(stage, target)]
    for name, value in options.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            words.append(wording.option(name, shlex.quote(str(item))))
    return " ".join(words)


def _chosen(model: type[Options], values: Mapping[str, object]) -> dict[str, object]:
    """Return those values that are not the defaults of a stage's options, in the order of the options."""
    chosen = {}
    for name, _, field in flags_of(model):
        value = values.get(name)
        default = default_of(field)
        if value is not None and value != (list(default) if isinstance(default, tuple) else default):
            chosen[name] = value
    return chosen


def _generate_values(generated: GenerateRecord) -> dict[str, object]:
    """Return the options of the generate stage by name, as a user gives them."""
    options, model = generated.options, generated.options.model
    values: dict[str, object] = {name: getattr(options, name) for name in GenerateOptions.model_fields if name in _OWN}
    values |= options.sampling.model_dump()
    values |= {"model": model.name, "revision": model.revision or generated.model_commit, "adapter": model.adapter}
    values["more"] = [f"{extra.label}={extra.samples}" for extra in generated.more]
    if options.engine == "openai":
        scorer = options.scorer
        values |= {"base_url": SERVER, "scorer": scorer.name if isinstance(scorer, ModelRef) else scorer}
        values["debias"] = "auto" if options.debias == "plugin" else options.debias or "off"
        if options.debias is None:
            values |= {"decay": None, "floor": None}
    else:
        values |= {"quantize": model.quantize, "trust_remote_code": model.trust_remote_code, "dtype": model.dtype}
        if model.name != POCKET:
            values["chat"] = "on" if model.chat else "off"
    if _inputs_are_brought(generated):
        values |= {"inputs": "inputs.jsonl", "input_format": "jsonl", "num_inputs": None}
    return values


_OWN = (
    *("num_inputs", "samples", "seed", "keep_unfinished", "keep_newlines", "min_words", "min_tokens"),
    *("best_of", "shard_size", "engine"),
)
"""Options that the record holds under the same name."""


def _inputs_are_brought(generated: GenerateRecord) -> bool:
    inputs = generated.options.inputs
    return inputs is not None and inputs.texts is not None


def _missing(generated: GenerateRecord, filtered: FilterRecord) -> Iterator[str]:
    """Yield, in words, what the commands need and the published folder does not hold."""
    options, chosen = generated.options, filtered.options
    for rule in chosen.rule:
        yield f"the rule {rule}"
    for name in chosen.exclude:
        if name not in {POCKET, *HUB_SETS}:
            yield f"the file {name}"
    if _is_folder(options.model):
        yield f"the generator {options.model.name}, a folder"
    if options.model.adapter_fingerprint:
        yield f"the adapter {options.model.adapter}, a folder"
    if options.engine == "openai":
        needs = "the plug-in that debiases" if options.debias == "plugin" else "seeds that hold"
        yield f"a server of the model {options.model.name} under the address that is given, with {needs}"
    if isinstance(options.scorer, ModelRef) and _is_folder(options.scorer):
        yield f"the scorer {options.scorer.name}, a folder"
    if filtered.inputs.semantic_fingerprint and chosen.semantic != POCKET:
        yield f"the encoder {chosen.semantic}, a folder"


def _is_folder(model: ModelRef) -> bool:
    return model.name != POCKET and model.fingerprint is not None
