"""Requests for completions to a server, one at a time or several that need one another, until it answers."""

from __future__ import annotations

import asyncio
import atexit
import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from dino_pipeline.decoding.answers import SenselessAnswerError, ServerAnswer, parse_answers
from dino_pipeline.errors import ModelError, OptionError, first_line, short
from dino_pipeline.options import Sampling
from dino_pipeline.stage_records import Dialect, ServerUsage

TRIES = 9
"""Times that a request is sent at most, with growing pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a request is sent again. The pause doubles each time."""
LONGEST_RETRY_AFTER = 60.0
"""Most seconds that a server may ask to wait before a request is sent again."""
MOST_TIME = 2
"""A request is not sent again after this many times the timeout."""
NOTED_TRY = 3
"""Failed tries of a request after which that is noted, if others were answered."""
CLOSING = 2.0
"""Seconds for which the process waits at its end until connections are closed."""
SHORTEST_SECRET = 6
"""Characters from which on a user's name and values in an address count as secrets, too."""
MOST_BYTES = 2**26
"""Longest answer, in bytes."""
FORBIDDEN = {HTTPStatus.FORBIDDEN, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS}
"""Answers of a server, or of what is in front of it, that can concern one prompt, if others were answered."""
REFUSED = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
"""Answers to a request that the server will not take in any try."""
PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS}
"""Answers, besides errors of the server, after which another try may help."""


class RequestRefusedError(Exception):
    """A server does not accept a request, for example because it does not know a field."""


class NoAnswerError(Exception):
    """A server gave no sensible answer to a request, in all tries; ``named`` is the error for the whole run."""

    def __init__(self, named: ModelError) -> None:
        super().__init__(named)
        self.named = named


class _PassingError(Exception):
    """A request got no sensible answer and may get one in another try, at the earliest in ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


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


def public_address(address: str) -> str:
    """Return a server's address without a user's name, a password and a query, as records and messages show it."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return re.sub(r"//[^/@]*@", "//", address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class CompletionsClient:
    """Sends requests to a server until it answers, and counts them.

    The key is taken from the environment variable ``OPENAI_API_KEY``, if the server needs one. It is stored nowhere,
    nor is a password in the address, and messages of the server that repeat them are shown without.

    Args:
        model: name of the model on the server.
        base_url: the server's address, ending in /v1.
        timeout: seconds after which a request is given up and sent again, however many bytes have come.
        usage: requests and tokens of earlier calls, to which those of this one are added.
        note: takes what the user should know, a message and a remedy, as `Reporter.note`.

    Raises:
        OptionError: the address is malformed.
    """

    def __init__(
        self, model: str, base_url: str, timeout: float, usage: ServerUsage, note: Callable[[str, str], object]
    ) -> None:
        self.model, self.usage, self.timeout, self.note = model, usage, timeout, note
        self.base_url = public_address(base_url)
        self.lock = threading.Lock()
        self._is_heard = self._has_noted = False
        self._closed = threading.Event()
        try:
            parts = urlsplit(base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError("it must begin with http:// or https:// and a host's name")
        except ValueError as error:
            problem = f"is not an address ({first_line(error)})"
            raise OptionError(problem, option="base_url", value=self.base_url) from error
        self._address = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        self._proxy = None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme)
        key = self._checked_key()
        user, password = unquote(parts.username or ""), parts.password or ""
        basic = base64.b64encode(f"{user}:{unquote(password)}".encode()).decode()
        has_login = parts.username is not None
        authorization = f"Basic {basic}" if has_login else f"Bearer {key or 'none'}"
        self._headers = {"Accept-Encoding": "identity", "Authorization": authorization}
        secrets = [key, password, unquote(password), basic if has_login else ""]
        may_be_secret = [user, *(value for _, value in parse_qsl(parts.query))]
        secrets += [value for value in may_be_secret if len(value) >= SHORTEST_SECRET]
        self._secrets = [secret for secret in secrets if secret]

    @staticmethod
    def _checked_key() -> str | None:
        """Return the key of the environment, None if there is none.

        Raises:
            OptionError: no request can hold it.
        """
        key = (os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise OptionError("the environment variable OPENAI_API_KEY holds more than a key", "set it again")
        return key or None

    def close(self) -> None:
        """Send nothing any more."""
        self._closed.set()

    def _url(self, name: str) -> str:
        """Return the address of one of the server's services."""
        return urlunsplit(self._address._replace(path=f"{self._address.path.rstrip('/')}/{name}"))

    def ask(self, body: Mapping[str, object], *, may_refuse: bool = False, tries: int | None = None) -> ServerAnswer:
        """Return the answer to a request of one prompt, see `ask_prompts`."""
        return self.ask_prompts(body, may_refuse=may_refuse, tries=tries)[0]

    def ask_prompts(
        self, body: Mapping[str, object], *, may_refuse: bool = False, tries: int | None = None
    ) -> list[ServerAnswer]:
        """Return the answers to a request, one for each of its prompts.

        Args:
            body: the request.
            may_refuse: whether the caller takes a refusal for an answer.
            tries: times that it is sent at most, by default `TRIES`.

        Raises:
            NoAnswerError: the server does not answer.
            ModelError: it lets nobody in, knows no such model, or refuses the request although it must not.
            RequestRefusedError: the server does not accept the request, and ``may_refuse``.
        """
        try:
            return self._until_answered(lambda: [body], tries)[0]
        except RequestRefusedError as error:
            if may_refuse:
                raise
            raise ModelError(f"{self.base_url}: refuses the request ({error})") from error

    def ask_group(
        self, make: Callable[[], Sequence[Mapping[str, object]]], tries: int | None = None
    ) -> list[ServerAnswer]:
        """Return the answers to requests of one prompt each, which the server may have wait for one another.

        All are sent at the same time, each on a connection of its own. If one fails, the others are given up, and the
        whole group is made and sent again, because a request that waits must not be left alone.

        Args:
            make: makes the requests, each time under another name.
            tries: times that they are sent at most, by default `TRIES`.

        Raises:
            NoAnswerError, ModelError, RequestRefusedError: as `ask_prompts`.
        """
        return [answers[0] for answers in self._until_answered(make, tries)]

    def _until_answered(
        self, make: Callable[[], Sequence[Mapping[str, object]]], tries: int | None
    ) -> list[list[ServerAnswer]]:
        """Return the answers to requests that are sent together. Make and send them again as long as that may help."""
        loop = _event_loop()
        tries = tries or TRIES
        started, pause = time.monotonic(), FIRST_PAUSE
        for number in range(1, tries + 1):
            if self._closed.is_set():
                raise NoAnswerError(ModelError(f"{self.base_url}: is not asked any more"))
            try:
                return asyncio.run_coroutine_threadsafe(self._send_together(make()), loop).result()
            except _PassingError as error:
                if number == tries or time.monotonic() - started > MOST_TIME * self.timeout:
                    tried = "" if number == 1 else f" in {number} attempts"
                    raise NoAnswerError(
                        ModelError(
                            f"{self.base_url}: no answer{tried} ({error})",
                            "the texts received so far are kept; run the same again to continue",
                        )
                    ) from error
                if number >= NOTED_TRY or not self._is_heard:
                    self._note_silence(error)
                self._closed.wait(max(pause, error.wait))
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("the last try returns or raises")

    def _note_silence(self, error: _PassingError) -> None:
        """Note once that the server does not answer a request."""
        with self.lock:
            is_new, self._has_noted = not self._has_noted, True
        if is_new:
            self.note(f"{self.base_url}: no answer yet, trying again ({error})", "")

    async def _send_together(self, bodies: Sequence[Mapping[str, object]]) -> list[list[ServerAnswer]]:
        """Return the answers to requests that run at the same time. If one fails, give the others up."""
        calls = [asyncio.ensure_future(self._send(body)) for body in bodies]
        try:
            return list(await asyncio.gather(*calls))
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _send(self, body: Mapping[str, object]) -> list[ServerAnswer]:
        """Return the answers to a request, one for each of its prompts."""
        try:
            content = await self._post({"model": self.model, **body})
            answers, used = parse_answers(content, body)
        except TimeoutError as error:
            raise _PassingError(f"none within {self.timeout:g} seconds") from error
        except (SenselessAnswerError, aiohttp.ClientError, OSError) as error:
            raise _PassingError(self._without_secrets(first_line(error))) from error
        with self.lock:
            self.usage, self._is_heard = self.usage.plus(used), True
        return answers

    async def _post(self, body: Mapping[str, object]) -> bytes:
        """Return the content of the answer to a request.

        Raises:
            _PassingError: the server is busy, has failed, or answers without end.
            RequestRefusedError: it does not accept the request.
            ModelError: it accepts no request.
        """
        sent = self._session_arguments(self.timeout)
        async with _session().post(self._url("completions"), json=body, **sent) as response:
            if response.method != "POST":  # after a redirect that drops what was asked
                target = public_address(str(response.url)).removesuffix("/completions")
                raise ModelError(f"{self.base_url}: redirects to {target}", "give that address")
            content = await _read(response)
            if response.ok:
                return content
            said = self._without_secrets(f"{response.status} {response.reason}: {_message(content)}")
            passes = response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status in PASSING
            if passes or (response.status == HTTPStatus.NOT_FOUND and self._is_heard):  # a proxy, for a while
                raise _PassingError(said, _retry_after(response.headers))
            known = await self._known_models() if response.status == HTTPStatus.NOT_FOUND else ""
            raise self._refusal(response.status, said, known)

    async def _known_models(self) -> str:
        """Return the names of some models that the server has, empty if it does not tell."""
        try:
            async with _session().get(self._url("models"), **self._session_arguments(10.0)) as response:
                found = json.loads(await _read(response))
            return ", ".join(short(model["id"]) for model in found["data"][:5])
        except Exception:  # whatever a stranger answers
            return ""

    def _session_arguments(self, seconds: float) -> dict[str, Any]:
        """Return what the client below needs for any request, which may take some seconds in all."""
        return {"headers": self._headers, "proxy": self._proxy, "timeout": aiohttp.ClientTimeout(total=seconds)}

    def _refusal(self, status: int, said: str, known: str) -> ModelError | RequestRefusedError:
        """Return the error for an answer that no other try will change."""
        if status in REFUSED or (status in FORBIDDEN and self._is_heard):
            return RequestRefusedError(said)
        if status == HTTPStatus.UNAUTHORIZED or status in FORBIDDEN:
            return ModelError(
                f"{self.base_url}: does not let you in ({said})", "set the environment variable OPENAI_API_KEY"
            )
        if status == HTTPStatus.NOT_FOUND:
            return ModelError(
                f"{self.base_url}: knows no model {self.model}, or no completions ({said})",
                f"it has {known}" if known else "see its /v1/models",
            )
        return ModelError(f"{self.base_url}: takes no requests ({said})", "see what it says, and run the same again")

    def _without_secrets(self, text: str) -> str:
        """Return what a server or a library says without the key and the password, cut to a few lines' length."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"//[^/\s@]*@", "//", text)
        return text if len(text) <= 300 else f"{text[:297]}..."


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return an answer's content.

    Raises:
        _PassingError: it is longer than `MOST_BYTES`.
    """
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > MOST_BYTES:
            raise _PassingError(f"an answer has more than {MOST_BYTES:,} bytes")
    return bytes(content)


def _message(content: bytes) -> str:
    """Return what an error's content says, in whatever form."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return content[:1000].decode(errors="replace").strip()
    for name in ("error", "detail", "message"):
        while isinstance(answer, dict) and name in answer:
            answer = answer[name]
    return answer if isinstance(answer, str) else short(answer)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait, 0 if it does not."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name, "")
        try:
            seconds = float(value) / unit
        except ValueError:
            try:  # a date
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if 0 <= seconds < float("inf"):
            return min(seconds, LONGEST_RETRY_AFTER)
    return 0.0


_starting = threading.Lock()
"""Held while the event loop is made, of which there is one."""


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop that runs in a thread of its own, which the process does not wait for."""
    with _starting:
        return _the_event_loop()


@cache
def _the_event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


@cache
def _session() -> aiohttp.ClientSession:
    """Return the HTTP client of the event loop, in which it must be called. It is closed when the process ends.

    No request waits for a connection. Answers are not unpacked, as a few bytes can be packed from many.
    """
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
    loop = asyncio.get_running_loop()
    atexit.register(lambda: asyncio.run_coroutine_threadsafe(session.close(), loop).result(CLOSING))
    return session
