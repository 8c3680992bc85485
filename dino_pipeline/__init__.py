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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_pipeline.decoding.decoder import Generator
    from dino_pipeline.decoding.loading import load_generator
    from dino_pipeline.errors import (
        DataError,
        DinoError,
        HubError,
        ModelError,
        OptionError,
        OutputError,
        RunError,
        SpecError,
    )
    from dino_pipeline.evaluation.compare import Comparison, compare
    from dino_pipeline.evaluation.evaluate import evaluate
    from dino_pipeline.evaluation.scores import Scores
    from dino_pipeline.examples import Example
    from dino_pipeline.filtering.filter import FilteredPairs, filter
    from dino_pipeline.generation.generate import GeneratedTexts, generate
    from dino_pipeline.generation.preview import Preview, preview
    from dino_pipeline.publishing.export import export
    from dino_pipeline.publishing.publish import publish
    from dino_pipeline.publishing.report import report
    from dino_pipeline.publishing.verify import verify
    from dino_pipeline.run import Run
    from dino_pipeline.spec import TaskSpec
    from dino_pipeline.spec_file import load_spec
    from dino_pipeline.stopping import Stopped
    from dino_pipeline.training.finetune import finetune

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "DataError",
    "DinoError",
    "Example",
    "FilteredPairs",
    "GeneratedTexts",
    "Generator",
    "HubError",
    "ModelError",
    "OptionError",
    "OutputError",
    "Preview",
    "Run",
    "RunError",
    "Scores",
    "SpecError",
    "Stopped",
    "TaskSpec",
    "compare",
    "evaluate",
    "export",
    "filter",
    "finetune",
    "generate",
    "load_generator",
    "load_spec",
    "preview",
    "publish",
    "report",
    "verify",
]

_MODULES = {
    "decoding.decoder": ("Generator",),
    "decoding.loading": ("load_generator",),
    "evaluation.compare": ("Comparison", "compare"),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.scores": ("Scores",),
    "examples": ("Example",),
    "filtering.filter": ("FilteredPairs", "filter"),
    "generation.generate": ("GeneratedTexts", "generate"),
    "generation.preview": ("Preview", "preview"),
    "publishing.publish": ("publish",),
    "publishing.report": ("report",),
    "publishing.export": ("export",),
    "publishing.verify": ("verify",),
    "stopping": ("Stopped",),
    "run": ("Run",),
    "spec": ("TaskSpec",),
    "spec_file": ("load_spec",),
    "training.finetune": ("finetune",),
}
"""The module of each public name but for the errors. It is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "errors")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
