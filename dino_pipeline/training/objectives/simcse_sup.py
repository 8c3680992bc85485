"""SimCSE with hard negatives: an anchor finds its positive among its batch's positives and negatives."""

from __future__ import annotations

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from dino_pipeline.training.objectives import simcse
from dino_pipeline.training.objectives.base import Objective, Recipe, Training
from dino_pipeline.training.objectives.contrastive import InfoNCE
from dino_pipeline.training.objectives.views import as_they_are


def loss(model: SentenceTransformer, dataset: Dataset, recipe: Recipe) -> InfoNCE:
    """Return the loss; the head that the paper keeps in the encoder is left out, so that it stays a plain one."""
    return InfoNCE(model, recipe)


OBJECTIVE = Objective(
    name="simcse-sup",
    needs="triplets",
    method="InfoNCE with hard negatives",
    build=as_they_are,
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
