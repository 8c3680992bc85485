"""How the next token is drawn: top-k, top-p, and random numbers that depend on the sample's key alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def key_digest(key: Sequence[str | int], size: int) -> bytes:
    """Return a hash of a sample's key, of ``size`` bytes."""
    return hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=size).digest()


def uniforms(key: Sequence[str | int], count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1), one per step, that depend on ``key`` alone.

    The key is hashed to the 128-bit key of a Philox generator (Salmon et al. 2011). NumPy keeps its raw output stable,
    so the same sample draws the same numbers in any order, batch, process or machine.
    """
    raw = np.random.Philox(key=np.frombuffer(key_digest(key, 16), dtype="<u8")).random_raw(count)
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53, dtype=np.float64)  # the upper 53 bits fill a float64


def choose(log_probs: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw one token per row by inverse transform, after top-k and then top-p.

    Top-p works on the probabilities that top-k left, renormalised. It keeps a token as long as those before it sum to
    at most p, and so always keeps the first.

    Args:
        log_probs: ``(rows, vocab)`` natural-log probabilities.
        uniform: ``(rows,)`` float64 numbers in [0, 1).
        top_k: candidates per row, 0 for all.
        top_p: probability mass to keep, 0 or 1 for all.

    Returns:
        ``(rows,)`` token ids.
    """
    vocab = log_probs.shape[-1]
    scores, tokens = log_probs.topk(min(top_k, vocab) if top_k > 0 else vocab, dim=-1)  # (rows, candidates)
    return tokens.gather(-1, draw(scores.double().softmax(dim=-1), uniform, top_p)).squeeze(-1)


def draw(probs: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Draw one candidate per row, after top-p.

    Args:
        probs: ``(rows, candidates)`` float64 probabilities, the largest first. They need not sum to 1.
        uniform: ``(rows,)`` float64 numbers in [0, 1).
        top_p: probability mass to keep, 0 or 1 for all.

    Returns:
        ``(rows, 1)`` indices of candidates.
    """
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier candidates
    if 0 < top_p < 1:
        probs = probs.masked_fill(before > top_p, 0.0)
    reached = probs.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * reached[:, -1:]
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1
    return (reached <= target).sum(dim=-1, keepdim=True).minimum(last)  # rounding must not lead past the last one
