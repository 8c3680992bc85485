"""What a Hub answers is bounded in bytes and in time, and an answer that is none is named as one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub.utils import get_session

from dino_pipeline.errors import first_line

try:
    import httpx2 as http
except ImportError:  # an older client of the Hub is made with its predecessor
    import httpx as http  # type: ignore[import-not-found,no-redef]

MOST_BYTES = 64 * 2**20
"""Of an answer that is no file: a list of files, a record, a page."""
MOST_SECONDS = 60.0
"""From the first byte of such an answer to its last."""
MOST_SECONDS_OF_A_COMMIT = 600.0
"""Without a byte, where something is stored."""
NONSENSE = (
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
    RecursionError,
    JSONDecodeError,
    UnicodeError,
)
"""What the Hub's client raises where an answer is not what a Hub says."""


class OddAnswerError(Exception):
    """An answer of a server that cannot be a Hub's."""


class _BoundedStream(http.SyncByteStream):
    """The bytes of an answer, as long as they are not too many and come in time."""

    def __init__(self, stream: http.SyncByteStream, most: int) -> None:
        self.stream, self.most = stream, most
        self.deadline = time.monotonic() + MOST_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        seen = 0
        for part in self.stream:
            seen += len(part)
            if seen > self.most:
                raise OddAnswerError(f"its answer has more than {self.most >> 20} MiB")
            if time.monotonic() > self.deadline:
                raise OddAnswerError(f"its answer takes more than {MOST_SECONDS:.0f} seconds")
            yield part

    def close(self) -> None:
        self.stream.close()


def _bound(response: http.Response) -> None:
    """Bound the body of an answer that is no file; a packed one could unpack to anything."""
    is_api = response.request.url.path.startswith("/api/")
    if not is_api and response.request.method == "GET" and response.is_success:
        return  # a file, whose size the client checks
    if response.headers.get("content-encoding", "identity") != "identity":
        raise OddAnswerError("its answer is packed, which was not asked for")
    if isinstance(response.stream, http.SyncByteStream):
        response.stream = _BoundedStream(response.stream, MOST_BYTES)


def _ask(request: http.Request) -> None:
    """Ask for an answer that is not packed, and do not wait for ever; the client has no timeout of its own."""
    request.headers["accept-encoding"] = "identity"
    given = request.extensions.get("timeout") or {}
    most = MOST_SECONDS if request.method in ("GET", "HEAD") else MOST_SECONDS_OF_A_COMMIT
    request.extensions["timeout"] = {kind: given.get(kind) or most for kind in ("connect", "read", "write", "pool")}


@contextmanager
def bounded_answers() -> Iterator[None]:
    """Bound what the Hub's client reads inside the block."""
    hooks = get_session().event_hooks
    hooks["request"].append(_ask)
    hooks["response"].append(_bound)
    try:
        yield
    finally:
        hooks["request"].remove(_ask)
        hooks["response"].remove(_bound)


def nonsense(error: BaseException) -> str:
    """Return what is odd about an answer at which the Hub's client failed, in words."""
    match error:
        case OddAnswerError():
            return str(error)
        case JSONDecodeError() | UnicodeError():
            return f"its answer is not JSON ({first_line(error)})"
        case RecursionError():
            return "its answer is nested too deeply"
        case KeyError():
            return f"its answer lacks {first_line(error)}"
    return "its answer has not the form of a Hub's"
