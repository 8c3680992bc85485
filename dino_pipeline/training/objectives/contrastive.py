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

from dino_pipeline.training.objectives.base import Recipe


class EmbeddingLoss(CachedLossMixin, nn.Module):
    """A loss computed from one embedding of each column, with or without gradient caching.

    Under `MatryoshkaLoss` it is called once for each dimension.
    """

    model: Any

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.mini_batch_size = recipe.training.mini_batch_size or 0
        self.uses_gradient_cache = self.mini_batch_size > 0
        self.dimensions = embedding_sizes(model, recipe)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of a batch from the embeddings of its columns, each ``(rows, dimension)``."""
        raise NotImplementedError

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of a column's texts, ``(rows, dimension)``."""
        embedded: Tensor = self.model(features)["sentence_embedding"]
        return embedded

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss from the columns' embeddings in mini-batches; see `CachedLossMixin`."""
        loss = self.compare([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        if self.mini_batch_size:
            return CachedLossMixin.forward_cached(self, sentence_features, labels)
        return self.compare([self.embed(features) for features in sentence_features], labels)


def embedding_sizes(model: SentenceTransformer, recipe: Recipe) -> tuple[int, ...]:
    """Return the sizes in which embeddings are trained, the whole one first."""
    return (model.get_embedding_dimension(), *recipe.training.matryoshka)


def in_batch(model: SentenceTransformer, recipe: Recipe, **kwargs: Any) -> MultipleNegativesRankingLoss:
    """Return the stock loss at the recipe's temperature, with the batches of all processes as negatives."""
    return MultipleNegativesRankingLoss(
        model, scale=1 / recipe["temperature"], gather_across_devices=recipe.processes > 1, **kwargs
    )


def nt_xent(loss: MultipleNegativesRankingLoss, first: Tensor, second: Tensor) -> Tensor:
    """Return NT-Xent over the views of both columns (Chen et al. 2020, section 2.1): each view has its other view as
    positive and all remaining 2N - 2 as negatives.

    Args:
        loss: the stock loss with the directions ``query_to_doc`` and ``query_to_query``.
        first: ``(rows, dimension)``.
        second: the other views, ``(rows, dimension)``.
    """
    both = [loss.compute_loss_from_embeddings(views, None) for views in ([first, second], [second, first])]
    return torch.stack(both).mean()


NT_XENT_DIRECTIONS = ("query_to_doc", "query_to_query")


class InfoNCE(EmbeddingLoss):
    """Cross-entropy of finding the second column's text, from the first one's, among all other columns' (one way)."""

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.stock = in_batch(model, recipe)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of anchors, positives and, if there is a third column, negatives."""
        return self.stock.compute_loss_from_embeddings(embeddings, None)


class NTXent(EmbeddingLoss):
    """NT-Xent between two columns."""

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.stock = in_batch(model, recipe, directions=NT_XENT_DIRECTIONS)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of two views."""
        first, second = embeddings
        return nt_xent(self.stock, first, second)


def own_tensors(loss: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Return a loss's parameters and buffers that are not the model's: heads, temperatures, memories."""
    models = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    named = (*loss.named_parameters(), *loss.named_buffers())
    return {name: tensor for name, tensor in named if id(tensor) not in models}


def average_gradients(tensors: Iterable[Tensor]) -> None:
    """Keep parameters that stand outside the distributed model equal in all processes."""

    def average(parameter: Any) -> None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= torch.distributed.get_world_size()

    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]


def of_each_size(sizes: Sequence[int], make: Callable[[int], nn.Module]) -> nn.ModuleDict:
    """Return a module for each size of embedding, by that size."""
    return nn.ModuleDict({str(size): make(size) for size in sizes})
