"""What a training objective is: a record that says which rows it needs and how an encoder learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from random import Random
from typing import Any, Literal

from datasets import Dataset

from dino_pipeline.encoder_options import OBJECTIVES, Hyperparameters, OptionValue
from dino_pipeline.errors import OptionError
from dino_pipeline.options import Options
from dino_pipeline.stage_records import FinetuneRecord
from dino_pipeline.training.objectives.reference import Reference

RowKind = Literal["scored pairs", "classified pairs", "pairs", "triplets", "sentences", "documents"]
"""Kinds of training rows.

- scored pairs: two texts with a number between 0 and 1
- classified pairs: two texts with the name of a class
- pairs: two texts that belong together, such as neighbouring sentences, or a text and its code
- triplets: a text, a positive and a negative
- sentences: one sentence
- documents: one text of several sentences
"""
WHITENING_CITATION = "Su et al. 2021, Whitening Sentence Representations for Better Semantics, arXiv:2103.15316"
Columns = dict[str, list[Any]]
"""Training rows by column, the columns in the order in which the trainer hands them to the loss."""


@dataclass(frozen=True)
class TrainingContext:
    """Everything besides rows and encoder that an objective builds its dataset and its loss from."""

    hyperparameters: Hyperparameters
    tokenizer: Any
    seed: int
    revision: str | None = None
    """The encoder's revision on the Hub."""
    processes: int = 1
    """Number of processes that train together."""
    steps: int = 0
    """Steps of the whole training. Set once the dataset is built."""
    classes: int = 0
    """Number of classes of classified rows. Set once the dataset is built."""

    def __getitem__(self, name: str) -> Any:
        """Return the value of one of the objective's own options."""
        return self.hyperparameters.options[name]


@dataclass(frozen=True)
class Objective:
    """One way to train a sentence encoder on the stock trainer of sentence-transformers."""

    name: str
    needs: RowKind
    """The kind of rows that it learns from."""
    method: str
    """How it learns, in one line."""
    build: Callable[[Columns, TrainingContext], Dataset]
    """Turns rows of the kind that it needs into the trainer's dataset."""
    loss: Callable[[Any, TrainingContext], Any]
    """Makes the loss module for an encoder."""
    hyperparameters: Hyperparameters
    """Defaults of what every objective lets a user choose."""
    citation: str
    options: type[Options] = Options
    """What it alone lets a user choose."""
    faithful: Reference | str = "follows no paper"
    """Its authors' code, or why there is none to follow."""
    in_batch_negatives: bool = False
    """Whether the other rows of a batch are negatives."""
    no_duplicates: bool = False
    """Whether rows that share a text are kept out of each other's batches."""
    needs_dropout: bool = False
    """Whether its two views of a text differ by dropout alone."""
    reads_token_states: bool = False
    """Whether its loss reads the states of tokens, too, which token weights would scale."""
    caches_gradients: bool = False
    """Whether a batch can be encoded in mini-batches with gradient caching (Gao et al. 2021, arXiv:2101.06983)."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of the texts, by column."""
    prepare: Callable[[Any, Hyperparameters], None] | None = None
    """Changes an encoder for good before it is trained."""

    @property
    def defaults(self) -> Hyperparameters:
        """Return the default hyper-parameters, its own options included."""
        return self.hyperparameters.updated(options=self.options().model_dump())

    def followed(self, hyperparameters: Hyperparameters) -> Reference | None:
        """Return the authors' code if a training follows it."""
        return self.faithful if hyperparameters.faithful and isinstance(self.faithful, Reference) else None

    def keeps_apart(self, hyperparameters: Hyperparameters) -> bool:
        """Return whether rows that share a text are kept out of each other's batches, which no authors' code does."""
        return self.no_duplicates and not hyperparameters.faithful

    def own_options(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Return all of its own options; numbers may be given as strings.

        Raises:
            OptionError: it has no such option, or the value is not allowed.
        """
        known = self.options.model_fields
        if unknown := [name for name in given if name not in known]:
            raise OptionError(f"{unknown[0]}: {self.name} has no such option; it has {', '.join(known) or 'none'}")
        try:
            return self.options.of(given).model_dump()
        except OptionError as error:  # it is no argument or flag of its own, so that the message has to name it
            raise OptionError(f"{error.option}={error.value}: {error.message}", error.remedy) from error


def get_objective(name: str) -> Objective:
    """Return an objective by its name. ``mirror-bert`` is ``MIRROR_BERT`` in its module, which alone is imported."""
    module = import_module(f"{__name__}.{OBJECTIVES[name]}")
    objective: Objective = getattr(module, name.upper().replace("-", "_"))
    return objective


def citation(objective: Objective, record: FinetuneRecord) -> str:
    """Return what to cite for an encoder: the objective's paper, and whitening's."""
    return objective.citation if record.whitened == "no" else f"{objective.citation}. {WHITENING_CITATION}"


def resolve_hyperparameters(
    objective: Objective, given: Mapping[str, object], own: Mapping[str, OptionValue]
) -> Hyperparameters:
    """Return an objective's defaults, overridden by what a user gave.

    Args:
        given: hyper-parameters by name.
        own: the objective's own options by name; numbers may be written as strings.

    Raises:
        OptionError: the objective has no such option, or the value is not allowed.
    """
    authors = objective.faithful
    if given.get("faithful") and isinstance(authors, Reference):
        given, own = {**authors.hyperparameters, **given}, {**authors.options, **own}
    elif given.get("faithful"):
        raise OptionError(f"{objective.name} {authors}", "choose another {objective}", option="faithful")
    resolved = objective.hyperparameters.updated(**{**given, "options": objective.own_options(own)})
    if resolved.mini_batch_size and not (objective.caches_gradients or rows_are_independent(objective, resolved)):
        raise OptionError(
            f"the rows of a batch are compared with one another, and {objective.name} cannot cache gradients",
            "leave it out",
            option="mini_batch_size",
        )
    if resolved.lora_save == "adapter" and not resolved.lora:
        raise OptionError(
            "no adapters are trained", "leave it out, or give {lora=16}", option="lora_save", value="adapter"
        )
    return resolved


def rows_are_independent(objective: Objective, hyperparameters: Hyperparameters) -> bool:
    """Return whether the loss of a batch is the mean of the losses of its rows, each computed alone."""
    return not objective.in_batch_negatives and hyperparameters.options.get("loss", "cosine") == "cosine"


def reads_token_states(objective: Objective, hyperparameters: Hyperparameters) -> bool:
    """Return whether a training reads the states of tokens beside the embeddings, or those of padding."""
    return objective.reads_token_states or hyperparameters.options.get("mean") == "padded"


# Datasets: rows that stay the same, and rows from which views are drawn in every epoch.

ROW_NUMBER = "row"
Row = dict[str, Any]
"""One row, or one drawn view of it, by column."""
Draw = Callable[[Row, Random], Row]
"""Draws a view of a row: the columns that the trainer sees in one epoch."""


def fixed_rows(columns: Columns, context: TrainingContext) -> Dataset:
    """Return a dataset of the rows as they are, the same in every epoch."""
    return Dataset.from_dict(columns)


def drawn_rows(columns: Columns, draw: Draw, seed: int) -> Dataset:
    """Return a dataset whose rows are drawn from these, differently in each epoch."""
    count = len(next(iter(columns.values())))
    dataset = Dataset.from_dict({**columns, ROW_NUMBER: list(range(count))})
    dataset.set_transform(RowViews(draw, seed))
    return dataset


class RowViews:
    """The transform of a dataset of `drawn_rows`.

    A view depends on the seed, the epoch and the row, and not on the order of rows, the batch, or an interruption.
    """

    def __init__(self, draw: Draw, seed: int) -> None:
        self.draw, self.seed, self.epoch = draw, seed, 0

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the columns that the trainer sees for some rows."""
        numbers = batch.pop(ROW_NUMBER)
        drawn = []
        for number, *values in zip(numbers, *batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            drawn.append(self.draw(row, Random(f"{self.seed}/{self.epoch}/{number}")))
        columns: Columns = {}
        for name in drawn[0]:
            columns[name] = [row[name] for row in drawn]
        return columns


def row_views(dataset: Dataset) -> RowViews | None:
    """Return the transform that draws a dataset's views, or None if its rows stay as they are."""
    transform = dataset.format["format_kwargs"].get("transform")
    return transform if isinstance(transform, RowViews) else None
