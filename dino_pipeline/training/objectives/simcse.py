"""SimCSE without labels: a sentence finds itself, seen through another dropout mask, among the others of its batch."""

from __future__ import annotations

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from dino_pipeline.training.objectives.base import Columns, Objective, Recipe, Training
from dino_pipeline.training.objectives.contrastive import InfoNCE, of_each_size


def build(columns: Columns, recipe: Recipe) -> Dataset:
    """Return each sentence twice, as ``anchor`` and ``positive``."""
    return Dataset.from_dict({"anchor": columns["sentence"], "positive": columns["sentence"]})


def head(size: int) -> nn.Sequential:
    """Return the layer that stands on top of the encoder while it is trained (Gao et al. 2021, section 6.3)."""
    return nn.Sequential(nn.Linear(size, size), nn.Tanh())


class SimCSE(InfoNCE):
    """InfoNCE behind a head that is not kept."""

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.heads = of_each_size(self.dimensions, head)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        first, second = (self.heads[str(each.shape[-1])](each) for each in embeddings)
        return self.contrast(first, second)

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of views behind the head, each ``(rows, dimension)``."""
        return super().compare([first, second], None)


PAPER = Training(
    batch_size=64,
    learning_rate=3e-5,
    weight_decay=0.0,
    warmup=0.0,
    max_length=32,
    pooling="cls",
    options={"temperature": 0.05},
)
"""For BERT-base; RoBERTa-base had batches of 512 and a learning rate of 1e-5."""

OBJECTIVE = Objective(
    name="simcse",
    needs="sentences",
    method="dropout twice, InfoNCE",
    build=build,
    loss=SimCSE,
    defaults=PAPER,
    citation="Gao et al. 2021, SimCSE: Simple Contrastive Learning of Sentence Embeddings, arXiv:2104.08821",
    in_batch=True,
    needs_dropout=True,
    caches=True,
)
