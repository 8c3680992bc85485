"""The engine that asks a server: any that offers OpenAI's completions, after probing what it supports."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, product
from typing import Any, get_args

import openai

from dino_pipeline.decoding.engine import Completion, EngineFacts, Finish, Request, Scored, key_digest
from dino_pipeline.errors import ModelError, OptionError, first_line
from dino_pipeline.options import Sampling
from dino_pipeline.processes import in_threads
from dino_pipeline.stage_records import Dialect, Seeds, ServerAbilities, ServerCost, ServerPrices, ServerUsage

RETRIES = 8
"""Times that the client sends a request again, with growing pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a request is sent again after a senseless answer. The pause doubles each time."""
STOP_FIELDS = ("stop_reason", "matched_stop")
"""Where servers report what stopped a text (vLLM, SGLang)."""
PROBES = 4
"""Texts that show whether a server samples, and whether its seeds hold."""


class Server:
    """Writes texts with a model on a server. It cannot debias: counter-prompts are ignored.

    Args:
        model: name of the model on the server.
        base_url: the server's address, ending in /v1.
        note: takes what the user should know, a message and a remedy, as `Reporter.note`.
        concurrency: requests that run at the same time.
        timeout: seconds after which a request is given up and sent again.
        prices: dollars per million tokens.
        usage: requests and tokens of earlier calls, to which those of this one are added.

    Raises:
        OptionError: the address is malformed.
    """

    marks: tuple[str, ...] = ()
    refill_rows = True

    def __init__(
        self,
        model: str,
        base_url: str,
        note: Callable[[str, str], None],
        *,
        concurrency: int = 16,
        timeout: float = 600.0,
        prices: ServerPrices | None = None,
        usage: ServerUsage | None = None,
    ) -> None:
        self.client = CompletionsClient(model, base_url, timeout, usage or ServerUsage())
        self.base_url, self.note, self.concurrency = base_url, note, concurrency
        self.prices = prices or ServerPrices()
        self.abilities: ServerAbilities | None = None
        self._keeps_top_k = False
        self._noted_refusal = False

    def render(self, prompt: str, opening: str) -> str:
        """Return the prompt as it is."""
        return prompt

    def encode(self, texts: Sequence[str]) -> Sequence[str]:
        """Return the texts as they are."""
        return texts

    def fits(self, prompts: Iterable[str], max_new_tokens: int) -> bool:
        """Return True. A server answers with an error if a prompt is too long."""
        return True

    def facts(self) -> EngineFacts:
        """Return what the server supports, requests and tokens so far, and their cost."""
        usage = self.client.usage
        facts: EngineFacts = {"usage": usage}
        if self.abilities:
            facts["server"] = self.abilities
        if self.prices != ServerPrices():
            spent = usage.prompt_tokens * self.prices.prompt + usage.completion_tokens * self.prices.completion
            facts["cost"] = ServerCost(dollars=round(spent / 1e6, 6), dollars_a_million_tokens=self.prices)
        return facts

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request, several at the same time. Yield each as it ends.

        Raises:
            ModelError: the server does not answer.
            OptionError: the server does not support what the options ask for.
        """
        waiting = iter(requests)
        first = list(islice(waiting, 1))
        if not first:
            return
        abilities = self.abilities = self.abilities or self._probe(first[0].prompts[0], stop)
        if sampling.top_k and not self._keeps_top_k:
            self._check_top_k(abilities.dialect, first[0].prompts[0], stop)

        def write(request: Request) -> ServerAnswer | None:
            seed = seed_of(request.key)
            body = _body(request.prompts[0], sampling, stop, seed, abilities.dialect, abilities.logprobs)
            try:
                return self.client.ask(body, may_refuse=True)
            except RequestRefusedError as error:
                self._note_refusal(error)
                return None

        for number, answer in in_threads(write, chain(first, waiting), self.concurrency):
            yield _completion(number, answer, stop, stop_at_newline)

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, by the log-probabilities of an echo (vLLM, SGLang).

        Raises:
            OptionError: the server returns none.
        """
        scores = in_threads(lambda pair: self._score(pair[0], pair[1] + stop), pairs, self.concurrency)
        return [score for _, score in sorted(scores)]

    def _score(self, prompt: str, text: str) -> Scored:
        body = {"prompt": prompt + text, "max_tokens": 1, "echo": True, "logprobs": 1}
        answer = self.client.ask(body)
        starts, values = answer.token_starts, answer.token_logprobs
        if not starts or len(starts) != len(values) or starts[0] != 0:
            raise OptionError(
                f"{self.base_url}: echoes no log-probabilities, so it scores no texts",
                "give {scorer=MODEL}, a model that runs here",
            )
        length = len(prompt + text)
        of_text: list[float] = []
        for start, end, value in zip(starts, [*starts[1:], length], values, strict=True):
            # a token that holds the end of the prompt and the beginning of the text counts as text
            if end > len(prompt) and start < length and isinstance(value, int | float):
                of_text.append(value)
        return Scored(sum(of_text) / max(len(of_text), 1), len(of_text))

    def _note_refusal(self, error: RequestRefusedError) -> None:
        """Note that the server refuses a prompt, once."""
        with self.client.lock:
            noted, self._noted_refusal = self._noted_refusal, True
        if not noted:
            self.note(f"the server refuses a prompt, whose text is left out ({first_line(error)})", "")

    def _probe(self, prompt: str, stop: str) -> ServerAbilities:
        """Find out by a few short texts what the server supports.

        Raises:
            OptionError: it does not sample.
        """
        dialect, logprobs, reports_stop = self._dialect(prompt, stop)
        wide = Sampling(top_k=0, top_p=0, max_new_tokens=12)
        first = self._trial(prompt, wide, stop, dialect)
        if len({*first}) == 1:
            raise OptionError(
                f"{self.base_url}: {PROBES} texts with different seeds are all the same, so the server does not sample",
                "start it so that it does",
            )
        seeds: Seeds = "do not hold"
        if self._trial(prompt, wide, stop, dialect) == first:
            # some servers share one generator among all requests that run
            alone = self.concurrency == 1 or self._trial(prompt, wide, stop, dialect, PROBES) == first
            seeds = "hold" if alone else "hold one at a time"
        if seeds != "hold":
            remedy = "{concurrency=1} makes them hold" if seeds == "hold one at a time" else ""
            self.note("the server's seeds do not hold, so another run writes other texts", remedy)
        if not reports_stop:
            self.note(
                "the server does not tell the stop string from the model's end of text; both count as finished", ""
            )
        return ServerAbilities(dialect=dialect, seeds=seeds, logprobs=logprobs, tells_ends=reports_stop)

    def _dialect(self, prompt: str, stop: str) -> tuple[Dialect, bool, bool]:
        """Return the first dialect that the server accepts, and whether it reports log-probabilities and stops."""
        sampling = Sampling(top_k=1, top_p=0, max_new_tokens=4)
        for dialect, logprobs in product(get_args(Dialect), (True, False)):
            body = _body(prompt, sampling, stop, 0, dialect, logprobs)
            try:
                answer = self.client.ask(body, may_refuse=dialect != "plain" or logprobs)
            except RequestRefusedError:
                continue
            return dialect, bool(answer.token_logprobs), bool(answer.stopped_by)
        raise AssertionError("the plainest request raises an error if it is refused")

    def _trial(self, prompt: str, sampling: Sampling, stop: str, dialect: Dialect, workers: int = 1) -> list[str]:
        """Return the texts that the server writes with seeds 0, 1, ..., `workers` of them at the same time."""
        bodies = [_body(prompt, sampling, stop, seed, dialect, False) for seed in range(PROBES)]
        answers = sorted(in_threads(self.client.ask, bodies, workers), key=lambda numbered: numbered[0])
        return [answer.text for _, answer in answers]

    def _check_top_k(self, dialect: Dialect, prompt: str, stop: str) -> None:
        """Raise `OptionError` unless the server writes the same text for all seeds with top-k 1."""
        greedy = Sampling(top_k=1, top_p=0, max_new_tokens=8)
        if dialect == "plain" or len({*self._trial(prompt, greedy, stop, dialect)}) > 1:
            raise OptionError(
                f"{self.base_url}: the server does not know top-k, or ignores it",
                "give {top_k=0} (the server knows top-p and temperature)",
            )
        self._keeps_top_k = True


def seed_of(key: tuple[str | int, ...]) -> int:
    """Return the seed for a sample's key. It has 31 bits, which every server accepts."""
    return int.from_bytes(key_digest(key, 4), "little") >> 1


def _body(prompt: str, sampling: Sampling, stop: str, seed: int, dialect: Dialect, logprobs: bool) -> dict[str, Any]:
    """Return a request.

    A newline is not sent as a stop string, because most servers do not report which of several stopped a text.
    """
    drawn: dict[str, Any] = {"temperature": 1.0, "top_p": sampling.top_p if 0 < sampling.top_p < 1 else 1.0}
    body = {"prompt": prompt, "max_tokens": sampling.max_new_tokens, "stop": [stop], "seed": seed, **drawn}
    if dialect == "fields":  # servers have other defaults
        body |= {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
    elif dialect == "generation_config":
        config = {"do_sample": True, **drawn, "top_k": sampling.top_k, "max_new_tokens": sampling.max_new_tokens}
        body["generation_config"] = json.dumps(config)
    if logprobs:
        body["logprobs"] = 1
    return body


def _completion(number: int, answer: ServerAnswer | None, stop: str, stop_at_newline: bool) -> Completion:
    """Return an answer as a result. Some servers leave the stop string in the text."""
    if answer is None:
        return Completion(number, "", "refused", (), 0, None, None)
    text, found_stop, _ = answer.text.partition(stop)
    stopped = found_stop or (answer.ended and all(reported == stop for reported in answer.stopped_by))
    finish: Finish = "stop" if stopped else "length"
    if stop_at_newline and "\n" in text:
        text, finish = text.partition("\n")[0], "newline"
    length = answer.completion_tokens or len(answer.token_logprobs)
    return Completion(number, text, finish, (), length, answer.logprob, None)


class RequestRefusedError(Exception):
    """A server does not accept a request, for example because it does not know a field."""


@dataclass(frozen=True)
class ServerAnswer:
    """A server's answer to one request."""

    text: str
    ended: bool
    """Whether the server says that the text ended by itself: at the stop string, or at the model's end of text."""
    stopped_by: tuple[object, ...]
    """What stopped the text, by each of the `STOP_FIELDS` that the server fills. Empty if it fills none."""
    token_logprobs: Sequence[object]
    """Natural-log probability of each token, None for the first token of an echo. Empty if not reported."""
    token_starts: Sequence[int]
    """Position of each token's first character. Empty if not reported."""
    prompt_tokens: int
    completion_tokens: int
    """0 if not reported."""

    @property
    def logprob(self) -> float | None:
        """Return the mean log-probability per token, None if the server does not report it or it is not finite."""
        values = [value for value in self.token_logprobs if isinstance(value, int | float) and math.isfinite(value)]
        return sum(values) / len(values) if values and len(values) == len(self.token_logprobs) else None


def parse_answer(answer: Mapping[str, object]) -> ServerAnswer | None:
    """Return a JSON answer as a type, None if it is not a completion."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    if not isinstance(choice.get("text"), str):
        return None
    logprobs = choice.get("logprobs") or {}
    usage: Any = answer.get("usage") or {}
    return ServerAnswer(
        text=choice["text"],
        ended=choice.get("finish_reason") == "stop",
        stopped_by=tuple(choice[name] for name in STOP_FIELDS if name in choice),
        token_logprobs=logprobs.get("token_logprobs") or (),
        token_starts=logprobs.get("text_offset") or (),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
    )


class CompletionsClient:
    """Sends requests to a server until it answers, and counts them.

    The key is taken from the environment variable ``OPENAI_API_KEY``, if the server needs one. It is stored nowhere.
    Arguments and errors are those of `Server`.
    """

    def __init__(self, model: str, base_url: str, timeout: float, usage: ServerUsage) -> None:
        self.model, self.base_url, self.usage = model, base_url, usage
        key = os.environ.get("OPENAI_API_KEY") or "none"
        try:
            self.client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=RETRIES, timeout=timeout)
        except Exception as error:  # whatever the HTTP library below raises for addresses
            raise OptionError(f"is not an address ({first_line(error)})", option="base_url", value=base_url) from error
        self.lock = threading.Lock()

    def ask(self, body: Mapping[str, object], *, may_refuse: bool = False) -> ServerAnswer:
        """Return the answer to a request. Send it again if the answer is cut or malformed.

        Raises:
            ModelError: the server does not answer.
            RequestRefusedError: the server does not accept the request, and ``may_refuse``.
        """
        pause = FIRST_PAUSE
        answer = self._send(body, may_refuse)
        for _ in range(RETRIES):
            if answer is not None:
                break
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            answer = self._send(body, may_refuse)
        if answer is None:
            raise ModelError(f"{self.base_url}: its answers are not completions", "give the server's /v1 address")
        with self.lock:
            self.usage = ServerUsage(
                requests=self.usage.requests + 1,
                prompt_tokens=self.usage.prompt_tokens + answer.prompt_tokens,
                completion_tokens=self.usage.completion_tokens + answer.completion_tokens,
            )
        return answer

    def _send(self, body: Mapping[str, object], may_refuse: bool) -> ServerAnswer | None:
        """Return an answer, None if it is cut or malformed. Name the client's errors, each with a remedy."""
        where = self.base_url
        try:
            answer = self.client.completions.create(model=self.model, prompt=str(body["prompt"]), extra_body=body)
            return parse_answer(answer.model_dump()) if isinstance(answer, openai.BaseModel) else None
        except (openai.APIResponseValidationError, ValueError):
            return None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if may_refuse:
                raise RequestRefusedError(first_line(error)) from error
            raise ModelError(f"{where}: refuses the request ({first_line(error)})") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ModelError(
                f"{where}: does not let you in ({first_line(error)})", "set the environment variable OPENAI_API_KEY"
            ) from error
        except openai.NotFoundError as error:
            raise ModelError(
                f"{where}: knows no model {self.model}, or no completions ({first_line(error)})", "see its /v1/models"
            ) from error
        except openai.OpenAIError as error:
            raise ModelError(
                f"{where}: no answer, after {RETRIES} further attempts ({first_line(error)})",
                "finished shards are kept; run the same again to continue",
            ) from error
