"""Signals: any command ends in time, says so, leaves no process behind, and the same command goes on from there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dino_pipeline.errors import DinoError, limit_of_machine
from dino_pipeline.examples import write_examples
from dino_pipeline.processes import process_pool
from tests.commands import ENVIRONMENT, command, dino, files
from tests.pairs import Words
from tests.serving import MadeUp, made_up

pytestmark = pytest.mark.slow

DEADLINE = 20.0
"""Seconds: what a busy machine makes of the 5 that a command has to end."""
SECOND_DEADLINE = 8.0
"""Of the 1 that it has after a second signal."""
WAITED_FOR = 120.0
"""For the moment at which a signal is sent."""
TRAINED = ("--steps", "9000", "--batch-size", "32")
NOT_SAID = ("Traceback", "Exception ignored", "leaked", "resource_tracker", "Fatal")
BIG_JOB = ("generate", "sts-x2", "--inputs", "inputs.txt", "--samples", "40", "--shard-size", "30", "--run", "run")
SMALL_JOB = ("generate", "sts-x2", "--inputs", "inputs.txt", "--samples", "1", "--shard-size", "30", "--run", "run")
FILTER = ("filter", "data.jsonl", "--run", "run")
Family = list[psutil.Process]
Moment = Callable[[psutil.Process, Path], bool]


def computed(seconds: float) -> Moment:
    """Return the moment when a command has computed for some seconds."""
    return lambda process, folder: sum(process.cpu_times()[:2]) >= seconds


def has(pattern: str) -> Moment:
    return lambda process, folder: any(folder.glob(pattern))


def has_children(name: str, count: int) -> Moment:
    """Return the moment when processes whose command line holds a name run below a command."""

    def reached(process: psutil.Process, folder: Path) -> bool:
        return sum(name in told for told in map(command_line, process.children(recursive=True))) >= count

    return reached


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@dataclass(frozen=True)
class Work:
    """A command and a moment in the middle of its work."""

    arguments: tuple[str, ...]
    moment: Moment


WORKS = {
    "generate": Work(BIG_JOB, has("run/shards/*.jsonl")),
    "until": Work((*SMALL_JOB, "--until-target", "5000"), has("run/shards/*.jsonl")),
    "preview": Work(("preview", "sts-x2", "--inputs", "inputs.txt"), computed(4)),
    "filter": Work((*FILTER, "--workers", "1"), has("run/*.part/*.duckdb")),
    "filter by workers": Work((*FILTER, "--workers", "2"), has_children("spawn_main", 2)),
    "finetune": Work(("finetune", "run", "--fresh", *TRAINED), computed(6)),
    "compare": Work(("compare", "run", "--objectives", "dino", "--fresh", *TRAINED), computed(6)),
    "evaluate": Work(("evaluate", "run/model", "--suite", "pocket"), computed(4)),
    "report": Work(("report", "run"), computed(2.5)),
    "publish": Work(("publish", "run", "--repo", "user/name", "--dry-run"), computed(1.5)),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with inputs."""
    (tmp_path / "inputs.txt").write_text("\n".join(f"The {n} dogs ran to house number {n * n}." for n in range(90)))
    return tmp_path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more than one piece, so that workers are started."""
    path = tmp_path_factory.mktemp("pairs") / "data.jsonl"
    write_examples(path, Words().pairs(6_700))
    return path


@pytest.fixture
def started(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands; what is left of them after the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                command(*arguments),
                cwd=place,
                env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            for each in family(process):
                each.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> Family:
    """Return a process and all below it."""
    top = psutil.Process(process.pid)
    return [top, *top.children(recursive=True)]


def wait_for(moment: Moment, process: subprocess.Popen[str], folder: Path) -> Family:
    """Wait for a moment in a command's work; return its processes."""
    until = time.monotonic() + WAITED_FOR
    top = psutil.Process(process.pid)
    while process.poll() is None and time.monotonic() < until:
        if moment(top, folder):
            return family(process)
        time.sleep(0.02)
    raise AssertionError(f"ended, or did not come so far: {process.poll()}")


def assert_stopped(process: subprocess.Popen[str], number: signal.Signals, within: float) -> str:
    """Check how a command ends; return what it says."""
    _, said = process.communicate(timeout=within)
    assert process.returncode == 128 + number, said
    assert "Stopped." in said
    assert not [word for word in NOT_SAID if word in said], said
    return said


def assert_gone(processes: Family, within: float = DEADLINE) -> None:
    _, alive = psutil.wait_procs(processes, timeout=within)
    assert not [command_line(each) for each in alive]


def prepare(name: str, place: Path, pocket_run: Path, pairs: Path) -> Work:
    """Put there what a command reads."""
    work = WORKS[name]
    if work.arguments[0] == "filter":
        shutil.copy(pairs, place / "data.jsonl")
    elif work.arguments[1].startswith("run"):
        shutil.copytree(pocket_run, place / "run")
    return work


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("after", [0.2, 0.8])
def test_a_command_that_is_only_starting_ends_at_once(
    started: Callable[..., subprocess.Popen[str]], number: signal.Signals, after: float
) -> None:
    process = started(*BIG_JOB)
    time.sleep(after)
    process.send_signal(number)
    assert_stopped(process, number, DEADLINE)


TURNS = [(name, SIGNALS[at % len(SIGNALS)]) for at, name in enumerate(WORKS)]


@pytest.mark.parametrize(("name", "number"), TURNS)
def test_one_signal_ends_a_command_in_its_work(
    name: str,
    number: signal.Signals,
    place: Path,
    pocket_run: Path,
    pairs: Path,
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    work = prepare(name, place, pocket_run, pairs)
    process = started(*work.arguments)
    processes = wait_for(work.moment, process, place)
    process.send_signal(number)
    assert_stopped(process, number, DEADLINE)
    assert_gone(processes)


@pytest.mark.parametrize(("name", "number"), [("generate", signal.SIGTERM), ("finetune", signal.SIGINT)])
def test_a_second_signal_ends_a_command_at_once(
    name: str,
    number: signal.Signals,
    place: Path,
    pocket_run: Path,
    pairs: Path,
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    work = prepare(name, place, pocket_run, pairs)
    process = started(*work.arguments)
    wait_for(work.moment, process, place)
    process.send_signal(number)
    time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(number)
    assert_stopped(process, number, SECOND_DEADLINE)


def test_all_processes_of_a_filter_get_two_signals_from_a_terminal(
    place: Path, pairs: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    shutil.copy(pairs, place / "data.jsonl")
    process = started(*FILTER, "--workers", "2")
    processes = wait_for(has_children("spawn_main", 2), process, place)
    for _ in range(2):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert_stopped(process, signal.SIGINT, SECOND_DEADLINE)
    assert_gone(processes)
    whole = dino(*FILTER, "--workers", "2", cwd=place)
    assert whole.returncode == 0, whole.stderr


def test_no_worker_outlives_a_killed_filter(
    place: Path, pairs: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    shutil.copy(pairs, place / "data.jsonl")
    process = started(*FILTER, "--workers", "2")
    processes = wait_for(has_children("spawn_main", 2), process, place)
    assert len(processes) >= 4  # with what looks after semaphores
    process.kill()
    assert_gone(processes)


def make_sleep() -> Callable[[float], None]:
    return time.sleep


@pytest.mark.parametrize("jobs", [[0.0, 60.0, 60.0], [0.0, 0.0, 60.0], [0.0, 0.0, 0.0]], ids=repr)
@pytest.mark.parametrize("at", range(3))
def test_a_killed_worker_ends_the_work_and_the_other_workers(jobs: list[float], at: int) -> None:
    """Of busy and idle workers, any one is killed: an idle one holds the lock of the queue."""
    others = psutil.Process().children()
    found: Family = []
    begun = time.monotonic()

    def kill_one() -> None:
        while len(found) < len(jobs) and time.monotonic() < begun + WAITED_FOR:
            children = [each for each in psutil.Process().children() if each not in others]
            found[:] = [each for each in children if "spawn_main" in command_line(each)]
            time.sleep(0.02)
        time.sleep(1)
        found[at].kill()

    killer = threading.Thread(target=kill_one)
    with contextlib.suppress(DinoError), process_pool(make_sleep, len(jobs)) as mapped:
        killer.start()
        list(mapped(iter(jobs)))
        killer.join()
        if any(jobs):
            raise AssertionError("a worker was killed at work, and nothing said so")
    assert time.monotonic() - begun < WAITED_FOR / 3
    assert_gone(found)


def test_workers_that_cannot_be_started_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def work() -> None:
        with process_pool(make_sleep, 2) as mapped:
            monkeypatch.setattr("_posixsubprocess.fork_exec", refuse)
            list(mapped(iter([0.0])))

    with pytest.raises(BlockingIOError) as caught:
        work()
    named = limit_of_machine(caught.value)
    assert named and named.message == "no further process or thread can be started"


SCRIPT = """
import _thread, contextlib, threading, time
import psutil
import dino_pipeline as dino

def workers():
    found = 0
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            found += "spawn_main" in " ".join(each.cmdline())
    return found

def interrupt():
    while workers() < 2:
        time.sleep(0.01)
    _thread.interrupt_main()

if __name__ == "__main__":
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        dino.filter("data.jsonl", workers=2, progress=False)
    except KeyboardInterrupt:
        print("interrupted", workers())
"""


def test_a_script_that_is_interrupted_keeps_no_workers(place: Path, pairs: Path) -> None:
    shutil.copy(pairs, place / "data.jsonl")
    (place / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAITED_FOR
    )
    assert done.stdout == "interrupted 0\n", done.stderr
    assert not [word for word in NOT_SAID if word in done.stderr], done.stderr


def test_what_is_paused_goes_on_and_under_nohup_a_hangup_is_ignored(
    place: Path, pairs: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    shutil.copy(pairs, place / "data.jsonl")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(*FILTER, "--workers", "2")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(has_children("spawn_main", 2), process, place)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGHUP)
    _, said = process.communicate(timeout=WAITED_FOR)
    assert process.returncode == 0, said
    assert "Stopped" not in said
    paused = files(place / "run")
    shutil.rmtree(place / "run")
    assert dino(*FILTER, "--workers", "1", cwd=place).returncode == 0
    assert files(place / "run") == paused


class Slow(MadeUp):
    """Answers in its own time."""

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        time.sleep(0.1)
        return super().completion(body)


def test_a_server_s_client_stops_pauses_and_goes_on(place: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    server = Slow()
    with made_up(server) as address:
        told = (*SMALL_JOB, "--engine", "openai", "--base-url", address, "--model", "m", "--timeout", "2")
        process = started(*told)
        wait_for(has("run/shards/*.jsonl"), process, place)
        process.send_signal(signal.SIGTERM)
        assert_stopped(process, signal.SIGTERM, DEADLINE)
        asked = len(server.bodies)
        process = started(*told)
        wait_for(lambda top, folder: len(server.bodies) > asked + 10, process, place)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)  # all requests under way take longer than they may
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=WAITED_FOR)
    assert process.returncode == 0, said
    assert len(list((place / "run" / "shards").glob("*.jsonl"))) == 9


def listening(processes: Family) -> list[str]:
    """Return the addresses on which processes listen."""
    found = []
    for process in processes:
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                found.append(connection.laddr.ip.removeprefix("::ffff:"))
    return found


class TestRay:
    """What a cluster that a command starts here does."""

    @pytest.fixture(autouse=True)
    def _has_ray(self) -> None:
        pytest.importorskip("ray", reason="needs ray")

    def test_it_listens_on_loopback_only_and_ends_with_a_killed_command(
        self, place: Path, pairs: Path, started: Callable[..., subprocess.Popen[str]]
    ) -> None:
        shutil.copy(pairs, place / "data.jsonl")
        process = started(*FILTER, "--ray", "local")
        wait_for(has_children("ray::_PoolWorker", 1), process, place)
        processes = family(process)
        addresses = listening(processes)
        assert len(addresses) > 3
        assert set(addresses) == {"127.0.0.1"}
        process.kill()
        assert_gone(processes)

    def test_one_signal_ends_it(self, place: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
        process = started(*BIG_JOB, "--ray", "local")
        processes = wait_for(has("run/shards/*.jsonl"), process, place)
        process.send_signal(signal.SIGTERM)
        assert_stopped(process, signal.SIGTERM, DEADLINE)
        assert_gone(processes)
