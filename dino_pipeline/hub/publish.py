"""The publish stage: a run as repositories, first as folders, then on the Hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dino_pipeline.errors import HubError, OutputError
from dino_pipeline.examples import write_json
from dino_pipeline.hub.card import Kept
from dino_pipeline.hub.upload import Kind, Published
from dino_pipeline.run import Run, remove

README = "README.md"


def write_folder(run: Run, kind: Kind, repository: str, there: str | None, write: Callable[[Path, Kept], None]) -> Path:
    """Write a repository's folder aside, put it in the place of an older one, and return it.

    Args:
        run: whose.
        kind: what it holds.
        repository: its name.
        there: the card that is on the Hub; what people wrote into it is kept, and what they wrote into the folder's.
        write: fills an empty folder, given what is to be kept of the card.

    Raises:
        HubError: people wrote into both, and that cannot be brought together.
        OutputError: the folder cannot be written.
    """
    folder = run.hub / kind
    aside, old = folder.with_suffix(".part"), folder.with_suffix(".old")
    try:
        _settle(folder, aside, old)
        kept = _kept(folder / README, there, _record(run, kind, repository).get("card", ""))
        aside.mkdir(parents=True)
        write(aside, kept)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        return folder
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; make room and run again") from error
    finally:
        with contextlib.suppress(OSError):
            _settle(folder, aside, old)


def _kept(card: Path, there: str | None, base: str) -> Kept:
    if not card.exists():
        return Kept.of(there or "")
    here = Kept.of(card.read_text(encoding="utf-8"))
    try:
        return here if there is None else here.joined(Kept.of(there), Kept.of(base))
    except HubError as error:
        raise HubError(f"{card.parent}/{error}") from error


def _settle(folder: Path, aside: Path, old: Path) -> None:
    """Bring a replacement that was cut short back to the folder before, and remove what is left of it."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for path in (aside, old):
        remove(path)


def records(run: Run) -> dict[str, Any]:
    """Return what was published of a run, by kind; it is not in run.json, which is published itself."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((run.hub / "published.json").read_text(encoding="utf-8"))
        return found
    return {}


def _record(run: Run, kind: Kind, repository: str) -> dict[str, Any]:
    """Return what was published of a run in a repository."""
    found: dict[str, Any] = records(run).get(kind, {})
    return found if found.get("repository") == repository else {}


def remember(run: Run, kind: Kind, published: Published) -> dict[str, str]:
    """Record what was published, with the card as it is on the Hub now; return repository and commit.

    Where nothing changed, that is the commit that it was published in, whatever people wrote into the card since.
    """
    before = _record(run, kind, published.repository)
    commit = published.commit if published.changed else before.get("commit", published.commit)
    card = (run.hub / kind / README).read_text(encoding="utf-8")
    write_json(
        run.hub / "published.json", {**records(run), kind: {**asdict(published), "commit": commit, "card": card}}
    )
    return {"repository": published.repository, "commit": commit}
