"""What marks a checkpoint of a training as whole, and whether its records are sound."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainerState

from dino_pipeline.errors import RunError, first_line

COUNTS_FILE = "counts.json"
"""Holds a checkpoint's rows seen and time taken. It is written last, so that it marks a checkpoint as whole."""


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
