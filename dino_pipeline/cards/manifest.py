"""What does lineage.json say of a published folder: which run made it, from what, and the hash of each file?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from dino_pipeline.cards.card import README
from dino_pipeline.errors import HubError
from dino_pipeline.files import file_digest, write_bytes, write_json
from dino_pipeline.record import RunRecord, public_record
from dino_pipeline.run import LINEAGE
from dino_pipeline.stage_records import PublishedDataset, Record

FORMAT: Literal[2] = 2
Kind = Literal["dataset", "model"]
FOREIGN_FOLDERS = {".cache", ".git"}
"""Folders that git and the Hub's client make."""
NOT_HASHED = (README, ".gitattributes", LINEAGE)
"""People edit the card, and the Hub writes .gitattributes."""


class Manifest(Record):
    """The content of lineage.json: where a published folder comes from."""

    kind: Kind
    origin: str
    """A hash of spec, generator and seed; no two different runs share it."""
    spec: str | None = None
    """The task spec's digest."""
    dataset: PublishedDataset | None = None
    """Of a model: the dataset that it was trained on, if that is published."""
    repository: str | None = None
    """The repository that the folder was written for."""
    rows: dict[str, int] = Field(default_factory=dict)
    """Of a dataset: the number of rows in each split, by ``config/split``."""
    files: dict[str, str] = Field(default_factory=dict)
    """The SHA-256 of each file."""
    made_with: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that wrote the texts, or trained the encoder."""
    lacks: tuple[str, ...] = ()
    """In words, what the card's commands need and the folder does not hold."""
    format: Literal[1, 2] = FORMAT
    """In format 1, the last version's, ``origin`` was computed differently."""

    def write(self, folder: Path) -> None:
        """Write lineage.json into a folder."""
        write_json(folder / LINEAGE, self.model_dump(mode="json"))

    def is_of(self, run: Manifest) -> bool:
        """Return True if this folder and another one of the same kind were published by the same run."""
        if self.format == 1:
            return (self.kind, self.spec, self.repository) == (run.kind, run.spec, run.repository)
        return (self.kind, self.origin) == (run.kind, run.origin)

    @classmethod
    def read(cls, path: Path, name: str) -> Manifest:
        """Read lineage.json.

        Args:
            path: the file.
            name: folder or repository, for errors.

        Raises:
            HubError: it was not written by this package, or is damaged.
            OSError: it cannot be read.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:  # pydantic's too
            problem = f"{' '.join(str(error).split()):.200}"
            raise HubError(
                f"{name}: this version cannot read its {LINEAGE} ({problem})", "publish it again with {publish()}"
            ) from error


def seal(folder: Path, record: RunRecord, manifest: Manifest) -> None:
    """Write run.json and then lineage.json into a folder that holds everything else.

    Args:
        folder: the folder to be published.
        record: of the run that is published.
        manifest: everything but the hashes of files.
    """
    content = public_record(record).model_dump_json(indent=2)
    write_bytes(folder / "run.json", f"{content}\n".encode())
    manifest.updated(files=file_hashes(folder)).write(folder)


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each published file by its name, without the files that others may change."""
    by_name = {path.relative_to(folder).as_posix(): path for path in published_files(folder)}
    return {name: file_digest(path) for name, path in by_name.items() if name not in NOT_HASHED}


def published_files(folder: Path) -> list[Path]:
    """Return all files of a folder in order, without those of git and of the Hub's client."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not FOREIGN_FOLDERS & {*path.relative_to(folder).parts}:
            files.append(path)
    return files


def run_manifest(record: RunRecord, kind: Kind, repository: str) -> Manifest:
    """Return a manifest that identifies a run: by what its texts were made from, so that filtering again keeps it."""
    made_from: JsonValue
    if record.generate:
        made_from = public_record(record.generate.options).model_dump(mode="json")
    elif record.filter:
        made_from = {"source": record.filter.sources}
    else:
        made_from = {"trained on": record.finetune.sources if record.finetune else None}
    origin = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    generated = record.generate or record.texts_origin().generate
    spec = generated.options.spec if generated else None
    return Manifest(kind=kind, origin=origin, spec=spec, repository=repository)
