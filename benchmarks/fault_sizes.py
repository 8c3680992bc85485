"""Does memory stay flat as the data grows: ten times the inputs or the pairs, and a gigabyte of them?"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.common import SPEC
from benchmarks.fault_trials import Call, Fault, Trial, finished, peak_of
from dino_pipeline.progress import table

ROWS = (100_000, 1_000_000)
WORDS_EACH = 55
"""Words of a text: a million texts are half a gigabyte, a million pairs one."""
LONGEST = 3600.0
FLAT = 1.5
"""Most times the memory that ten times the rows may take."""


@dataclass(frozen=True)
class Size:
    """What a command took for a number of rows."""

    rows: int
    megabytes: float
    """Of the file."""
    peak: float
    """Most resident megabytes, with children."""
    seconds: float
    code: int


def texts(rows: int) -> Iterator[str]:
    """Yield random texts, none like another."""
    chance, words = random.Random(0), [f"{number * 7919 % 100_003:x}" for number in range(100_000)]
    for number in range(rows):
        yield f"text {number} " + " ".join(chance.choices(words, k=WORDS_EACH))


def _stop_after_first_shard(trial: Trial) -> None:
    while trial.process and trial.process.poll() is None:
        if any(trial.run.glob("shards/*.jsonl")):
            trial.process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.5)


def generate(place: Path, rows: int) -> Size:
    """Read all inputs, plan, and write one shard."""
    with open(place / "inputs.txt", "w") as file:
        file.writelines(f"{text}\n" for text in texts(rows))
    job = ("--inputs", "inputs.txt", "--samples", "1", "--shard-size", "300")
    return _measured(place, "inputs.txt", rows, ("generate", str(SPEC), "--run", "run", *job))


def filter(place: Path, rows: int) -> Size:
    """Filter as many pairs."""
    with open(place / "pairs.jsonl", "w") as file:
        both = texts(2 * rows)
        for number, (text_a, text_b) in enumerate(zip(both, both, strict=True)):
            pair = {"text_a": text_a, "text_b": text_b, "label": number % 3 / 2}
            file.write(f"{json.dumps(pair)}\n")
    return _measured(place, "pairs.jsonl", rows, ("filter", "pairs.jsonl", "--run", "run", "--workers", "2"))


def _measured(place: Path, file: str, rows: int, words: tuple[str, ...]) -> Size:
    trial = Trial(Call(words[0], words, "new"), Fault("size", ()), place)
    begun = time.monotonic()
    trial.process = trial.start(words, "sized")
    threading.Thread(target=_stop_after_first_shard, args=(trial,), daemon=True).start()
    peak = peak_of(trial.process, LONGEST)
    code = finished(trial.process, 1)
    if code not in (0, 128 + signal.SIGTERM):
        raise click.ClickException(trial.said("sized").read_text()[-2000:])
    return Size(rows, (place / file).stat().st_size / 1e6, peak, time.monotonic() - begun, code)


def sizes(root: Path) -> bool:
    """Print what each command takes for each number of rows; return whether memory is flat."""
    rows, flat = [], True
    for command in (generate, filter):
        found = []
        for number in ROWS:
            place = root / f"{command.__name__}-{number}"
            (place / "tmp").mkdir(parents=True)
            found.append(command(place, number))
            click.echo(f"{command.__name__}: {found[-1]}", err=True)
        ratio = found[-1].peak / found[0].peak
        flat &= ratio <= FLAT
        for each in found:
            cells = [f"{each.rows:,}", f"{each.megabytes:.0f}", f"{each.peak:.0f}", f"{each.seconds:.0f}"]
            rows.append([command.__name__, *cells, f"{each.peak / found[0].peak:.2f}"])
    click.echo(table(["command", "rows", "MB of data", "peak MB", "seconds", "times the memory"], rows))
    return flat
