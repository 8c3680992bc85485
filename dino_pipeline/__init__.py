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
    "Comparison": "evaluation.compare",
    "DataError": "errors",
    "DinoError": "errors",
    "Example": "examples",
    "GeneratedTexts": "generation.generate",
    "HubError": "errors",
    "ModelError": "errors",
    "OptionError": "errors",
    "OutputError": "errors",
    "Preview": "generation.preview",
    "Run": "run",
    "RunError": "errors",
    "Scores": "evaluation.scores",
    "SpecError": "errors",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "export": "publishing.verify",
    "finetune": "training.finetune",
    "generate": "generation.generate",
    "load_generator": "decoding.generator",
    "load_spec": "spec_file",
    "preview": "generation.preview",
    "publish": "publishing.publish",
    "report": "publishing.report",
    "verify": "publishing.verify",
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
