"""Processes: the lock of a folder, the signals that stop work, and the processes and threads that share it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar

from dino_pipeline.errors import DinoError, OutputError, RunError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The operating system releases it when the process ends, even by a crash.

    Raises:
        RunError: another process holds the folder; the message names the process and since when it runs.
        OutputError: the folder cannot be written, or its file system has no locks.
    """
    import filelock  # slow to import, and only stages need it

    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}", "choose another folder") from error
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise RunError(f"{folder}: another process works here{_holder(path)}", "wait for it to end") from error
    except (OSError, NotImplementedError) as error:
        raise OutputError(
            f"{folder}: its file system keeps no locks ({getattr(error, 'strerror', error)})",
            "mount it with locks (flock), or choose another folder",
        ) from error
    try:
        _write_holder(path)
        yield
    finally:
        lock.release()


def _write_holder(path: Path) -> None:
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]),
        "since": _now().isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError):  # the lock holds without it: on a full disk, or where locked files are read-only
        path.write_text(json.dumps(holder), encoding="utf-8")


def _holder(path: Path) -> str:
    """Return in words which process holds a lock file, empty if the file does not tell."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.datetime.fromisoformat(holder["since"])
        seconds = int((_now() - since).total_seconds())
        duration = f", for {datetime.timedelta(seconds=seconds)}" if seconds >= 0 else ""  # clocks jump
        return (
            f" (process {holder['process']} on {holder['host']}, {holder['command']}, "
            f"since {since:%Y-%m-%d %H:%M:%S} UTC{duration})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # the other process has only just begun


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SignalHandler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """The user stopped the work: by a signal, or by a progress function that returned False.

    Finished work is kept, and the same call goes on from there. ``exit_code`` is what shells expect.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """A request to stop, set by the first Ctrl-C or SIGTERM and polled by the work; the second signal stops at once.

    Work that never polls has nothing to finish, so the first signal stops it at once, too.

    Args:
        on_request: called at the first signal, between any two instructions. It must not print through a stream that
            the work may be printing to.
    """

    def __init__(self, on_request: Callable[[], object]) -> None:
        self.on_request = on_request
        self.signal: int | None = None
        self.polled = False

    def __call__(self) -> bool:
        """Return whether the work should stop."""
        self.polled = True
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        if self.signal is not None or not self.polled:
            raise Stopped(number)
        self.signal = number
        self.on_request()

    def raise_if_requested(self) -> None:
        if self.signal is not None:
            raise Stopped(self.signal)


@contextmanager
def signals_handled(handler: SignalHandler) -> Iterator[None]:
    """Let a function handle Ctrl-C and SIGTERM inside the block.

    A signal that was ignored before, as in a background job, stays ignored. Outside the main thread, where Python does
    not allow handlers, the block runs without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_at_once(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal by raising `Stopped`; the blocks that are left close their files."""
    raise Stopped(number)


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


Job = TypeVar("Job")
Call = TypeVar("Call")
Result = TypeVar("Result")

MakeWork = Callable[[], Callable[[Any], Any]]
"""Makes the function that does a job. It is called in each worker, which loads there what the function needs."""
OrderedMap = Callable[[Iterator[Any]], Iterator[Any]]
"""Maps jobs to results, in order."""
OpenPool = Callable[[MakeWork], AbstractContextManager[OrderedMap]]
"""Opens a pool of workers and gives its `OrderedMap`."""

_work: Callable[[Any], Any]


def _start_worker(make_work: MakeWork) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    _work = make_work()


def _do_job(job: Any) -> Any:
    return _work(job)


def ordered_results(
    jobs: Iterable[Job], submit: Callable[[Job], Call], wait: Callable[[Call], Result], ahead: int
) -> Iterator[Result]:
    """Yield the results of jobs in order, with up to ``ahead`` jobs submitted beyond the one waited for.

    Args:
        jobs: taken one by one.
        submit: starts a job and returns its call.
        wait: returns the result of a call.
        ahead: bounds the memory that waiting jobs and results take.
    """
    calls: deque[Call] = deque()
    for job in jobs:
        calls.append(submit(job))
        if len(calls) > ahead:
            yield wait(calls.popleft())
    while calls:
        yield wait(calls.popleft())


@contextmanager
def process_pool(
    make_work: Callable[[], Callable[[Job], Result]], workers: int
) -> Iterator[Callable[[Iterator[Job]], Iterator[Result]]]:
    """Give a function that maps jobs to results in several processes, in order.

    Args:
        make_work: makes the function that does a job; called once in each process.
        workers: number of processes; 1 does the jobs in this process.

    Raises:
        DinoError: a worker process was killed.
    """
    if workers == 1:
        work = make_work()
        yield lambda jobs: map(work, jobs)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # threads of DuckDB and Arrow do not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(make_work,)) as pool:
        try:
            yield lambda jobs: ordered_results(
                jobs, lambda job: pool.submit(_do_job, job), Future.result, ahead=2 * workers
            )
        except BrokenProcessPool as error:
            raise DinoError(
                "a worker process ended early: its memory was full, or a script without a main guard started it",
                "give fewer {workers}, or put the script's calls under if __name__ == '__main__'",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[int, Result]]:
    """Do jobs in threads. Yield the number of each job with its result, as results come.

    The threads are daemons, which those of `concurrent.futures` are not: after Ctrl-C, the process does not wait until
    a server answers.
    """
    tasks: SimpleQueue[tuple[int, Job] | None] = SimpleQueue()
    results: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        while (task := tasks.get()) is not None:
            number, job = task
            try:
                results.put((number, work(job), None))
            except BaseException as error:  # raised again by `next_result`
                results.put((number, None, error))

    def next_result() -> tuple[int, Result]:
        number, result, error = results.get()
        if error is not None:
            raise error
        return number, result

    for _ in range(workers):
        threading.Thread(target=run, daemon=True).start()
    running = 0
    try:
        for number, job in enumerate(jobs):
            tasks.put((number, job))
            running += 1
            if running == workers:
                yield next_result()
                running -= 1
        for _ in range(running):
            yield next_result()
    finally:
        for _ in range(workers):
            tasks.put(None)
