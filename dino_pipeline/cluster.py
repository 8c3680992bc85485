"""Being on a Ray cluster: connecting, what is there, what a worker finds about it, jobs spread over workers."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_pipeline.errors import DinoError, ModelError, OptionError, RunError, first_line, require_package
from dino_pipeline.models import ALLOW_PICKLE
from dino_pipeline.processes import MakeWork, ordered_results

AHEAD = 2
"""Jobs, or shards, that a worker has at once: while one ends, it goes on with the next."""


@dataclass(frozen=True)
class Staff:
    """What a cluster is asked for."""

    workers: int
    """At most: those that it has no room for start when nodes are added."""
    cpus: float
    """Of each worker: as many threads compute."""
    gpus: float
    """Likewise; less than 1 shares one."""


def connect(address: str | None) -> None:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: the cluster's; None takes ``RAY_ADDRESS``, or the one that was started here last, or starts one.

    Raises:
        OptionError: Ray is not installed, or there is no such cluster.
    """
    require_package("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    try:
        if address and (place := re.search(r"([^/:@\[\]]+):(\d+)$", address)):
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself tries for minutes
        started = {} if address not in (None, "local") else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **started)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise OptionError(
            f"--ray {address or ''}: no cluster can be reached ({first_line(error)}); give the address that "
            "`ray start --head` told, or --ray alone to start one here"
        ) from error


def leave() -> None:
    """Leave the cluster; what runs there for this process ends."""
    import ray

    ray.shutdown()


def resources() -> tuple[float, float]:
    """Return the CPUs and the GPUs of the cluster."""
    import ray

    found = ray.cluster_resources()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)


def own_error(error: Any) -> BaseException:
    """Return the error that was raised on a worker."""
    return error.cause if isinstance(error.cause, DinoError) else error


@dataclass(frozen=True)
class Surroundings:
    """What a command finds about it, and what it starts on a cluster is to find, too: relative paths, permissions."""

    folder: str
    pickles: str

    @classmethod
    def here(cls) -> Surroundings:
        """Return this process's."""
        return cls(str(Path.cwd()), os.environ.get(ALLOW_PICKLE, "0"))

    def enter(self) -> None:
        """Work in the same, as far as they are there."""
        os.environ[ALLOW_PICKLE] = self.pickles
        with contextlib.suppress(OSError):
            os.chdir(self.folder)


class Doers:
    """Workers of the cluster that do any jobs.

    Jobs depend on nothing but themselves: those of workers and nodes that are lost, Ray has done again elsewhere.

    Args:
        staff: how many, of what size.
        folder: that which jobs read and write.

    Raises:
        RunError: a worker does not see the folder.
    """

    def __init__(self, staff: Staff, folder: Path) -> None:
        import ray

        remote = ray.remote(num_cpus=staff.cpus, max_restarts=-1, max_task_retries=-1)(_Doer)
        self.doers = [remote.remote(Surroundings.here()) for _ in range(staff.workers)]
        for host, seen in ray.get([doer.sees.remote(folder.resolve()) for doer in self.doers]):
            if not seen:
                raise RunError(f"{folder}: is not there on {host}; put it on a file system that all nodes share")

    @contextlib.contextmanager
    def spread(self, make: MakeWork) -> Iterator[Callable[[Iterator[Any]], Iterator[Any]]]:
        """Give a map over jobs, results in order, a few jobs ahead at most.

        Raises:
            DinoError: as the jobs do.
        """
        import ray

        how = ray.put(make)

        def ordered(jobs: Iterator[Any]) -> Iterator[Any]:
            turns = itertools.cycle(self.doers)
            try:
                yield from ordered_results(
                    jobs, lambda job: next(turns).do.remote(how, how.hex(), job), ray.get, AHEAD * len(self.doers)
                )
            except ray.exceptions.RayTaskError as error:
                raise own_error(error) from error
            except ray.exceptions.RayError as error:
                raise ModelError(f"the cluster lost its workers ({first_line(error)}); run the same again") from error

        yield ordered


class _Doer:
    """Does jobs on the cluster."""

    def __init__(self, surroundings: Surroundings) -> None:
        surroundings.enter()
        self.known = ""
        self.work: Callable[[Any], Any] = lambda job: job

    def sees(self, folder: Path) -> tuple[str, bool]:
        """Return this machine's name, and whether a folder is there."""
        return socket.gethostname(), folder.is_dir()

    def do(self, make: MakeWork, name: str, job: Any) -> Any:
        """Do one; what does it is made for the first of its name."""
        if name != self.known:
            self.known, self.work = name, make()
        return self.work(job)
