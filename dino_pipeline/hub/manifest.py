"""lineage.json of a published folder: what made it, and the hash of each file; checked again at any time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dino_pipeline.errors import HubError
from dino_pipeline.files import file_digest, write_json
from dino_pipeline.hub.card import README
from dino_pipeline.layout import LINEAGE
from dino_pipeline.public import public
from dino_pipeline.run import Run

FORMAT = 1
OTHERS = {".cache", ".git"}
FREE = (README, ".gitattributes", LINEAGE)
"""Files that are not hashed: people write in the first, the Hub in the second."""


@dataclass(frozen=True)
class Manifest:
    """Where a published folder comes from."""

    kind: str
    """``dataset`` or ``model``."""
    origin: str
    """A hash of what the run asked for: spec, generator and seed. Another run has another."""
    spec: str | None
    """The task spec's digest."""
    dataset: Mapping[str, str] | None = None
    """Of a model: the repository, and commit if it has one, of what it was trained on, where that is published."""
    repository: str | None = None
    """Where it was to be published."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Of a dataset: how many there are in each split, ``config/split``."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file."""
    made_with: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that wrote the texts, or trained the encoder."""
    lacks: Sequence[str] = ()
    """What the commands of the card need and the folder does not hold."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        write_json(folder / LINEAGE, asdict(self))

    @classmethod
    def read(cls, path: Path, where: str) -> Manifest:
        """Read lineage.json.

        Raises:
            HubError: it is none of ours.
            OSError: it cannot be read.
        """
        try:
            found = json.loads(path.read_bytes())
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            return TypeAdapter(cls).validate_python(found)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            said = f"{' '.join(str(error).split()):.200}"
            raise HubError(f"{where}: {LINEAGE} is none that this version reads ({said}); publish again") from error


def seal(run: Run, folder: Path, kind: str, **more: Any) -> None:
    """Write run.json and, over all that is there then, lineage.json.

    Args:
        run: whose folder it is.
        folder: with everything else in it.
        kind: ``dataset`` or ``model``.
        more: other fields of the manifest.
    """
    records = run.records()
    write_json(folder / "run.json", public(records))
    written = records.get("generate") or records.get("finetune", {}).get("origin", {}).get("generate") or {}
    spec = written.get("options", {}).get("spec")
    Manifest(kind, origin_of(records), spec, files=hashes(folder), **more).write(folder)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder, but for those that are free."""
    named = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    return {name: file_digest(path) for name, path in named.items() if name not in FREE}


def files_of(folder: Path) -> Iterable[Path]:
    """Return all files of a folder in order, but for the Hub's and git's own."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not OTHERS & {*path.relative_to(folder).parts}
    )


def origin_of(records: Mapping[str, Any]) -> str:
    """Return a hash of what a run asked for, which later changes of the filter or of the training leave as it is."""
    asked: Any = public(records["generate"]["options"]) if records.get("generate") else None
    if asked is None and records.get("filter"):
        asked = {"source": records["filter"]["sources"]}
    if asked is None:
        asked = {"trained on": records.get("finetune", {}).get("sources")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
