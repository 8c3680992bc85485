"""The engine that asks a server: any that speaks OpenAI's completions, with what it is found to be able to do."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice, product
from queue import SimpleQueue
from typing import Any, Literal, TypeVar, get_args

import openai

from dino_pipeline.decoding.engine import Completion, Finish, Request, Scored
from dino_pipeline.decoding.sampling import Sampling, key_digest
from dino_pipeline.errors import ModelError, OptionError, first_line

RETRIES = 8
"""Times that a request is sent again, by the client with growing pauses."""
PROBES = 4
"""Texts that show whether a server samples, and whether seeds hold."""
LONGEST_PAUSE = 8.0
ENDS = ("stop_reason", "matched_stop")
"""Where servers tell what stopped a text (vLLM, SGLang)."""
T = TypeVar("T")
R = TypeVar("R")
Dialect = Literal["fields", "generation_config", "plain"]
"""How a server is told top-k: as a field (vLLM, SGLang, llama.cpp, TGI), in a configuration (transformers), never."""
Seeds = Literal["hold", "hold one at a time", "do not hold"]
"""Whether a seed gives the same text again; with some servers only where one request is under way."""


@dataclass(frozen=True)
class Abilities:
    """What a server was found to do."""

    dialect: Dialect
    seeds: Seeds
    logprobs: bool
    """Whether it tells the log-probabilities of tokens."""
    tells_ends: bool
    """Whether it tells the stop string from the model's end of text."""


@dataclass
class Usage:
    """What was asked of a server."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Prices:
    """Dollars a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Return what the usage costs, in dollars."""
        return round((usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6, 6)


@dataclass
class Server:
    """Writes texts with a model that runs elsewhere. It cannot debias: counter-prompts are not looked at.

    The key is that of the environment's ``OPENAI_API_KEY``, if one is needed; it is written nowhere.
    """

    model: str
    base_url: str
    note: Callable[[str], None]
    concurrency: int = 16
    """Requests under way at once."""
    timeout: float = 600.0
    """Seconds until a request is given up and sent again."""
    prices: Prices = Prices()
    usage: Usage = field(default_factory=Usage)
    abilities: Abilities | None = None
    marks: tuple[str, ...] = ()
    streams: bool = True
    keeps_top_k: bool = False
    refused: bool = False

    def __post_init__(self) -> None:
        key = os.environ.get("OPENAI_API_KEY") or "none"
        try:
            self.client = openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=RETRIES, timeout=self.timeout)
        except Exception as error:  # the library's for addresses, whichever it rests on
            raise OptionError(f"--base-url {self.base_url}: is no address ({first_line(error)})") from error
        self.lock = threading.Lock()

    def render(self, prompt: str, opening: str) -> str:
        """Return the prompt: a server's completions take it as it is."""
        return prompt

    def encode(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def fits(self, prompts: Iterable[str], max_new_tokens: int) -> bool:
        """Say that they do; a server that finds them too long answers with an error."""
        return True

    def facts(self) -> dict[str, Any]:
        """Return what the server was found to do, and what was asked of it."""
        facts: dict[str, Any] = {"usage": asdict(self.usage)}
        if self.abilities:
            facts["server"] = asdict(self.abilities)
        if self.prices != Prices():
            facts["cost"] = {"dollars": self.prices.cost(self.usage), "dollars_a_million_tokens": asdict(self.prices)}
        return facts

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request, some at a time; yield each as it ends.

        Raises:
            ModelError: the server cannot be asked, or does not answer.
            OptionError: it cannot do what is asked.
        """
        waiting = iter(requests)
        first = list(islice(waiting, 1))
        if not first:
            return
        abilities = self.abilities = self.abilities or self._probe(first[0].prompts[0], stop)
        if sampling.top_k and not self.keeps_top_k:
            self._check_top_k(abilities, first[0].prompts[0], stop)

        def one(request: Request) -> dict[str, Any] | None:
            seed = seed_of(request.key)
            body = _body(request.prompts[0], sampling, stop, seed, abilities.dialect, abilities.logprobs)
            try:
                return self._ask(body, refusals=True)
            except _RefusedError as error:
                self._note_refusal(error)
                return None

        for number, answer in in_threads(one, chain(first, waiting), self.concurrency):
            yield _completion(number, answer, stop, stop_at_newline)

    def _note_refusal(self, error: _RefusedError) -> None:
        with self.lock:
            refused, self.refused = self.refused, True
        if not refused:
            self.note(f"the server refuses a prompt, whose text is left out ({first_line(error)})")

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, by the log-probabilities of an echo (vLLM, SGLang).

        Raises:
            OptionError: the server echoes none.
        """
        found = in_threads(lambda pair: self._echoed(pair[0], pair[1] + stop), pairs, self.concurrency)
        return [scored for _, scored in sorted(found)]

    def _echoed(self, prompt: str, text: str) -> Scored:
        body = {"prompt": prompt + text, "max_tokens": 1, "echo": True, "logprobs": 1}
        logprobs = self._ask(body)["choices"][0].get("logprobs") or {}
        offsets, values = logprobs.get("text_offset"), logprobs.get("token_logprobs")
        whole = len(prompt + text)
        if not offsets or not values or len(offsets) != len(values) or offsets[0] != 0:
            raise OptionError(
                f"{self.base_url}: echoes no log-probabilities, so it scores no texts; score with a model that runs "
                "here, --scorer MODEL"
            )
        # a token that holds the prompt's end and the text's beginning belongs to the text
        ends = [*offsets[1:], whole]
        found = [
            value
            for start, end, value in zip(offsets, ends, values, strict=True)
            if end > len(prompt) and start < whole and value is not None
        ]
        return Scored(sum(found) / max(len(found), 1), len(found))

    def _probe(self, prompt: str, stop: str) -> Abilities:
        """Find out by a few short texts what the server does, and refuse what it would silently do otherwise."""
        dialect, logprobs, tells_ends = self._dialect(prompt, stop)
        wide = Sampling(top_k=0, top_p=0, max_new_tokens=12)
        first = self._trial(prompt, wide, stop, dialect)
        if len({*first}) == 1:
            raise OptionError(
                f"{self.base_url}: {PROBES} texts with different seeds are all the same, so the server does not "
                "sample; start it so that it does"
            )
        seeds: Seeds = "do not hold"
        if self._trial(prompt, wide, stop, dialect) == first:
            # some servers seed one generator for all that is under way
            alone = self.concurrency == 1 or self._trial(prompt, wide, stop, dialect, PROBES) == first
            seeds = "hold" if alone else "hold one at a time"
        if seeds != "hold":
            remedy = "; --concurrency 1 makes them hold" if seeds == "hold one at a time" else ""
            self.note(f"the server's seeds do not hold, so another run writes other texts{remedy}")
        if not tells_ends:
            self.note("the server does not tell the stop string from the model's end of text; both count as finished")
        return Abilities(dialect, seeds, logprobs, tells_ends)

    def _trial(self, prompt: str, sampling: Sampling, stop: str, dialect: Dialect, workers: int = 1) -> list[str]:
        bodies = [_body(prompt, sampling, stop, seed, dialect, False) for seed in range(PROBES)]
        found = sorted(in_threads(self._ask, bodies, workers), key=lambda each: each[0])
        return [answer["choices"][0]["text"] for _, answer in found]

    def _check_top_k(self, abilities: Abilities, prompt: str, stop: str) -> None:
        greedy = Sampling(top_k=1, top_p=0, max_new_tokens=8)
        if abilities.dialect == "plain" or len({*self._trial(prompt, greedy, stop, abilities.dialect)}) > 1:
            raise OptionError(
                f"{self.base_url}: the server does not know top-k, or does not keep to it; give --top-k 0 (top-p and "
                "temperature it knows)"
            )
        self.keeps_top_k = True

    def _dialect(self, prompt: str, stop: str) -> tuple[Dialect, bool, bool]:
        sampling = Sampling(top_k=1, top_p=0, max_new_tokens=4)
        for dialect, logprobs in product(get_args(Dialect), (True, False)):
            body = _body(prompt, sampling, stop, 0, dialect, logprobs)
            try:
                answer = self._ask(body, refusals=dialect != "plain" or logprobs)
            except _RefusedError:
                continue
            choice = answer["choices"][0]
            told = bool((choice.get("logprobs") or {}).get("token_logprobs"))
            return dialect, told, any(name in choice for name in ENDS)
        raise AssertionError("the plainest request is refused with an error")

    def _ask(self, body: Mapping[str, Any], *, refusals: bool = False) -> dict[str, Any]:
        """Send a request, again and again where the answer is cut or makes no sense; count what it took.

        Raises:
            ModelError: there is no answer to be had.
            _RefusedError: the server knows a field not, and ``refusals`` are expected.
        """
        pause = 0.25
        for attempt in range(RETRIES + 1):
            found = self._sent(body, refusals)
            if _is_answer(found):
                break
            if attempt == RETRIES:
                raise ModelError(f"{self.base_url}: its answers are no completions; is this the server's /v1 address?")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        usage = found.get("usage") or {}
        with self.lock:
            self.usage.requests += 1
            self.usage.prompt_tokens += usage.get("prompt_tokens") or 0
            self.usage.completion_tokens += usage.get("completion_tokens") or 0
        return found

    def _sent(self, body: Mapping[str, Any], refusals: bool) -> dict[str, Any]:
        """Return an answer, empty where it is no JSON."""
        with self._errors(refusals):
            try:
                found = self.client.completions.create(model=self.model, prompt=body["prompt"], extra_body=body)
                return found.model_dump() if isinstance(found, openai.BaseModel) else {}
            except (openai.APIResponseValidationError, ValueError):
                return {}

    @contextmanager
    def _errors(self, refusals: bool) -> Iterator[None]:
        """Turn what the client says into messages with a remedy."""
        where = self.base_url
        try:
            yield
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if refusals:
                raise _RefusedError(first_line(error)) from error
            raise ModelError(f"{where}: refuses the request ({first_line(error)})") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ModelError(f"{where}: does not let you in; set OPENAI_API_KEY ({first_line(error)})") from error
        except openai.NotFoundError as error:
            raise ModelError(
                f"{where}: knows no model {self.model}, or no completions; see its /v1/models ({first_line(error)})"
            ) from error
        except openai.OpenAIError as error:
            raise ModelError(
                f"{where}: no answer, after {RETRIES} further attempts ({first_line(error)}); finished shards are "
                "kept, the same command goes on from there"
            ) from error


class _RefusedError(Exception):
    """A server does not know a field."""


def seed_of(key: tuple[str | int, ...]) -> int:
    """Return the seed that a sample's key stands for; 31 bits, as every server takes them."""
    return int.from_bytes(key_digest(key, 4), "little") >> 1


def _body(prompt: str, sampling: Sampling, stop: str, seed: int, dialect: Dialect, logprobs: bool) -> dict[str, Any]:
    """Return a request. A newline is no stop string there: what stopped a text could not be told apart."""
    top_p = sampling.top_p if 0 < sampling.top_p < 1 else 1.0
    drawn: dict[str, Any] = {"temperature": 1.0, "top_p": top_p}
    more: dict[str, Any] = {}
    if dialect == "fields":  # servers have defaults of their own
        more = {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
    elif dialect == "generation_config":
        config = {"do_sample": True, **drawn, "top_k": sampling.top_k, "max_new_tokens": sampling.max_new_tokens}
        more = {"generation_config": json.dumps(config)}
    if logprobs:
        more["logprobs"] = 1
    asked = {"prompt": prompt, "max_tokens": sampling.max_new_tokens, "stop": [stop], "seed": seed}
    return {**asked, **drawn, **more}


def _is_answer(answer: Mapping[str, Any]) -> bool:
    choices = answer.get("choices")
    return bool(isinstance(choices, list) and choices and isinstance(choices[0], dict)
                and isinstance(choices[0].get("text"), str))  # fmt: skip


def in_threads(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[int, R]]:
    """Work on items, so many at a time; yield each result with its item's number, as it comes.

    Whoever stops listening waits for nobody: what is under way does not keep the process from ending.
    """
    asked: SimpleQueue[tuple[int, T] | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        while (task := asked.get()) is not None:
            try:
                done.put((task[0], work(task[1]), None))
            except BaseException as error:  # raised again where it is listened for
                done.put((task[0], None, error))

    def next_done() -> tuple[int, R]:
        number, result, error = done.get()
        if error is not None:
            raise error
        return number, result

    for _ in range(workers):
        threading.Thread(target=run, daemon=True).start()
    under_way = 0
    try:
        for number, item in enumerate(items):
            asked.put((number, item))
            under_way += 1
            if under_way == workers:
                yield next_done()
                under_way -= 1
        for _ in range(under_way):
            yield next_done()
    finally:
        for _ in range(workers):
            asked.put(None)


def _completion(number: int, answer: Mapping[str, Any] | None, stop: str, stop_at_newline: bool) -> Completion:
    """Return an answer as a text; servers differ in whether they leave the stop string in it."""
    if answer is None:
        return Completion(number, "", "refused", (), 0, None, None)
    choice = answer["choices"][0]
    written: str = choice["text"]
    text, stopped, _ = written.partition(stop)
    ended = choice.get("finish_reason") == "stop" and all(choice[name] == stop for name in ENDS if name in choice)
    finish: Finish = "stop" if stopped or ended else "length"
    if stop_at_newline and "\n" in text:
        text, finish = text.partition("\n")[0], "newline"
    values = (choice.get("logprobs") or {}).get("token_logprobs") or []
    logprob = sum(values) / len(values) if values and all(map(_finite, values)) else None
    length = (answer.get("usage") or {}).get("completion_tokens") or len(values)
    return Completion(number, text, finish, (), length, logprob, None)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
