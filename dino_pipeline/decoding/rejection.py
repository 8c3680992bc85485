"""Self-debiasing by rejection: exact, for a model that proposes texts and scores them but shows no distribution.

A text is proposed after its own prompt. Its tokens are accepted from left to right, each with the probability that
debiasing leaves it, ``max(floor, exp(-decay * max(0, q - p)))``. At the first rejection the text is cut, and its rest
proposed again. An accepted token so follows the distribution of the proposals times that factor, normalised, which is
the self-debiased one (`next_token.debias`).

Top-k and top-p act on the proposals, so they come before debiasing here. In the decoder they come after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.decoding.engine import seed_of, uniforms
from dino_pipeline.errors import ModelError
from dino_pipeline.options import Sampling

MOST_REJECTIONS = 5000
"""Proposals in a row of which not even the first token is accepted. With the default floor of 0.01 this does not
happen: the chance is 1e-22."""


class Proposal(NamedTuple):
    """The rest of a text, as the model would write it."""

    tokens: tuple[int, ...]
    is_whole: bool
    """Whether the text ends with the last token. If not, the model ended the document there, which no text does: that
    counts as a token that is never accepted."""


class ProposingModel(Protocol):
    """A model, with the prompts of one text."""

    def propose(self, tokens: Sequence[int], seed: int) -> Proposal:
        """Return a rest of the text that begins with some tokens, drawn after the own prompt."""

    def log_probs(self, tokens: Sequence[int], start: int) -> NDArray[np.float64]:
        """Return the log-probability of each token from the ``start``-th on under each prompt, the own one first.

        Returns:
            ``(tokens - start, prompts)`` natural logarithms, of all tokens of the vocabulary, before top-k and top-p.
        """


@dataclass(frozen=True)
class AcceptedText:
    """A text all of whose tokens were accepted."""

    tokens: tuple[int, ...]
    log_probs: NDArray[np.float64]
    """``(tokens, prompts)``, see `ProposingModel.log_probs`."""
    rounds: int
    """Proposals that it took."""


def write_by_rejection(model: ProposingModel, key: tuple[str | int, ...], sampling: Sampling) -> AcceptedText:
    """Write a text. Its random numbers depend on the key alone, if the model's depend on the seed alone.

    Raises:
        ModelError: no token is accepted at some place.
    """
    tokens: list[int] = []
    accepted: list[NDArray[np.float64]] = []
    rejections = 0  # in a row, at the same place
    for number in itertools.count():
        proposal = model.propose(tokens, seed_of((*key, "round", number)))
        log_probs = model.log_probs([*tokens, *proposal.tokens], len(tokens))
        draws = uniforms((*key, "acceptance", number), len(proposal.tokens))
        rejected = np.flatnonzero(draws >= acceptance(log_probs, sampling))
        count = int(rejected[0]) if len(rejected) else len(proposal.tokens)
        tokens += proposal.tokens[:count]
        accepted.append(log_probs[:count])
        if count == len(proposal.tokens) and proposal.is_whole:
            return AcceptedText(tuple(tokens), np.concatenate(accepted), number + 1)
        rejections = 0 if count else rejections + 1
        if rejections == MOST_REJECTIONS:
            raise ModelError(
                f"of {rejections} proposals for the next token of a text, none was accepted",
                "give a larger {floor}, or a smaller {decay}",
            )
    raise AssertionError("the loop has no end")


def acceptance(log_probs: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """Return the probability with which each token is accepted.

    Args:
        log_probs: ``(..., prompts)`` natural-log probabilities, the own prompt's first.
        sampling: decay and floor.

    Returns:
        ``(...)`` probabilities.
    """
    probs = np.exp(log_probs)
    if probs.shape[-1] == 1:
        return np.ones(probs.shape[:-1])
    excess = np.maximum(0.0, probs[..., 1:].max(-1) - probs[..., 0])
    return np.maximum(sampling.floor, np.exp(-sampling.decay * excess))


def expected_rounds(log_probs: NDArray[np.float64], sampling: Sampling) -> float:
    """Return the proposals that a text takes on average, if it is the one that is written in the end.

    Args:
        log_probs: ``(tokens, prompts, vocab)`` natural-log probabilities at each place of the text.
        sampling: as the text is to be written.
    """
    accepted = acceptance(log_probs.swapaxes(1, 2), sampling)  # (tokens, vocab)
    rounds = 1.0
    for place, factors in zip(log_probs, accepted, strict=True):
        kept = float((_proposals(place[0], sampling) * factors).sum())
        rounds += 1 / kept - 1 if kept else math.inf
    return rounds


def _proposals(log_probs: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """Return the distribution of a place's proposals, ``(vocab)``: top-k, then top-p, as servers apply them."""
    probs = np.exp(log_probs)
    order = np.argsort(-probs)
    ranked = probs[order] / probs.sum()
    if sampling.top_k:
        ranked[sampling.top_k :] = 0
        ranked /= ranked.sum()
    if 0 < sampling.top_p < 1:
        ranked[ranked.cumsum() - ranked > sampling.top_p] = 0
    kept = np.empty_like(ranked)
    kept[order] = ranked / ranked.sum()
    return kept
