"""Debiasing by rejection, on a model in memory whose debiased distribution is computed in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from dino_pipeline.decoding import rejection
from dino_pipeline.decoding.rejection import Proposal, expected_rounds, write_by_rejection
from dino_pipeline.errors import ModelError
from dino_pipeline.options import Sampling

CLOSE, DOCUMENT_END, VOCAB, LONGEST = 0, 1, 6, 3
TEXTS = 4000


class Toy:
    """A model with three prompts of one text, which closes it, ends the document, or goes on."""

    def __init__(self, sampling: Sampling, *, ends_documents: bool = True) -> None:
        self.sampling, self.ends_documents = sampling, ends_documents
        self.known: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def distribution(self, prompt: int, tokens: Sequence[int]) -> NDArray[np.float64]:
        place = (prompt, *tokens)
        if place not in self.known:
            weights = np.random.default_rng(place).exponential(size=VOCAB) + 0.1
            weights[DOCUMENT_END] *= self.ends_documents
            self.known[place] = weights / weights.sum()
        return self.known[place]

    def proposals(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        probs = self.distribution(0, tokens)
        if self.sampling.top_k:
            probs = np.where(probs >= np.sort(probs)[-self.sampling.top_k], probs, 0)
        return np.asarray(probs / probs.sum())

    def propose(self, tokens: Sequence[int], seed: int) -> Proposal:
        generator, whole = np.random.default_rng(seed), list(tokens)
        while len(whole) < LONGEST:
            token = int(generator.choice(VOCAB, p=self.proposals(whole)))
            if token == DOCUMENT_END:
                return Proposal(tuple(whole[len(tokens) :]), False)
            whole.append(token)
            if token == CLOSE:
                break
        return Proposal(tuple(whole[len(tokens) :]), True)

    def log_probs(self, tokens: Sequence[int], start: int) -> NDArray[np.float64]:
        rows = [
            [np.log(self.distribution(prompt, tokens[:at])[tokens[at]]) for prompt in range(3)]
            for at in range(start, len(tokens))
        ]
        return np.array(rows).reshape(-1, 3)

    def debiased(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """The formula, token by token, over those that a text may hold."""
        own, *others = (self.distribution(prompt, tokens) for prompt in range(3))
        excess = np.maximum(0, np.max(others, axis=0) - own)
        probs = self.proposals(tokens) * np.maximum(self.sampling.floor, np.exp(-self.sampling.decay * excess))
        probs[DOCUMENT_END] = 0
        return np.asarray(probs / probs.sum())

    def texts(self, tokens: tuple[int, ...] = (), prob: float = 1.0) -> Iterator[tuple[tuple[int, ...], float]]:
        """All texts with their probabilities."""
        if tokens[-1:] == (CLOSE,) or len(tokens) == LONGEST:
            yield tokens, prob
            return
        for token, factor in enumerate(self.debiased(tokens)):
            if factor:
                yield from self.texts((*tokens, token), prob * factor)


def by_first_token(probs: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    return {(token,): float(prob) for token, prob in enumerate(probs) if prob}


def p_value(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; kinds that are too rare for one are taken together."""
    assert set(found) <= set(expected)
    often = [kind for kind, prob in expected.items() if prob * TEXTS >= 10]
    seen, wanted = [found[kind] for kind in often], [expected[kind] * TEXTS for kind in often]
    assert len(often) > 2
    return float(chisquare([*seen, TEXTS - sum(seen) + 1e-9], [*wanted, TEXTS - sum(wanted) + 1e-9]).pvalue)


@pytest.mark.parametrize("sampling", [Sampling(top_k=0, decay=10), Sampling(top_k=0), Sampling(top_k=4, decay=10)])
def test_texts_follow_the_debiased_distribution(sampling: Sampling) -> None:
    toy = Toy(sampling)
    texts = [write_by_rejection(toy, ("text", number), sampling) for number in range(TEXTS)]
    first = by_first_token(toy.debiased(()))
    assert p_value(Counter(each.tokens[:1] for each in texts), first) > 1e-3
    assert p_value(Counter(each.tokens for each in texts), dict(toy.texts())) > 1e-3
    plain = by_first_token(toy.proposals(()))
    assert p_value(Counter(each.tokens[:1] for each in texts), plain) < 1e-9, "the test can tell"
    for each in texts[:20]:
        assert np.allclose(each.log_probs, toy.log_probs(each.tokens, 0))


def test_a_text_depends_on_its_key_alone() -> None:
    sampling = Sampling(top_k=0, decay=10)
    one, same, other = (write_by_rejection(Toy(sampling), ("text", number), sampling) for number in (1, 1, 3))
    assert (one.tokens, one.rounds) == (same.tokens, same.rounds) != (other.tokens, other.rounds)


def test_the_price_is_known_beforehand() -> None:
    sampling = Sampling(top_k=0, top_p=0, decay=10)
    toy = Toy(sampling, ends_documents=False)
    texts = [write_by_rejection(toy, ("text", number), sampling) for number in range(1000)]
    expected = []
    for each in texts:
        places = range(len(each.tokens))
        of_text = [[toy.distribution(prompt, each.tokens[:at]) for prompt in range(3)] for at in places]
        with np.errstate(divide="ignore"):
            expected.append(expected_rounds(np.log(np.array(of_text)), sampling))
    assert np.mean([each.rounds for each in texts]) == pytest.approx(np.mean(expected), rel=0.1)
    assert np.mean([each.rounds for each in texts]) > 1.2


def test_what_is_never_accepted_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "MOST_REJECTIONS", 50)

    class Ends(Toy):
        def propose(self, tokens: Sequence[int], seed: int) -> Proposal:
            return Proposal((), False)

    with pytest.raises(
        ModelError, match="of 50 proposals for the next token of a text, none was accepted; give a larger"
    ):
        write_by_rejection(Ends(Sampling()), ("text",), Sampling())
