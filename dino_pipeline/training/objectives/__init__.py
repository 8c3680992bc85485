"""The training objectives, one file each."""

from __future__ import annotations

from importlib import import_module

from dino_pipeline.training.objectives.base import (
    Columns,
    Kind,
    Objective,
    Recipe,
    Training,
    rows_are_apart,
    settle,
)

NAMES = ("dino", "sbert", "simcse", "simcse-sup", "mirror-bert", "is-cse", "declutr", "cpt", "cmlm")

__all__ = [
    "NAMES",
    "Columns",
    "Kind",
    "Objective",
    "Recipe",
    "Training",
    "get_objective",
    "rows_are_apart",
    "settle",
]


def get_objective(name: str) -> Objective:
    """Return an objective by its name; only its own file is imported."""
    module = import_module(f"dino_pipeline.training.objectives.{name.replace('-', '_')}")
    objective: Objective = module.OBJECTIVE
    return objective
