"""A repository's folder: written aside, with what people wrote into its card, and put in the place of an older one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_pipeline.errors import HubError
from dino_pipeline.files import folder_replaced
from dino_pipeline.hub.card import README, Kept, read_card


def write_folder(
    folder: Path, write: Callable[[Path, Kept], None], repository: str, there: Path | None = None, base: str = ""
) -> None:
    """Write a folder, all of it or nothing.

    Args:
        folder: where to write.
        write: fills an empty folder, given what is to be kept of the card.
        repository: its name.
        there: the card that is on the Hub; what people wrote into it is kept, and what they wrote into the folder's.
        base: the card that was published last.

    Raises:
        HubError: people wrote into both, and that cannot be brought together, or one cannot be read.
        OutputError: the folder cannot be written.
    """
    with folder_replaced(folder) as new:
        write(new, _kept(folder, repository, there, base))


def _kept(folder: Path, repository: str, there: Path | None, base: str) -> Kept:
    with _naming(repository):
        of_hub = Kept.of(read_card(there)) if there else None
    if not (folder / README).exists():
        return of_hub or Kept()
    with _naming(folder):
        here = Kept.of(read_card(folder / README))
        return here.joined(of_hub, Kept.of(base)) if of_hub else here


@contextmanager
def _naming(place: Path | str) -> Iterator[None]:
    """Say in an error about a card where it is."""
    try:
        yield
    except HubError as error:
        raise HubError(f"{place}/{error}") from error
