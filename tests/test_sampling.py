from __future__ import annotations

import numpy as np
import pytest
import torch

from dino_pipeline.decoding import next_token
from dino_pipeline.decoding.engine import uniforms
from dino_pipeline.decoding.next_token import choose

THREE = [0.2, 0.5, 0.3]
ALMOST_1 = 1 - 2**-53


@pytest.mark.parametrize(
    ("probs", "uniform", "top_k", "top_p", "tokens"),
    [
        pytest.param(THREE, [0.0, 0.49, 0.51, 0.79, 0.81, 0.999], 0, 0, [1, 1, 2, 2, 0, 0], id="most probable first"),
        pytest.param(THREE, [0.62, 0.63, 0.9999999], 2, 0, [1, 2, 2], id="top-k keeps the k most probable"),
        pytest.param(THREE, [0.0, 0.99], 1, 0, [1, 1], id="the most probable alone"),
        pytest.param(THREE, [0.62, 0.63, ALMOST_1], 0, 0.7, [1, 2, 2], id="top-p keeps the token that passes p"),
        pytest.param(THREE, [0.99], 0, 0.4, [1], id="top-p keeps none after"),
        # with k = 2 the first token has 5/8 of what is left, more than p
        pytest.param(THREE, [0.99], 2, 0.6, [1], id="top-p looks at what top-k left"),
        pytest.param(THREE, [0.99], 0, 0.6, [2], id="top-p alone"),
        pytest.param([0.0, 1.0, 0.0], [0.0, 0.5, ALMOST_1], 3, 0, [1, 1, 1], id="never without probability"),
    ],
)
def test_tokens_come_by_inverse_transform(
    probs: list[float], uniform: list[float], top_k: int, top_p: float, tokens: list[int]
) -> None:
    rows = torch.tensor([probs] * len(uniform)).log()
    assert choose(rows, torch.tensor(uniform, dtype=torch.float64), top_k, top_p).tolist() == tokens


def test_where_a_number_falls_on_a_border() -> None:
    """The border belongs to the next token; with those before at exactly p, a token stays."""
    halves = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    assert next_token.draw(halves, torch.tensor([0.5], dtype=torch.float64), 0).tolist() == [[1]]
    assert next_token.draw(halves, torch.tensor([0.99], dtype=torch.float64), 0.5).tolist() == [[1]]


def test_rounding_up_never_leaves_the_candidates() -> None:
    """A number next to 1 times the sum may be the sum."""
    rows = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert next_token.draw(rows, torch.ones(2, dtype=torch.float64), 0).tolist() == [[1], [0]]


def test_frequencies_are_the_probabilities() -> None:
    probs = torch.tensor([0.1, 0.4, 0.25, 0.25])
    tokens = choose(probs.log().expand(20000, -1), torch.from_numpy(uniforms(("f",), 20000)), 0, 0)
    assert torch.allclose(torch.bincount(tokens) / 20000, probs, atol=0.01)


def test_uniforms_depend_on_the_key_alone() -> None:
    """The figures are pinned: a dataset made with one version must come out of the next."""
    assert uniforms((42, "x", 0), 2).tolist() == uniforms((42, "x", 0), 5)[:2].tolist()
    assert np.allclose(uniforms((42, "abc", "a text", "0.5", 3), 3), PINNED, atol=1e-15)
    assert uniforms((42, "x", 0), 1) != uniforms((42, "x", 1), 1)
    assert uniforms(("ab", "c"), 1) != uniforms(("a", "bc"), 1)


def test_uniforms_are_uniform() -> None:
    numbers = np.concatenate([uniforms((0, sample), 40) for sample in range(500)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(np.histogram(numbers, bins=10, range=(0, 1))[0] / len(numbers) - 0.1).max() < 0.01


PINNED = [0.6339633919801918, 0.9323302942606142, 0.558267847502047]
