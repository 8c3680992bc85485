"""Stopping: what Ctrl-C, SIGTERM and SIGHUP do, whatever the program is doing when they come.

The states of a stop, of which the main thread keeps those of `StopRequest`, and a second thread those of the watch:

=========================== ============================ ======================================================
a signal comes              the request                  the watch
=========================== ============================ ======================================================
before or between requests  (none: `exit_at_once`)       ``last``, ``deadline`` in `GRACE`
first, work does not poll   ``signal``, ``raised``       ``last``, ``deadline`` in `GRACE`
first, work polls           ``signal``                   ``last``; no ``deadline``: the work finishes its piece
again, nothing was raised   ``signal``, ``raised``       ``last``, ``deadline`` in `GRACE_AGAIN`
again, after it was raised  (`exit_at_once`)             the same
the user has been told      (over)                       ``is_said``, ``deadline`` in `GRACE` or earlier
``deadline`` has passed     (any)                        `exit_at_once` with ``last``, told once: ``is_said``
=========================== ============================ ======================================================
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""
GRACE, GRACE_AGAIN = 4.0, 0.6
"""Seconds from the signal that stops at once to the end of the process; from a further one."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the deadline, and two interruptions of queries: one that comes before its query begins
has no effect."""


class Stopped(KeyboardInterrupt):
    """The user stopped the work: by a signal, or by a progress function that returned False.

    Finished work is kept, and the same call goes on from there. ``exit_code`` is what shells expect.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def exit_at_once(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal by leaving without the interpreter's clean-up: all files survive that.

    In the main thread, which does nothing else meanwhile, unfinished files are deleted first.
    """
    if not _watch.is_said:
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nStopped.\n")
    if threading.current_thread() is threading.main_thread():
        _clean_up()
    os._exit(128 + number)


class StopRequest:
    """A request to stop, set by the first signal and polled by the work; the second signal stops at once.

    Work that never polls has nothing to finish, so the first signal stops it at once, too. To stop at once is to raise
    `Stopped`: the blocks that are left close their files. A signal that comes after that leaves without it, and so does
    one that comes while a library is imported, which may do anything with an error.

    Args:
        on_request: called at the first signal, between any two instructions. It must not print through a stream that
            the work may be printing to.
    """

    def __init__(self, on_request: Callable[[], object] = lambda: None) -> None:
        self.on_request = on_request
        self.signal: int | None = None
        self.polled = self.raised = False

    def __call__(self) -> bool:
        """Return whether the work should stop."""
        self.polled = True
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if self.raised or _is_importing(frame):
            exit_at_once(number)
        is_first, self.signal = self.signal is None, number
        if is_first and self.polled:
            self.on_request()
            return
        self.raised = True
        raise Stopped(number)

    def raise_if_requested(self) -> None:
        if self.signal is not None:
            raise Stopped(self.signal)

    def end_polling(self) -> None:
        """Note that the work that follows does not poll: it stops at once."""
        self.polled = False
        self.raise_if_requested()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def signals_handled(request: StopRequest) -> Iterator[None]:
    """Let a request handle Ctrl-C, SIGTERM and SIGHUP inside the block.

    A signal that was ignored before, as in a background job or under nohup, stays ignored. Outside the main thread,
    where Python does not allow handlers, the block runs without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _watch.request = _watch.request, request
    before = _set_handlers(request.receive)
    try:
        yield
    finally:
        _put_back(before)
        _watch.request = outer


Handler = Callable[[int, FrameType | None], object] | int | None


def _set_handlers(handler: Handler) -> dict[int, Handler]:
    """Set the handler of all stop signals but those that are ignored, or that other languages' code handles.

    Returns:
        The handlers before; None is one that Python did not set.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, previous in before.items():
        if previous not in (signal.SIG_IGN, None):
            signal.signal(number, handler)
    return before


def _put_back(before: Mapping[int, Handler]) -> None:
    """Set handlers as they were, but those that Python did not set and cannot tell: they are None."""
    for number, previous in before.items():
        if previous is not None:
            signal.signal(number, previous)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Let a library that sets handlers of its own start inside the block, and put those back that were there before."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _put_back(before)


@contextmanager
def signals_blocked(numbers: Iterable[int] = STOP_SIGNALS) -> Iterator[None]:
    """Block signals in the calling thread, and so, for good, in the processes that it starts meanwhile.

    A terminal sends them to all processes of a command, of which the first alone decides what to do. Its other threads
    still receive them, so that Python handles them in the main thread: see `signals_put_off`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not a POSIX system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # inherited by child processes
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_put_off() -> Iterator[None]:
    """Handle signals that come meanwhile at the end of the block: one that must not be left half done, and is short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = _set_handlers(lambda number, frame: received.append(number))
    try:
        yield
    finally:
        _put_back(before)
        if received:
            handler = before[received[0]]
            if callable(handler):
                handler(received[0], None)
            else:
                signal.raise_signal(received[0])


class Interruptible(Protocol):
    """A database connection."""

    def interrupt(self) -> object:
        """End the query that runs, from another thread."""


_connections: weakref.WeakSet[Interruptible] = weakref.WeakSet()


def interrupt_when_stopped(connection: Interruptible) -> None:
    """Have a stop interrupt a connection's query, during which Python handles no signals."""
    _connections.add(connection)


def _interrupt_queries() -> None:
    try:
        connections = list(_connections)
    except RuntimeError:  # the main thread has just opened another one: the next look finds it
        return
    for connection in connections:
        with contextlib.suppress(Exception):  # closed meanwhile
            connection.interrupt()


class _SignalWatch:
    """Ends the process in time after a signal, even while its main thread is in a call of other languages' code.

    Python handles signals in its main thread alone, between two instructions. This thread learns of them at once, from
    the file descriptor to which the interpreter writes them.
    """

    def __init__(self) -> None:
        self.request: StopRequest | None = None
        """The request that handles signals now."""
        self.deadline: float | None = None
        """When the process must have ended, as `time.monotonic` tells it."""
        self.received = 0
        self.last: int = signal.SIGINT
        self.is_said = False
        """Whether the user was told of the stop."""

    def start(self) -> None:
        """Begin to watch; call it in the main thread."""
        self.incoming, outgoing = os.pipe()
        os.set_blocking(outgoing, False)
        signal.set_wakeup_fd(outgoing, warn_on_full_buffer=False)
        threading.Thread(target=self._follow, daemon=True).start()

    def end_within(self, seconds: float) -> None:
        """Bring the deadline forward."""
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def _follow(self) -> None:
        while True:
            ready, _, _ = select.select([self.incoming], [], [], LOOK_EVERY)
            for number in os.read(self.incoming, 64) if ready else b"":
                if number in STOP_SIGNALS:
                    self._receive(number)
            if self.deadline is None:
                continue
            if time.monotonic() >= self.deadline:
                exit_at_once(self.last)
            _interrupt_queries()

    def _receive(self, number: int) -> None:
        self.received, self.last = self.received + 1, number
        if self.received > 1:
            self.end_within(GRACE_AGAIN)
        elif self.request is None or not self.request.polled:
            self.end_within(GRACE)


_watch = _SignalWatch()


def end_said_stop(exit_code: int) -> None:
    """Note that the user was told of the stop, and end the process within `GRACE` if it does not end before."""
    _watch.is_said, _watch.last = True, exit_code - 128
    _watch.end_within(GRACE)


def leave_if_stopped() -> None:
    """End the process without the interpreter's clean-up if the user was told of a stop.

    Libraries whose work was cut short complain there, or wait for their threads. What `at_end` was given is called.
    """
    if _watch.is_said:
        _clean_up()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(128 + _watch.last)


_clean_ups: list[Callable[[], object]] = []


def _clean_up() -> None:
    for clean_up in [*_clean_ups]:
        with contextlib.suppress(Exception):
            clean_up()


def at_end(clean_up: Callable[[], object]) -> None:
    """Call a function when the process ends, also by a stop; not when it is killed, or when its time is over."""
    _clean_ups.append(clean_up)
    atexit.register(clean_up)


@contextmanager
def at_end_of_stop(clean_up: Callable[[], object]) -> Iterator[None]:
    """Call a function if a signal ends the process inside the block without leaving it."""
    _clean_ups.append(clean_up)
    try:
        yield
    finally:
        _clean_ups.remove(clean_up)


def watch_signals() -> None:
    """Have signals end this process from now on, in time and quietly: the first thing that a program does."""
    before = sys.unraisablehook

    def show(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):  # in a finalizer, say, which cannot raise it
            exit_at_once(getattr(unraisable.exc_value, "exit_code", 128 + signal.SIGINT) - 128)
        else:
            before(unraisable)

    sys.unraisablehook = show
    _set_handlers(exit_at_once)
    if sys.platform != "win32":  # which cannot wait for a pipe
        _watch.start()
