"""The training objectives, one file each."""

from __future__ import annotations

from importlib import import_module

from dino_pipeline.objectives.base import Objective, Training

NAMES = ("dino",)

__all__ = ["NAMES", "Objective", "Training", "get_objective"]


def get_objective(name: str) -> Objective:
    """Return an objective by its name; only its own file is imported."""
    objective: Objective = import_module(f"dino_pipeline.objectives.{name}").OBJECTIVE
    return objective
