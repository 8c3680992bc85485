"""SIGTERM and Ctrl-C: asked once, work ends at the next good place; asked twice, at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """Somebody asked to stop; ``exit_code`` is what shells expect."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Asked:
    """Whether somebody asked to stop; until that is first looked at, nothing is under way, and they are obeyed at once.

    Args:
        say: called when first asked, between any two instructions: must not print through what may be printing.
    """

    def __init__(self, say: Callable[[], object]) -> None:
        self.say = say
        self.by: int | None = None
        self.looked_at = False

    def __call__(self) -> bool:
        """Whether somebody did."""
        self.looked_at = True
        return self.by is not None

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if self.by is not None or not self.looked_at:
            raise Stopped(number)
        self.by = number
        self.say()

    def obey(self) -> None:
        """End the work, if somebody asked to.

        Raises:
            Stopped: somebody did.
        """
        if self.by is not None:
            raise Stopped(self.by)


@contextlib.contextmanager
def heard(handle: Handler) -> Iterator[None]:
    """Let a function handle both signals meanwhile; those that were ignored before, as in background jobs, stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there can signals be handled
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def at_once(number: int, frame: FrameType | None = None) -> None:
    """End the work, open files put away."""
    raise Stopped(number)
