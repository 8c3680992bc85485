"""What a training objective is: a record that says which data it needs and how a model learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dino_pipeline.errors import OptionError

Value = float | int | str
Kind = Literal["scored pairs", "classified pairs", "pairs", "triplets", "sentences", "documents"]
"""What a row is: two texts with a number or with a class, two texts that belong together (neighbours, or a text and its
code), a text with a positive and a negative, a sentence, a text of several sentences."""
Columns = dict[str, list[Any]]
"""The rows of a kind, by column, in the order in which the trainer hands them to the loss."""


@dataclass(frozen=True)
class Training:
    """Hyper-parameters of a training; an objective's defaults are its paper's."""

    epochs: float = 1
    steps: int | None = None
    """Steps in all, in place of epochs."""
    batch_size: int = 32
    """Rows a step, over all processes."""
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: str = "linear"
    """What the learning rate does then: falls to zero (linear) or stays (constant)."""
    max_length: int | None = None
    """Tokens a text is cut at; None leaves it to the encoder."""
    pooling: str = "mean"
    """How token states become an embedding (mean, cls, lasttoken), for encoders that bring no pooling of their own."""
    mini_batch_size: int | None = None
    """Rows that go through the encoder at once; gradients are cached, or added up where rows are apart. None: all."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe."""
    matryoshka: tuple[int, ...] = ()
    """Leading dimensions that shall be embeddings of their own, beside the whole."""
    faithful: bool = False
    """The paper's reference code where it differs from what is sane."""
    options: Mapping[str, Value] = field(default_factory=dict)
    """The objective's own options."""


@dataclass(frozen=True)
class Recipe:
    """What an objective builds its data and its loss from, beside rows and model."""

    training: Training
    tokenizer: Any
    seed: int
    revision: str | None = None
    """The encoder's revision on the Hub."""
    processes: int = 1
    steps: int = 0
    """Steps of the whole training; known once the data is built."""
    classes: int = 0
    """Of the rows that have some; known once the data is built."""

    def __getitem__(self, name: str) -> Any:
        """Return one of the objective's own options."""
        return self.training.options[name]


@dataclass(frozen=True)
class Objective:
    """One way to train a sentence encoder, on the stock trainer."""

    name: str
    needs: Kind
    """The data it learns from."""
    method: str
    """How it learns, in one line."""
    build: Callable[[Columns, Recipe], Any]
    """Turns rows of the kind it needs into the trainer's dataset."""
    loss: Callable[[Any, Recipe], Any]
    """Makes the loss module of a model."""
    defaults: Training
    """With all of its own options."""
    citation: str
    faithful: Mapping[str, Value] = field(default_factory=dict)
    """Options that ``--faithful`` sets; none: the defaults are the paper's."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values of options that are words."""
    may_be_zero: tuple[str, ...] = ()
    """Options that are numbers and may be 0."""
    shares: tuple[str, ...] = ()
    """Options that are shares of a whole."""
    in_batch: bool = False
    """Other rows of a batch are its negatives."""
    distinct: bool = False
    """Keeps rows that share a text out of each other's batches."""
    needs_dropout: bool = False
    """Its two views of a text differ by dropout alone."""
    caches: bool = False
    """Can cache gradients."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What stands before the texts of each column."""
    prepare: Callable[[Any], None] | None = None
    """Changes an encoder for good, before it is trained."""


def settle(objective: Objective, given: Mapping[str, Any], own: Mapping[str, str]) -> Training:
    """Return an objective's defaults with what a user wants otherwise.

    Args:
        objective: whose defaults.
        given: hyper-parameters by name.
        own: the objective's own options, as the user wrote them.

    Raises:
        OptionError: the objective has no such option, or not that value.
    """
    defaults, faithful = objective.defaults, bool(given.get("faithful"))
    if faithful and not objective.faithful:
        raise OptionError(f"--faithful: {objective.name} has nothing to choose; its defaults are the paper's")
    chosen = {name: _value(objective, name, text) for name, text in own.items()}
    options = {**defaults.options, **(objective.faithful if faithful else {}), **chosen}
    training = replace(defaults, **{**given, "options": options})
    if training.mini_batch_size and not (objective.caches or rows_are_apart(objective, training)):
        raise OptionError(
            f"--mini-batch-size: the rows of a batch are compared with one another, and {objective.name} cannot cache "
            "gradients; leave it out"
        )
    return training


def rows_are_apart(objective: Objective, training: Training) -> bool:
    """Say whether the loss of a batch is the mean of its rows', whatever stands beside them."""
    return not objective.in_batch and training.options.get("loss", "cosine") == "cosine"


def _value(objective: Objective, name: str, text: str) -> Value:
    if name not in objective.defaults.options:
        names = ", ".join(objective.defaults.options) or "none"
        raise OptionError(f"{name}: {objective.name} has no such option; it has {names}")
    default, choices = objective.defaults.options[name], objective.choices.get(name)
    if choices and text not in choices:
        raise OptionError(f"{name}={text}: must be one of {', '.join(choices)}")
    try:
        value = type(default)(text)
    except ValueError as error:
        wanted = "a whole number" if isinstance(default, int) else "a number"
        raise OptionError(f"{name}={text}: must be {wanted}") from error
    if isinstance(value, int) and value < 1:
        raise OptionError(f"{name}={text}: must be 1 or more")
    if isinstance(value, float) and not (0 < value < math.inf or (value == 0 and name in objective.may_be_zero)):
        raise OptionError(f"{name}={text}: must be more than 0")
    if name in objective.shares and float(value) > 1:
        raise OptionError(f"{name}={text}: is a share and must not be more than 1")
    return value
