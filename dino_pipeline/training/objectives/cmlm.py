"""CMLM: a sentence's embedding helps to tell the masked words of the sentence next to it. Experimental."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from dino_pipeline.training.objectives.base import Objective, Recipe, Training
from dino_pipeline.training.objectives.contrastive import embedding_sizes, of_each_size
from dino_pipeline.training.objectives.masked import MaskedWords
from dino_pipeline.training.objectives.views import as_they_are


class ConditionalWords(nn.Module):
    """Masked language modelling of the second text, with the first one's embedding put before it as vectors
    (Yang et al. 2021, section 3). The projection to these vectors is not kept."""

    backbone: Any

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.words = MaskedWords(model, recipe)
        self.vectors = recipe["vectors"]
        # a handle, not a part: wrapped for several processes, the model has no such attribute
        backbone: Any = model.transformers_model
        self.__dict__["backbone"] = backbone
        positions = getattr(backbone.config, "max_position_embeddings", None)
        self.room = positions - self.vectors if positions else None
        width = backbone.get_input_embeddings().embedding_dim

        def projection(size: int) -> nn.Sequential:
            layers = (nn.Linear(size, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
            return nn.Sequential(*layers, nn.Linear(width, self.vectors * width))

        self.projections = of_each_size(embedding_sizes(model, recipe), projection)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch of neighbours."""
        first, second = sentence_features
        condition = self.model(first)["sentence_embedding"]
        before = self.projections[str(condition.shape[-1])](condition).reshape(len(condition), self.vectors, -1)
        # longer texts are cut, as the vectors take up positions too
        second = {name: value[:, : self.room] for name, value in second.items() if isinstance(value, Tensor)}
        masked, words = self.words.mask(second)
        embedded = self.backbone.get_input_embeddings()(masked["input_ids"])
        seen = second["attention_mask"]
        states = self.backbone(
            inputs_embeds=torch.cat([before.to(embedded.dtype), embedded], dim=1),
            attention_mask=torch.cat([seen.new_ones(before.shape[:2]), seen], dim=1),
        ).last_hidden_state
        loss: Tensor = self.words(states[:, self.vectors :], words)
        return loss


OBJECTIVE = Objective(
    name="cmlm",
    needs="pairs",
    method="tells masked words of the neighbour (experimental)",
    build=as_they_are,
    loss=ConditionalWords,
    defaults=Training(batch_size=64, learning_rate=5e-5, max_length=64, options={"masked": 0.15, "vectors": 15}),
    shares=("masked",),
    citation="Yang et al. 2021, Universal Sentence Representation Learning with Conditional Masked Language Model, "
    "arXiv:2012.14388",
)
