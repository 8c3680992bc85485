"""Runs the real commands, as a user does."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from dino_pipeline.cli import main

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "random"}


def dino(*arguments: str | Path, cwd: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and wait for it."""
    return subprocess.run(command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, **kwargs)


def answer(*arguments: str | Path) -> Result:
    """Run a command in this process, which need not load libraries again."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def invoke(*arguments: str | Path) -> str:
    """Run a command in this process; it must succeed."""
    done = answer(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str | Path) -> str:
    """Run a command in this process, which must refuse a mistake; return what it says."""
    done = answer(*arguments)
    assert done.exit_code == 2, done.output
    return done.stderr


def execute(program: str) -> str:
    """Run a program of Python, as people copy it from a page, and return what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    return said.getvalue()


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command(*arguments), cwd=cwd, env=ENVIRONMENT, stdout=quiet, stderr=quiet)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "dino_pipeline", *map(str, arguments)]


def accelerate(
    processes: int, *arguments: str | Path, cwd: Path, program: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line, or a program, under ``accelerate launch`` in several processes on the CPU."""
    launch = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    whole = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--dynamo_backend", "no"]
    started = ["-m", "dino_pipeline"]
    if program:
        (cwd / "program.py").write_text(program)
        started = ["program.py"]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*whole, *started, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, but for those that hold times."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {"run.json", ".lock"})
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
