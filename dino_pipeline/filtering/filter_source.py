"""Which files does a filter read, and what is known of their texts?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_pipeline.errors import DataError, RunError
from dino_pipeline.files import shard_files
from dino_pipeline.filtering.text_rules import PromptParts
from dino_pipeline.rows import RowsRead
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import SHARDS


@dataclass(frozen=True)
class FilterSource:
    """The files that a filter reads, and what is known of their texts."""

    files: list[Path]
    place: str
    """Where they are, for errors."""
    name: str
    """``shards``, or the file's name; recorded."""
    numeric_labels: bool
    """Labels that spell a number are numbers."""
    prompt: PromptParts
    """Parts of the prompts that wrote the texts."""
    is_generated: bool = False
    """They are the texts of a run, which can write more."""
    is_final: bool = False
    """They were filtered before, so that their labels are final."""
    rows_read: RowsRead | None = None
    """What was read of the user's data to write the only file; None if that is the user's own."""


def file_source(file: Path, numeric_labels: bool = True, prompt: PromptParts | None = None) -> FilterSource:
    """Return a JSONL file of records as a source.

    Raises:
        DataError: it is not a regular file.
    """
    if not file.is_file():
        raise DataError(f"{file}: is not a file that can be read twice; save it to one first")
    return FilterSource([file], str(file), file.name, numeric_labels, prompt or PromptParts())


def run_source(run: Run, *, strict: bool = True) -> FilterSource:
    """Return the shards of a run as a source.

    Raises:
        RunError: the texts are not all written.
        DataError: ``strict``, and no text of a label was accepted.
    """
    generated = run.record().generate
    if generated is None or not generated.is_done:
        raise RunError(f"{run.path}: its texts are not all written", "finish with {generate()}, or name a JSONL file")
    empty = [label for label, count in generated.counts.items() if not count.accepted]
    if empty and strict:
        raise DataError(f"{run.shards}: no text of label {', '.join(empty)} was accepted; {run.rejected} says why")
    spec = load_spec(run.spec)
    prompt = PromptParts(spec.stop, spec.fields)
    return FilterSource(shard_files(run.shards), str(run.shards), SHARDS, spec.is_scored, prompt, is_generated=True)
