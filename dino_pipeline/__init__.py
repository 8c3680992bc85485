"""Labelled text pairs written by a language model (DINO), and the sentence encoders trained on them.

    import dino_pipeline as dino

    spec = dino.load_spec("sts-x2")
    pairs = dino.generate(spec, model="gpt2-xl", inputs=sentences)
    kept = dino.filter(pairs, spec=spec)
    encoder = dino.finetune(kept, encoder="roberta-base")
    scores = dino.evaluate(encoder, data="stsb.tsv")

Every function takes the options of the command of the same name as keyword arguments. Libraries such as torch are
loaded when a function needs them, not when the package is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "DataError": "errors",
    "DinoError": "errors",
    "Example": "examples",
    "FilteredPairs": "filtering.filter",
    "Funnel": "funnel",
    "HubError": "errors",
    "ModelError": "errors",
    "OptionError": "errors",
    "OutputError": "errors",
    "RunError": "errors",
    "SpecError": "errors",
    "evaluate": "evaluation.evaluate",
    "filter": "filtering.filter",
    "Run": "run",
    "load_generator": "decoding.generator",
    "Scores": "evaluation.scores",
}
"""The module that holds each public name; it is imported when the name is first used."""

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
