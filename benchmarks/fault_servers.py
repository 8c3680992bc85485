"""A server on this machine that answers completions, and the ways in which it fails."""

from __future__ import annotations

import gzip
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.fault_trials import Fault, Trial
from tests.serving import completion_of, raw_server

Respond = Callable[[Any, dict[str, Any]], None]


def answered(handler: Any, body: dict[str, Any]) -> None:
    """Answer as a server should."""
    handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))


@contextmanager
def serve(trial: Trial) -> Iterator[str]:
    """Run the server of a trial, which fails as long as its fault lasts."""
    with raw_server(lambda handler, body: (trial.respond or answered)(handler, body)) as address:
        yield address


def says(status: int, content: bytes, **headers: str) -> Respond:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, body: handler.answer(status, content, named)


def cut(handler: Any, body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


def cut_within(handler: Any, body: dict[str, Any]) -> None:
    """Announce more than comes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(completion_of("text")[:20])
    handler.wfile.flush()
    cut(handler, body)


def short_length(handler: Any, body: dict[str, Any]) -> None:
    """Announce less than comes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "10")
    handler.end_headers()
    handler.wfile.write(completion_of("text"))


def endless(handler: Any, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 2**16)


def drips(handler: Any, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def redirects(handler: Any, body: dict[str, Any]) -> None:
    handler.answer(307, b"", {"Location": handler.path})


def after(number: int, fault: Respond, ends: int = 10**9) -> Callable[[], Respond]:
    """Return what makes a fault that hits requests from a number on, up to another."""

    def make() -> Respond:
        numbers = itertools.count()
        return lambda handler, body: (fault if number <= next(numbers) < ends else answered)(handler, body)

    return make


BOMB = gzip.compress(b" " * 2**28, compresslevel=1)
WAYS: dict[str, Callable[[], Respond]] = {
    "dies after 8 requests": after(8, cut),
    "dies within an answer": after(0, cut_within),
    "too short a length": after(0, short_length),
    "an endless answer": after(0, endless),
    "256 MB packed in 1 MB": after(0, says(200, BOMB, Content_Encoding="gzip")),
    "redirects in a circle": after(0, redirects),
    "a list": after(0, says(200, b"[]")),
    "deep JSON": after(0, says(200, b"[" * 100_000)),
    "500 for ever": after(0, says(500, b'{"error": {"message": "boom"}}')),
    "429, Retry-After: 100000": after(0, says(429, b"{}", Retry_After="100000")),
    "Retry-After that is no number": after(0, says(429, b"{}", Retry_After="\u00b2, or so")),
    "a slow drip": after(0, drips),
    "401": after(0, says(401, b"no")),
}
PASSING = {
    "500 three times": after(4, says(500, b"{}"), 7),
    "cut off three times": after(4, cut, 7),
}


def begins(make: Callable[[], Respond]) -> Callable[[Trial], None]:
    def begin(trial: Trial) -> None:
        trial.respond = make()

    return begin


SERVER_FAULTS = (
    *(Fault(f"server: {name}", ("served",), before=begins(make), says="127.0.0.1") for name, make in WAYS.items()),
    *(Fault(f"server: {name}", ("served",), before=begins(make), ends=(0,)) for name, make in PASSING.items()),
    Fault("100 requests at once", ("served",), words=("--concurrency", "100"), ends=(0,)),
)
