"""Training with little padding: the rows of a batch are encoded in groups of like length.

A batch is padded to its longest text. Where lengths differ as those of sentences do, two thirds of what a CPU computes
is padding. In groups by length it is a quarter, and the states of the texts' tokens are the same, unless positions are
absolute and padding stands before the texts: then they depend on the padding in any case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from torch import Tensor
from torch.nn.functional import pad

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import OptionError

GROUPS = 4
"""Groups of a batch. More have less padding, but each costs a call of all layers."""
MIN_ROWS = 8
"""Average rows of a group, at least."""
STATES, MASK = "token_embeddings", "attention_mask"
Features = dict[str, Any]
"""The inputs of an encoder for some texts: token ids and mask, each ``(rows, tokens)``, and what else it takes."""


def pools_padding(model: SentenceTransformer) -> bool:
    """Return whether an encoder's embeddings are of the states of padding, too: a layer makes up its attention mask."""
    return any(isinstance(module, Dense) and module.module_output_name == MASK for module in model)


def check_padding(model: SentenceTransformer, hyperparameters: Hyperparameters) -> None:
    """Raise `OptionError` if gradients are cached, which cuts padding, for an encoder that pools its states."""
    size = hyperparameters.mini_batch_size
    if size and pools_padding(model):
        raise OptionError("the embeddings are means over padding", "leave it out", option="mini_batch_size", value=size)


@contextlib.contextmanager
def rows_grouped_by_length(model: SentenceTransformer) -> Iterator[None]:
    """Have an encoder's layers take the rows of a batch in groups of like length within the block.

    Encoders without layers, those whose layers give more than the states of tokens, and those that pool the states of
    padding stay as they are.
    """
    layers = model[0]
    has_states = isinstance(layers, Transformer) and layers.module_output_name == STATES
    if not has_states or layers.config.output_hidden_states or pools_padding(model):
        yield
        return
    layers.forward = partial(_forward_in_groups, layers.forward)
    try:
        yield
    finally:
        del layers.forward  # the class's own is found again


def _forward_in_groups(forward: Callable[..., Features], features: Features, **options: Any) -> Features:
    """Return the features with the states of all tokens, ``(rows, tokens, dimension)``; those of padding are 0."""
    mask: Tensor | None = features.get(MASK)  # (rows, tokens)
    groups = 1 if mask is None else min(GROUPS, len(mask) // MIN_ROWS)
    if mask is None or groups < 2 or mask.all():
        return forward(features, **options)
    padding_at_end = bool(mask[:, 0].all())
    if not padding_at_end and not mask[:, -1].all():
        return forward(features, **options)
    lengths = mask.sum(dim=1)  # (rows,)
    order = lengths.argsort(stable=True)
    states = []
    for rows in order.tensor_split(groups):
        padding = mask.shape[1] - int(lengths[rows].max())
        kept = slice(0, mask.shape[1] - padding) if padding_at_end else slice(padding, None)
        group = {}
        for name, value in features.items():
            is_of_tokens = isinstance(value, Tensor) and value.shape == mask.shape
            group[name] = value[rows, kept] if is_of_tokens else value
        of_group = forward(group, **options)[STATES]  # (rows of the group, kept tokens, dimension)
        states.append(pad(of_group, (0, 0, 0, padding) if padding_at_end else (0, 0, padding, 0)))
    features[STATES] = torch.cat(states)[order.argsort()]
    return features
