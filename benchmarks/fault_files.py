"""Faults of files: damaged ones of a finished run, a storage that dies, and data that is not what it should be."""

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

from benchmarks.fault_calls import OF_DATA, ends_of, signalled
from benchmarks.fault_trials import Fault, Trial


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


FILE_FAULTS = (*_damage(), *_storage(), *_data())
