"""A real vLLM server with the plug-in, where vLLM is installed."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM")

from dino_pipeline import pocket
from dino_pipeline.decoding.engine import Request, Task, task_key, task_prompts
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.decoding.server import Server
from dino_pipeline.decoding.server_debias import group_bodies
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.spec_file import load_spec
from tests.serving import vllm_serve
from tests.test_server import INPUTS
from tests.test_spec import SPECS

pytestmark = pytest.mark.slow

PLUGIN = "dino_pipeline.decoding.vllm_plugin"
MODEL = str(pocket.GENERATOR)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    options = ("--logits-processors", f"{PLUGIN}:SelfDebias", "--scheduler-cls", f"{PLUGIN}.GroupScheduler")
    with vllm_serve(Path(MODEL), *options) as found:
        yield found


def texts_of(engine: Any, sampling: Sampling, samples: int = 4) -> list[tuple[Any, ...]]:
    """Texts of sts-x2, with log-probabilities and margins."""
    spec = load_spec(SPECS / "sts-x2.json")
    tasks = [Task(at, INPUTS[at], label, n) for at in range(4) for label in spec.labels for n in range(samples)]
    requests = []
    for task in tasks:
        prompts = engine.encode(task_prompts(spec, 0, task, engine.render))
        requests.append(Request(tuple(prompts), task_key(spec, 0, task)))
    found = sorted(engine.sample(requests, sampling), key=lambda each: each.number)
    return [(each.text, each.finish, each.length, each.tokens, each.logprob, each.margin) for each in found]


def test_texts_are_those_of_the_decoder(address: str) -> None:
    engine = Server(MODEL, address, print, concurrency=16)
    assert engine.has_plugin()
    engine.debias = "plugin"
    served = texts_of(engine, Sampling())
    here = texts_of(load_decoder(ModelRef(name="pocket"), device="cpu", rows=64), Sampling())
    assert engine.debiasing.torn == 0
    assert [each[:4] for each in served] == [each[:4] for each in here]
    for place in (4, 5):
        measured, expected = (np.array([each[place] for each in of], dtype=float) for of in (served, here))
        assert np.allclose(measured, expected, atol=1e-4, equal_nan=True)


def test_rejection(address: str) -> None:
    engine = Server(MODEL, address, lambda *note: None)
    engine.debias = "rejection"
    sampling = Sampling(top_k=0, top_p=0, decay=10.0)
    served = texts_of(engine, sampling, samples=1)
    assert 8 < engine.debiasing.rounds < 80
    decoder = load_decoder(ModelRef(name="pocket"), device="cpu", rows=64)
    spec = load_spec(SPECS / "sts-x2.json")
    for at, label in enumerate(spec.labels):
        text, finish, *_, logprob, margin = served[at]
        own, *counters = task_prompts(spec, 0, Task(0, INPUTS[0], label, 0), decoder.render)
        scores = [each.logprob for each in decoder.score([(prompt, text) for prompt in (own, *counters)])]
        assert finish == "stop" and logprob == pytest.approx(scores[0], abs=0.05)
        assert margin is None or margin == pytest.approx(scores[0] - max(scores[1:]), abs=0.05)


def post(address: str, body: dict[str, Any], timeout: float = 60) -> Any:
    url, headers = f"{address}/completions", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"model": MODEL, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)["choices"][0]


def test_a_stranger_harms_nobody(address: str) -> None:
    for argument in ("nonsense", "{}", '{"group": "a"}'):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(address, {"prompt": "A", "max_tokens": 2, "vllm_xargs": {"dino": argument}})
    assert post(address, {"prompt": "A", "max_tokens": 2})["text"]


def test_a_client_that_goes_away_leaves_nothing(address: str) -> None:
    bodies = group_bodies(Request(("A dog", "A cat", "A man"), ("key",)), Sampling(), [])
    with pytest.raises((TimeoutError, socket.timeout)):
        post(address, bodies[0], timeout=2)  # waits for its group, which never comes
    others = group_bodies(Request(("A dog", "A cat", "A man"), ("key",)), Sampling(), [])
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    content = json.dumps({"model": MODEL, **others[0]}).encode()
    with socket.create_connection((host, int(port))) as gone:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        gone.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        with pytest.raises((TimeoutError, socket.timeout)):
            post(address, others[1], timeout=2)
        # the second has gone: the first is not held back for ever
        gone.settimeout(60)
        answered = b""
        while b"stop_reason" not in answered and (more := gone.recv(65536)):
            answered += more
        assert b'"finish_reason":"stop","stop_reason":null' in answered
    with urllib.request.urlopen(address.removesuffix("/v1") + "/metrics", timeout=60) as answer:
        figures = [line for line in answer.read().decode().splitlines() if line.startswith("vllm:num_requests_")]
    assert figures and all(line.endswith(" 0.0") for line in figures), figures
    engine = Server(MODEL, address, print)
    assert engine.has_plugin()
