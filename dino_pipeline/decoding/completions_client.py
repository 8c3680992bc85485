"""The client of a server that offers OpenAI's completions: retries, named errors, and counts of what was used."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import openai

from dino_pipeline.errors import ModelError, OptionError, first_line
from dino_pipeline.stage_records import ServerUsage

RETRIES = 8
"""Times that the client sends a request again, with growing pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a request is sent again after a senseless answer. The pause doubles each time."""
STOP_FIELDS = ("stop_reason", "matched_stop")
"""Where servers report what stopped a text (vLLM, SGLang)."""
T = TypeVar("T")
R = TypeVar("R")


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

    Args:
        model: name of the model on the server.
        base_url: the server's address, ending in /v1.
        timeout: seconds after which a request is given up and sent again.
        usage: counts so far.

    Raises:
        OptionError: the address is malformed.
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
            raise ModelError(f"{self.base_url}: its answers are no completions", "give the server's /v1 address")
        with self.lock:
            self.usage = ServerUsage(
                requests=self.usage.requests + 1,
                prompt_tokens=self.usage.prompt_tokens + answer.prompt_tokens,
                completion_tokens=self.usage.completion_tokens + answer.completion_tokens,
            )
        return answer

    def _send(self, body: Mapping[str, object], may_refuse: bool) -> ServerAnswer | None:
        """Return an answer, None if it is cut or malformed."""
        with self._named_errors(may_refuse):
            try:
                answer = self.client.completions.create(model=self.model, prompt=str(body["prompt"]), extra_body=body)
                return parse_answer(answer.model_dump()) if isinstance(answer, openai.BaseModel) else None
            except (openai.APIResponseValidationError, ValueError):
                return None

    @contextmanager
    def _named_errors(self, may_refuse: bool) -> Iterator[None]:
        """Turn the client's errors into messages with a remedy."""
        where = self.base_url
        try:
            yield
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


def in_threads(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[int, R]]:
    """Work on items in threads. Yield the number of each item with its result, as results come.

    The threads are daemons, which those of `concurrent.futures` are not: after Ctrl-C, the process does not wait until
    a server answers.
    """
    tasks: SimpleQueue[tuple[int, T] | None] = SimpleQueue()
    results: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        while (task := tasks.get()) is not None:
            number, item = task
            try:
                results.put((number, work(item), None))
            except BaseException as error:  # raised again by `next_result`
                results.put((number, None, error))

    def next_result() -> tuple[int, R]:
        number, result, error = results.get()
        if error is not None:
            raise error
        return number, result

    for _ in range(workers):
        threading.Thread(target=run, daemon=True).start()
    running = 0
    try:
        for number, item in enumerate(items):
            tasks.put((number, item))
            running += 1
            if running == workers:
                yield next_result()
                running -= 1
        for _ in range(running):
            yield next_result()
    finally:
        for _ in range(workers):
            tasks.put(None)
