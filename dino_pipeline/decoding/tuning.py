"""What makes a loaded model's steps faster and changes nothing but the last bits of its results."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

SMALLEST = 2**16
"""Weights below this are not worth a copy of their own."""


def tune(model: PreTrainedModel, rows: int) -> None:
    """Make steps of ``rows`` rows faster."""
    fuse_activations(model)
    attend_by_rows(model)
    pack_weights(model, rows)


def fuse_activations(model: PreTrainedModel) -> None:
    """Compute GPT-2's activation, the tanh form of GELU, in one pass instead of eight."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])


def attend_by_rows(model: PreTrainedModel) -> None:
    """On a CPU in float32, let steps of one position a row attend by two batched products.

    The stock kernel cuts keys into blocks, as long prompts want it; for a single query that costs a fifth more.
    """
    stock = model.config._attn_implementation
    if model.device.type == "cpu" and model.dtype == torch.float32 and stock == "sdpa":
        model.set_attn_implementation(BY_ROWS)


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that `transformers` wants it; whatever is not one position a row goes the stock way.

    Args:
        module: the layer.
        query: ``(rows, heads, positions, dim)``.
        key: ``(rows, heads or groups of heads, length, dim)``.
        value: likewise.
        attention_mask: ``(rows, 1, positions, length)``; additive ones only go this way.
        scaling: of the scores.
        kwargs: for the stock way.

    Returns:
        ``(rows, positions, heads, dim)``, and no weights.
    """
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache"))
    additive = attention_mask is not None and attention_mask.is_floating_point() and attention_mask.shape[1] == 1
    if query.shape[2] != 1 or attention_mask is None or not additive or special:
        stock: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return stock(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    scores = torch.matmul(grouped, key.transpose(2, 3)).add_(attention_mask)
    mixed = torch.matmul(scores.softmax(dim=-1), value)
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None


BY_ROWS = "dino_by_rows"
AttentionInterface.register(BY_ROWS, row_attention)
AttentionMaskInterface.register(BY_ROWS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def pack_weights(model: PreTrainedModel, rows: int) -> None:
    """Give the linear layers copies of their weights, laid out once as a CPU's matrix kernels want them.

    The kernels are those that PyTorch's own compiler takes for frozen weights: MKL's in float32, oneDNN's in bfloat16.
    Elsewhere nothing changes, nor where the copies would take more than a quarter of the free memory.
    """
    if model.device.type != "cpu" or not can_pack(model.dtype):
        return
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    layers = [layer for layer in layers if layer.weight.numel() >= SMALLEST]
    if 4 * sum(layer.weight.nbytes for layer in layers) > psutil.virtual_memory().available:
        return
    for layer in layers:
        weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
        layer.forward = PACKED[model.dtype](weight, layer.bias, rows)  # type: ignore[method-assign]


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's PyTorch has the kernels."""
    if dtype not in PACKED:
        return False
    try:
        PACKED[dtype](torch.zeros(16, 16, dtype=dtype), None, 16)(torch.zeros(16, 16, dtype=dtype))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def faster_dtype(device: str, width: int) -> str:
    """Return "bfloat16" if products of matrices so wide are at least 1.5 times as fast in it here, else "float32"."""
    full, half = (_product_seconds(device, width, dtype) for dtype in (torch.float32, torch.bfloat16))
    return "bfloat16" if full > 1.5 * half else "float32"


def _product_seconds(device: str, width: int, dtype: torch.dtype) -> float:
    hidden = torch.ones(128, width, dtype=dtype, device=device)
    weight = torch.ones(16 * width, width, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float(nn.functional.linear(hidden, weight)[0, 0])  # reading a number waits for the device
        times.append(time.perf_counter() - start)
    return min(times)


class PackedFloat32:
    """A linear layer's forward in float32; inputs of other than ``rows`` rows take the weight as it was."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.weight, self.bias, self.rows = weight, bias, rows
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.numel() != self.rows * hidden.shape[-1]:
            return nn.functional.linear(hidden, self.weight, self.bias)
        found: Any = torch.ops.mkl._mkl_linear(hidden, self.packed, self.weight, self.bias, self.rows)
        return found


class PackedBfloat16:
    """A linear layer's forward in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, hidden: Tensor) -> Tensor:
        found: Any = torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, "none", [], "")
        return found


PACKED: dict[torch.dtype, Any] = {torch.float32: PackedFloat32, torch.bfloat16: PackedBfloat16}
