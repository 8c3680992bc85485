"""A loaded model made faster on this machine: fewer passes, weights in the layout of the CPU's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.pytorch_utils import Conv1D

SMALLEST_PACKED = 2**16
"""Weights of fewer elements are not worth a packed copy."""


def tune(model: PreTrainedModel, rows: int) -> None:
    """Make steps of ``rows`` rows faster. Results change in their last bits at most."""
    fuse_activations(model)
    pack_weights(model, rows)


def fuse_activations(model: PreTrainedModel) -> None:
    """Compute GPT-2's activation, the tanh form of GELU, in one pass instead of eight."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])


def pack_weights(model: PreTrainedModel, rows: int) -> None:
    """Give linear layers copies of their weights in the layout of the CPU's matrix kernels.

    The kernels are those that PyTorch takes for frozen weights: MKL's in float32, oneDNN's in bfloat16. Nothing changes
    on a GPU, without the kernels, or if the copies would take more than a quarter of the free memory.
    """
    if model.device.type != "cpu" or not can_pack(model.dtype):
        return
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    layers = [layer for layer in layers if layer.weight.numel() >= SMALLEST_PACKED]
    if 4 * sum(layer.weight.nbytes for layer in layers) > psutil.virtual_memory().available:
        return
    for layer in layers:
        weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()  # (out, in)
        layer.forward = PACKED[model.dtype](weight, layer.bias, rows)  # type: ignore[method-assign]


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this machine's PyTorch has the kernels for a dtype."""
    if dtype not in PACKED:
        return False
    try:
        PACKED[dtype](torch.zeros(16, 16, dtype=dtype), None, 16)(torch.zeros(16, 16, dtype=dtype))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def packed_float32(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """Return the forward of a linear layer in float32, from hidden states ``(..., in)`` to ``(..., out)``.

    MKL packs for one number of rows; other inputs use the plain weight.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``, or None.
        rows: number of rows of the inputs to be fast for.
    """
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)

    def forward(hidden: Tensor) -> Tensor:
        if hidden.numel() != rows * hidden.shape[-1]:
            return nn.functional.linear(hidden, weight, bias)
        return cast(Tensor, torch.ops.mkl._mkl_linear(hidden, packed, weight, bias, rows))

    return forward


def packed_bfloat16(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """Return the forward of a linear layer in bfloat16, see `packed_float32`. oneDNN takes any number of rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def forward(hidden: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], ""))

    return forward


PACKED = {torch.float32: packed_float32, torch.bfloat16: packed_bfloat16}
