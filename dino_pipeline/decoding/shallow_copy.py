"""A copy of a model's first layers in float32, on which long rows can be tried in little time and memory."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

log = logging.getLogger(__name__)
HEAD_TOKENS = 512
"""Tokens whose logits the copy computes."""
NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "idx", "index")
"""Attributes in which a layer keeps its number."""
SMALL_MODEL = 2**27
"""Parameters below which a model needs no smaller copy."""
LARGE = 2**22
"""Tables of embeddings with more elements are not copied."""


class _Lookup(nn.Module):
    """A table of embeddings that is looked up in float32. Its parameters are the original's, and not copied."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = (original,)  # in a tuple, so that it is no submodule

    @property
    def weight(self) -> Tensor:
        return self.original[0].weight  # type: ignore[return-value]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.original[0](*args, **kwargs).float()


def shallow_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the first layers, until each kind of layer is there, in float32.

    Where layers, or their precision, cannot be changed (quantised weights, unusual classes), return the model itself.
    """
    try:
        return _copied(model)
    except Exception as error:  # an unknown architecture can raise anything
        log.debug("%s: cannot be copied in part (%s: %s)", type(model).__name__, type(error).__name__, error)
        return model


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    if getattr(model, "is_quantized", False):
        return model
    layers = _layers(model)
    memo: dict[int, Any] = {}  # what stands in for a part, by the part's id
    for module in model.modules():
        if module is model.get_input_embeddings() or (
            isinstance(module, nn.Embedding) and module.weight.numel() > LARGE
        ):
            memo[id(module)] = _Lookup(module)
    memo[id(model.get_output_embeddings())] = _part_of_head(model)
    count = _enough_layers(layers)
    if 2 * count > len(layers) and model.num_parameters() >= SMALL_MODEL:
        return model  # each layer is of its own kind: a copy would save nothing
    first = nn.ModuleList([copy.deepcopy(layer, memo) for layer in layers[:count]])
    memo[id(layers)] = first
    copied = copy.deepcopy(model, memo).float()
    config = copied.config.get_text_config()
    config.num_hidden_layers = config.num_hidden_layers * len(first) // len(layers)  # a layer can count as several
    for module in copied.modules():
        if isinstance(module, nn.Linear | Conv1D):
            module.__dict__.pop("forward", None)  # of packed weights
    _check_layers_run(copied, first)
    return copied


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the model's layers, the longest of its lists."""
    lists = [module for module in model.get_decoder().children() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


@torch.inference_mode()
def _check_layers_run(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    """Raise `TypeError` unless the model runs each of the layers, and so uses the copied list as the original one."""
    ran: list[nn.Module] = []
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    if not all(layer in ran for layer in layers):
        raise TypeError("not all of its layers are run")


def _enough_layers(layers: nn.ModuleList) -> int:
    """Return how many of the first layers include each kind of layer."""
    kinds = [_kind(layer, number) for number, layer in enumerate(layers)]
    return max(kinds.index(kind) for kind in kinds) + 1


def _kind(layer: nn.Module, number: int) -> list[tuple[object, ...]]:
    """Return what distinguishes kinds of layers: classes and plain values of all parts, but for the layer's number."""
    parts: list[tuple[object, ...]] = []
    for module in layer.modules():
        parts.append((type(module),))
        for name, value in sorted(module.__dict__.items()):
            is_number = type(value) is int and value == number and name in NUMBERS
            if isinstance(value, int | float | str) and not is_number:
                parts.append((name, value))
    return parts


def _part_of_head(model: PreTrainedModel) -> nn.Linear:
    """Return the rows of the output matrix for the first tokens."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise TypeError(f"the output matrix is a {type(head).__name__}")
    bias = head.bias is not None
    part = nn.Linear(head.in_features, min(HEAD_TOKENS, head.out_features), bias=bias, device=head.weight.device)
    with torch.no_grad():
        part.weight.copy_(head.weight[: part.out_features])
        if bias:
            part.bias.copy_(head.bias[: part.out_features])
    return part.requires_grad_(False)
