"""What the benchmarks share: the machine's name, clocks, memory, commands in processes of their own, sentences."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import click
import psutil
import torch

from dino_pipeline.input_texts import distinct
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateSettings
from tools.pocket.corpus import shard_sentences

SPEC = Path(__file__).parent.parent / "task_specs" / "sts-x2.json"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def machine(device: str = "cpu") -> str:
    """Name what is measured."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall time of a call in seconds, and its result."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


class Memory(threading.Thread):
    """Watches the process's memory, or the GPU's."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(daemon=True)
        self.device = device
        self.before = self.peak = self._used()
        self.over = threading.Event()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)

    def _used(self) -> int:
        if self.device == "cpu":
            return int(psutil.Process().memory_info().rss)
        return torch.cuda.max_memory_allocated(self.device)

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.peak = max(self.peak, self._used())

    def stop(self) -> int:
        """Return the most bytes seen above those at the start."""
        self.over.set()
        self.join()
        return self.peak - self.before


def command(*arguments: object) -> list[str]:
    """Return a `dino` command for a process of its own."""
    return [sys.executable, "-m", "dino_pipeline", *map(str, arguments)]


def dino(*arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> float:
    """Run a command, and return its seconds.

    Raises:
        click.ClickException: it failed.
    """
    done: subprocess.CompletedProcess[str]
    seconds, done = timed(lambda: subprocess.run(command(*arguments), cwd=cwd, env=env, capture_output=True, text=True))
    if done.returncode:
        raise click.ClickException(done.stderr)
    return seconds


def dino_watched(*arguments: object) -> tuple[float, float]:
    """Return seconds, and resident megabytes at most, its children's included, of a command."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
    top = psutil.Process(process.pid)
    while process.poll() is None:
        with_children = 0
        try:
            for each in (top, *top.children(recursive=True)):
                with_children += each.memory_info().rss
        except psutil.NoSuchProcess:
            pass
        peak = max(peak, with_children)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - started, peak / 1e6


def settings_of(spec: TaskSpec, model: str = "pocket", **options: Any) -> GenerateSettings:
    """Return the options of a job with the default sampling."""
    of_model = {"model": ModelRef(name=model, dtype="float32"), "sampling": Sampling()}
    return GenerateSettings(spec=spec.digest, labels=tuple(spec.labels), **of_model, **options)


def distinct_sentences(number: int) -> list[str]:
    """Return sentences of the pocket grammar, all different."""

    def endless() -> Iterator[str]:
        for shard in count():
            yield from shard_sentences(11, shard, 1000)

    return list(islice(distinct(endless()), number))


def gold_spearman(run: Run) -> dict[str, float]:
    """Return Spearman x 100 on the pocket gold pairs, by model."""
    scores = json.loads(run.scores.read_text())["scores"]
    return {each["model"]: each["measures"]["spearman"]["value"] for each in scores}
