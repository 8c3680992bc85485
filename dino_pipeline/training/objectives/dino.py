"""DINO's objective: the cosine of two texts' embeddings follows the pair's score."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss, CosineSimilarityLoss

from dino_pipeline.training.objectives.base import Objective, Recipe, Training
from dino_pipeline.training.objectives.views import as_they_are

LOSSES = {"cosine": CosineSimilarityLoss, "cosent": CoSENTLoss, "angle": AnglELoss}


def loss(model: SentenceTransformer, recipe: Recipe) -> Any:
    """Return the mean of ``(cos(u, v) - y) ** 2`` over a batch, or a loss of the order of the cosines."""
    return LOSSES[recipe["loss"]](model)


OBJECTIVE = Objective(
    name="dino",
    needs="scored pairs",
    method="the cosine regresses on the score",
    build=as_they_are,
    loss=loss,
    defaults=Training(options={"loss": "cosine"}),
    choices={"loss": tuple(LOSSES)},
    citation="Schick & Schütze 2021, Generating Datasets with Pretrained Language Models, arXiv:2104.07540",
)
