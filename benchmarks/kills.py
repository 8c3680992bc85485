"""Random SIGKILLs across all stages of a small pocket run: whatever moment they hit, the results are the same.

    python -m benchmarks.kills [--kills 100] [--workers 2] [--seed 0]

A run is made once as a whole: generate, filter, finetune, evaluate, report, publish into a folder. Then, so many times:
a stage is drawn, the run as it was before that stage is copied, the stage's command is started and killed with its
children at a random moment of its usual time (once more and sooner, if it has ended by then), and started again. What
it makes must be what it made before.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.common import ONE_THREAD, SPEC, command

STAGES: dict[str, tuple[str, ...]] = {
    "generate": ("generate", str(SPEC), "--run", "run", "--num-inputs", "60", "--samples", "2", "--shard-size", "30"),
    "filter": ("filter", "run", "--exclude", "pocket"),
    "finetune": ("finetune", "run", "--steps", "60", "--batch-size", "32", "--learning-rate", "1e-3"),
    "evaluate": ("evaluate", "run"),
    "report": ("report", "run"),
    "publish": ("publish", "run", "--repo", "user/name", "--dry-run"),
}
TIMED = {"started", "ended", "seconds", "rows_per_second", "texts_per_second", "history", "date", "peak_memory"}
"""Fields of records that differ from call to call."""


@dataclass(frozen=True)
class Trial:
    """A stage that was killed and started again."""

    stage: str
    after: float
    """Seconds until it was killed."""
    same: bool
    said: str


def carry_out(stage: str, folder: Path) -> str:
    """Run a stage to its end and return what went wrong, if anything."""
    done = subprocess.run(command(*STAGES[stage]), cwd=folder, env=ONE_THREAD, capture_output=True, text=True)
    return "" if done.returncode == 0 and "Traceback" not in done.stderr else done.stderr[-2000:]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(each) for key, each in value.items() if key not in TIMED}
    return [_untimed(each) for each in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """Return all that a run holds, times left out."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in (folder / "run").rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name in {".lock", "README.md", "report.html"}:
            continue  # who worked there, and pages that show times
        content = path.read_bytes()
        found[name] = _untimed(json.loads(content)) if path.suffix == ".json" else content
    return found


def killed(stage: str, before: Path, after: dict[str, Any], moment: float, place: Path) -> Trial:
    """Kill a stage at a moment, start it again, and compare."""
    shutil.copytree(before, place)
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        command(*STAGES[stage]), cwd=place, env=ONE_THREAD, process_group=0, stdout=nowhere, stderr=nowhere
    )
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        shutil.rmtree(place)
        return killed(stage, before, after, 0.8 * moment, place)
    said = carry_out(stage, place)
    found = contents(place)
    if not said and found != after:
        names = sorted(name for name in {*found, *after} if found.get(name) != after.get(name))
        said = f"other: {', '.join(names)}"
    if not said:
        shutil.rmtree(place)
    return Trial(stage, moment, not said, said)


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trials side by side.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, workers: int, seed: int) -> None:
    """Print what became of each stage's kills."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="dino-kills-") as name:
        root = Path(name)
        whole, seconds, states = root / "whole", {}, {}
        whole.mkdir()
        for stage in STAGES:
            shutil.copytree(whole, root / f"before-{stage}")
            begun = time.monotonic()
            if said := carry_out(stage, whole):
                raise click.ClickException(f"{stage}: {said}")
            seconds[stage], states[stage] = time.monotonic() - begun, contents(whole)
            click.echo(f"{stage}: {seconds[stage]:.1f} s", err=True)

        def trial(number: int, stage: str, moment: float) -> Trial:
            found = killed(stage, root / f"before-{stage}", states[stage], moment, root / f"trial-{number}")
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
    click.echo(f"{kills} kills, {sum(same.values())} results the same")


if __name__ == "__main__":
    main()
