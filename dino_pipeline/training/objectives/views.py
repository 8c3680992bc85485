"""Views of a row that are drawn anew in every epoch, and are the same whenever that epoch is run again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from datasets import Dataset

from dino_pipeline.training.objectives.base import Columns, Recipe

ROW = "row"
Draw = Callable[[dict[str, Any], Random], dict[str, Any]]


class Views:
    """A dataset's transform. What it draws depends on seed, epoch and row, not on order, batch or an earlier stop."""

    def __init__(self, draw: Draw, seed: int) -> None:
        self.draw, self.seed, self.epoch = draw, seed, 0

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the columns that the trainer sees for some rows."""
        numbers = batch.pop(ROW)
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        drawn = [
            self.draw(row, Random(f"{self.seed}/{self.epoch}/{number}"))
            for row, number in zip(rows, numbers, strict=True)
        ]
        return {name: [row[name] for row in drawn] for name in drawn[0]}


def as_they_are(columns: Columns, recipe: Recipe) -> Dataset:
    """Return a dataset of the rows themselves, the same in every epoch."""
    return Dataset.from_dict(columns)


def with_views(columns: Columns, draw: Draw, seed: int) -> Dataset:
    """Return a dataset whose rows are drawn from these."""
    numbers = range(len(next(iter(columns.values()))))
    dataset = Dataset.from_dict({**columns, ROW: list(numbers)})
    dataset.set_transform(Views(draw, seed))
    return dataset


def views_of(dataset: Dataset) -> Views | None:
    """Return what draws a dataset's views; None if its rows stay what they are."""
    transform = dataset.format["format_kwargs"].get("transform")
    return transform if isinstance(transform, Views) else None
