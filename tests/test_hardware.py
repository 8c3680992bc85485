from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from dino_pipeline.decoding import loading, tuning
from dino_pipeline.decoding.tuning import PACKED, can_pack, tune
from tests.toys import CONFIGS, tiny_model

ROWS = 6


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", list(PACKED), ids=str)
@torch.inference_mode()
def test_a_tuned_model_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, architecture: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(tuning, "SMALLEST_PACKED", 1)
    model = tiny_model(architecture).to(dtype)
    inputs = [torch.arange(rows * length).view(rows, length) % 20 + 5 for rows, length in ((ROWS, 1), (3, 7), (1, 2))]
    before = [model(ids).logits for ids in inputs]
    tune(model, ROWS)
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    packed = [layer for layer in layers if layer.forward.__qualname__.startswith(PACKED[dtype].__name__)]
    assert bool(packed) == can_pack(dtype)
    assert not any(type(module) is NewGELUActivation for module in model.modules())
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for ids, expected in zip(inputs, before, strict=True):
        assert torch.allclose(model(ids).logits, expected, atol=tolerance * float(expected.std()) + 1e-6)


def test_weights_stay_where_kernels_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SMALLEST_PACKED", 1)
    model = tiny_model("llama").double()
    tune(model, ROWS)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_dtype_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 4.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(loading, "_product_seconds", lambda device, width, dtype: seconds[dtype])
    assert loading.faster_dtype("cpu", 768) == "bfloat16"
    seconds[torch.bfloat16] = 3.0
    assert loading.faster_dtype("cpu", 768) == "float32"


def test_a_product_is_timed() -> None:
    assert 0 < loading._product_seconds("cpu", 64, torch.bfloat16) < 60
