"""From a task to its text: prompts, random numbers, requests, and what every engine returns, completions and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.options import Sampling
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import ServerAbilities, ServerCost, ServerDebiasing, ServerUsage

Finish = Literal["stop", "newline", "length", "refused", "malformed", "unanswered"]
"""Why a text ended: at the stop string, at a newline, at the longest length. Or why a server wrote none: it refused the
prompt, its answer cannot be used, or it did not answer this prompt but did answer others."""


@dataclass(frozen=True)
class Task:
    """One text to write."""

    input: int | None
    """Index of the input; None if the spec needs no inputs."""
    text: str | None
    """The input, which fills ``<X1>``; None if the spec needs no inputs."""
    label: str
    sample: int
    """Index of the text among those of the same input and label."""


def task_key(spec: TaskSpec, seed: int, task: Task) -> tuple[str | int, ...]:
    """Return the key of a task's random numbers.

    The input counts by its text, not by its index: a text does not depend on the order of the inputs.
    """
    return (seed, spec.digest, task.text or "", task.label, task.sample)


def drawn_values(spec: TaskSpec, seed: int, task: Task) -> dict[str, str]:
    """Return a value for each of the spec's variables, drawn by the task's key."""
    variables = sorted(spec.variables.items())
    draws = uniforms((*task_key(spec, seed, task), "variables"), len(variables))
    return {name: values[int(draw * len(values))] for (name, values), draw in zip(variables, draws, strict=True)}


def task_prompts(spec: TaskSpec, seed: int, task: Task, render: Callable[[str, str], str]) -> list[str]:
    """Return the label's own prompt, then one for each counter-label, each as ``render`` (`Engine.render`) gives it."""
    values = drawn_values(spec, seed, task)
    labels = (task.label, *spec.labels[task.label].counter_labels)
    return [render(spec.prompt(label, task.text, values), spec.opening(label)) for label in labels]


def key_digest(key: Sequence[str | int], size: int) -> bytes:
    """Return a hash of a sample's key, of ``size`` bytes."""
    return hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=size).digest()


def seed_of(key: Sequence[str | int]) -> int:
    """Return the seed for a sample's key. It has 31 bits, which every server accepts."""
    return int.from_bytes(key_digest(key, 4), "little") >> 1


def uniforms(key: Sequence[str | int], count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1), one per step, that depend on ``key`` alone.

    The key is hashed to the 128-bit key of a Philox generator (Salmon et al. 2011). NumPy keeps its raw output stable,
    so the same sample draws the same numbers in any order, batch, process or machine.
    """
    return uniforms_of(key_digest(key, 16), count)


def uniforms_of(digest: bytes, count: int) -> NDArray[np.float64]:
    """Return the numbers of `uniforms`, given the digest of the key, of 16 bytes."""
    raw = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).random_raw(count)
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53, dtype=np.float64)  # the upper 53 bits fill a float64


RequestKey = tuple[str | int, ...]
"""Tells a text from all others: the spec, the seed, the input, the label, the sample, the candidate."""


@dataclass(frozen=True)
class Request:
    """One text to write."""

    prompts: tuple[Any, ...]
    """The own prompt, then the counter-prompts, each as the engine's `encode` returned it."""
    key: RequestKey
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
    torn: int
    """Texts that were asked for again, as their prompts fell out of step."""
    server: ServerAbilities
    usage: ServerUsage
    cost: ServerCost
    debiasing: ServerDebiasing


class Engine(Protocol):
    """Writes texts after prompts."""

    marks: tuple[str, ...]
    """Strings that neither inputs nor texts may contain, because a chat template gives them a meaning."""
    refill_rows: bool
    """Whether one call of `sample` should span several shards, so that requests of the next shard take the place of
    texts that end. If False, each shard gets a call of its own, and its bytes depend on nothing but the shard."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it. ``opening`` is its last part, with which the answer begins."""

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

    def close(self) -> None:
        """Free the model's memory, and what else the engine holds. It writes nothing after that."""


class Scorer(Protocol):
    """Scores given texts after given prompts."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it, see `Engine.render`."""

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its rendered prompt, with ``stop`` as its last part."""


class LocalEngine(Engine, Scorer, Protocol):
    """An engine whose model runs in this process."""

    rows: int
    """Prompts that run at the same time."""
    row_tokens: int
    """Tokens written so far, once for each prompt that they were written under."""
    on_step: Callable[[], object]
    """Called after each step of `sample`, in the caller's thread. What it raises ends the sampling."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it, see `Engine.render`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""

    def undebiased(self, request: Request, tokens: Sequence[int], sampling: Sampling) -> list[int]:
        """Return, for each token of a request's text, the one that its random number chooses without debiasing.

        Each follows the tokens before it in the text.
        """
