"""SBERT's objective: a linear layer tells a pair's class from both embeddings and their distance."""

from __future__ import annotations

import torch
from datasets import ClassLabel, Dataset, Features, Value
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from dino_pipeline.training.objectives.base import Columns, Objective, Recipe, Training
from dino_pipeline.training.objectives.contrastive import EmbeddingLoss, of_each_size


def build(columns: Columns, recipe: Recipe) -> Dataset:
    """Return the columns ``sentence1, sentence2, label``, the classes numbered in the order of their names."""
    names = sorted(dict.fromkeys(columns["label"]))
    text = Value("string")
    features = Features({"sentence1": text, "sentence2": text, "label": ClassLabel(names=names)})
    return Dataset.from_dict(columns, features)


class PairClassifier(EmbeddingLoss):
    """Cross-entropy of ``W [u; v; |u - v|]`` (Reimers & Gurevych 2019, section 3)."""

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.classifiers = of_each_size(self.dimensions, lambda size: nn.Linear(3 * size, recipe.classes))

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the cross-entropy of the classes of two columns of texts."""
        u, v = embeddings
        logits = self.classifiers[str(u.shape[-1])](torch.cat([u, v, (u - v).abs()], dim=-1))
        assert labels is not None
        return nn.functional.cross_entropy(logits, labels.view(-1))


OBJECTIVE = Objective(
    name="sbert",
    needs="classified pairs",
    method="softmax over [u; v; |u - v|]",
    build=build,
    loss=PairClassifier,
    defaults=Training(batch_size=16),
    caches=True,
    citation="Reimers & Gurevych 2019, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, "
    "arXiv:1908.10084",
)
