"""Work spread over processes, its results in order."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from dino_pipeline.errors import DinoError

Job = TypeVar("Job")
Call = TypeVar("Call")
Result = TypeVar("Result")

Make = Callable[[], Callable[[Any], Any]]
"""Makes the function that does a job; called where jobs are done, so that what it needs is loaded there."""
Spread = Callable[[Make], AbstractContextManager[Callable[[Iterator[Any]], Iterator[Any]]]]
"""Gives a map over jobs that spreads them, results in order."""

_work: Callable[[Any], Any]


def _start(make: Make) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the process that waits for this one
    _work = make()


def _do(job: Any) -> Any:
    return _work(job)


def in_order(
    jobs: Iterable[Job], begin: Callable[[Job], Call], end: Callable[[Call], Result], most: int
) -> Iterator[Result]:
    """Begin jobs, so many ahead of the first that has not ended, and yield what they come to in their order."""
    ahead: deque[Call] = deque()
    for job in jobs:
        ahead.append(begin(job))
        if len(ahead) > most:
            yield end(ahead.popleft())
    while ahead:
        yield end(ahead.popleft())


@contextmanager
def side_by_side(
    make: Callable[[], Callable[[Job], Result]], workers: int
) -> Iterator[Callable[[Iterator[Job]], Iterator[Result]]]:
    """Give a map over jobs that runs in so many processes, results in order, a few jobs ahead at most.

    Args:
        make: makes the function that does a job; called once a process.
        workers: 1 stays in this process.
    """
    if workers == 1:
        work = make()
        yield lambda jobs: map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")  # threads of DuckDB and Arrow do not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(make,)) as pool:
        try:
            yield lambda jobs: in_order(jobs, lambda job: pool.submit(_do, job), Future.result, 2 * workers)
        except BrokenProcessPool as error:
            raise DinoError(
                "a worker process was killed, most likely because memory was full; run again with fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
