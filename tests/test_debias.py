from __future__ import annotations

import numpy as np
import pytest
import torch

from dino_pipeline.decoding.next_token import debias


def normalised(log_probs: torch.Tensor, groups: torch.Tensor, decay: float, floor: float) -> torch.Tensor:
    """The distributions, normalised."""
    return debias(log_probs, groups, decay, floor).log_softmax(-1)


def by_the_formula(logits: np.ndarray, groups: list[list[int]], decay: float, floor: float) -> np.ndarray:
    """The paper's formula, in float64, token by token."""
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    result = []
    for own, *counters in groups:
        row = []
        for token, p in enumerate(probs[own]):
            excess = max([0.0, *(probs[counter][token] - p for counter in counters)])
            row.append(p * max(floor, np.exp(-decay * excess)))
        result.append(np.array(row) / sum(row))
    return np.array(result)


@pytest.mark.parametrize("counters", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
@pytest.mark.parametrize(("decay", "floor"), [(100.0, 0.01), (10.0, 0.01), (100.0, 0.0), (0.0, 0.01)])
def test_agrees_with_the_formula(counters: int, scale: float, decay: float, floor: float) -> None:
    draw = np.random.default_rng(counters)
    logits = (draw.normal(size=(6 * (1 + counters), 500)) * scale).astype(np.float32)
    groups = np.arange(len(logits)).reshape(6, -1)
    debiased = normalised(torch.from_numpy(logits).log_softmax(-1), torch.from_numpy(groups), decay, floor)
    expected = by_the_formula(logits.astype(np.float64), groups.tolist(), decay, floor)
    assert np.abs(debiased.double().exp().numpy() - expected).max() < 1e-6


def test_a_token_the_counter_prefers_is_punished_and_no_other() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]]).log()
    debiased = normalised(log_probs, torch.tensor([[0, 1]]), decay=100, floor=0.01).exp()[0]
    assert torch.allclose(debiased, torch.tensor([0.5, 0.003, 0.2]) / 0.703)


def test_a_missing_counter_is_the_own_row() -> None:
    log_probs = torch.randn(3, 50).log_softmax(-1)
    padded = normalised(log_probs, torch.tensor([[0, 0, 0], [1, 2, 1]]), 100, 0.01)
    assert torch.allclose(padded[0], log_probs[0], atol=1e-6)
    assert torch.allclose(padded[1], normalised(log_probs, torch.tensor([[1, 2]]), 100, 0.01)[0])


def test_a_banned_token_stays_banned() -> None:
    log_probs = torch.randn(2, 10).index_fill(1, torch.tensor([4]), -torch.inf).log_softmax(-1)
    debiased = normalised(log_probs, torch.tensor([[0, 1]]), 100, 0.01)
    assert debiased[0, 4] == -torch.inf
    assert torch.isfinite(debiased[0, :4]).all()
