"""What every engine offers: requests in, completions out, and scores of given texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from dino_pipeline.options import Sampling
from dino_pipeline.stage_records import ServerAbilities, ServerCost, ServerUsage

Finish = Literal["stop", "newline", "length", "refused"]
"""Why a text ended: the stop string, a newline, the longest length, or a server that refused the prompt."""


@dataclass(frozen=True)
class Request:
    """One text to write."""

    prompts: tuple[Any, ...]
    """The own prompt, then the counter-prompts, each as the engine's `encode` returned it."""
    key: tuple[str | int, ...]
    """The random numbers of this text depend on the key and on nothing else."""

    @property
    def longest_prompt(self) -> int:
        """Return the length of the longest prompt, in the engine's units."""
        return max(map(len, self.prompts))


@dataclass(frozen=True)
class Completion:
    """One text that an engine has written."""

    number: int
    """Index of the request that it answers."""
    text: str
    finish: Finish
    tokens: tuple[int, ...]
    """All tokens, with the one that closed the text. Empty if the engine does not report them."""
    length: int
    """Number of tokens."""
    logprob: float | None
    """Mean natural-log probability per token under the own prompt, before debiasing, with the closing token. None if
    the engine does not report it."""
    margin: float | None
    """``logprob`` minus that under the best counter-prompt. None without counter-prompts."""


class Scored(NamedTuple):
    """How likely a given text is after a given prompt."""

    logprob: float
    """Mean natural-log probability per token."""
    tokens: int
    """Number of tokens, the stop string included."""


class EngineFacts(TypedDict, total=False):
    """What the run's record holds about an engine, apart from its options. The keys are fields of `GenerateRecord`."""

    model_commit: str | None
    """Commit of a model from the Hub."""
    server: ServerAbilities
    usage: ServerUsage
    cost: ServerCost


class Engine(Protocol):
    """Writes texts after prompts."""

    marks: tuple[str, ...]
    """Strings that neither inputs nor texts may contain, because a chat template gives them a meaning."""
    refill_rows: bool
    """Whether one call of `sample` should span several shards, so that requests of the next shard take the place of
    texts that end. If False, each shard gets a call of its own, and its bytes depend on nothing but the shard."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it.

        Args:
            prompt: the filled instruction.
            opening: its last part, with which the model's answer begins.
        """

    def encode(self, texts: Sequence[str]) -> Sequence[Any]:
        """Return rendered prompts in the form that `Request.prompts` takes."""

    def fits(self, prompts: Iterable[Any], max_new_tokens: int) -> bool:
        """Return whether the model's context has room for a text after each prompt, as far as the engine knows."""

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request. Yield each text as it ends, in any order."""

    def facts(self) -> EngineFacts:
        """Return what the run's record holds about the engine. A server's usage grows while it writes."""


class Scorer(Protocol):
    """Scores given texts after given prompts."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it, see `Engine.render`."""

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its rendered prompt, with ``stop`` as its last part."""
