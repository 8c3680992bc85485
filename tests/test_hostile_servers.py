"""Whatever a server answers costs no more than its own text, and no secret is written anywhere."""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dino_pipeline as dino
from dino_pipeline.decoding import completions, server
from dino_pipeline.decoding.answers import SenselessAnswerError, parse_answers
from dino_pipeline.decoding.completions import public_address
from dino_pipeline.decoding.engine import Completion, Scored
from dino_pipeline.decoding.received_texts import ReceivedTexts
from dino_pipeline.examples import read_examples
from dino_pipeline.run import Run
from tests.commands import files, invoke, refused
from tests.serving import MadeUp, completion_of, made_up, raw_server

pytestmark = pytest.mark.slow
SPEC: dict[str, Any] = {"task_name": "t", "labels": {"a": {"instruction": 'Of "<X1>": "'}}}
INPUTS = [f"Input number {number}." for number in range(12)]
POISON = INPUTS[4]
Respond = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ASKED = {"prompt": "Some prompt", "max_tokens": 40}
FIELDS = ("text", "finish_reason", "logprobs", "token_ids", "prompt_token_ids", "stop_reason", "index")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "TRIES", 3)
    monkeypatch.setattr(completions, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(completions, "LONGEST_PAUSE", 0.02)


def checked(content: bytes) -> None:
    """Read an answer: it is senseless, or all that is taken from it has the type that it should."""
    try:
        (answer,), usage = parse_answers(content, ASKED)
    except SenselessAnswerError:
        return
    answer.text.encode()
    assert len(answer.text) <= 40 * 256
    assert all(type(number) is int for number in (*answer.tokens, *answer.prompt_tokens, *answer.token_starts))
    assert all(value is None or type(value) is float for value in answer.token_logprobs)
    assert answer.logprob is None or math.isfinite(answer.logprob)
    assert usage.requests == 1
    json.dumps(usage.model_dump(), allow_nan=False)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_and_any_json_are_an_answer_or_senseless(content: bytes) -> None:
    checked(content)


@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5),
    st.dictionaries(st.sampled_from(("token_logprobs", "text_offset")), JSON, max_size=2) | JSON,
    JSON,
    st.text(max_size=20) | JSON,
)
def test_any_field_of_a_completion_may_be_anything(choice: Any, logprobs: Any, usage: Any, text: Any) -> None:
    choice = {"text": text, "logprobs": logprobs, **choice}
    checked(json.dumps({"choices": [choice], "usage": usage}).encode())


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"choices":' * 10_000, b"\xff\xfe", b"", b"1" * 5000, b"NaN"])
def test_bytes_that_harm_readers_of_json_are_senseless(content: bytes) -> None:
    with pytest.raises(SenselessAnswerError):
        parse_answers(content, ASKED)


def generated(respond: Respond, folder: Path, **options: Any) -> dino.GeneratedTexts:
    """Write a run with a server, the spec's own sampling being the server's."""
    told: dict[str, Any] = {
        "engine": "openai",
        "model": "m",
        "top_k": 0,
        "concurrency": 4,
        "shard_size": 5,
        "samples": 1,
    }
    with raw_server(respond) as address:
        return dino.generate(
            SPEC, inputs=INPUTS, base_url=address, run=folder / "run", progress=False, **(told | options)
        )


def answering(poison: Respond) -> Respond:
    """Answer all prompts with a text, but leave one of them to ``poison``."""

    def respond(handler: Any, body: dict[str, Any]) -> None:
        if POISON in body["prompt"]:
            poison(handler, body)
        else:
            handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    return respond


def says(status: int, content: bytes, **headers: str) -> Respond:
    def respond(handler: Any, body: dict[str, Any]) -> None:
        handler.answer(status, content, headers)

    return respond


def drips(handler: Any, body: dict[str, Any]) -> None:
    """Send a byte now and then, so that no time between two bytes is long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: Any, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 2**16)


def cut(handler: Any, body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


PACKED = gzip.compress(completion_of("a"))
POISONS: dict[str, tuple[Respond, str]] = {
    "500": (says(500, b'{"error": {"message": "boom"}}'), "not answered by the server"),
    "an error that is no JSON": (says(503, b"<html>\xff"), "not answered by the server"),
    "413": (says(413, b"too large"), "refused by the server"),
    "400": (says(400, b'{"error": {"message": "no"}}'), "refused by the server"),
    "an error with status 200": (says(200, b'{"error": {"message": "boom"}}'), "not answered by the server"),
    "no text": (says(200, completion_of(None)), "not answered by the server"),
    "no choices": (says(200, b'{"choices": []}'), "not answered by the server"),
    "two choices": (says(200, b'{"choices": [{"text": "a"}, {"text": "b"}]}'), "not answered by the server"),
    "a list": (says(200, b"[]"), "not answered by the server"),
    "deep": (says(200, b"[" * 50_000), "not answered by the server"),
    "packed": (
        says(200, gzip.compress(completion_of("a")), **{"Content-Encoding": "gzip"}),
        "not answered by the server",
    ),
    "half a character": (says(200, completion_of("a \ud83d b")), "no text in the server's answer"),
    "18 MB": (says(200, completion_of("a" * 18_000_000)), "no text in the server's answer"),
    "without end": (endless, "not answered by the server"),
    "drips": (drips, "not answered by the server"),
    "cut": (cut, "not answered by the server"),
}


@pytest.mark.parametrize("kind", POISONS)
def test_a_poisoned_prompt_costs_its_own_text(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison, reason = POISONS[kind]
    monkeypatch.setattr(completions, "MOST_BYTES", 2**25)
    texts = generated(answering(poison), tmp_path, timeout=0.5 if kind in ("drips", "without end") else 20)
    assert sorted(str(example.text_a) for example in texts) == sorted(set(INPUTS) - {POISON})
    run = Run(tmp_path / "run")
    assert rejected(tmp_path) == [(POISON, reason)]
    assert not run.received.exists()
    again = generated(says(500, b"nobody asks"), tmp_path)  # a finished run needs no server
    assert len(again) == len(texts)


ODD: dict[str, dict[str, Any]] = {
    "usage that is a list": {"usage": [1]},
    "usage in words": {"usage": {"prompt_tokens": "three", "completion_tokens": None}},
    "usage without bound": {"usage": {"prompt_tokens": 10**400, "completion_tokens": -5}},
    "logprobs that are a list": {"choice": {"logprobs": [1, 2]}},
    "logprobs in words": {"choice": {"logprobs": {"token_logprobs": ["a", {}], "text_offset": "x"}}},
    "impossible tokens": {"choice": {"logprobs": {"token_logprobs": [-math.inf, -1.0]}}},
    "no numbers": {"choice": {"logprobs": {"token_logprobs": [math.nan, -1.0]}}},
    "a stop that is an object": {"choice": {"stop_reason": {"a": 1}, "finish_reason": ["stop"]}},
}


@pytest.mark.parametrize("kind", ODD)
def test_what_else_an_answer_says_may_be_anything(kind: str, tmp_path: Path) -> None:
    def respond(handler: Any, body: dict[str, Any]) -> None:
        handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}", **json.loads(json.dumps(ODD[kind]))))

    texts = generated(respond, tmp_path, keep_unfinished=True)
    assert len(texts) == len(INPUTS)
    assert all(example.logprob is None for example in texts)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), min_size=1, max_size=6))
def test_a_run_survives_any_answers_to_a_prompt(tmp_path_factory: pytest.TempPathFactory, answers: list[bytes]) -> None:
    count = [0]

    def respond(handler: Any, body: dict[str, Any]) -> None:
        count[0] += 1
        handler.answer(200, answers[count[0] % len(answers)])

    texts = generated(answering(respond), tmp_path_factory.mktemp("fuzz"))
    assert {example.text_a for example in texts} >= set(INPUTS) - {POISON}


def test_a_server_that_fails_for_good_loses_no_text_that_was_received(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()
    down = threading.Event()

    def respond(handler: Any, body: dict[str, Any]) -> None:
        if down.is_set():
            handler.answer(500, b"down")
            return
        asked[body["prompt"]] += 1
        if sum(asked[prompt] for prompt in asked if "number" in prompt) >= 8:
            down.set()
        handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    with pytest.raises(
        dino.ModelError, match=r"no answer in 3 attempts \(500 .*down\); the texts received so far are kept"
    ):
        generated(respond, tmp_path, shard_size=12)
    received = Run(tmp_path / "run").received
    kept = len(received.read_bytes().splitlines())
    assert kept == 8
    with received.open("ab") as file:
        file.write(b'{"key": "0123", "te')  # killed while it was written
    down.clear()
    before = {prompt: number for prompt, number in asked.items() if "number" in prompt}

    def go_on(handler: Any, body: dict[str, Any]) -> None:
        asked[body["prompt"]] += 1
        handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    texts = generated(go_on, tmp_path, shard_size=12)
    assert len(texts) == len(INPUTS)
    assert all(asked[prompt] == number for prompt, number in before.items())  # nothing is paid for twice
    assert not received.exists()
    whole = generated(go_on, tmp_path / "whole", shard_size=12)
    assert [example.text_b for example in whole] == [example.text_b for example in texts]


def test_a_run_that_starts_over_forgets_what_was_received(tmp_path: Path) -> None:
    received = ReceivedTexts(tmp_path / "run" / "received.jsonl")

    def good(handler: Any, body: dict[str, Any]) -> None:
        handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    texts = generated(good, tmp_path)
    keys = [(42, texts.spec.digest, text, "a", 0) for text in INPUTS]
    for key in keys:
        received.add(key, Completion(0, "stale", "stop", (), 1, None, None))
    assert not any(example.text_b == "stale" for example in generated(good, tmp_path, fresh=True))


def test_received_texts_are_forgotten_and_their_file_stays_small(tmp_path: Path) -> None:
    received = ReceivedTexts(tmp_path / "received.jsonl")
    text = Completion(0, "a\n\u2028“b”", "newline", (1, 2), 2, -0.5, None)
    for number in range(3000):
        received.add(("key", number), text)
    assert ReceivedTexts(received.path).get(("key", 7)) == text
    received.forget(("key", number) for number in range(2990))
    assert len(received.path.read_bytes().split(b"\n")) == 11
    assert ReceivedTexts(received.path).get(("key", 2995)) == text
    received.forget(("key", number) for number in range(3000))
    assert not received.path.exists()


def test_many_failures_in_a_row_end_a_run_even_if_a_short_prompt_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_FAILURES", 5)

    def respond(handler: Any, body: dict[str, Any]) -> None:
        if "number" in body["prompt"]:
            handler.answer(500, b"boom")
        else:
            handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    with pytest.raises(dino.ModelError, match=r"no answer .*boom"):
        generated(respond, tmp_path, concurrency=1)


def test_a_text_that_is_impossible_to_the_scorer_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(self: Any, pairs: Any, *, stop: str = '"') -> list[Scored]:
        return [Scored(-math.inf if POISON in prompt else -1.0, 3) for prompt, _ in pairs]

    monkeypatch.setattr(server.Server, "score", score)
    monkeypatch.setattr(server.Server, "check_scores", lambda self: None)

    def good(handler: Any, body: dict[str, Any]) -> None:
        handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    texts = generated(good, tmp_path, scorer="server")
    assert len(texts) == len(INPUTS) - 1
    assert rejected(tmp_path) == [(POISON, "not scored")]


def rejected(folder: Path) -> list[tuple[str, str]]:
    """Return the rejected inputs of a run, with the reasons."""
    files = Run(folder / "run").rejected.glob("*.jsonl")
    rows = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
    return [(row["text_a"], row["reason"]) for row in rows]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("https://user:pass@host/v1", "https://host/v1"),
        ("https://user:p%40ss@host:1/v1/?key=secret#x", "https://host:1/v1/"),
        ("https://user:pa@ss@host/v1", "https://host/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://user:pass@[::1", "http://[::1"),
    ],
)
def test_an_address_is_shown_without_secrets(address: str, shown: str) -> None:
    assert public_address(address) == shown


SECRETS = ("hunter2-password", "sk-very-secret")


@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_no_password_and_no_key_is_written_anywhere(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS[1])
    seen: list[str] = []

    def respond(handler: Any, body: dict[str, Any]) -> None:
        seen.append(handler.headers.get("Authorization", ""))
        answer = completion_of(f"text {body.get('seed', 0) % 997}")
        quoting = json.dumps({"error": {"message": f"no {SECRETS} for {seen[-1]}, see http://u:{SECRETS[0]}@h/"}})
        handler.answer(status, answer if status == 200 else quoting.encode())

    (tmp_path / "inputs.txt").write_text("\n".join(INPUTS))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    with raw_server(respond) as address:
        secret = address.replace("//", f"//me:{SECRETS[0]}@")
        call: list[Any] = ["generate", tmp_path / "spec.json", "--engine", "openai", "--model", "m", "--top-k", "0"]
        call += ["--inputs", tmp_path / "inputs.txt", "--run", tmp_path / "run", "--base-url", secret]
        call += ["--storage", (tmp_path / "away").as_uri()]
        said = refused(*call) if status != 200 else str(invoke(*call))
    assert seen[0].startswith("Basic ")
    for secret in (*SECRETS, seen[0].removeprefix("Basic ")):
        assert secret not in said
        assert not any(secret.encode() in content for content in files(tmp_path).values())
    monkeypatch.setenv("OPENAI_API_KEY", "")
    failed = refused("generate", "sts-x2", "--engine", "openai", "--base-url", f"ftp://me:{SECRETS[0]}@host/v1")
    assert "--base-url ftp://host/v1: is not an address" in failed
    assert SECRETS[0] not in failed


def test_a_model_that_a_server_does_not_know_is_named_with_those_that_it_knows(tmp_path: Path) -> None:
    with pytest.raises(dino.ModelError, match=r'knows no model m, .*it has "one-model", "other-model"'):
        generated(says(404, b'{"detail": "no such model"}'), tmp_path)


@pytest.mark.parametrize("counters", [[], ["a"]])
def test_a_server_that_is_not_there_is_noted_at_once(counters: list[str], tmp_path: Path) -> None:
    spec = {"task_name": "t", "labels": {**SPEC["labels"], "b": {**SPEC["labels"]["a"], "counter_labels": counters}}}
    notes: list[Any] = []
    with pytest.raises(dino.ModelError, match=r"127.0.0.1:9/v1: no answer in 3 attempts"):
        dino.generate(
            spec, inputs=INPUTS, engine="openai", model="m", base_url="http://127.0.0.1:9/v1", progress=notes.append
        )
    assert sum("no answer yet, trying again" in note for note in notes if isinstance(note, str)) == 1


def test_texts_of_a_healthy_server_are_as_before(tmp_path: Path) -> None:
    with made_up(MadeUp()) as address:
        told: dict[str, Any] = {"engine": "openai", "model": "m", "base_url": address, "progress": False, "samples": 1}
        texts = dino.generate(SPEC, inputs=INPUTS, run=tmp_path / "run", **told)
    assert len(read_examples(tmp_path / "run" / "shards" / "00000.jsonl")) == len(texts) == len(INPUTS)


@pytest.mark.parametrize("status", [403, 404, 451])
def test_a_prompt_that_something_in_front_of_the_server_forbids_costs_its_own_text(status: int, tmp_path: Path) -> None:
    texts = generated(answering(says(status, b"<html>blocked</html>")), tmp_path)
    assert len(texts) == len(INPUTS) - 1
    reason = "not answered by the server" if status == 404 else "refused by the server"
    assert rejected(tmp_path) == [(POISON, reason)]


def test_a_redirect_that_drops_the_request_is_named(tmp_path: Path) -> None:
    def respond(handler: Any, body: dict[str, Any]) -> None:
        handler.answer(301, b"", {"Location": "/other/v1/completions"})

    with pytest.raises(dino.ModelError, match=r"redirects to http://127.0.0.1:\d+/other/v1; give that address"):
        generated(respond, tmp_path)


def test_a_server_whose_texts_begin_with_their_prompts_is_refused(tmp_path: Path) -> None:
    def respond(handler: Any, body: dict[str, Any]) -> None:
        whole = f"{body['prompt']}text {body.get('seed', 0) % 997}"
        handler.answer(200, completion_of(whole.partition('"')[0]))

    with pytest.raises(dino.OptionError, match="its texts begin with their prompts"):
        generated(respond, tmp_path)


ECHOES: dict[str, Any] = {
    "no echo": {"text": "x", "logprobs": {"text_offset": [0], "token_logprobs": [-0.25]}},
    "no values": {"text": None, "logprobs": {"text_offset": [0, 5, 14], "token_logprobs": [None, None, None]}},
    "no log-probabilities": {"text": None, "logprobs": None},
}


@pytest.mark.parametrize("kind", ECHOES)
def test_a_server_that_echoes_nothing_is_no_scorer(kind: str, tmp_path: Path) -> None:
    def respond(handler: Any, body: dict[str, Any]) -> None:
        if not body.get("echo"):
            handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))
            return
        echo = ECHOES[kind]
        handler.answer(200, completion_of(echo["text"] or body["prompt"], choice={"logprobs": echo["logprobs"]}))

    with pytest.raises(dino.OptionError, match="echoes no log-probabilities, so it scores no texts"):
        generated(respond, tmp_path, scorer="server", best_of=2)


def test_what_was_paid_for_texts_of_no_shard_is_recorded(tmp_path: Path) -> None:
    asked = [0]

    def respond(handler: Any, body: dict[str, Any]) -> None:
        asked[0] += "number" in body["prompt"]
        if asked[0] > 6:
            handler.answer(500, b"down")
        else:
            handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    with pytest.raises(dino.ModelError):
        generated(respond, tmp_path, shard_size=12)
    record = Run(tmp_path / "run").record().generate
    assert record is not None and record.usage is not None
    assert record.usage.completion_tokens >= 6 * 4


def test_a_key_that_no_request_can_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def respond(handler: Any, body: dict[str, Any]) -> None:
        seen.append(handler.headers["Authorization"])
        handler.answer(200, completion_of(f"text {body.get('seed', 0) % 997}"))

    monkeypatch.setenv("OPENAI_API_KEY", " sk-1\n")
    generated(respond, tmp_path)
    assert set(seen) == {"Bearer sk-1"}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\nsk-2")
    with pytest.raises(dino.OptionError, match="OPENAI_API_KEY holds more than a key; set it again"):
        generated(respond, tmp_path / "other")


def test_no_entry_of_a_netrc_file_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password no\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    texts = generated(answering(says(400, b"")), tmp_path)
    assert len(texts) == len(INPUTS) - 1


def test_nothing_is_asked_or_kept_after_the_end(tmp_path: Path) -> None:
    received = ReceivedTexts(tmp_path / "gone" / "received.jsonl")
    received.close()
    received.add(("key",), Completion(0, "a", "stop", (), 1, None, None))
    assert not received.path.parent.exists()
