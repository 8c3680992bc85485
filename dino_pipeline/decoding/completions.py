"""Requests for completions to a server, one at a time or several that need one another, until it answers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import openai

from dino_pipeline.errors import ModelError, OptionError, first_line
from dino_pipeline.options import Sampling
from dino_pipeline.stage_records import Dialect, ServerUsage

RETRIES = 8
"""Times that the client sends a request again, with growing pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a request is sent again after a senseless answer. The pause doubles each time."""
STOP_FIELDS = ("stop_reason", "matched_stop")
"""Where servers report what stopped a text (vLLM, SGLang)."""
PASSING = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
"""Errors of the client below after which a request may be answered."""


class RequestRefusedError(Exception):
    """A server does not accept a request, for example because it does not know a field."""


class _SenselessError(Exception):
    """A request is to be sent again; if that does not help, ``named`` is what to raise."""

    def __init__(self, named: Exception) -> None:
        super().__init__(named)
        self.named = named


@dataclass(frozen=True)
class ServerAnswer:
    """A server's answer to one prompt."""

    text: str
    ended: bool
    """Whether the server says that the text ended by itself: at the stop string, or at the model's end of text."""
    stopped_by: tuple[object, ...]
    """What stopped the text, by each of the `STOP_FIELDS` that the server fills. Empty if it fills none."""
    tokens: tuple[int, ...]
    """Ids of the text's tokens, with those that ended it. Empty if not reported (vLLM does)."""
    prompt_tokens: tuple[int, ...]
    """Ids of the prompt's tokens. Empty if not reported."""
    token_logprobs: Sequence[object]
    """Natural-log probability of each token, None for the first token of an echo. Empty if not reported."""
    token_starts: Sequence[int]
    """Position of each token's first character. Empty if not reported."""
    length: int
    """Tokens of all texts of the request, 0 if not reported."""

    @property
    def ended_document(self) -> bool:
        """Whether the model's end of text ended it, on a server that tells that from a stop string."""
        return self.ended and not any(isinstance(reason, str) for reason in self.stopped_by)

    @property
    def log_probs(self) -> list[float]:
        """Return each token's log-probability, nothing if one is missing."""
        values = [value for value in self.token_logprobs if isinstance(value, int | float) and math.isfinite(value)]
        return values if len(values) == len(self.token_logprobs) else []

    @property
    def logprob(self) -> float | None:
        """Return the mean log-probability per token, None if the server does not report it or it is not finite."""
        values = self.log_probs
        return sum(values) / len(values) if values else None


def parse_answers(answer: Mapping[str, object]) -> tuple[list[ServerAnswer], ServerUsage] | None:
    """Return a JSON answer as one for each prompt, and what it used; None if it is not a completion."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
        return None
    usage: Any = answer.get("usage") or {}
    used = ServerUsage(
        requests=1,
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
    )
    choices = sorted(choices, key=lambda choice: choice.get("index") or 0)
    return [_parsed(choice, used.completion_tokens) for choice in choices], used


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("text"), str)


def _parsed(choice: Mapping[str, Any], length: int) -> ServerAnswer:
    logprobs = choice.get("logprobs") or {}
    return ServerAnswer(
        text=choice["text"],
        ended=choice.get("finish_reason") == "stop",
        stopped_by=tuple(choice[name] for name in STOP_FIELDS if name in choice),
        tokens=tuple(choice.get("token_ids") or ()),
        prompt_tokens=tuple(choice.get("prompt_token_ids") or ()),
        token_logprobs=logprobs.get("token_logprobs") or (),
        token_starts=logprobs.get("text_offset") or (),
        length=length,
    )


def request_body(
    prompt: object, sampling: Sampling, stop: Sequence[str], seed: int, dialect: Dialect, **more: object
) -> dict[str, object]:
    """Return a request for texts as the options say.

    Args:
        prompt: a string, or the ids of tokens; or several of either.
        sampling: top-k, top-p and the longest length.
        stop: strings that end a text.
        seed: of the server's random numbers.
        dialect: how the server takes top-k.
        more: further fields.
    """
    drawn: dict[str, object] = {"temperature": 1.0, "top_p": sampling.top_p if 0 < sampling.top_p < 1 else 1.0}
    body = {"prompt": prompt, "max_tokens": sampling.max_new_tokens, "stop": list(stop), "seed": seed, **drawn, **more}
    if dialect == "fields":  # servers have other defaults
        body |= {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
    elif dialect == "generation_config":
        config = {"do_sample": True, **drawn, "top_k": sampling.top_k, "max_new_tokens": sampling.max_new_tokens}
        body["generation_config"] = json.dumps(config)
    return body


class CompletionsClient:
    """Sends requests to a server until it answers, and counts them.

    The key is taken from the environment variable ``OPENAI_API_KEY``, if the server needs one. It is stored nowhere.

    Args:
        model: name of the model on the server.
        base_url: the server's address, ending in /v1.
        timeout: seconds after which a request is given up and sent again.
        usage: requests and tokens of earlier calls, to which those of this one are added.

    Raises:
        OptionError: the address is malformed.
    """

    def __init__(self, model: str, base_url: str, timeout: float, usage: ServerUsage) -> None:
        self.model, self.base_url, self.usage = model, base_url, usage
        self._settings: dict[str, Any] = {"base_url": base_url, "timeout": timeout}
        self._settings["api_key"] = os.environ.get("OPENAI_API_KEY") or "none"
        try:
            self.client = openai.OpenAI(max_retries=RETRIES, **self._settings)
        except Exception as error:  # whatever the HTTP library below raises for addresses
            raise OptionError(f"is not an address ({first_line(error)})", option="base_url", value=base_url) from error
        self.lock = threading.Lock()

    def ask(self, body: Mapping[str, object], *, may_refuse: bool = False) -> ServerAnswer:
        """Return the answer to a request of one prompt, see `ask_prompts`."""
        return self.ask_prompts(body, may_refuse=may_refuse)[0]

    def ask_prompts(self, body: Mapping[str, object], *, may_refuse: bool = False) -> list[ServerAnswer]:
        """Return the answers to a request, one for each of its prompts. Send it again if they are cut or malformed.

        Raises:
            ModelError: the server does not answer.
            RequestRefusedError: the server does not accept the request, and ``may_refuse``.
        """
        try:
            return self._until_sense(lambda: self._send(body))
        except RequestRefusedError as error:
            if may_refuse:
                raise
            raise ModelError(f"{self.base_url}: refuses the request ({error})") from error

    def ask_group(self, make: Callable[[], Sequence[Mapping[str, object]]]) -> list[ServerAnswer]:
        """Return the answers to requests of one prompt each, which the server may have wait for one another.

        All are sent at the same time, each on a connection of its own. If one fails, the others are given up, and the
        whole group is made and sent again, because a request that waits must not be left alone.

        Args:
            make: makes the requests, each time under another name.

        Raises:
            ModelError: the server does not answer.
            RequestRefusedError: the server does not accept a request.
        """
        with self.lock:
            loop = _event_loop()
        return self._until_sense(lambda: asyncio.run_coroutine_threadsafe(self._send_together(make()), loop).result())

    def _until_sense(self, send: Callable[[], list[ServerAnswer]]) -> list[ServerAnswer]:
        """Return what ``send`` returns. Call it again as long as it raises `_SenselessError`."""
        pause = FIRST_PAUSE
        for _ in range(RETRIES):
            with suppress(_SenselessError):
                return send()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            return send()
        except _SenselessError as error:
            raise error.named from error

    def _send(self, body: Mapping[str, object]) -> list[ServerAnswer]:
        """Return the answers to a request. The client below sends it again where the server is busy or away."""
        try:
            answer = self.client.completions.create(model=self.model, prompt="", extra_body=body)
        except (openai.OpenAIError, ValueError) as error:
            raise self._named(error) from error
        return self._counted(answer)

    async def _send_together(self, bodies: Sequence[Mapping[str, object]]) -> list[ServerAnswer]:
        """Return the answers to requests that run at the same time. If one fails, give the others up."""
        create = self._group_client.completions.create
        calls = [asyncio.ensure_future(create(model=self.model, prompt="", extra_body=body)) for body in bodies]
        try:
            answers = await asyncio.gather(*calls)
        except (openai.OpenAIError, ValueError) as error:
            named = self._named(error)
            raise (_SenselessError(named) if isinstance(error, PASSING) else named) from error
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return [self._counted(answer)[0] for answer in answers]

    @cached_property
    def _group_client(self) -> openai.AsyncOpenAI:
        """The client of the event loop, which never has a request wait for a connection."""
        no_limits = type(openai.DEFAULT_CONNECTION_LIMITS)()
        transport = openai.DefaultAsyncHttpxClient(limits=no_limits)
        return openai.AsyncOpenAI(max_retries=0, http_client=transport, **self._settings)

    def _counted(self, answer: object) -> list[ServerAnswer]:
        """Return the client's answer as ours, and count it."""
        parsed = parse_answers(answer.model_dump()) if isinstance(answer, openai.BaseModel) else None
        if parsed is None:
            raise _SenselessError(self._not_completions())
        answers, used = parsed
        with self.lock:
            self.usage = self.usage.plus(used)
        return answers

    def _not_completions(self) -> ModelError:
        return ModelError(f"{self.base_url}: its answers are not completions", "give the server's /v1 address")

    def _named(self, error: Exception) -> Exception:
        """Return an error of the client below as one of ours, with a remedy."""
        where = self.base_url
        if isinstance(error, openai.APIResponseValidationError) or not isinstance(error, openai.OpenAIError):
            return _SenselessError(self._not_completions())  # it is cut or malformed
        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return RequestRefusedError(first_line(error))
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return ModelError(
                f"{where}: does not let you in ({first_line(error)})", "set the environment variable OPENAI_API_KEY"
            )
        if isinstance(error, openai.NotFoundError):
            return ModelError(
                f"{where}: knows no model {self.model}, or no completions ({first_line(error)})", "see its /v1/models"
            )
        return ModelError(
            f"{where}: no answer, after {RETRIES} further attempts ({first_line(error)})",
            "finished shards are kept; run the same again to continue",
        )


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop that runs in a thread of its own, which the process does not wait for."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
