"""What writes texts: a request, what becomes of it, and what every engine can be asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from dino_pipeline.decoding.sampling import Sampling

Finish = Literal["stop", "newline", "length", "refused"]
"""How a text ended."""


@dataclass(frozen=True)
class Request:
    """One text to write."""

    prompts: tuple[Any, ...]
    """The own prompt, then the counter-prompts, as the engine encoded them."""
    key: tuple[str | int, ...]
    """What the random numbers depend on; nothing else decides them."""

    @property
    def longest_prompt(self) -> int:
        return max(map(len, self.prompts))


@dataclass(frozen=True)
class Completion:
    """One text written."""

    number: int
    """Index of its request."""
    text: str
    finish: Finish
    tokens: tuple[int, ...]
    """All tokens written, the one that closed the text included; none where an engine does not tell them."""
    length: int
    """How many these are."""
    logprob: float | None
    """Mean natural-log probability per token under the own prompt, before debiasing, the closing token included; None
    where an engine does not tell it."""
    margin: float | None
    """``logprob`` minus the best counter-prompt's; None without counters."""


class Scored(NamedTuple):
    """How likely a text is."""

    logprob: float
    """Mean natural-log probability per token."""
    tokens: int


class Engine(Protocol):
    """Writes texts under prompts."""

    marks: tuple[str, ...]
    """What no text may hold."""
    streams: bool
    """Whether it pays to fill room that texts leave with those of the next shard; else each shard is written by itself,
    so that its bytes depend on nothing else: not on where a run was stopped, nor on who wrote the shards before."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it, given the part with which an answer begins."""

    def encode(self, texts: Sequence[str]) -> Sequence[Any]:
        """Return rendered prompts as requests hold them."""

    def fits(self, prompts: Iterable[Any], max_new_tokens: int) -> bool:
        """Whether the prompts leave room for a text in the model's context, as far as that is known."""

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request; yield each as it ends, in no particular order."""

    def facts(self) -> Mapping[str, Any]:
        """Return what run.json is to hold of it, beside the options."""


class Scorer(Protocol):
    """Says how likely given texts are after given prompts."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it, given the part with which an answer begins."""

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its rendered prompt, ``stop`` included."""
