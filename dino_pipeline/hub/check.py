"""Checks a published folder: hashes, counts, and whether the same commands would make the same dataset today."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dino_pipeline import pocket
from dino_pipeline.errors import DinoError, HubError, first_line
from dino_pipeline.files import digest_files
from dino_pipeline.hub.card import README, read_card, split
from dino_pipeline.hub.manifest import Manifest, hashes
from dino_pipeline.layout import LINEAGE
from dino_pipeline.models import model_fingerprint
from dino_pipeline.record import versions
from dino_pipeline.spec_file import load_spec


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    manifest: Manifest
    wrong: Sequence[str]
    """What is not as lineage.json says; empty if all is."""
    other: Sequence[str]
    """Why a rerun with the same options might not be the same dataset; empty if it would."""


def check(folder: Path) -> Checked:
    """Check a published folder.

    Raises:
        HubError: it is none.
    """
    try:
        manifest = Manifest.read(folder / LINEAGE, str(folder))
    except OSError as error:
        raise HubError(f"{folder}: holds no {LINEAGE}; give a folder or repository that dino publish made") from error
    return Checked(manifest, [*_files(folder, manifest), *_rows(folder, manifest)], list(_rerun(folder, manifest)))


def _files(folder: Path, manifest: Manifest) -> list[str]:
    found = hashes(folder)
    wrong = [f"{name}: is missing" for name in manifest.files if name not in found]
    wrong += [f"{name}: is not the file that was published" for name, value in manifest.files.items()
              if name in found and found[name] != value]  # fmt: skip
    return wrong + [f"{name}: was not published" for name in found if name not in manifest.files]


def _rows(folder: Path, manifest: Manifest) -> list[str]:
    wrong: list[str] = []
    claimed: dict[str, int] = {}
    try:
        claimed = _claimed(split(read_card(folder / README))[0])
    except HubError as error:
        wrong.append(str(error))
    except (OSError, TypeError, KeyError, AttributeError) as error:
        wrong.append(f"README.md: cannot be read ({first_line(error)})")
    for name, count in manifest.rows.items():
        found = _counted(folder, name)
        if found != count:
            wrong.append(f"{name}: {found} rows, {count} were published")
        if claimed.get(name, count) != count:
            wrong.append(f"README.md: claims {claimed[name]} rows of {name}, {count} were published")
    return wrong


def _counted(folder: Path, name: str) -> int:
    """Return the rows of a split; damaged files have none."""
    config, _, part = name.partition("/")
    rows = 0
    for path in sorted((folder / ("data" if config == "default" else config)).glob(f"{part}-*.parquet")):
        with contextlib.suppress(OSError, pa.ArrowException):
            rows += pq.read_metadata(path).num_rows
    return rows


def _claimed(front: dict[str, Any]) -> dict[str, int]:
    infos = front.get("dataset_info", [])
    every = infos if isinstance(infos, list) else [infos]
    return {
        f"{info.get('config_name', 'default')}/{part['name']}": part["num_examples"]
        for info in every
        for part in info.get("splits", [])
    }


def _rerun(folder: Path, manifest: Manifest) -> list[str]:
    now = versions()
    other = [
        f"{library} was {version}, here it is {now.get(library, 'missing')}"
        for library, version in manifest.made_with.items()
        if now.get(library) != version
    ]
    if manifest.spec is None:
        return [*other, "the texts were brought as a file, which is not published"]
    if manifest.kind == "dataset":
        try:
            digest = load_spec(folder / "spec.json").digest
        except DinoError as error:
            return [*other, f"spec.json cannot be read ({first_line(error)})"]
        if digest != manifest.spec:
            other.append(f"spec.json is {digest}, the texts were written from {manifest.spec}")
    return [*other, *_embedded(folder), *(f"{each} is needed, too" for each in manifest.lacks)]


def _embedded(folder: Path) -> Iterator[str]:
    """Yield what comes with this package, was used, and is another one here."""
    try:
        records = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        known = records if "generate" in records else records["finetune"]["origin"]  # which was published before
        generated, filtered = (known[stage]["options"] for stage in ("generate", "filter"))
        if generated["model"] == "pocket" and generated["fingerprint"] != model_fingerprint(str(pocket.GENERATOR)):
            yield "the embedded generator is another one here"
        if set(filtered["exclude"]) == {"pocket"} and filtered["excluded"] != digest_files([pocket.GOLD_TEST]):
            yield "the embedded evaluation data is other data here"
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield f"run.json cannot be read ({first_line(error)})"
