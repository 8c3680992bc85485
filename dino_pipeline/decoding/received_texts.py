"""Texts that no shard holds yet, and that outlive the call: a server's, which are paid for, and what a stop keeps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import msgspec

from dino_pipeline.decoding.engine import Completion, Finish, key_digest
from dino_pipeline.files import append_bytes, json_line, remove, write_json_lines

MOST_STALE = 1000
"""Lines of texts that shards hold by now after which the file is written anew."""


class _Row(msgspec.Struct, frozen=True):
    """A line of the file."""

    key: str
    text: str
    finish: Finish
    tokens: tuple[int, ...]
    length: int
    logprob: float | None
    margin: float | None


class ReceivedTexts:
    """Keeps texts in a file, a line each, until a shard holds them.

    Args:
        path: the file. A line that a killed process cut short is left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.stale = 0
        self.is_closed = False

    @cached_property
    def texts(self) -> dict[str, Completion]:
        """The texts, by the digest of the request's key. They are read when they are first needed: a run that starts
        over has deleted them by then."""
        texts: dict[str, Completion] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):  # msgspec's errors are ValueErrors
                row = msgspec.json.decode(line, type=_Row)
                texts[row.key] = Completion(
                    number=0, **{name: getattr(row, name) for name in _Row.__struct_fields__[1:]}
                )
        if content and not content.endswith(b"\n"):
            self._rewrite(texts)
        return texts

    def get(self, key: Sequence[str | int]) -> Completion | None:
        """Return the text of a request with this key, None if it was not received."""
        with self.lock:
            return self.texts.get(_name(key))

    def add(self, key: Sequence[str | int], completion: Completion) -> None:
        """Keep a text, from any thread. Nothing is kept any more once the file is closed."""
        name = _name(key)
        with self.lock:
            if self.is_closed:
                return
            self.texts[name] = completion
            append_bytes(self.path, json_line({"key": name, **asdict(completion)}))

    def forget(self, keys: Iterable[Sequence[str | int]]) -> None:
        """Forget texts that a shard holds by now."""
        with self.lock:
            for key in keys:
                self.stale += self.texts.pop(_name(key), None) is not None
            if not self.texts:
                remove(self.path)
                self.stale = 0
            elif self.stale > max(MOST_STALE, len(self.texts)):
                self._rewrite(self.texts)

    def close(self) -> None:
        """Leave the file as it is: another process may go on with it."""
        with self.lock:
            self.is_closed = True

    def _rewrite(self, texts: dict[str, Completion]) -> None:
        write_json_lines(self.path, ({"key": name, **asdict(text)} for name, text in texts.items()))
        self.stale = 0


def _name(key: Sequence[str | int]) -> str:
    return key_digest(key, 16).hex()
