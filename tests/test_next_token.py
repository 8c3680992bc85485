from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from dino_pipeline.decoding import next_token
from dino_pipeline.decoding.next_token import likeliest, log_totals, next_tokens
from dino_pipeline.options import Sampling

VOCAB = 5003
GROUPS = torch.tensor([[0, 0, 0], [1, 0, 1], [2, 1, 0], [3, 4, 5], [6, 7, 6]])


@pytest.fixture(autouse=True)
def _every_vocabulary_has_a_shortlist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "MIN_VOCAB", 1)


def peaked(seed: int, spread: float = 3.0) -> torch.Tensor:
    """Logits of rows that agree in much, as prompts with the same input do."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(VOCAB, generator=generator) * spread
    logits = common + torch.randn(8, VOCAB, generator=generator)
    return logits.index_fill(1, torch.tensor([0, 17]), -torch.inf)


def plain(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> list[int]:
    """Text by text, the formula in float64 over the whole vocabulary."""
    chosen = []
    for rows, number in zip(GROUPS, uniform.tolist(), strict=True):
        probs = logits[rows].double().softmax(-1)
        excess = (probs.amax(0) - probs[0]).clamp(min=0)
        debiased = probs[0] * (-sampling.decay * excess).exp().clamp(min=sampling.floor)
        ranked, tokens = debiased.sort(descending=True)
        if sampling.top_k:
            ranked = ranked[: sampling.top_k]
        ranked = ranked / ranked.sum()
        ranked = ranked[ranked.cumsum(0) - ranked <= sampling.top_p] if sampling.top_p else ranked
        chosen.append(int(tokens[int((ranked.cumsum(0) <= number * ranked.sum()).sum())]))
    return chosen


SAMPLINGS = [
    Sampling(),
    Sampling(top_k=40, top_p=0.0),
    Sampling(top_k=5, floor=0.0),
    Sampling(top_k=0, top_p=0.95),
    Sampling(top_k=0, top_p=0.8, decay=0),
    Sampling(top_k=0, top_p=0.0),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shortlist", [next_token.SHORTLIST, {True: 6, False: 6}, {True: VOCAB, False: VOCAB}])
def test_a_shortlist_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, sampling: Sampling, shortlist: dict[bool, int]
) -> None:
    monkeypatch.setattr(next_token, "SHORTLIST", shortlist)
    monkeypatch.setattr(next_token, "likeliest", spy := Mock(wraps=likeliest))
    for seed in range(12):
        logits = peaked(seed, spread=seed / 2)
        uniform = torch.rand(len(GROUPS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        tokens, log_probs = next_tokens(logits, GROUPS, uniform, sampling)
        assert tokens.tolist() == plain(logits, uniform, sampling)
        expected = logits.double().log_softmax(-1)[GROUPS, tokens[:, None]]
        assert torch.allclose(log_probs, expected, atol=1e-5)
    assert spy.called == (4 * max(shortlist[sampling.top_k > 0], 4 * sampling.top_k) <= VOCAB)


def test_a_shortlist_that_decides_nothing_is_not_taken() -> None:
    """Both prompts of a text agree on what is likely, the counter-prompt more so: all likely tokens are punished."""
    own = torch.zeros(VOCAB)
    own[100:200] = 4.0
    counter = torch.zeros(VOCAB)
    counter[100:200] = 9.0
    logits = torch.stack([own, counter])
    uniform = torch.tensor([0.5], dtype=torch.float64)
    tokens, _ = next_tokens(logits, torch.tensor([[0, 1]]), uniform, Sampling(decay=1000, floor=0.0))
    assert not 100 <= int(tokens) < 200


@pytest.mark.parametrize("vocab", [7, 1024, VOCAB])
def test_totals_and_likeliest_tokens(vocab: int) -> None:
    logits = peaked(1)[:, :vocab].bfloat16()
    totals, maxima = log_totals(logits)
    assert torch.allclose(totals, logits.double().logsumexp(-1), atol=1e-5)
    result = likeliest(logits, maxima, torch.tensor([3, 5]), 7)
    assert torch.equal(logits[[[3], [5]], result], logits[[3, 5]].topk(7).values)


@pytest.mark.parametrize("offset", [-500.0, -90.0, -30.0, 0.0, 55.0, 70.0, 300.0])
def test_totals_hold_wherever_logits_lie(offset: float) -> None:
    logits = peaked(0) + offset
    result, _ = log_totals(logits)
    assert torch.allclose(result, logits.double().logsumexp(1), rtol=0, atol=2e-6 + 1e-7 * abs(offset))
