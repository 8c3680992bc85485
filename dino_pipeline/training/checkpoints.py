"""What marks a checkpoint of a training as whole, which ones a training can go on from, and its records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import xxhash
from transformers import TrainerState

from dino_pipeline.errors import RunError, first_line
from dino_pipeline.files import remove, write_json

COUNTS_FILE = "counts.json"
"""Holds a checkpoint's rows seen, time taken, and hashes of its files. It is written last, and marks it as whole."""
_OF_OTHERS = re.compile(r"rng_state_[1-9]\d*\.pth")
"""Files that other processes of a training may still be writing."""


def mark_whole(checkpoint: Path, rows: int, seconds: float) -> None:
    """Record a checkpoint whose files are all written."""
    files = {path.name: _hash(path) for path in sorted(checkpoint.iterdir()) if path.is_file()}
    files = {name: digest for name, digest in files.items() if not _OF_OTHERS.fullmatch(name)}
    write_json(checkpoint / COUNTS_FILE, {"rows": rows, "seconds": seconds, "files": files})


def _hash(path: Path) -> str:
    """Return a hash that tells damage, ten times as fast as SHA-256: a checkpoint may take gigabytes."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def delete_unusable(folder: Path, note: Callable[[str], object]) -> None:
    """Delete the checkpoints that a training cannot go on from.

    These are checkpoints whose writing was cut short, and damaged ones with all later ones, which may name one
    of them as the best.

    Args:
        folder: of the checkpoints.
        note: told of a damaged one.
    """
    is_damaged = False
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step):
        damaged = None if is_damaged else _damaged_file(checkpoint)
        if damaged is not None:
            note(f"{damaged}: is not what was written: the training goes on from before {checkpoint.name}")
            is_damaged = True
        if is_damaged or not (checkpoint / COUNTS_FILE).exists():
            remove(checkpoint)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _damaged_file(checkpoint: Path) -> Path | None:
    """Return the first file of a whole checkpoint that has changed since, None if none has."""
    counts = checkpoint / COUNTS_FILE
    if not counts.exists():
        return None
    try:
        files = json.loads(counts.read_bytes()).get("files", {})
        changed = (name for name, digest in files.items() if _hash(checkpoint / name) != digest)
        name = next(changed, None)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return counts
    return None if name is None else checkpoint / name


def checked_counts(checkpoint: Path) -> tuple[int, float]:
    """Return the rows and seconds of a checkpoint whose records are sound.

    Raises:
        RunError: they are not.
    """
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if not (isinstance(state.global_step, int) and isinstance(state.log_history, list)):
            raise ValueError("trainer_state.json holds no state")
        counts = json.loads((checkpoint / COUNTS_FILE).read_bytes())
        return int(counts["rows"]), float(counts["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise RunError(f"{checkpoint}: is damaged ({problem})", "delete it and run again") from error
