"""Where everything lies in a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
LINEAGE = "lineage.json"
"""Of a published folder: where it comes from."""


def is_unpublished(path: Path) -> bool:
    """Whether a path is a folder, and none that was published: that has a copy of run.json, and lineage.json."""
    return path.is_dir() and not (path / LINEAGE).exists()


class At:
    """A place in a run's folder, by its name there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layout: Layout, owner: type | None = None) -> Path:
        return layout.path / self.name


@dataclass(frozen=True)
class Layout:
    """The places of a folder that holds one dataset and what was made of it."""

    path: Path

    record_file = At("run.json")
    """What each stage was made with."""
    spec = At("spec.json")
    """The task spec, inputs spec included."""
    inputs = At("inputs.jsonl")
    """The texts that fill <X1>."""
    shards = At("shards")
    """Accepted texts, in files of fixed content."""
    rejected = At("rejected")
    """Texts that generation itself turned down, a file beside each shard."""
    input_shards = At("input-shards")
    """Accepted texts of the spec that writes the inputs."""
    input_rejected = At("input-rejected")
    """Rejected texts of the spec that writes the inputs."""
    train = At("train.jsonl")
    """Pairs to train on."""
    dev = At("dev.jsonl")
    """Pairs to choose the best checkpoint on."""
    dropped = At("dropped.jsonl")
    """Pairs that the filter stage did not keep, with reasons."""
    flagged = At("flagged.jsonl")
    """Kept pairs that a user may want to look at: personal data."""
    label_scores = At("label-scores")
    """How likely the generator finds each pair under every label."""
    model = At("model")
    """The trained bi-encoder."""
    checkpoints = At("checkpoints")
    """Training's own checkpoints; gone once the model is there."""
    scores = At("scores.json")
    """What evaluation found."""
    comparison = At("compare")
    """Trainings by several objectives, and their table."""
    report = At("report.html")
    """What a reader should know of the run, on one page."""
    pictures = At("pictures")
    """The report's pictures, a PNG each."""
    estimate = At("estimate.json")
    """What a preview found the texts to take."""
    hub = At("hub")
    """The dataset and the model as they are published."""

    def outputs(self, stage: str) -> list[Path]:
        """Return the files and folders that a stage makes; without them it is not done."""
        return {
            "generate": [self.spec, self.shards],
            "filter": [self.train, self.dev, self.dropped, self.flagged],
            "finetune": [self.model],
            "evaluate": [self.scores],
        }[stage]

    def partial(self, stage: str) -> list[Path]:
        """Return the unfinished work of a stage, which a later call goes on with."""
        return {
            "generate": [self.inputs, *self.text_folders, self.path / CHECKSUMS],
            "finetune": [self.checkpoints],
        }.get(stage, [])

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run."""
        return self.record_file.exists() and is_unpublished(self.path)

    @property
    def held_out(self) -> Path | None:
        """The pairs that are not trained on, None where there are none."""
        return self.dev if self.dev.exists() and self.dev.stat().st_size else None

    @property
    def shard_folders(self) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """Where shards of texts and of inputs lie, each with the rejected ones beside them."""
        return (self.shards, self.rejected), (self.input_shards, self.input_rejected)

    @property
    def text_folders(self) -> list[Path]:
        """All of these, in that order."""
        return [folder for folders in self.shard_folders for folder in folders]
