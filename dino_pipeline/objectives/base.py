"""What a training objective is: a record that says which data it needs and how a model learns from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dino_pipeline.examples import Example


@dataclass(frozen=True)
class Training:
    """Hyper-parameters of a training; an objective's defaults are its paper's."""

    epochs: float = 1
    batch_size: int = 32
    """Examples a step, over all processes."""
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    max_length: int | None = None
    """Tokens a text is cut at; None leaves it to the encoder."""


@dataclass(frozen=True)
class Objective:
    """One way to train a sentence encoder, on the stock trainer."""

    name: str
    needs: str
    """The data it learns from, in words."""
    build: Callable[[Sequence[Example], str], Any]
    """Turns examples of a named file into the trainer's dataset; raises DataError if they are of another kind."""
    loss: Callable[[Any], Any]
    """Makes the loss module of a model."""
    defaults: Training
    citation: str
