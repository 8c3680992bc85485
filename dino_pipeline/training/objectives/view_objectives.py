"""Objectives in which a text finds its other view in a batch: simcse, simcse-sup, triplets, is-cse."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from datasets import Dataset
from pydantic import Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.util import all_gather
from torch import Tensor, nn
from torch.nn.functional import normalize

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.training.objectives import Columns, Objective, TrainingContext, fixed_rows
from dino_pipeline.training.objectives.pairs import ContrastOptions, InfoNCELoss, module_per_size
from dino_pipeline.training.objectives.reference import Reference

# SimCSE: a sentence finds itself, seen through another dropout mask, among the others of its batch.


def repeated_sentences(columns: Columns, context: TrainingContext) -> Dataset:
    """Return each sentence twice, as ``anchor`` and ``positive``."""
    return Dataset.from_dict({"anchor": columns["sentence"], "positive": columns["sentence"]})


HEAD_SPREAD = 0.02
"""Standard deviation of a new head's weights in the authors' code, that of BERT's layers."""


def projection_head(size: int, *, faithful: bool = False) -> nn.Sequential:
    """Return the layer on top of the encoder that is only used in training (Gao et al. 2021, section 6.3)."""
    layer = nn.Linear(size, size)
    if faithful:
        init_as_bert(layer)
    return nn.Sequential(layer, nn.Tanh())


def init_as_bert(layer: nn.Linear) -> None:
    """Give a new layer the random weights that BERT's layers begin with."""
    nn.init.normal_(layer.weight, std=HEAD_SPREAD)
    nn.init.zeros_(layer.bias)


class SimCSELoss(InfoNCELoss):
    """InfoNCE behind a projection head that is dropped after training (Gao et al. 2021, section 3)."""

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        make = partial(projection_head, faithful=context.hyperparameters.faithful)
        self.heads = module_per_size(self.dimensions, make)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of the two views of each sentence, each column ``(rows, dimension)``."""
        first, second = (self.heads[str(views.shape[-1])](views) for views in embeddings)
        return self.contrast(first, second)

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of projected views, each ``(rows, dimension)``."""
        return super().compare([first, second], None)


PAPER = Hyperparameters(
    batch_size=64,
    learning_rate=3e-5,
    weight_decay=0.0,
    warmup=0.0,
    max_length=32,
    pooling="cls",
)
"""The paper's values for BERT-base. For RoBERTa-base it used batches of 512 and a learning rate of 1e-5."""

SIMCSE = Objective(
    name="simcse",
    needs="sentences",
    method="dropout twice, InfoNCE",
    build=repeated_sentences,
    loss=SimCSELoss,
    hyperparameters=PAPER,
    options=ContrastOptions,
    citation="Gao et al. 2021, SimCSE: Simple Contrastive Learning of Sentence Embeddings, arXiv:2104.08821",
    faithful=Reference(
        code="github.com/princeton-nlp/SimCSE",
        more="a head that begins as BERT's layers do and is clipped, too; the last, smaller batch",
    ),
    in_batch_negatives=True,
    needs_dropout=True,
    caches_gradients=True,
)

# Supervised SimCSE: an anchor finds its positive among its batch's positives and hard negatives (section 4).
# The authors keep the head in the encoder. By default it is left out, so that the encoder stays a plain one.


def keep_head(model: SentenceTransformer, hyperparameters: Hyperparameters) -> None:
    """Put a head on an encoder for good, as the authors' code does: a stock layer, trained and used in encoding."""
    if hyperparameters.faithful:
        size = model.get_embedding_dimension()
        assert size is not None
        head = Dense(size, size, activation_function=nn.Tanh())
        init_as_bert(head.linear)
        model.append(head.to(model.device))


SIMCSE_SUP = Objective(
    name="simcse-sup",
    needs="triplets",
    method="InfoNCE with hard negatives",
    build=fixed_rows,
    loss=InfoNCELoss,
    hyperparameters=PAPER.updated(epochs=3, batch_size=512, learning_rate=5e-5),
    options=ContrastOptions,
    citation=SIMCSE.citation,
    faithful=Reference(
        code="github.com/princeton-nlp/SimCSE",
        more="a head (linear, tanh) that stays in the encoder; rows that share a text are not kept apart",
    ),
    in_batch_negatives=True,
    no_duplicates=True,
    caches_gradients=True,
    prepare=keep_head,
)

# The same with settings for the few texts that a small model writes, measured on real text (docs/results.md): at the
# papers' rates an encoder forgets what it knew, and tokens' weights and whitening add to what it learns.

TRIPLETS = replace(
    SIMCSE_SUP,
    name="triplets",
    method="InfoNCE with the contrasted texts as negatives, embeddings whitened",
    hyperparameters=Hyperparameters(batch_size=32, pooling="mean", whiten="auto"),
    faithful="follows no paper",
    prepare=None,
)

# IS-CSE: SimCSE that also pulls a sentence towards a weighted mean of its neighbours among recent sentences.

ATTENTION_TEMPERATURE = 2.0
"""Temperature of the attention to the neighbours."""


class IsCseOptions(ContrastOptions):
    """Options of is-cse, the paper's for base models. For large ones it raised alpha from .005 to .05."""

    buffer: int = Field(default=1024, ge=1, description="Sentences that are remembered.")
    neighbours: int = Field(default=16, ge=1, description="Remembered sentences that a sentence is smoothed with.")
    alpha: float = Field(default=0.1, ge=0, description="Weight of the smoothed views' loss.")
    alpha_start: float = Field(default=0.1, ge=0, description="That weight at first.")
    ramp: float = Field(default=0.5, ge=0, le=1, description="Share of the steps in which it reaches alpha.")


def smooth_views(views: Tensor, memory: Tensor, neighbours: int) -> Tensor:
    """Return an attention-weighted mean of each view and its nearest neighbours (He et al. 2023, section 3).

    Args:
        views: ``(rows, dimension)``, of length 1.
        memory: ``(entries, dimension)``, of length 1. The views are among them, so that the nearest is left out.
        neighbours: how many entries of the memory take part.

    Returns:
        The sums weighted by ``softmax(view . neighbour / 2)``, ``(rows, dimension)``.
    """
    similarities = views.detach() @ memory.T  # (rows, entries)
    nearest = similarities.topk(min(neighbours + 1, len(memory)), dim=-1).indices[:, 1:]  # (rows, neighbours)
    values = torch.cat([views[:, None], memory[nearest]], dim=1)  # (rows, 1 + neighbours, dimension)
    logits = (values @ views[:, :, None]).squeeze(-1) / ATTENTION_TEMPERATURE  # (rows, 1 + neighbours)
    weights = torch.softmax(logits, dim=-1)
    return (weights[:, None] @ values).squeeze(1)


class MemoryBuffer(nn.Module):
    """The latest embeddings, first in, first out. They are buffers of the module, so that checkpoints hold them."""

    def __init__(self, capacity: int, size: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(capacity, size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.entries: Tensor
        self.seen: Tensor

    @property
    def is_full(self) -> bool:
        """Return whether all entries have been filled."""
        return bool(self.seen >= len(self.entries))

    def push(self, embeddings: Tensor) -> None:
        """Put embeddings, ``(rows, dimension)``, in the places of the oldest entries."""
        capacity = len(self.entries)
        kept = embeddings[-capacity:]  # of more rows than fit, the last ones
        start = int(self.seen) + len(embeddings) - len(kept)
        places = (start + torch.arange(len(kept), device=kept.device)) % capacity  # it is written in a circle
        self.entries[places] = kept.to(self.entries.dtype)
        self.seen += len(embeddings)


class InstanceSmoothedLoss(SimCSELoss):
    """``SimCSE(z1, z2) + alpha * SimCSE(z1, smoothed z2)``, the second term from the batch on that fills the memory.

    As in the authors' code, z2 is remembered before its neighbours are looked for.
    """

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.context = context
        self.memories = module_per_size(self.dimensions, lambda size: MemoryBuffer(context["buffer"], size))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.step: Tensor

    @property
    def alpha(self) -> float:
        """Return the weight of the second term.

        It goes from ``alpha_start`` to ``alpha`` along a quarter of a cosine, during the share ``ramp`` of the steps.
        """
        start, end = float(self.context["alpha_start"]), float(self.context["alpha"])
        done = int(self.step) / max(self.context["ramp"] * self.context.steps, 1)
        return end - (end - start) * math.cos(math.pi / 2 * min(done, 1.0))

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of projected views, each ``(rows, dimension)``, and remember the second ones."""
        loss = super().contrast(first, second)
        memory = self.memories[str(second.shape[-1])]
        assert isinstance(memory, MemoryBuffer)
        views = normalize(second, dim=-1)
        latest = all_gather(views.detach()) if self.context.processes > 1 else views.detach()
        memory.push(latest)
        if memory.is_full:
            among = memory.entries if len(latest) <= len(memory.entries) else latest
            smoothed = smooth_views(views, among, self.context["neighbours"])
            loss = loss + self.alpha * super().contrast(first, smoothed)
        if second.shape[-1] == self.dimensions[0]:  # with several sizes, a step calls this once for each
            self.step += 1
        return loss


IS_CSE = Objective(
    name="is-cse",
    needs="sentences",
    method="SimCSE, and towards remembered neighbours",
    build=repeated_sentences,
    loss=InstanceSmoothedLoss,
    hyperparameters=PAPER,
    options=IsCseOptions,
    citation="He et al. 2023, Instance Smoothed Contrastive Learning for Unsupervised Sentence Embedding, "
    "arXiv:2305.07424",
    faithful=Reference(
        code="github.com/dll-wu/IS-CSE",
        more="a head that begins as BERT's layers do and is clipped, too; the last, smaller batch",
    ),
    in_batch_negatives=True,
    needs_dropout=True,
    caches_gradients=True,
)
