"""Connecting to a Ray cluster, its size, and a pool of workers there that do any jobs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_pipeline.errors import DinoError, ModelError, OptionError, RunError, first_line, require_package
from dino_pipeline.model_files import ALLOW_PICKLE
from dino_pipeline.processes import MakeWork, ordered_results
from dino_pipeline.stopping import STOP_SIGNALS, Stopped, handlers_kept, signals_blocked

CALLS_PER_WORKER = 2
"""Jobs, or shards, that a worker has at a time: it goes on with the second one when the first ends."""
TERMINAL_SIGNALS = [number for number in STOP_SIGNALS if number != signal.SIGTERM]
"""What a terminal sends to all processes of a command; Ray ends its own by the other one."""


@dataclass(frozen=True)
class ClusterResources:
    """The number of workers on a cluster, and the CPUs and GPUs that each of them gets."""

    workers: int
    """At most. Workers that the cluster has no room for start when nodes are added."""
    cpus: float
    """Per worker; it computes with as many threads."""
    gpus: float
    """Per worker; workers share a GPU if it is less than 1."""


def choose_resources(
    workers: int | None, worker_cpus: float | None, worker_gpus: float | None, *, use_gpus: bool = True
) -> ClusterResources:
    """Return what a user asked for; the rest is what the connected cluster has.

    Args:
        workers: at most this many; None fills the cluster.
        worker_cpus: per worker; None is 1.
        worker_gpus: per worker; None is 1 on a cluster with GPUs.
        use_gpus: whether None may mean a GPU.
    """
    cpus, gpus = total_resources()
    per_worker = worker_cpus or 1.0
    if worker_gpus is None:
        worker_gpus = 1.0 if gpus and use_gpus else 0.0
    room = gpus / worker_gpus if worker_gpus else cpus / per_worker
    return ClusterResources(workers or max(1, int(room)), per_worker, worker_gpus)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a Ray cluster, and disconnect at the end; a cluster that was started here ends.

    A script that is connected already stays so, to the cluster of its choice.

    Args:
        address: the cluster's; "auto" takes ``RAY_ADDRESS``, else the cluster that this user started on this machine,
            else it starts one; "local" starts one.

    Raises:
        OptionError: Ray is not installed, there is no such cluster, or "auto" finds one of another user.
    """
    if Path(address).exists():
        raise OptionError(
            "is a file or folder, but was taken for a cluster's address",
            "give {ray} after it, or write {ray=auto}",
            option="ray",
            value=address,
        )
    require_package("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():  # by the caller
        yield
        return
    guard = _connect(None if address == "auto" else address)
    try:
        yield
    finally:
        ray.shutdown()
        if guard:
            guard.communicate()


def _connect(address: str | None) -> subprocess.Popen[bytes] | None:
    """Join a cluster, or start one here; return the guard of one that was started."""
    import ray

    try:
        with handlers_kept():
            place = address or _running_cluster() or "local"
            if place == "local":
                return _start_here()
            if found := re.search(r"([^/:@\[\]]+):(\d+)$", place):
                # look whether the port is open: Ray itself would try for minutes
                socket.create_connection((found[1], int(found[2])), timeout=10).close()
            # Ray finds the running one again: it knows a token only for one that it has found
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return None
    except SystemExit as error:  # of Ray's handler of SIGTERM, while it starts
        raise Stopped(signal.SIGTERM) from error
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise OptionError(
            f"no cluster can be reached ({first_line(error)})",
            "give the address that Ray printed when the cluster was started, or {ray=local} to start one here",
            option="ray",
            value=address,
        ) from error


def _running_cluster() -> str | None:
    """Return the address of the cluster that ``auto`` joins, None if there is none.

    Raises:
        OptionError: another user started the cluster that runs on this machine; who joins it runs that user's code.
    """
    from ray._private.utils import get_ray_address_file

    if address := os.environ.get("RAY_ADDRESS"):
        return address
    with contextlib.suppress(FileNotFoundError):
        file = Path(get_ray_address_file(None))
        found, owner = file.read_text().strip(), file.stat().st_uid
        if found and hasattr(os, "getuid") and owner != os.getuid():
            raise OptionError(
                f"another user started the cluster on this machine ({found})",
                "give its address to trust it with all that you can do, or {ray=local} to start one of your own",
                option="ray",
                value="auto",
            )
        return found or None
    return None


def _start_here() -> subprocess.Popen[bytes]:
    """Start a cluster that only this machine's processes can reach, and that ends with this process; return its guard.

    Ray's processes end with this one, but for two agents that would stay for a minute: the guard ends them.
    """
    import psutil
    import ray
    from ray._private import ray_constants

    others = psutil.Process().children(recursive=True)

    def started() -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if process not in others]

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray then takes the loopback address for the node's, and listens there
    try:
        with signals_blocked(TERMINAL_SIGNALS):
            ray.init(
                address="local",
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except BaseException:
        by_now = started()
        ray.shutdown()
        for process in by_now:
            with contextlib.suppress(psutil.Error):
                process.kill()
        raise
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
    guard = [sys.executable, "-c", GUARD, *(str(process.pid) for process in started())]
    return subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)


GUARD = """
import contextlib, sys, psutil

guarded = []
for process in sys.argv[1:]:
    with contextlib.suppress(psutil.Error):
        guarded.append(psutil.Process(int(process)))
sys.stdin.read()
for process in guarded:
    with contextlib.suppress(psutil.Error):
        process.kill()
"""
"""A program that ends processes once its standard input is closed, as it is when the process that started it ends."""


def total_resources() -> tuple[float, float]:
    import ray

    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def worker_error(error: Any) -> BaseException:
    """Return the `DinoError` that a worker raised, or Ray's error around any other."""
    return error.cause if isinstance(error.cause, DinoError) else error


@dataclass(frozen=True)
class WorkerEnvironment:
    """Working folder and permission to read pickled weights, to reproduce on workers."""

    folder: str
    allow_pickle: str

    @classmethod
    def current(cls) -> WorkerEnvironment:
        return cls(str(Path.cwd()), os.environ.get(ALLOW_PICKLE, "0"))

    def enter(self) -> None:
        """Make it this process's environment; a folder that is not on this machine is left out."""
        os.environ[ALLOW_PICKLE] = self.allow_pickle
        with contextlib.suppress(OSError):
            os.chdir(self.folder)


class RayPool:
    """Workers of a cluster that do any jobs.

    A job must depend on nothing but its argument: Ray repeats the jobs of lost workers and nodes elsewhere. Workers
    that the cluster has no room for take part once nodes are added.

    Args:
        resources: how many workers, and what each gets.
        folder: read and written by the jobs.

    Raises:
        RunError: a worker's machine does not have the folder.
        ModelError: the cluster lost its workers.
    """

    def __init__(self, resources: ClusterResources, folder: Path) -> None:
        import ray

        actor = ray.remote(num_cpus=resources.cpus, max_restarts=-1, max_task_retries=-1)(_PoolWorker)
        workers = [actor.remote(WorkerEnvironment.current()) for _ in range(resources.workers)]
        self.folder = folder
        self.starting = {worker.has_folder.remote(folder.resolve()): worker for worker in workers}
        self.running: list[Any] = []
        with _named_errors():
            self._take_in(None)

    def _take_in(self, timeout: float | None) -> None:
        """Wait for a worker that starts, with None as long as it takes, and let those that have started take part."""
        import ray

        if not self.starting:
            return
        found, _ = ray.wait(list(self.starting), num_returns=1, timeout=timeout)
        for answer in found:
            host, has_folder = ray.get(answer)
            if not has_folder:
                raise RunError(f"{self.folder}: is not there on {host}", "put it on a file system that all nodes share")
            self.running.append(self.starting.pop(answer))

    @contextlib.contextmanager
    def spread(self, make: MakeWork) -> Iterator[Callable[[Iterator[Any]], Iterator[Any]]]:
        """Give a map over jobs that yields their results in order, few jobs ahead; see `processes.OrderedMap`.

        Raises:
            DinoError: as the jobs do.
            ModelError: the cluster lost its workers.
        """
        import ray

        shared_make = ray.put(make)

        def results(jobs: Iterator[Any]) -> Iterator[Any]:
            turns = itertools.count()

            def begin(job: Any) -> Any:
                self._take_in(0)
                worker = self.running[next(turns) % len(self.running)]
                return worker.do.remote(shared_make, shared_make.hex(), job)

            ahead = CALLS_PER_WORKER * (len(self.running) + len(self.starting))
            with _named_errors():
                yield from ordered_results(jobs, begin, ray.get, ahead)

        yield results


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """Raise what a worker raised, or `ModelError` if there is none any more."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise worker_error(error) from error
    except ray.exceptions.RayError as error:
        raise ModelError(f"the cluster lost its workers ({first_line(error)})", "run the same again") from error


class _PoolWorker:
    """Does jobs on the cluster."""

    def __init__(self, environment: WorkerEnvironment) -> None:
        environment.enter()
        self.name = ""
        self.function: Callable[[Any], Any] = lambda job: job

    def has_folder(self, folder: Path) -> tuple[str, bool]:
        """Return this machine's name, and whether it has a folder."""
        return socket.gethostname(), folder.is_dir()

    def do(self, make: MakeWork, name: str, job: Any) -> Any:
        """Do one job with the function that ``make`` makes; it is made once for jobs of the same name."""
        if name != self.name:
            self.name, self.function = name, make()
        return self.function(job)
