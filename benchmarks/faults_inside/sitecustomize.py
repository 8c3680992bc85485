"""Faults inside a process, asked for by environment variables: Python imports this file when it starts.

``DINO_CLOCK``: seconds by which the clock jumps, half a second after the start. ``DINO_NO_FORK``: no process can be
started. ``DINO_STORAGE``: after how many files the storage ``dying://`` fails (``fails:3``) or kills the process
(``kills:3``).
"""

from __future__ import annotations

import os
import sys
import time


def _jump(seconds: float) -> None:
    now, started = time.time, time.monotonic()
    time.time = lambda: now() + (seconds if time.monotonic() > started + 0.5 else 0.0)


def _refuse_forks() -> None:
    import _posixsubprocess

    def refused(*arguments: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    _posixsubprocess.fork_exec = refused
    os.fork = refused  # type: ignore[assignment]


class _Finder:
    """Registers the storage once `fsspec` is imported: importing it here would cost every process its time."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "dino_pipeline.generation.storage":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            _register()


def _register() -> None:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    how, _, after = os.environ.get("DINO_STORAGE", "never:0").partition(":")
    written = 0

    class Dying(LocalFileSystem):  # type: ignore[misc]
        protocol = "dying"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(super()._strip_protocol(path.removeprefix("dying://")))

        def pipe_file(self, path: str, value: bytes, **options: object) -> None:
            nonlocal written
            written += 1
            if how != "never" and written > int(after):
                super().pipe_file(path, value[: len(value) // 2])
                if how == "kills":
                    os.kill(os.getpid(), 9)
                raise ConnectionError("the connection was lost")
            super().pipe_file(path, value)

    fsspec.register_implementation("dying", Dying)


if "DINO_CLOCK" in os.environ:
    _jump(float(os.environ["DINO_CLOCK"]))
if "DINO_NO_FORK" in os.environ:
    _refuse_forks()
sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
