"""DINO's objective: the cosine of two texts' embeddings regresses on the pair's score."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example
from dino_pipeline.objectives.base import Objective, Training


def build(examples: Sequence[Example], source: str) -> Dataset:
    """Return the columns ``sentence1, sentence2, score`` of scored pairs."""
    for number, example in enumerate(examples, start=1):
        if example.text_b is None or not isinstance(example.label, float) or not 0 <= example.label <= 1:
            raise DataError(
                f"{source}: example {number} is no scored pair (label {example.label!r}); "
                "this objective needs two texts and a label between 0 and 1"
            )
    return Dataset.from_dict(
        {
            "sentence1": [example.text_a for example in examples],
            "sentence2": [example.text_b for example in examples],
            "score": [example.label for example in examples],
        }
    )


def loss(model: SentenceTransformer) -> CosineSimilarityLoss:
    """Return the mean of ``(cos(u, v) - y) ** 2`` over a batch."""
    return CosineSimilarityLoss(model)


OBJECTIVE = Objective(
    name="dino",
    needs="scored pairs",
    build=build,
    loss=loss,
    defaults=Training(),
    citation="Schick & Schütze 2021, Generating Datasets with Pretrained Language Models, arXiv:2104.07540",
)
