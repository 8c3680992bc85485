"""IS-CSE: SimCSE that also pulls a sentence towards a weighted mean of its neighbours among recent sentences."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather
from torch import Tensor, nn
from torch.nn.functional import normalize

from dino_pipeline.training.objectives import simcse
from dino_pipeline.training.objectives.base import Objective, Recipe
from dino_pipeline.training.objectives.contrastive import of_each_size
from dino_pipeline.training.objectives.simcse import SimCSE

TEMPERATURE = 2.0
"""Of the attention to the neighbours."""


def smoothed(views: Tensor, memory: Tensor, neighbours: int) -> Tensor:
    """Return each view's aggregate of itself and its nearest remembered ones (He et al. 2023, section 3).

    Args:
        views: ``(rows, dimension)``, of length 1.
        memory: ``(entries, dimension)``, of length 1.
        neighbours: how many of the memory take part.

    Returns:
        The sums weighted by ``softmax(view . neighbour / 2)``, ``(rows, dimension)``.
    """
    nearest = (views.detach() @ memory.T).topk(min(neighbours, len(memory)), dim=-1).indices
    values = torch.cat([views[:, None], memory[nearest]], dim=1)
    weights = torch.softmax((values @ views[:, :, None]).squeeze(-1) / TEMPERATURE, dim=-1)
    return (weights[:, None] @ values).squeeze(1)


class Memory(nn.Module):
    """The latest embeddings, first in, first out; a buffer that goes into checkpoints."""

    def __init__(self, entries: int, size: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(entries, size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.entries: Tensor
        self.seen: Tensor

    @property
    def full(self) -> bool:
        """Whether it holds as many as it can."""
        return bool(self.seen >= len(self.entries))

    def push(self, embeddings: Tensor) -> None:
        """Let embeddings, ``(rows, dimension)``, take the places of the oldest."""
        capacity = len(self.entries)
        kept = embeddings[-capacity:]
        start = int(self.seen) + len(embeddings) - len(kept)
        places = (start + torch.arange(len(kept), device=kept.device)) % capacity
        self.entries[places] = kept.to(self.entries.dtype)
        self.seen += len(embeddings)


class InstanceSmoothed(SimCSE):
    """``SimCSE(z1, z2) + alpha * SimCSE(z1, z*)``, the second term once the memory is full."""

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.recipe = recipe
        self.memories = of_each_size(self.dimensions, lambda size: Memory(recipe["buffer"], size))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.step: Tensor

    @property
    def alpha(self) -> float:
        """Weight of the second term: from ``alpha_start`` to ``alpha`` along half a cosine over the ``ramp``."""
        start, end = float(self.recipe["alpha_start"]), float(self.recipe["alpha"])
        done = int(self.step) / max(self.recipe["ramp"] * self.recipe.steps, 1)
        return end - (end - start) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of views behind the head, each ``(rows, dimension)``, and remember the second ones."""
        loss = super().contrast(first, second)
        memory = self.memories[str(second.shape[-1])]
        assert isinstance(memory, Memory)
        views = normalize(second, dim=-1)
        if memory.full:
            loss = loss + self.alpha * super().contrast(
                first, smoothed(views, memory.entries, self.recipe["neighbours"])
            )
        memory.push(all_gather(views.detach()) if self.recipe.processes > 1 else views.detach())
        if second.shape[-1] == self.dimensions[0]:
            self.step += 1
        return loss


OPTIONS = {"buffer": 1024, "neighbours": 16, "alpha": 0.1, "alpha_start": 0.1, "ramp": 0.5}
"""For base models; for large ones alpha went from .005 to .05."""

OBJECTIVE = Objective(
    name="is-cse",
    needs="sentences",
    method="SimCSE, and towards remembered neighbours",
    build=simcse.build,
    loss=InstanceSmoothed,
    defaults=replace(simcse.PAPER, options={**simcse.PAPER.options, **OPTIONS}),
    citation="He et al. 2023, Instance Smoothed Contrastive Learning for Unsupervised Sentence Embedding, "
    "arXiv:2305.07424",
    may_be_zero=("alpha", "alpha_start", "ramp"),
    shares=("ramp",),
    in_batch=True,
    needs_dropout=True,
    caches=True,
)
