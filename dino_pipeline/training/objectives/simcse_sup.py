"""SimCSE with hard negatives: an anchor finds its positive among its batch's positives and negatives.

The head that the paper keeps in the encoder is left out, so that it stays a plain one.
"""

from __future__ import annotations

from dataclasses import replace

from dino_pipeline.training.objectives import simcse
from dino_pipeline.training.objectives.base import Objective
from dino_pipeline.training.objectives.contrastive import InfoNCE
from dino_pipeline.training.objectives.views import as_they_are

OBJECTIVE = Objective(
    name="simcse-sup",
    needs="triplets",
    method="InfoNCE with hard negatives",
    build=as_they_are,
    loss=InfoNCE,
    defaults=replace(simcse.PAPER, epochs=3, batch_size=512, learning_rate=5e-5),
    citation=simcse.OBJECTIVE.citation,
    in_batch=True,
    distinct=True,
    caches=True,
)
