"""The faults: signals, two at once, clocks, limits, rights and surroundings; those of files and servers beside them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.common import SPEC
from benchmarks.fault_calls import LONG, QUICK, STAGES, STEPS, ends_of, signalled
from benchmarks.fault_files import FILE_FAULTS
from benchmarks.fault_servers import SERVER_FAULTS
from benchmarks.fault_trials import Fault, Trial


def pause(trial: Trial) -> None:
    """Stop the process for two seconds."""
    if trial.wait_for(0.5):
        os.kill(trial.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(trial.pid, signal.SIGCONT)


WHEN: dict[str, tuple[tuple[str, ...], *tuple[float, ...]]] = {  # on which calls, and after which shares of their time
    "early": (("generate", "filter-2", "publish"), 0.15),
    "midway": (LONG, 0.6),
    "twice": (("generate", "served", "filter-2", "finetune", "compare"), 0.5, 0.03),
}


def _signals() -> Iterator[Fault]:
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
    for number, name in names.items():
        group = number != signal.SIGTERM
        for when, (calls, *moments) in WHEN.items():
            send = signalled(number, *moments, group=group)
            yield Fault(f"{name} {when}", calls, during=send, ends=ends_of(number))
    kill = signalled(signal.SIGKILL, 0.6)
    yield Fault("SIGKILL of the parent", LONG, during=kill, ends=(0, -9), cleans=False)
    yield Fault("paused for 2 s", ("generate", "served", "filter-2", "finetune"), during=pause, ends=(0,))
    quick = ("preview", "export", "verify")
    yield Fault("Ctrl-C early", quick, during=signalled(signal.SIGINT, 0.3, group=True), ends=ends_of(2))
    yield Fault("SIGTERM midway", quick, during=signalled(signal.SIGTERM, 0.7), ends=ends_of(15))


def meanwhile(*words: str, said: str = "another process works here") -> Callable[[Trial], None]:
    """Return what starts another command, by default the same, midway; it must be refused by name, or find it done."""

    def start(trial: Trial) -> None:
        works = trial.holds_run()
        code, found = trial.also(*(words or trial.call.words))
        refused = code == 2 and said in found
        if "Traceback" in found or (works and trial.wait_for(0) and not refused):
            trial.problems.append(f"the other command ended with {code}: {found[-300:]}")

    return start


def _together() -> Iterator[Fault]:
    at_work = ("generate", "filter-2", "finetune", "evaluate", "compare", "publish")
    yield Fault("the same command twice", at_work, during=meanwhile(), ends=(0,))
    yield Fault("filter --fresh meanwhile", ("finetune",), during=meanwhile("filter", "run", "--fresh"), ends=(0,))
    yield Fault("generate meanwhile", ("until",), during=meanwhile("generate", str(SPEC), "--run", "run"), ends=(0,))
    yield Fault("finetune meanwhile", ("evaluate",), during=meanwhile("finetune", "run", *STEPS), ends=(0,))


def age(days: float) -> Callable[[Trial], None]:
    """Return what gives all files another time."""

    def touch(trial: Trial) -> None:
        for path in trial.place.rglob("*"):
            os.utime(path, (time.time() + 86400 * days,) * 2)

    return touch


def _clocks() -> Iterator[Fault]:
    of = ("generate", "finetune", "evaluate", "served")
    yield Fault("clock set back", of, environment={"DINO_CLOCK": "-1e9"}, ends=(0,))
    yield Fault("clock set forward", of, environment={"DINO_CLOCK": "1e9"}, ends=(0,))
    yield Fault("files of the future", ("generate", "filter", "publish"), before=age(999), state="publish", ends=(0,))


def _limits() -> Iterator[Fault]:
    full = "memory|mmap|map|allocat|thread|space|start"
    ends = (0, 1, 2, 127, -signal.SIGABRT, 128 + signal.SIGABRT)  # the C library and OpenBLAS end the process
    for megabytes in (700, 1500, 3000):
        of = ("generate", "filter", "filter-2", "finetune", "evaluate", "report", "export")
        yield Fault(
            f"{megabytes} MB of memory", of, f'ulimit -v {megabytes}000; exec "$@"', says=full, ends=ends, cleans=False
        )
    files = ("generate", "filter", "filter-2", "finetune", "publish", "export")
    yield Fault("24 open files", files, 'ulimit -n 24; exec "$@"', says="open files")
    unwritten = "cannot be (read or )?written|write|make room|raise the limit"
    writes = (*STAGES, "export", "filter-2", "until", "storage")
    yield Fault("disk full after 2 KiB", writes, 'ulimit -f 2; exec "$@"', says=unwritten)
    yield Fault("disk full after 60 KiB", writes, 'ulimit -f 60; exec "$@"', says=unwritten)
    slow = ("generate", "finetune", "filter-2")
    yield Fault("2 s of CPU", slow, 'ulimit -t 2; exec "$@"', ends=(0, -24, 152, -9), cleans=False)
    yield Fault("a small stack", ("generate", "filter"), 'ulimit -s 300; exec "$@"')
    forking = ("filter-2", "finetune", "evaluate", "publish", "generate")
    yield Fault("no more processes", forking, environment={"DINO_NO_FORK": "1"}, says="process|start|fork|resource")


NO_RIGHTS = 'exec setpriv --bounding-set=-dac_override,-dac_read_search -- "$@"' if os.getuid() == 0 else 'exec "$@"'


def _unfit() -> str:
    return "root without setpriv writes everywhere" if os.getuid() == 0 and not shutil.which("setpriv") else ""


def forbidden(*names: str, folders_only: bool = False) -> Callable[[Trial], None]:
    """Return what makes a folder of the trial, or all in it, read-only."""

    def forbid(trial: Trial) -> None:
        for name in names:
            for path in (trial.place / name, *(trial.place / name).rglob("*")):
                if path.is_dir() or not folders_only:
                    path.chmod(path.stat().st_mode & ~0o222)

    return forbid


def allow(trial: Trial) -> None:
    """Make all of a trial's files writable again."""
    for path in (trial.place, *trial.place.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def _rights() -> Iterator[Fault]:
    later = ("filter", "finetune", "evaluate", "report", "publish", "export")
    said = "cannot be written|Permission denied"
    unwritable = partial(Fault, shell=NO_RIGHTS, after=allow, unfit=_unfit, says=said)

    def parent(trial: Trial) -> None:
        trial.place.chmod(0o555)

    def outputs(trial: Trial) -> None:
        for path in trial.run.rglob("*"):
            if path.is_file():
                path.chmod(0o444)

    yield unwritable("read-only run", later, before=forbidden("run"))
    yield unwritable("read-only parent", ("generate", "filter", "filter-2", "publish"), before=parent)
    yield unwritable("read-only files", (*STAGES, "export"), before=outputs, state="publish")
    everywhere = {"HOME": "PLACE/tmp/none", "TMPDIR": "PLACE/tmp/none"}
    locked_home = ("generate", "filter", "finetune", "publish")
    yield unwritable("read-only HOME and TMPDIR", locked_home, before=forbidden("tmp"), environment=everywhere)


def _surroundings() -> Iterator[Fault]:
    none = {"HOME": None, "TMPDIR": None, "HF_HOME": None, "XDG_CACHE_HOME": None, "USER": None, "LOGNAME": None}
    missing = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"), "/nowhere/at/all")
    ascii = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    narrow = {"COLUMNS": "1", "LINES": "1", "NO_COLOR": "1", "TERM": "dumb"}
    of = (*STAGES, "filter-2", "export")
    yield Fault("no HOME, TMPDIR, caches", of, environment=none, ends=(0,))
    yield Fault("HOME, TMPDIR that are not there", of, environment=missing, ends=(0,))
    yield Fault("ASCII only", (*of, "preview", "verify"), environment=ascii, ends=(0,))
    yield Fault("one column, dumb terminal", (*of, "preview"), environment=narrow, ends=(0,))
    told = ("generate", "finetune", "evaluate", "report", "publish", *QUICK)
    unread = partial(Fault, ends=(0, 1, 2, 120, 141, -13))
    yield unread("stdout closed", told, 'exec "$@" >&-')
    yield unread("stdout is full", told, 'exec "$@" >/dev/full')
    yield unread("| head -1", ("generate", "preview", *QUICK), '"$@" | head -1')
    yield unread("nobody reads stdout", QUICK, '"$@" | true')
    yield Fault("stdin closed", ("generate", "filter-2", "finetune"), 'exec "$@" <&-', ends=(0,))
    yield Fault("stderr closed", ("generate", "filter", "finetune"), 'exec "$@" 2>&-', ends=(0,))


FAULTS = (
    *_signals(),
    *_together(),
    *_clocks(),
    *_limits(),
    *_rights(),
    *_surroundings(),
    *FILE_FAULTS,
    *SERVER_FAULTS,
)
