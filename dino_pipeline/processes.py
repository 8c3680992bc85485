"""Processes: the lock of a folder, and the processes and threads that share work."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from dino_pipeline.errors import DinoError, OutputError, RunError, system_reason, write_remedy
from dino_pipeline.stopping import signals_blocked, signals_put_off

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

LOCK = ".lock"
TIME_TO_END = 10.0
"""Seconds that workers without work have to end by themselves."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The operating system releases it when the process ends, even by a crash.

    Raises:
        RunError: another process holds the folder; the message names the process and since when it runs.
        OutputError: the folder cannot be written, or its file system has no locks.
    """
    import filelock  # slow to import, and only stages need it

    path, is_new = folder / LOCK, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {system_reason(error)}", write_remedy(error)) from error
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise RunError(f"{folder}: another process works here{_holder(path)}", "wait for it to end") from error
    except (OSError, NotImplementedError) as error:
        raise OutputError(
            f"{folder}: its file system keeps no locks ({getattr(error, 'strerror', None) or error})",
            "mount it with locks (flock), or choose another folder",
        ) from error
    try:
        _write_holder(path)
        yield
    finally:
        if is_new:
            _remove_empty(folder)
        lock.release()


def _remove_empty(folder: Path) -> None:
    """Delete a folder that holds nothing but its lock."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


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


LEAST_ADDRESS_SPACE = 2**30
"""Bytes that a process may map at least: with less, native libraries crash or hang while they are loaded."""


def check_address_space() -> None:
    """Raise `DinoError` if a limit (``ulimit -v``) leaves this process too little address space to load libraries."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise DinoError(
            f"memory is limited to {limit >> 20} MiB of address space, and libraries need "
            f"{LEAST_ADDRESS_SPACE >> 20} MiB to load",
            "raise the limit (ulimit -v)",
        )


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
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the kernel sends a signal to this process when its parent ends."""


def _start_worker(make_work: MakeWork) -> None:
    global _work
    _end_with_parent()
    _work = make_work()


def _end_with_parent() -> None:
    """Have this worker process end when its parent does, however that ends and whatever the worker is doing."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it has ended before
            os._exit(1)
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = _spawning_context()
    with signals_blocked(), _quiet_tracker():
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(make_work,))

    def submit(job: Job) -> Future[Result]:
        with signals_blocked(), signals_put_off():  # workers start here: one that is half started would complain
            return pool.submit(_do_job, job)

    try:
        yield lambda jobs: ordered_results(jobs, submit, Future.result, ahead=2 * workers)
        pool.shutdown(wait=False)
        _wait(context.started)
    except BrokenProcessPool as error:
        raise DinoError(
            "a worker process ended early: its memory was full, or a script without a main guard started it",
            "give fewer {workers}, or put the script's calls under if __name__ == '__main__'",
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # the pool itself would send the workers of a broken pool SIGTERM, which they do not receive
        _kill(context.started)


def _wait(processes: Iterable[SpawnProcess]) -> None:
    """Give processes without work some time to end: one that waits for the lock of a killed one never does."""
    until = time.monotonic() + TIME_TO_END
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))


def _kill(processes: Iterable[SpawnProcess]) -> None:
    """End processes and wait for them; one that could not be started has no number."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Start the process that removes semaphores after this one, quietly if this one was killed: it tells developers.

    The environment variable that it inherits, PYTHONWARNINGS, changes for all threads inside the block.
    """
    name, before = "PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS")
    os.environ[name] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _spawning_context() -> Any:
    """Return a context of `multiprocessing` that starts processes afresh, and lists them as ``started``."""
    from multiprocessing.context import SpawnContext, SpawnProcess

    class Context(SpawnContext):
        def __init__(self) -> None:
            super().__init__()
            self.started: list[SpawnProcess] = []

        def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
            self.started.append(SpawnProcess(*args, **kwargs))
            return self.started[-1]

    return Context()  # threads of DuckDB and Arrow do not survive a fork


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
