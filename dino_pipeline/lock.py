"""One process at a time in a folder, and who that is."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from dino_pipeline.errors import OutputError, RunError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the operating system lets go when the process ends, however it ends.

    Raises:
        RunError: another process holds it; the message says which, and since when.
        OutputError: the folder cannot be written, or its file system knows no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise OutputError(
                    f"{folder}: its file system keeps no locks ({error.strerror}); mount it with them (flock), or "
                    "choose another folder"
                ) from error
            file.seek(0)
            owner = _owner(file.read())
            raise RunError(f"{folder}: another dino process works here{owner}; wait for it to end") from error
        found = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]),
            "since": _now().isoformat(timespec="seconds"),
        }
        with contextlib.suppress(OSError):  # a full disk: held all the same
            file.truncate(0)
            file.write(json.dumps(found))
            file.flush()
        yield


def _owner(content: str) -> str:
    """Say who holds a folder, as far as its lock tells."""
    try:
        owner = json.loads(content)
        since = datetime.datetime.fromisoformat(owner["since"])
        age = int((_now() - since).total_seconds())
        for_long = f", for {datetime.timedelta(seconds=age)}" if age >= 0 else ""  # clocks jump
        return (
            f" (process {owner['process']} on {owner['host']}, {owner['command']}, since {since:%Y-%m-%d %H:%M:%S} UTC"
            f"{for_long})"
        )
    except (ValueError, KeyError, TypeError):
        return ""  # it has only just begun


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
