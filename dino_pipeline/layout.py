"""Where the files and folders of a run are, and which folders are runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_pipeline.dataset_tables import ending_of
from dino_pipeline.tables import TABLE_ENDINGS

CHECKSUMS = "SHA256SUMS"
LINEAGE = "lineage.json"
"""File of a published folder that says where it comes from."""


def is_unpublished(path: Path) -> bool:
    """Return whether a path is a folder that can be a run.

    A published folder also holds a run.json, a copy; its lineage.json tells it from a run.
    """
    return path.is_dir() and not (path / LINEAGE).exists()


def is_data_folder(path: Path) -> bool:
    """Return whether a folder holds tables and no run: a dataset that `datasets` reads."""
    if not path.is_dir() or (path / "run.json").exists() or Layout(path).lacks_record:
        return False
    files = [*path.glob("*.*"), *path.glob("data/*.*")]
    return any(ending_of(str(file)) in TABLE_ENDINGS for file in files)


class At:
    """The path of a file or folder of a run, given its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layout: Layout, owner: type | None = None) -> Path:
        return layout.path / self.name


@dataclass(frozen=True)
class Layout:
    """The files and folders of a run."""

    path: Path

    record_file = At("run.json")
    """The record of each stage; see `record`."""
    spec = At("spec.json")
    """The task spec, inputs spec included."""
    inputs = At("inputs.jsonl")
    """The texts that fill <X1>."""
    shards = At("shards")
    """Accepted texts, in files of fixed content."""
    rejected = At("rejected")
    """Texts that generation rejected, with the reasons: one file for each shard."""
    input_shards = At("input-shards")
    """Accepted texts of the spec that writes the inputs."""
    input_rejected = At("input-rejected")
    """Rejected texts of the spec that writes the inputs."""
    received = At("received.jsonl")
    """Texts that no shard holds yet: a server's, and those that a stop kept."""
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
        """Return the files and folders that a later call of an unfinished stage goes on with."""
        return {
            "generate": [self.inputs, *self.text_folders, self.received, self.path / CHECKSUMS],
            "finetune": [self.checkpoints],
        }.get(stage, [])

    @property
    def is_run(self) -> bool:
        return self.record_file.exists() and is_unpublished(self.path)

    @property
    def lacks_record(self) -> bool:
        """Whether the folder holds a run's texts but not its record."""
        has_texts = self.spec.exists() and (self.path / CHECKSUMS).exists()
        return has_texts and not self.record_file.exists() and is_unpublished(self.path)

    @property
    def held_out(self) -> Path | None:
        """The pairs that are not trained on, None where there are none."""
        return self.dev if self.dev.exists() and self.dev.stat().st_size else None

    @property
    def shard_folders(self) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """Return the folders of shards of texts and of inputs, each with the folder of its rejected texts."""
        return (self.shards, self.rejected), (self.input_shards, self.input_rejected)

    @property
    def text_folders(self) -> list[Path]:
        """The folders of `shard_folders`, in one list."""
        return [folder for folders in self.shard_folders for folder in folders]
