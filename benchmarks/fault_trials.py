"""One trial of a fault: a copy of a prepared run, a command with the fault, what is checked, the command without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ONE_THREAD, command
from benchmarks.kills import contents

MARK = "DINO_FAULTS_TRIAL"
"""Environment variable by which the processes of a trial are found again."""
DEADLINE = 150.0
"""Seconds after which a command counts as hanging."""
LEAVING = 10.0
"""Seconds that children of an ended command have to end."""
CRASHED = re.compile(r"Traceback \(most recent call last\)|Exception ignored|Fatal Python error|core dumped")
CACHES = "torchinductor_"
"""Beginning of the name of a folder that torch makes when it is imported."""
UNTOLD = (".lock", "run.json", "README.md", "report.html", "estimate.json")
"""Files that hold times or processes, so that they differ from call to call."""
PATCHES = Path(__file__).parent / "faults_inside"
"""Holds the ``sitecustomize`` that puts faults into a process."""


@dataclass(frozen=True)
class Call:
    """A command that faults are tried on."""

    name: str
    words: tuple[str, ...]
    state: str
    """Which of the prepared folders it starts from: the name of the call that made it."""
    makes: tuple[str, ...] = ()
    """Beginnings of the names of the files that it makes."""
    serve: Callable[[Trial], AbstractContextManager[str]] | None = None
    """Runs a server, whose address takes the place of URL in the words."""
    problem: int = 2
    """Exit code if what it reads is damaged."""


def nothing(trial: Trial) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong around a command."""

    name: str
    calls: tuple[str, ...]
    """Names of the calls that it is tried on."""
    shell: str = 'exec "$@"'
    """How bash starts the command, which is ``"$@"``."""
    before: Callable[[Trial], object] = nothing
    during: Callable[[Trial], object] = nothing
    after: Callable[[Trial], object] = nothing
    """Undoes what ``before`` did."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    """More words of the command, also when it is run again."""
    data: str = "data.jsonl"
    """File that takes the place of DATA in the words."""
    state: str = ""
    """Which prepared folder it starts from, if not the call's own."""
    ends: tuple[int, ...] = (0, 2)
    """Exit codes that it may end with; negative: by that signal."""
    says: str = ""
    """Regular expression that standard error matches if the exit code is not 0."""
    cleans: bool = True
    """Whether the command has a chance to clean up."""
    again: bool = True
    """Whether the same command without the fault makes what an undisturbed one does."""
    unfit: Callable[[], str] = lambda: ""
    """Why it cannot be tried on this machine, empty if it can."""


@dataclass
class Trial:
    """A folder in which a command runs with a fault."""

    call: Call
    fault: Fault
    place: Path
    usual: float = 0.0
    """Seconds that the command usually takes."""
    process: subprocess.Popen[bytes] | None = None
    problems: list[str] = field(default_factory=list)
    harmed: Path | None = None
    """The file that was damaged."""
    respond: Callable[..., Any] | None = None
    """How its server answers while there is a fault; None: as it should."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def run(self) -> Path:
        return self.place / "run"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait_for(self, share: float) -> bool:
        """Wait for a share of the command's usual time; return whether it still runs."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(share * self.usual)
        return self.process.returncode is None

    def holds_run(self) -> bool:
        """Wait until the command holds the run's lock; return False if it has ended."""
        while self.wait_for(0.02):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads((self.run / ".lock").read_text())["process"] == self.pid:
                    return True
        return False

    def environment(self, more: Mapping[str, str | None]) -> dict[str, str]:
        paths = [str(PATCHES), str(PATCHES.parent.parent), os.environ.get("PYTHONPATH", "")]
        own: dict[str, str | None] = {MARK: self.mark, "TMPDIR": str(self.place / "tmp")}
        own |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        whole = {**ONE_THREAD, **own, **more}
        return {name: value.replace("PLACE", str(self.place)) for name, value in whole.items() if value is not None}

    def start(
        self, words: Sequence[str], name: str, shell: str = 'exec "$@"', more: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in the trial's folder; its output goes to files of this name beside it."""
        with open(self.said(name, "out"), "wb") as out, open(self.said(name, "err"), "wb") as err:
            return subprocess.Popen(
                ["bash", "-c", f"set -o pipefail; {shell}", "bash", *command(*words)],
                cwd=self.place,
                env=self.environment(more or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    def said(self, name: str, kind: str = "err") -> Path:
        return self.place.parent / f"{self.place.name}.{name}.{kind}"

    def also(self, *words: str) -> tuple[int, str]:
        """Run another command meanwhile; return its exit code and what it says."""
        process = self.start(words, "other")
        code = finished(process)
        return code, self.said("other").read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Return the trial's processes that are alive."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@dataclass(frozen=True)
class Outcome:
    """What became of a pair of a command and a fault."""

    call: str
    fault: str
    code: int | None
    became: str
    seconds: float
    megabytes: float = 0.0
    problems: tuple[str, ...] = ()
    said: str = ""
    """The last of standard error."""


def finished(process: subprocess.Popen[bytes], seconds: float = DEADLINE) -> int:
    """Wait for a process; kill its group at the deadline."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def peak_of(process: subprocess.Popen[bytes], seconds: float) -> float:
    """Wait for a process and return the most resident megabytes that were seen of it and its children."""
    peak, end = 0.0, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(process.pid)
            peak = max(peak, sum(each.memory_info().rss for each in (top, *top.children(recursive=True))) / 1e6)
        time.sleep(0.1)
    return peak


def _files(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name not in UNTOLD and ".part" not in str(path):
            with contextlib.suppress(OSError):
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def made(place: Path, call: Call) -> dict[str, Any]:
    """Return what a call made, times left out; a file that cannot be read as what it was is its error."""
    try:
        found = contents(place)
    except ValueError as error:
        return {"unreadable": str(error)}
    found |= {path.name: path.read_bytes() for path in place.glob("exported.jsonl")}
    return {name: value for name, value in found.items() if name.startswith(call.makes)}


def _lost(
    place: Path, before: Mapping[str, bytes], damaged: Mapping[str, bytes], whole: Mapping[str, Any]
) -> Iterator[str]:
    """Yield files that a run had and has no more, or that are neither what they were nor what they should be."""
    after = _files(place / "run")
    good = None
    for name, content in before.items():
        found = after.get(name)
        if found in (content, damaged.get(name)):
            continue
        if good is None:
            with contextlib.suppress(ValueError):
                good = contents(place)
        key = f"run/{name}"
        if found is None or good is None or key not in good or good[key] != whole.get(key):
            yield name


@dataclass
class Bench:
    """The prepared folders, and what the calls make undisturbed."""

    root: Path
    calls: Mapping[str, Call]
    seconds: dict[str, float] = field(default_factory=dict)
    makes: dict[str, dict[str, Any]] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)

    def state(self, name: str) -> Path:
        return self.root / f"state-{name}"

    def prepare(self, call: Call, keep: bool) -> None:
        """Carry a call out undisturbed; ``keep`` its folder for those that start from it."""
        trial = Trial(call, Fault("none", ()), self.root / f"made-{call.name}")
        self._copy(call.state, trial.place)
        with serving(trial) as words:
            begun = time.monotonic()
            code = finished(trial.start(words, "prepared"), 4 * DEADLINE)
        said = trial.said("prepared").read_text(errors="replace")
        if code or CRASHED.search(said):
            raise SystemExit(f"{call.name}: ended with {code}: {said[-2000:]}")
        self.seconds[call.name] = time.monotonic() - begun
        self.makes[call.name] = made(trial.place, call)
        if keep:
            self.whole |= contents(trial.place)
            trial.place.rename(self.state(call.name))
        else:
            shutil.rmtree(trial.place)

    def _copy(self, state: str, place: Path) -> None:
        shutil.copytree(self.state(state), place, symlinks=True)
        (place / "tmp").mkdir(exist_ok=True)

    def tried(self, call: Call, fault: Fault, number: int) -> Outcome:
        """Try one pair."""
        trial = Trial(call, fault, self.root / f"trial-{number}", self.seconds[call.name])
        begun = time.monotonic()
        self._copy(fault.state or call.state, trial.place)
        code, peak, said = None, 0.0, ""
        try:
            with serving(trial) as words:
                code, peak = self._with_fault(trial, words)
                said = trial.said("faulty").read_text(errors="replace")
                self._check_end(trial, code, said)
                fault.after(trial)
                trial.respond = None
                became = self._again(trial, words, code)
        except subprocess.TimeoutExpired:
            became = "hangs"
            trial.problems.append(f"hangs: still runs after {DEADLINE:.0f} s")
        finally:
            for process in trial.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            fault.after(trial)
        problems = tuple(trial.problems)
        if not problems:
            shutil.rmtree(trial.place)
        return Outcome(call.name, fault.name, code, became, time.monotonic() - begun, peak, problems, said[-1500:])

    def _with_fault(self, trial: Trial, words: Sequence[str]) -> tuple[int, float]:
        """Run the command with its fault, and compare what there was before with what there is after."""
        fault, before = trial.fault, _files(trial.run)
        fault.before(trial)
        damaged = _files(trial.run)
        trial.process = trial.start(words, "faulty", fault.shell, fault.environment)
        fault.during(trial)
        peak = peak_of(trial.process, DEADLINE)
        code = finished(trial.process, 0.1)
        end = time.monotonic() + LEAVING
        while (left := trial.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.Error):
                trial.problems.append(f"process left: {' '.join(process.cmdline())[-120:]}")
                process.kill()
        if fault.cleans:
            trial.problems += [f"lost work: {name}" for name in _lost(trial.place, before, damaged, self.whole)]
            trial.problems += [f"left: {path.name}" for path in trial.place.rglob("*.part")]
            left_over = (path.name for path in (trial.place / "tmp").glob("*"))
            trial.problems += [f"left in TMPDIR: {name}" for name in left_over if not name.startswith(CACHES)]
        return code, peak

    def _check_end(self, trial: Trial, code: int, said: str) -> None:
        if crash := CRASHED.search(said):
            trial.problems.append(f"traceback: {crash[0]}")
        expected = trial.fault.ends
        if code not in expected:
            trial.problems.append(f"ended with {code}, not {' or '.join(map(str, expected))}")
        if code and not re.search(trial.fault.says, said + trial.said("faulty", "out").read_text(errors="replace")):
            trial.problems.append(f"does not say: {trial.fault.says}")
        if code == 2 and not re.search(r"^error: |^Error: ", said, re.MULTILINE):
            trial.problems.append("exit code 2 without an error message")

    def _again(self, trial: Trial, words: Sequence[str], code: int) -> str:
        """Run the command again where its result is not what it should be yet; say in words what became of it."""
        ended = {0: "done", 2: "refused", 1: "reported"}.get(code, f"stopped ({code})")
        if not trial.fault.again:
            return ended
        whole = self.makes[trial.call.name]
        if code == 0 and self._same(trial, whole):
            return f"{ended}, the same"
        if code == 0 and not trial.fault.state:
            pass  # such as one that was killed in its last moment
        elif code == 0:
            trial.problems.append(f"other result: {self._different(trial, whole)}")
        code = finished(trial.start(words, "again"))
        said = trial.said("again").read_text(errors="replace")
        if code or CRASHED.search(said):
            trial.problems.append(f"again: ended with {code}: {said[-300:]}")
        elif not self._same(trial, whole):
            trial.problems.append(f"again: other result: {self._different(trial, whole)}")
        elif left := [path.name for path in trial.place.rglob("*.part")]:
            trial.problems.append(f"again: left: {left[0]}")
        return f"{ended}, then the same"

    def _same(self, trial: Trial, whole: Mapping[str, Any]) -> bool:
        return made(trial.place, trial.call) == whole

    def _different(self, trial: Trial, whole: Mapping[str, Any]) -> str:
        found = made(trial.place, trial.call)
        names = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
        return ", ".join(names[:4])


@contextlib.contextmanager
def serving(trial: Trial) -> Iterator[list[str]]:
    """Yield the words of a trial's command, with its server's address if it has one."""
    words = [*trial.call.words, *trial.fault.words]
    with trial.call.serve(trial) if trial.call.serve else contextlib.nullcontext("") as address:
        stands_for = {"URL": address, "DATA": trial.fault.data, "PLACE": str(trial.place)}
        for name, value in stands_for.items():
            words = [word.replace(name, value) for word in words]
        yield words
