"""Whatever is behind the address of the Hub, its answers cost bounded bytes and time, and odd ones are named."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from dino_pipeline import hub_answers
from dino_pipeline.cards.hub import Manifest, Repository, download, license_of
from dino_pipeline.errors import HubError

wait = time.sleep
BLANKS = b" " * 2**20
ODD = ("null", "1", '"x"', '{"sha": 1}', "[1]", '[{"a": 1}]', '{"siblings": [1]}', "[" * 100_000, "<html>", "\xff", "")


class Odd(BaseHTTPRequestHandler):
    """Gives the same answer to everything."""

    protocol_version = "HTTP/1.1"
    kind = ""

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError):
            self.close_connection = True

    def _go(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match self.kind:
            case "endless":
                self._chunks(BLANKS, 0)
            case "drip":
                self._chunks(b" ", 0.05)
            case "silent":
                wait(3)
                self.close_connection = True
            case "cut":
                self._send(b'{"a":', length=1000)
                self.close_connection = True
            case "loop":
                self._send(b"", 302, location=self.path)
            case "away":
                self._send(b"", 302, location="file:///etc/passwd")
            case "bomb":
                self._send(gzip.compress(BLANKS * 64), encoding="gzip")
            case "500":
                self._send(b"{}", 500)
            case _:
                self._send(self.kind.encode())

    do_GET = do_POST = do_HEAD = do_PUT = _go  # noqa: N815

    def _send(
        self, content: bytes, status: int = 200, length: int | None = None, encoding: str = "", location: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in (("Content-Encoding", encoding), ("Location", location)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _chunks(self, chunk: bytes, pause: float) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            wait(pause)


@contextmanager
def odd_hub(kind: str) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Odd,), {"kind": kind}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(hub_answers, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(hub_answers, "MOST_SECONDS_OF_A_COMMIT", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def calls(address: str, folder: Path) -> list[Callable[[], object]]:
    """Return every call of the Hub that publishing and reading make."""
    (folder / "README.md").write_text("card")
    place = Repository("a/b", "dataset", api=HfApi(endpoint=address, token="hf_secret"))
    return [
        lambda: place.fetch("README.md"),
        lambda: place.upload(folder),
        lambda: download("a/b", "dataset", None),
        lambda: place.check(Manifest(kind="dataset", origin="x")),
        place.files,
    ]


@pytest.mark.parametrize("kind", [*ODD, "endless", "drip", "silent", "cut", "loop", "away", "bomb", "500"])
def test_an_odd_answer_is_an_error_of_the_hub(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = time.monotonic()
    with odd_hub(kind) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        for call in calls(address, tmp_path)[: 3 if kind in ("drip", "silent") else 5]:
            with pytest.raises(HubError, match="a/b: ") as error:
                call()
            said = str(error.value)
            assert len(said) < 1500 and "\n" not in said and "hf_secret" not in said
            assert not any(name in said for name in ("TypeError", "KeyError", "AttributeError", "JSONDecodeError"))
        assert license_of("a/b") is None
    assert time.monotonic() - started < 60, "nothing hangs"


def test_calls_of_others_are_left_alone() -> None:
    hooks = huggingface_hub.utils.get_session().event_hooks
    before = {name: list(kind) for name, kind in hooks.items()}
    with hub_answers.bounded_answers(), hub_answers.bounded_answers():
        pass
    assert {name: list(kind) for name, kind in hooks.items()} == before
