"""On a disk that takes no more, each command says which file and why, and leaves what was there as it was."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dino_pipeline.errors import system_reason
from dino_pipeline.run import Run
from tests.commands import answer, files, invoke
from tests.pairs import Words

SPEC = Path(__file__).parent.parent / "task_specs" / "sts-x2.json"
LEFT_OVERS = (".part", ".old", ".wal", ".spilled")


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a number of bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that went the whole way."""
    folder = tmp_path_factory.mktemp("whole")
    words = Words()
    (folder / "sentences.txt").write_text("".join(f"{words.sentence()}\n" for _ in range(40)))
    run = folder / "run"
    invoke("generate", SPEC, "--run", run, "--inputs", folder / "sentences.txt", "--samples", "2")
    invoke("filter", run, "--workers", "1")
    invoke("finetune", run, "--steps", "1", "--batch-size", "4")
    invoke("evaluate", run, "--suite", "pairs", "--data", run / "dev.jsonl")
    invoke("publish", run, "--repo", "a/b", "--license", "mit", "--dry-run")
    return run


COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": ("generate", str(SPEC), "--run", "RUN/new", "--inputs", "RUN/../sentences.txt"),
    "preview": ("preview", str(SPEC), "--run", "RUN/new", "--inputs", "RUN/../sentences.txt"),
    "filter": ("filter", "RUN", "--workers", "1", "--fresh", "--seed", "5"),
    "filter a file": ("filter", "RUN/dropped.jsonl", "--run", "RUN/new", "--workers", "1"),
    "posterior": ("filter", "RUN", "--workers", "1", "--fresh", "--labels", "posterior"),
    "finetune": ("finetune", "RUN", "--steps", "2", "--batch-size", "4", "--fresh"),
    "whiten": ("finetune", "RUN", "--steps", "0", "--whiten", "end", "--fresh"),
    "evaluate": ("evaluate", "RUN", "--suite", "pairs", "--data", "RUN/train.jsonl"),
    "scores": ("evaluate", "pocket", "--suite", "pairs", "--data", "RUN/dev.jsonl", "--output", "RUN/scores.json"),
    "report": ("report", "RUN"),
    "publish": ("publish", "RUN", "--repo", "a/b", "--license", "mit", "--dry-run", "--no-raw"),
    "export": ("export", "RUN", "--output", "RUN/../out.jsonl"),
    "spec": (
        "spec",
        "new",
        "x",
        "--kind",
        "classes",
        "--labels",
        "a,b",
        "--about",
        "text",
        "--output",
        "RUN/../x.json",
    ),
}
LIMITS = {
    **dict.fromkeys(COMMANDS, (0, 300)),
    "filter": (300, 30_000, 45_000),
    "posterior": (0, 30_000),
    "finetune": (0, 30_000),
    "whiten": (30_000,),
    "report": (300, 30_000, 100_000),
    "publish": (300, 0),  # 0 stands for: enough for all but the encoder
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in LIMITS.items() for size in sizes])
def test_what_cannot_be_written_is_named_and_nothing_is_lost(
    name: str, size: int, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    shutil.copy(whole_run.parent / "sentences.txt", tmp_path)
    if name == "publish" and not size:
        size = (run / "model" / "model.safetensors").stat().st_size - 1
    before = files(run)
    with no_file_larger_than(size):
        done = answer(*(part.replace("RUN", str(run)) for part in COMMANDS[name]))
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: /") and "File too large" in last and "None" not in last
    after = files(run)
    kept = {path: content for path, content in before.items() if not (name == "publish" and "model" not in path)}
    assert {path: after.get(path) for path in kept} == kept
    assert not [path for path in tmp_path.rglob("*") if path.suffix in LEFT_OVERS]
    assert not [path for path in tmp_path.iterdir() if path.name in ("out.jsonl", "x.json")]
    Run(run).record()


def test_an_error_of_the_system_without_words_is_said() -> None:
    assert system_reason(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert system_reason(OSError("the pipe burst")) == "the pipe burst"
    assert system_reason(OSError()) == "OSError"
    assert system_reason(shutil.Error([("a", "b", "[Errno 28] No space left on device")])).startswith("[Errno 28]")
