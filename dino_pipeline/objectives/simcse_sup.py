"""SimCSE with hard negatives: an anchor finds its positive among its batch's positives and negatives."""

from __future__ import annotations

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from dino_pipeline.objectives import simcse
from dino_pipeline.objectives.base import Columns, Objective, Recipe, Training
from dino_pipeline.objectives.contrastive import InfoNCE


def build(columns: Columns, recipe: Recipe) -> Dataset:
    """Return the columns ``anchor, positive, negative``."""
    return Dataset.from_dict(columns)


def loss(model: SentenceTransformer, dataset: Dataset, recipe: Recipe) -> InfoNCE:
    """Return the loss; the head that the paper keeps in the encoder is left out, so that it stays a plain one."""
    return InfoNCE(model, recipe)


OBJECTIVE = Objective(
    name="simcse-sup",
    needs="triplets",
    method="InfoNCE with hard negatives",
    build=build,
    loss=loss,
    defaults=Training(
        epochs=3,
        batch_size=512,
        learning_rate=5e-5,
        weight_decay=0.0,
        warmup=0.0,
        max_length=32,
        pooling="cls",
        options={"temperature": 0.05},
    ),
    citation=simcse.OBJECTIVE.citation,
    in_batch=True,
    distinct=True,
    caches=True,
)
