"""The commands that faults are tried on, and the faults."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.common import SPEC, distinct_sentences
from benchmarks.fault_servers import SERVER_FAULTS, serve
from benchmarks.fault_trials import Call, Fault, Trial

JOB = ("--num-inputs", "24", "--samples", "1", "--shard-size", "12")
TEXTS = ("run/spec.json", "run/inputs", "run/input-", "run/shards/", "run/rejected/", "run/SHA256SUMS")
PAIRS = ("run/train.jsonl", "run/dev.jsonl", "run/dropped.jsonl", "run/flagged.jsonl")
SERVED = ("--engine", "openai", "--base-url", "URL", "--model", "m", "--timeout", "4", "--top-k", "0")
STEPS = ("--steps", "8", "--batch-size", "32")
EXPORTED = ("--output", "exported.jsonl")
BROUGHT = ("--inputs", "DATA", "--num-inputs", "6", "--samples", "1")

CHAIN = (  # each starts from what the one before has left
    Call("generate", ("generate", str(SPEC), "--run", "run", *JOB), "new", TEXTS),
    Call("filter", ("filter", "run"), "generate", PAIRS),
    Call("finetune", ("finetune", "run", *STEPS), "filter", ("run/model/",)),
    Call("evaluate", ("evaluate", "run"), "finetune", ("run/scores.json",)),
    Call("report", ("report", "run"), "evaluate", ("run/pictures/",)),
    Call("publish", ("publish", "run", "--repo", "user/name", "--dry-run"), "report", ("run/hub/",)),
)
OTHERS = (
    Call("until", ("generate", str(SPEC), "--run", "run", *JOB, "--until-target", "20"), "new", (*TEXTS, *PAIRS)),
    Call("served", ("generate", "one.json", "--run", "run", *BROUGHT, *SERVED), "new", TEXTS, serve=serve),
    Call("preview", ("preview", str(SPEC), "--run", "run", *JOB, "--texts", "1"), "new"),
    Call("filter-2", ("filter", "table.jsonl", "--run", "run", "--workers", "2"), "new", PAIRS),
    Call(
        "compare",
        ("compare", "run", "--objectives", "simcse", "--seeds", "1", *STEPS),
        "filter",
        ("run/compare/compare.json",),
    ),
    Call("verify", ("verify", "run/hub/dataset"), "publish"),
    Call("export", ("export", "run", *EXPORTED), "publish", ("exported.jsonl",)),
    Call("export-hub", ("export", "run/hub/dataset", *EXPORTED), "publish", ("exported.jsonl",)),
    Call("storage", ("generate", str(SPEC), "--run", "run", *JOB, "--storage", "dying://PLACE/far"), "new", TEXTS),
    Call("generate-file", ("generate", str(SPEC), "--run", "run", *BROUGHT), "new", TEXTS),
    Call("filter-file", ("filter", "DATA", "--run", "run"), "new", PAIRS),
    Call("finetune-file", ("finetune", "DATA", "--run", "run", *STEPS), "new", ("run/model/",)),
    Call("evaluate-file", ("evaluate", "pocket", "--data", "DATA", "--output", "run/scores.json"), "new"),
)
CALLS = {call.name: call for call in (*CHAIN, *OTHERS)}
STAGES = tuple(call.name for call in CHAIN)
LONG = (*STAGES, "until", "served", "filter-2", "compare")
OF_DATA = ("generate-file", "filter-file", "finetune-file", "evaluate-file")


def new_state(folder: Path) -> None:
    """Fill the folder from which all begins."""
    (folder / "tmp").mkdir(parents=True)
    sentences = distinct_sentences(80)
    one = {"task_name": "one", "labels": {"a": {"instruction": 'Of "<X1>": "'}}}
    (folder / "one.json").write_text(json.dumps(one))
    rows = zip(sentences[::2], sentences[1::2], strict=True)
    pairs = [{"text_a": a, "text_b": b, "label": number % 3 / 2} for number, (a, b) in enumerate(rows)]
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    chance, words = random.Random(0), [f"word{number}" for number in range(5000)]
    with open(folder / "table.jsonl", "w") as file:  # two pieces, one for each worker
        for number in range(25_000):
            a, b = (" ".join(chance.choices(words, k=18)) for _ in range(2))
            file.write(json.dumps({"text_a": a, "text_b": b, "label": number % 3 / 2}) + "\n")


def signalled(number: signal.Signals, *moments: float, group: bool = False) -> Callable[[Trial], None]:
    """Return what sends a signal after shares of the usual time, to the process or, like a terminal, to its group."""

    def send(trial: Trial) -> None:
        for moment in moments:
            if trial.wait_for(moment):
                (os.killpg if group else os.kill)(trial.pid, number)

    return send


def pause(trial: Trial) -> None:
    """Stop the process for two seconds."""
    if trial.wait_for(0.5):
        os.kill(trial.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(trial.pid, signal.SIGCONT)


def ends_of(number: int) -> tuple[int, ...]:
    return (0, 128 + number, -number)


def _signals() -> Iterator[Fault]:
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
    for number, name in names.items():
        group = number != signal.SIGTERM
        for when, moments in {"early": (0.15,), "midway": (0.6,), "twice": (0.5, 0.03)}.items():
            send = signalled(number, *moments, group=group)
            yield Fault(f"{name} {when}", LONG, during=send, ends=ends_of(number))
    kill = signalled(signal.SIGKILL, 0.6)
    yield Fault("SIGKILL of the parent", LONG, during=kill, ends=(0, -9), cleans=False)
    yield Fault("paused for 2 s", ("generate", "served", "filter-2", "finetune"), during=pause, ends=(0,))
    quick = ("preview", "export", "verify")
    yield Fault("Ctrl-C early", quick, during=signalled(signal.SIGINT, 0.3, group=True), ends=ends_of(2))
    yield Fault("SIGTERM midway", quick, during=signalled(signal.SIGTERM, 0.7), ends=ends_of(15))


def meanwhile(*words: str, said: str = "another process works here") -> Callable[[Trial], None]:
    """Return what starts another command, by default the same, midway; it must be refused by name, or find it done."""

    def start(trial: Trial) -> None:
        still = trial.wait_for(0.5)
        code, found = trial.also(*(words or trial.call.words))
        refused = code == 2 and said in found
        if "Traceback" in found or (still and trial.wait_for(0) and not refused):
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
    for megabytes in (700, 1500, 3000):
        of = ("generate", "filter", "filter-2", "finetune", "evaluate", "report", "export")
        yield Fault(f"{megabytes} MB of memory", of, f'ulimit -v {megabytes}000; exec "$@"', says=full)
    files = ("generate", "filter", "filter-2", "finetune", "publish", "export")
    yield Fault("24 open files", files, 'ulimit -n 24; exec "$@"', says="open files")
    writes = (*STAGES, "export", "filter-2", "until", "storage")
    yield Fault("disk full after 2 KiB", writes, 'ulimit -f 2; exec "$@"', says="cannot be (read or )?written|write")
    yield Fault("disk full after 60 KiB", writes, 'ulimit -f 60; exec "$@"', says="cannot be (read or )?written|write")
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
    told = ("generate", "filter", "finetune", "evaluate", "report", "publish", "verify", "export", "preview")
    unread = partial(Fault, ends=(0, 1, 2, 120, 141, -13))
    yield unread("stdout closed", told, 'exec "$@" >&-')
    yield unread("stdout is full", told, 'exec "$@" >/dev/full')
    yield unread("| head -1", told, '"$@" | head -1')
    yield unread("nobody reads stdout", ("filter", "verify", "export"), '"$@" | true')
    yield Fault("stdin closed", ("generate", "filter-2", "finetune"), 'exec "$@" <&-', ends=(0,))
    yield Fault("stderr closed", ("generate", "filter", "finetune"), 'exec "$@" 2>&-', ends=(0,))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARM: dict[str, Callable[[Path], object]] = {
    "a byte flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
    "now a folder": make_folder,
}
HARMED: dict[str, tuple[str, ...]] = {  # a file of a finished run, and who reads it or answers for it
    "shards/00001.jsonl": ("generate", "filter"),
    "inputs.jsonl": ("generate",),
    "train.jsonl": ("filter", "finetune", "export"),
    "dev.jsonl": ("filter", "evaluate"),
    "dropped.jsonl": ("filter", "publish"),
    "model/model.safetensors": ("finetune", "evaluate"),
    "model/config.json": ("evaluate", "publish"),
    "scores.json": ("evaluate", "report"),
    "run.json": ("filter", "report", "export"),
    "SHA256SUMS": ("generate", "filter"),
    "hub/dataset/data/train-*.parquet": ("verify", "export-hub"),
    "hub/dataset/lineage.json": ("verify", "export-hub"),
}


def harmed(pattern: str, harm: Callable[[Path], object]) -> tuple[Callable[[Trial], None], Callable[[Trial], None]]:
    """Return what harms a file of a run, and what puts it back."""

    def do(trial: Trial) -> None:
        (path,) = trial.run.glob(pattern)
        shutil.copy2(path, trial.place / "good")
        trial.harmed = path
        harm(path)

    def undo(trial: Trial) -> None:
        if trial.harmed and (trial.place / "good").exists():
            if trial.harmed.is_dir():
                shutil.rmtree(trial.harmed)
            (trial.place / "good").replace(trial.harmed)

    return do, undo


def _damage() -> Iterator[Fault]:
    for pattern, calls in HARMED.items():
        name = Path(pattern).name.replace("*", ".*")
        for kind, harm in HARM.items():
            do, undo = harmed(pattern, harm)
            says = rf"{name.partition('-')[0]}|run/model|hub/dataset"
            yield Fault(f"{pattern} {kind}", calls, before=do, after=undo, state="publish", ends=(0, 1, 2), says=says)

    def empty(trial: Trial) -> None:
        shutil.move(trial.run / "model", trial.place / "kept")
        (trial.run / "model").mkdir()

    def fill(trial: Trial) -> None:
        if (trial.place / "kept").exists():
            shutil.rmtree(trial.run / "model")
            shutil.move(trial.place / "kept", trial.run / "model")

    emptied = ("finetune", "evaluate", "publish", "report")
    yield Fault("model/ emptied", emptied, before=empty, after=fill, state="publish", says="run/model")


def _storage() -> Iterator[Fault]:
    for after in (1, 5, 9):
        fails = {"DINO_STORAGE": f"fails:{after}"}
        yield Fault(f"storage fails after {after} files", ("storage",), environment=fails, says="connection was lost")
        kills = {"DINO_STORAGE": f"kills:{after}"}
        yield Fault(f"killed storing file {after + 1}", ("storage",), environment=kills, ends=(-9,), cleans=False)


ROW = '{"text_a": "a dog runs", "text_b": "it barks", "label": 1}\n'


def written(content: Callable[[Path], object], name: str = "data.jsonl") -> Callable[[Trial], None]:
    """Return what puts something in the place of the data."""

    def write(trial: Trial) -> None:
        (trial.place / "data.jsonl").rename(trial.place / "good.jsonl")
        content(trial.place / name)

    return write


def restored(trial: Trial) -> None:
    """Put the data back."""
    if (trial.place / "good.jsonl").exists():
        path = trial.place / "data.jsonl"
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        (trial.place / "good.jsonl").rename(path)


def long_lines(path: Path) -> None:
    path.write_text("".join(ROW.replace("dog", "dog" * 70_000 + str(number)) for number in range(20)))


def many_columns(path: Path) -> None:
    more = {f"column {number}": number for number in range(1000)}
    rows = [json.loads(ROW.replace("dog", f"dog {number}")) | more for number in range(50)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(3000):
            file.write(b" " * 2**20)


def changed(how: Callable[[Path], object]) -> Callable[[Trial], None]:
    """Return what changes the data again and again while it is read."""

    def change(trial: Trial) -> None:
        end = time.monotonic() + 2 * trial.usual
        while trial.wait_for(0.02) and time.monotonic() < end:
            how(trial.place / "data.jsonl")

    return change


def _grow(path: Path) -> None:
    with open(path, "a") as file:
        file.write(ROW)


def _replace(path: Path) -> None:
    path.with_suffix(".new").write_text(ROW * random.randint(1, 50))
    path.with_suffix(".new").replace(path)


def linked(device: str) -> Callable[[Trial], None]:
    """Return what puts a link to a device where the output goes, so that the device itself is never replaced."""
    return lambda trial: (trial.place / "output").symlink_to(device)


def _data() -> Iterator[Fault]:
    contents: dict[str, Callable[[Path], object]] = {
        "lines of 200,000 characters": long_lines,
        "1,000 columns": many_columns,
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a folder": Path.mkdir,
        "nothing there": lambda path: None,
    }
    bounded = 'ulimit -f 1000000; exec "$@"'
    for number, (name, content) in enumerate(contents.items()):
        yield Fault(name, OF_DATA, bounded, before=written(content), after=restored, again=number > 1)
    waiting = partial(Fault, "a FIFO that nobody writes", before=written(os.mkfifo), after=restored)
    yield waiting(OF_DATA[1:])
    yield waiting(OF_DATA[:1], during=signalled(signal.SIGINT, 1.5, group=True), ends=ends_of(signal.SIGINT))
    name = "data.jsonl.gz"
    packed = written(bomb, name)
    yield Fault("3 GB in 3 MB of gzip", OF_DATA, bounded, packed, after=restored, data=name, again=False)
    ways = {"grows": _grow, "is cut": lambda path: os.truncate(path, path.stat().st_size // 2), "is replaced": _replace}
    for name, how in ways.items():
        yield Fault(f"data that {name} meanwhile", OF_DATA, during=changed(how), again=False)
    output = partial(Fault, words=("--output", "PLACE/output"), says="cannot be written", again=False)
    yield output("a full device as output", ("export", "evaluate-file"), before=linked("/dev/full"))
    yield output("a FIFO as output", ("export",), before=lambda trial: os.mkfifo(trial.place / "output"))


FAULTS = (
    *_signals(),
    *_together(),
    *_clocks(),
    *_limits(),
    *_rights(),
    *_surroundings(),
    *_damage(),
    *_storage(),
    *_data(),
    *SERVER_FAULTS,
)
