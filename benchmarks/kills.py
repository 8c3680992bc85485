"""Random SIGKILLs across all stages of small pocket runs: whatever moment they hit, the results are the same.

    python -m benchmarks.kills [--kills 100] [--workers 2] [--seed 0]

A run is made once as a whole: generate, filter, finetune, evaluate, report, publish into a folder. So are texts by a
server, texts by a Ray cluster that is started here, and a filter with two worker processes. Then, so many times: a
stage is drawn, all as it was before that stage is copied, the stage's command is started and killed at a random moment
of its usual time (once more and sooner, if it has ended by then), and started again. What it makes must be what it made
before, and no process that the killed one had started may be left.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.common import ONE_THREAD, SPEC, command, distinct_sentences
from dino_pipeline.examples import Example, write_examples
from tests.serving import MadeUp, made_up

SERVED = ("--engine", "openai", "--model", "made-up", "--base-url", "{address}")
SMALL = ("--num-inputs", "60", "--samples", "2", "--shard-size", "30")
STAGES: dict[str, tuple[str, ...]] = {
    "generate": ("generate", str(SPEC), "--run", "run", *SMALL),
    "filter": ("filter", "run", "--exclude", "pocket"),
    "finetune": ("finetune", "run", "--steps", "60", "--batch-size", "32", "--learning-rate", "1e-3"),
    "evaluate": ("evaluate", "run"),
    "report": ("report", "run"),
    "publish": ("publish", "run", "--repo", "user/name", "--dry-run"),
    "server": ("generate", str(SPEC), "--run", "served", "--inputs", "{inputs}", *SMALL[2:], *SERVED),
    "ray": ("generate", str(SPEC), "--run", "spread", *SMALL, "--ray", "local"),
    "workers": ("filter", "{pairs}", "--run", "filtered", "--workers", "2"),
}
"""The command of each stage. What is in braces is made for all of them."""
PAIRS = 40_000
"""More than one process reads at a time."""
INPUTS = 60
TIMED = {
    "started",
    "ended",
    "seconds",
    "rows_per_second",
    "texts_per_second",
    "history",
    "date",
    "peak_memory",
    "modified",
    "usage",
}
"""Fields of records that differ from call to call; texts of a server that were not kept are asked for again."""
GONE_WITHIN = 15.0
"""Seconds in which the processes of a killed command must have ended."""


@dataclass(frozen=True)
class Trial:
    """A stage that was killed and started again."""

    stage: str
    after: float
    """Seconds until it was killed."""
    same: bool
    said: str


@dataclass(frozen=True)
class Place:
    """Where stages are carried out, and what is made for all of them."""

    root: Path
    made: dict[str, str]

    def command(self, stage: str) -> list[str]:
        return command(*(argument.format_map(self.made) for argument in STAGES[stage]))


def carry_out(call: list[str], folder: Path) -> str:
    """Run a command to its end and return what went wrong, if anything."""
    done = subprocess.run(call, cwd=folder, env=ONE_THREAD, capture_output=True, text=True)
    return "" if done.returncode == 0 and "Traceback" not in done.stderr else done.stderr[-2000:]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(each) for key, each in value.items() if key not in TIMED}
    return [_untimed(each) for each in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """Return all that runs hold, times left out."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name in {".lock", "README.md", "report.html"} or ".changed" in name:
            continue  # who worked there, pages that show times, and what was damaged
        content = path.read_bytes()
        found[name] = _untimed(json.loads(content)) if path.suffix == ".json" else content
    return found


def session(leader: int) -> list[psutil.Process]:
    """Return the processes of a session, and what they have started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader:
                found += [process, *process.children(recursive=True)]
    return found


def left_alive(processes: Sequence[psutil.Process], leader: int) -> str:
    """Return the command lines of processes that have not ended in time, and end them."""
    _, alive = psutil.wait_procs({*processes, *session(leader)}, timeout=GONE_WITHIN)
    names = []
    for process in alive:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline())[:100])
            process.kill()
    return f"left: {', '.join(names)}" if names else ""


def killed(place: Place, stage: str, after: dict[str, Any], moment: float, number: int) -> Trial:
    """Kill a stage at a moment, start it again, and compare."""
    folder = place.root / f"trial-{number}"
    shutil.copytree(place.root / f"before-{stage}", folder)
    call, nowhere = place.command(stage), subprocess.DEVNULL
    process = subprocess.Popen(call, cwd=folder, env=ONE_THREAD, start_new_session=True, stdout=nowhere, stderr=nowhere)
    started: list[psutil.Process] = []
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        started = session(process.pid)
        process.kill()
    if process.wait() != -signal.SIGKILL:
        shutil.rmtree(folder)
        return killed(place, stage, after, 0.8 * moment, number)
    said = left_alive(started, process.pid) or carry_out(call, folder)
    found = contents(folder)
    if not said and found != after:
        names = sorted(name for name in {*found, *after} if found.get(name) != after.get(name))
        said = f"other: {', '.join(names)}"
    if not said:
        shutil.rmtree(folder)
    return Trial(stage, moment, not said, said)


@contextlib.contextmanager
def place_of_all() -> Iterator[Place]:
    """Give a folder with inputs and pairs, and a server of made-up texts."""
    with tempfile.TemporaryDirectory(prefix="dino-kills-") as name, made_up(MadeUp(_slowly)) as address:
        root = Path(name)
        sentences = distinct_sentences(2 * INPUTS)
        (root / "inputs.txt").write_text("\n".join(sentences[:INPUTS]))
        made = {"inputs": f"{root / 'inputs.txt'}", "pairs": f"{root / 'pairs.jsonl'}", "address": address}
        write_examples(Path(made["pairs"]), _pairs())
        yield Place(root, made)


def _slowly(seed: int, body: dict[str, Any]) -> str:
    time.sleep(0.05)
    return f"The dog has {seed % 100_000} bones in house {seed % 977}."


def _pairs() -> Iterator[Example]:
    """Yield pairs of texts of random words, of three labels."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnoprstuvw", k=chance.randint(3, 9))) for _ in range(5000)]
    for number in range(PAIRS):
        one, other = (" ".join(chance.sample(words, 12)).capitalize() + "." for _ in range(2))
        yield Example(one, other, (1.0, 0.5, 0.0)[number % 3], logprob=-1.5, margin=0.2, input=number, sample=0)


def carry_out_all(place: Place) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Carry out all stages once; return the seconds that each takes, and what is there after it."""
    whole, seconds, states = place.root / "whole", {}, {}
    whole.mkdir()
    for stage in STAGES:
        shutil.copytree(whole, place.root / f"before-{stage}")
        begun = time.monotonic()
        if said := carry_out(place.command(stage), whole):
            raise click.ClickException(f"{stage}: {said}")
        seconds[stage], states[stage] = time.monotonic() - begun, contents(whole)
        click.echo(f"{stage}: {seconds[stage]:.1f} s", err=True)
    return seconds, states


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trials side by side.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, workers: int, seed: int) -> None:
    """Print what became of each stage's kills."""
    chance = random.Random(seed)
    with place_of_all() as place:
        seconds, states = carry_out_all(place)

        def trial(number: int, stage: str, moment: float) -> Trial:
            found = killed(place, stage, states[stage], moment, number)
            told = "the same" if found.same else found.said
            click.echo(f"{number}: {stage} killed after {found.after:.1f} s: {told}", err=True)
            return found

        drawn = [chance.choice(list(STAGES)) for _ in range(kills)]
        moments = [chance.uniform(0.1, 1.0) * seconds[stage] * (1.3 if workers > 1 else 1) for stage in drawn]
        with ThreadPoolExecutor(workers) as pool:
            trials = list(pool.map(trial, range(kills), drawn, moments))
    same = Counter(each.stage for each in trials if each.same)
    for stage in STAGES:
        click.echo(f"{stage:10} {drawn.count(stage):3} killed, {same[stage]:3} the same")
    click.echo(f"{kills} kills, {sum(same.values())} results the same, and no process left after those")


if __name__ == "__main__":
    main()
