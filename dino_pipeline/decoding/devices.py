"""Moving numbers to and from a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def put(values: Sequence[Any], device: torch.device) -> Tensor:
    """Return the values on the device; a GPU goes on with what it was given before meanwhile."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it took the place of, says that a device's memory is full."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in OUT_OF_MEMORY):
        return True
    return is_out_of_memory(error.__context__)


class Coming:
    """Tensors on their way from the device, read once they are there."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self.ready: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.ready.record(torch.cuda.current_stream(tensors[0].device))

    def lists(self) -> list[list[Any]]:
        """Wait, and return the values."""
        if self.ready is not None:
            self.ready.synchronize()
        return [tensor.tolist() for tensor in self.tensors]
