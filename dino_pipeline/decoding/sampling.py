"""Choosing the next token: top-k, top-p, and random numbers that depend on nothing but the sample's own key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn. The defaults are the paper's (Schick & Schütze 2021, section 4)."""

    top_k: int = 5
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 0.9
    """Keep the fewest tokens whose probabilities exceed p together; 0 or 1 keeps all."""
    decay: float = 100.0
    floor: float = 0.01
    max_new_tokens: int = 40


def key_digest(key: Sequence[str | int], size: int) -> bytes:
    """Return the so many bytes that stand for a sample's key."""
    return hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=size).digest()


def uniforms(key: Sequence[str | int], count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1), one a step, that depend on ``key`` alone.

    The key is hashed to the 128-bit key of a Philox generator (Salmon et al. 2011), whose raw output NumPy keeps
    stable, so that the same sample draws the same numbers in any order, batch, process or machine.
    """
    raw = np.random.Philox(key=np.frombuffer(key_digest(key, 16), dtype="<u8")).random_raw(count)
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def choose(log_probs: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw one token per row by inverse transform over the top-k, then top-p, candidates.

    Top-p looks at the probabilities as top-k left them (renormalised), keeps a token as long as those before it sum to
    at most p, and so always keeps the first.

    Args:
        log_probs: ``(rows, vocab)`` natural-log probabilities.
        uniform: ``(rows,)`` float64 numbers in [0, 1).
        top_k: candidates a row, 0 for all.
        top_p: probability mass to keep, 0 or 1 for all.

    Returns:
        ``(rows,)`` token ids.
    """
    vocab = log_probs.shape[-1]
    scores, tokens = log_probs.topk(min(top_k, vocab) if top_k > 0 else vocab, dim=-1)
    return tokens.gather(-1, draw(scores.double().softmax(dim=-1), uniform, top_p)).squeeze(-1)


def draw(probs: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Return ``(rows, 1)`` places drawn from ``(rows, candidates)`` float64 probabilities in falling order."""
    below = probs.cumsum(dim=-1) - probs
    if 0 < top_p < 1:
        probs = probs.masked_fill(below > top_p, 0.0)
    reached = probs.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * reached[:, -1:]
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1
    return (reached <= target).sum(dim=-1, keepdim=True).minimum(last)
