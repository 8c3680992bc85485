"""What survives kill -9, at any moment, and a disk that is really full; test_faults.py has the other faults."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dino_pipeline.examples import write_examples
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FilterRecord
from tests.commands import dino, files, invoke, start
from tests.pairs import Words, outputs
from tests.records import recorded

pytestmark = pytest.mark.slow

KILLED_WITH = (1, 3)
"""How many shards are finished at least when a kill comes."""


@pytest.fixture
def arguments(toy_spec: Path, toy_generator: Path) -> list[str]:
    """A generate command whose work takes some seconds and several shards."""
    told = ["generate", str(toy_spec), "--model", str(toy_generator), "--num-inputs", "60", "--samples", "2"]
    return [*told, "--shard-size", "10", "--keep-unfinished"]  # however few of its texts this toy would end


def test_a_run_killed_at_any_moment_ends_with_the_same_texts(here: Path, arguments: list[str]) -> None:
    invoke(*arguments, "--run", "whole")
    moments = random.Random(0)
    for least in KILLED_WITH:
        process = start(*arguments, "--run", "killed", cwd=here)
        while len(list((here / "killed" / "shards").glob("*.jsonl"))) < least:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    invoke(*arguments, "--run", "killed")
    assert files(here / "killed") == files(here / "whole")


def test_a_filter_killed_at_any_moment_leaves_the_old_files_or_the_new(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", Words().pairs(5000))
    call = ["filter", "data.jsonl", "--run", "run", "--workers", "2"]
    assert dino(*call, "--seed", "2", cwd=tmp_path).returncode == 0
    new = outputs(Run(tmp_path / "run"))
    begun = time.monotonic()
    assert dino(*call, "--seed", "1", "--fresh", cwd=tmp_path).returncode == 0
    seconds = time.monotonic() - begun
    run, moments = Run(tmp_path / "run"), random.Random(1)
    old, seen = outputs(run), 0
    assert old != new
    for share in (0.6, 0.8, 0.95):
        process = start(*call, "--seed", "2", "--fresh", cwd=tmp_path)
        try:
            process.wait(timeout=(share + moments.uniform(-0.05, 0.05)) * seconds)
        except subprocess.TimeoutExpired:
            seen += (run.path / "filter.part").exists()
            process.kill()
            process.wait()
        with run.locked():
            found = outputs(run)
        assert found in (old, new)
        assert recorded(run, FilterRecord).options.seed == (1 if found == old else 2)
        if found == new:
            break
    assert seen, "no kill came while the filter worked"
    assert dino(*call, "--seed", "2", "--fresh", cwd=tmp_path).returncode == 0
    assert outputs(run) == new
    assert not list(run.path.glob("*.part"))


def test_a_full_disk_leaves_the_old_filtered_files(tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", Words().pairs(3000))
    call = ["filter", "data.jsonl", "--run", "run", "--workers", "1"]
    assert dino(*call, cwd=tmp_path).returncode == 0
    old = outputs(Run(tmp_path / "run"))

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    failed = dino(*call, "--seed", "2", "--fresh", cwd=tmp_path, preexec_fn=small_files)
    assert failed.returncode == 2, failed.stderr
    assert "raise the limit of a file's size" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert outputs(Run(tmp_path / "run")) == old
    assert not list((tmp_path / "run").glob("*.part"))
