"""What losses of whole embeddings share: gradient caching, parameters of their own, InfoNCE and NT-Xent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from dino_pipeline.training.objectives import TrainingContext

NT_XENT_DIRECTIONS = ("query_to_doc", "query_to_query")
"""The stock loss then takes both the second views and the other first views of a batch as negatives."""


class EmbeddingLoss(CachedLossMixin, nn.Module):
    """A loss computed from one embedding per column and row, with or without gradient caching.

    `MatryoshkaLoss` calls it once for each dimension.
    """

    model: Any

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__()
        self.model = model
        self.mini_batch_size = context.hyperparameters.mini_batch_size or 0
        self.uses_gradient_cache = self.mini_batch_size > 0
        self.dimensions = embedding_sizes(model, context)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of a batch from the embeddings of its columns, each ``(rows, dimension)``."""
        raise NotImplementedError

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of a column's texts, ``(rows, dimension)``."""
        embeddings: Tensor = self.model(features)["sentence_embedding"]
        return embeddings

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss from each column's embeddings in mini-batches; see `CachedLossMixin`."""
        loss = self.compare([torch.cat(column) for column in reps], labels)  # each (rows, dimension)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        if self.mini_batch_size:
            return CachedLossMixin.forward_cached(self, sentence_features, labels)
        return self.compare([self.embed(features) for features in sentence_features], labels)


class InfoNCELoss(EmbeddingLoss):
    """InfoNCE (van den Oord et al. 2018, section 2.3), one way.

    Cross-entropy of finding a row's text in the second column, from its text in the first, among the texts of all
    other columns of the batch.
    """

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.stock = ranking_loss(model, context)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of anchors, positives and, if there is a third column, negatives."""
        return self.stock.compute_loss_from_embeddings(embeddings, None)


class NTXentLoss(EmbeddingLoss):
    """NT-Xent between the two views of each row."""

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.stock = ranking_loss(model, context, directions=NT_XENT_DIRECTIONS)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of the first and the second views."""
        first, second = embeddings
        return nt_xent(self.stock, first, second)


def ranking_loss(model: SentenceTransformer, context: TrainingContext, **kwargs: Any) -> MultipleNegativesRankingLoss:
    """Return the stock loss at the objective's temperature, with the batches of all processes as negatives."""
    return MultipleNegativesRankingLoss(
        model, scale=1 / context["temperature"], gather_across_devices=context.processes > 1, **kwargs
    )


def nt_xent(loss: MultipleNegativesRankingLoss, first: Tensor, second: Tensor) -> Tensor:
    """Return NT-Xent (Chen et al. 2020, section 2.1) over the views of N rows.

    The positive of a view is the row's other view. Its negatives are the remaining 2N - 2 views of the batch.

    Args:
        loss: the stock loss with `NT_XENT_DIRECTIONS`.
        first: ``(rows, dimension)``.
        second: the other views, ``(rows, dimension)``.
    """
    forwards = loss.compute_loss_from_embeddings([first, second], None)
    backwards = loss.compute_loss_from_embeddings([second, first], None)
    return torch.stack([forwards, backwards]).mean()


def embedding_sizes(model: SentenceTransformer, context: TrainingContext) -> tuple[int, ...]:
    """Return the sizes of the embeddings that are trained, the whole embedding first."""
    return (model.get_embedding_dimension(), *context.hyperparameters.matryoshka)


def module_per_size(sizes: Sequence[int], make: Callable[[int], nn.Module]) -> nn.ModuleDict:
    """Return a module for each embedding size, under the size as its name."""
    return nn.ModuleDict({str(size): make(size) for size in sizes})


def own_tensors(loss: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Return a loss's parameters and buffers that are not the encoder's: heads, temperatures, memories."""
    model_ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    named = (*loss.named_parameters(), *loss.named_buffers())
    return {name: tensor for name, tensor in named if id(tensor) not in model_ids}


def average_gradients(tensors: Iterable[Tensor]) -> None:
    """Average the gradients of parameters over all processes.

    Parameters of the loss need this because the distributed wrapper only holds the encoder.
    """

    def average(parameter: Any) -> None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= torch.distributed.get_world_size()

    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]
