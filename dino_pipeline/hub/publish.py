"""The publish stage: a run as repositories, first as folders, then on the Hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dino_pipeline.errors import OutputError
from dino_pipeline.examples import write_bytes, write_json
from dino_pipeline.hub.card import onto
from dino_pipeline.hub.upload import Published
from dino_pipeline.run import Run, remove

README = "README.md"


def write_folder(run: Run, kind: str, write: Callable[[Path, str], None]) -> Path:
    """Write a repository's folder aside, put it in the place of an older one, and return it.

    Args:
        run: whose.
        kind: ``dataset`` or ``model``.
        write: fills an empty folder, given the card of the folder before.
    """
    folder = run.hub / kind
    aside, old = folder.with_suffix(".part"), folder.with_suffix(".old")
    card = folder / README
    try:
        _settle(folder, aside, old)
        aside.mkdir(parents=True)
        write(aside, card.read_text(encoding="utf-8") if card.exists() else "")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        return folder
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; make room and run again") from error
    finally:
        with contextlib.suppress(OSError):
            _settle(folder, aside, old)


def _settle(folder: Path, aside: Path, old: Path) -> None:
    """Bring a replacement that was cut short back to the folder before, and remove what is left of it."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for path in (aside, old):
        remove(path)


def adopt(folder: Path, before: str | None) -> None:
    """Take over what people wrote into the card on the Hub."""
    card = folder / README
    if before:
        write_bytes(card, onto(card.read_text(encoding="utf-8"), before).encode())


def records(run: Run) -> dict[str, Any]:
    """Return what was published of a run, by kind; it is not in run.json, which is published itself."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((run.hub / "published.json").read_text(encoding="utf-8"))
        return found
    return {}


def remember(run: Run, kind: str, published: Published) -> None:
    """Record what was published."""
    write_json(run.hub / "published.json", {**records(run), kind: asdict(published)})


def commit_of(run: Run, published: Published) -> Mapping[str, str]:
    """Return repository and commit of a dataset as a model's lineage names them.

    Where nothing changed, that is the commit that it was published in, whatever people wrote into the card since.
    """
    before = records(run).get("dataset", {})
    if not published.changed and before.get("repository") == published.repository:
        return {"repository": published.repository, "commit": before["commit"]}
    return {"repository": published.repository, "commit": published.commit}
