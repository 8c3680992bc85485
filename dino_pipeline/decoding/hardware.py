"""How a model uses the machine: its device and dtype, weights laid out for it, and copies to and from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.pytorch_utils import Conv1D

OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)
"""Messages of errors other than `torch.OutOfMemoryError` that say that memory is full."""
SMALLEST_PACKED = 2**16
"""Weights of fewer elements are not worth a packed copy."""


def to_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Return values as a tensor on a device. A GPU works on while they are copied."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class PendingCopy:
    """An asynchronous copy of tensors from a device to the CPU."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self.ready: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.ready.record(torch.cuda.current_stream(tensors[0].device))

    def lists(self) -> list[list[Any]]:
        """Wait for the copy and return the tensors' values."""
        if self.ready is not None:
            self.ready.synchronize()
        return [tensor.tolist() for tensor in self.tensors]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, says that a device's memory is full."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in OUT_OF_MEMORY):
        return True
    return is_out_of_memory(error.__context__)


def faster_dtype(device: str, width: int) -> str:
    """Return "bfloat16" if matrix products of a width are at least 1.5 times as fast in it here, else "float32"."""
    full, half = (_product_seconds(device, width, dtype) for dtype in (torch.float32, torch.bfloat16))
    return "bfloat16" if full > 1.5 * half else "float32"


def _product_seconds(device: str, width: int, dtype: torch.dtype) -> float:
    """Return the least time of six products of 128 rows with a matrix of ``width`` by 16 times ``width``."""
    hidden = torch.ones(128, width, dtype=dtype, device=device)
    weight = torch.ones(16 * width, width, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float(nn.functional.linear(hidden, weight)[0, 0])  # reading a number waits for the device
        times.append(time.perf_counter() - start)
    return min(times)


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


class PackedFloat32:
    """The forward of a linear layer in float32. MKL packs for one number of rows; other inputs use the plain weight.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``, or None.
        rows: number of rows of the inputs to be fast for.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.weight, self.bias, self.rows = weight, bias, rows
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return ``(..., out)`` for hidden states of ``(..., in)``."""
        if hidden.numel() != self.rows * hidden.shape[-1]:
            return nn.functional.linear(hidden, self.weight, self.bias)
        output: Any = torch.ops.mkl._mkl_linear(hidden, self.packed, self.weight, self.bias, self.rows)
        return output


class PackedBfloat16:
    """The forward of a linear layer in bfloat16, see `PackedFloat32`. oneDNN takes any number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return ``(..., out)`` for hidden states of ``(..., in)``."""
        output: Any = torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, "none", [], "")
        return output


PACKED: dict[torch.dtype, Any] = {torch.float32: PackedFloat32, torch.bfloat16: PackedBfloat16}
