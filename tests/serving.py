"""Servers on this machine that speak OpenAI's completions: a real one, one with faults in front, and one made up."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """Run a real server for a model; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", f"{model}", "--host", "127.0.0.1"]
    serve += ["--port", f"{port}", "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(serve, env=environment, stdout=quiet, stderr=quiet)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gave up is no news
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


FAULTS = ("429", "500", "cut before", "cut within", "slow", "half an answer", "no completion")


@dataclass
class Faults:
    """Faults that hit some requests, one after another."""

    every: int = 0
    """Every n-th request is hit. 0: none."""
    slow: float = 3.0
    requests: int = 0
    hit: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str | None:
        with self.lock:
            self.requests += 1
            if not self.every or self.requests % self.every:
                return None
            self.hit.append(FAULTS[len(self.hit) % len(FAULTS)])
            return self.hit[-1]


@contextmanager
def faulty(address: str, faults: Faults) -> Iterator[str]:
    """Put a server in front of another that loses, cuts and delays answers."""

    class Handler(_Handler):
        def do_POST(self) -> None:
            body, fault = self.body(), faults.next()
            if fault in {"429", "500"}:
                self.answer(int(fault), b'{"error": {"message": "no"}}', {"retry-after-ms": "20"})
                return
            if fault == "cut before":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault == "slow":
                time.sleep(faults.slow)
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(address + self.path.removeprefix("/v1"), body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    content, status = response.read(), response.status
            except urllib.error.HTTPError as error:
                content, status = error.read(), error.code
            if fault == "half an answer":
                content = content[: len(content) // 2]
            if fault == "no completion":
                content = b'{"choices": []}'
            if fault == "cut within":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:20])
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.answer(status, content)

    with _serving(Handler) as own_address:
        yield own_address


@dataclass
class MadeUp:
    """A server that makes texts up, and what it can do."""

    text: Callable[[int, dict[str, Any]], str] = lambda seed, body: f"text {seed % 1000}"
    top_k: bool = True
    samples: bool = True
    seeds: bool = True
    refuses: tuple[str, ...] = ()
    logprobs: bool = False
    keeps_stop: bool = False
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        if self.status != 200:
            return self.status, {"error": {"message": "no"}}
        if bad := [name for name in self.refuses if name in body]:
            return 400, {"error": {"message": f"unknown field {bad[0]}"}}
        if body.get("echo"):
            return 200, self.echo(body)
        seed = body["seed"] if self.seeds else len(self.bodies)
        greedy = not self.samples or (self.top_k and body.get("top_k") == 1)
        text = self.text(7 if greedy else seed, body)
        choice: dict[str, Any] = {"text": text + (body["stop"][0] if self.keeps_stop else ""), "finish_reason": "stop"}
        if self.logprobs and "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.5, -1.5]}
        return 200, {"choices": [{"index": 0, **choice}], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}

    def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tokens are pairs of characters; the likelier, the smaller the hash of prompt and place."""
        text = body["prompt"] + "x"
        offsets = list(range(0, len(text), 2))
        values = [None, *(-self.surprise(text[: start + 2]) for start in offsets[1:])]
        logprobs = {"text_offset": offsets, "token_logprobs": values, "tokens": [text[at : at + 2] for at in offsets]}
        return {"choices": [{"index": 0, "text": text, "finish_reason": "length", "logprobs": logprobs}], "usage": {}}

    @staticmethod
    def surprise(text: str) -> float:
        return hashlib.sha256(text.encode()).digest()[0] / 50


@contextmanager
def made_up(server: MadeUp) -> Iterator[str]:
    """Run a server that makes texts up."""

    class Handler(_Handler):
        def do_POST(self) -> None:
            server.keys.append(self.headers.get("Authorization", ""))
            status, answer = server.completion(json.loads(self.body()))
            self.answer(status, json.dumps(answer).encode())

    with _serving(Handler) as own_address:
        yield own_address
