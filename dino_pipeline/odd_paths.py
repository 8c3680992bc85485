"""Paths that the file system allows and libraries do not: patterns, addresses, bytes that are not UTF-8, long names."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from dino_pipeline.stopping import at_end
from dino_pipeline.text import has_lone_surrogate

LONGEST_NAME = 255
"""Bytes of a file's name, in most file systems."""
_PLAIN = re.compile(r"[\w./ @+=,#%-]*")
"""Paths that no library takes for a pattern, an address or the home folder."""


def beside(path: Path, ending: str) -> Path:
    """Return another path in the same folder: the name with an ending or, where that is too long, with a hash."""
    name = os.fsencode(path.name)
    if len(name) + len(ending) <= LONGEST_NAME:
        return path.with_name(path.name + ending)
    kept = LONGEST_NAME - len(ending) - 17
    start = name[:kept].decode(errors="ignore")  # not half of a character, which some file systems refuse
    return path.with_name(f"{start}-{hashlib.sha256(name).hexdigest()[:16]}{ending}")


def plain_path(path: Path) -> str:
    """Return a path that DuckDB takes as it is: where it holds odd characters, one by a link.

    A file that is not there yet needs a plain name of its own; its folder may have any.
    """
    if _PLAIN.fullmatch(str(path)):
        return str(path)
    if _PLAIN.fullmatch(path.name):
        return str(Path(_link_to(path.absolute().parent), path.name))
    return _link_to(path.absolute())


def utf8_path(path: Path | str) -> str:
    """Return a path for libraries that take UTF-8 only: a link, if the path is not UTF-8."""
    if not has_lone_surrogate(str(path)):
        return str(path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # no file has this name: loaders say so
        return str(path)
    return plain_path(Path(path))


@cache
def _link_to(place: Path) -> str:
    """Return a link to a file or folder, which lives as long as the process."""
    link = Path(_temporary_folder(), "link")
    link.symlink_to(place, target_is_directory=place.is_dir())
    return str(link)


def plain_copy(folder: Path) -> Path:
    """Return a folder that `datasets`, which resolves links to folders, takes as it is.

    Where its name is odd, it is a temporary folder of links to the files, which lives as long as the process.
    """
    if _PLAIN.fullmatch(os.path.realpath(folder)):
        return folder
    return shutil.copytree(folder.absolute(), Path(_temporary_folder(), "data"), copy_function=os.symlink)


def _temporary_folder() -> str:
    """Return an empty folder that is deleted when the process ends, unless it is killed or must end at once."""
    folder = tempfile.TemporaryDirectory(prefix="dino-")
    at_end(folder.cleanup)
    return folder.name
