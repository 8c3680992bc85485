"""The tables of a file, or of a dataset in a folder or on the Hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from dino_pipeline.errors import DataError, as_it_is, first_line
from dino_pipeline.odd_paths import plain_copy
from dino_pipeline.rows import ClassifiedRows, DatasetRows, Table, class_names
from dino_pipeline.tables import KINDS, TABLE_ENDINGS, TEXT_ENDINGS, open_file

EVALUATION_SPLITS = ("test", "validation", "train")
"""Splits of a dataset to evaluate on; the first that is there counts."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
"""Endings of packed files, which `datasets` unpacks."""


def open_tables(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None
) -> list[Table]:
    """Return the tables of a file, or of a dataset in a folder or on the Hub.

    Args:
        name: a file, a folder that `datasets` reads, or a Hub id.
        split: of a folder or a Hub id; a file has only one.
        config: of a folder or a Hub id.
        revision: of a Hub id.

    Raises:
        DataError: the file or dataset does not exist, or cannot be read.
    """
    path = Path(name)
    if path.is_file():
        return [open_file(path)]
    if not path.exists() and path.suffix.lower() in TABLE_ENDINGS:
        raise DataError(f"{name}: is not there", "name another file")
    with _dataset_errors(name):
        return _dataset_tables(name, split, config, revision)


def _dataset_tables(name: str, split: str, config: str | None, revision: str | None) -> list[Table]:
    """Return the tables of a dataset. Its text files are read by our own rules, as `datasets` guesses types."""
    from datasets import load_dataset, load_dataset_builder

    path = _path_or_id(name)
    builder = load_dataset_builder(path, config, revision=revision)
    of_split = builder.config.data_files or {}
    files = [str(file) for part in re.split(r"[+\[]", split) for file in of_split.get(part.strip(), ())]
    if not files or any(ending_of(file) not in TEXT_ENDINGS for file in files):
        return [DatasetRows(name, load_dataset(path, config, split=split, revision=revision))]
    if split not in of_split:
        raise DataError(
            f"{name}: {split} is no whole split, and its files are text",
            f"choose from {as_it_is(', '.join(map(str, of_split)))}",
        )
    classes = class_names(builder.info.features)
    tables = [open_file(_here(file), KINDS.get(ending_of(file), "text")) for file in files]
    return [ClassifiedRows(table, classes) for table in tables] if classes else tables


def _path_or_id(name: str) -> str:
    """Return what `datasets` takes for a folder here or a dataset on the Hub."""
    return str(plain_copy(Path(name))) if Path(name).is_dir() else name


def split_names(name: str, config: str | None = None, revision: str | None = None) -> list[str]:
    """Return the splits of a dataset; none if it cannot be read: loading it raises an error that says what is wrong."""
    from datasets import get_dataset_split_names

    with contextlib.suppress(Exception):
        return list(get_dataset_split_names(_path_or_id(name), config, revision=revision))
    return []


def evaluation_split(name: str) -> str:
    """Return the split of a dataset to evaluate on: the first of `EVALUATION_SPLITS` that it has, else its first."""
    found = split_names(name)
    return next((split for split in EVALUATION_SPLITS if split in found), found[0] if found else "train")


def ending_of(file: str) -> str:
    """Return the ending of a file, packed or not."""
    path = Path(file)
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix.lower()


def _here(file: str) -> Path:
    """Return the path of a dataset's file, which is fetched if it is on the Hub, and unpacked if it is packed."""
    from datasets import DownloadManager
    from huggingface_hub import HfFileSystem, hf_hub_download

    path = Path(file)
    if "://" in file:
        place = HfFileSystem().resolve_path(file)
        path = Path(
            hf_hub_download(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision)
        )
    if path.suffix in PACKED:
        return Path(DownloadManager().extract(str(path)))
    return path.readlink() if path.is_symlink() and path.readlink().is_absolute() else path  # of `plain_copy`


@contextlib.contextmanager
def _dataset_errors(name: str) -> Iterator[None]:
    """Turn the errors of `datasets` into `DataError`."""
    from datasets.exceptions import DatasetNotFoundError

    from dino_pipeline.hub_answers import OddAnswerError, bounded_answers, nonsense

    try:
        with bounded_answers():
            yield
    except OddAnswerError as error:
        raise DataError(f"{name}: the Hub cannot be read: {nonsense(error)}", "try again later") from error
    except (DatasetNotFoundError, OSError) as error:
        raise DataError(
            f"{name}: is neither a file or folder here nor a dataset that can be had from the Hub "
            f"({first_line(error)})",
            "give a run's folder, a file, or a Hub id",
        ) from error
    except DataError:
        raise
    except Exception as error:  # files that are not what their names say raise anything
        raise DataError(
            f"{name}: cannot be read as a dataset ({first_line(error)})", "see {split}, {config} and {revision}"
        ) from error
