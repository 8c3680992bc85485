"""The files of a model: their fingerprint, formats, and what is refused before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dino_pipeline.errors import ModelError, as_it_is, option_given

ALLOW_PICKLE = "DINO_ALLOW_PICKLE"
"""Environment variable that allows pickled weights; it reaches processes that this one starts, too."""
PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pkl", "*.ckpt")
FULLY_HASHED = 64 * 2**20
"""Model files up to this many bytes are hashed whole, larger ones by samples."""
SAMPLE_SIZE, SAMPLE_STRIDE = 2**20, 8 * 2**20
"""Of a large file, this many bytes are hashed out of each stride: no tensor of 8 MiB escapes."""
MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".py"}
LFS_POINTER = b"version https://git-lfs.github.com/spec"
"""The beginning of the small text files that Git LFS leaves in place of large files."""
ONLY_PICKLED = "holds pickled weights only, which can run code when they are read"
PICKLE_REMEDY = f"convert them to safetensors or, if you trust them, set {ALLOW_PICKLE}=1 in the environment"


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``user/name`` of a repository on the Hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def gguf_in(path: str) -> tuple[str, str | None]:
    """Return the folder or Hub id that holds a model, and the name of its GGUF file there, None if it is none.

    ``models/mine.gguf`` is in the folder ``models``, and ``user/name:mine.gguf`` in a repository on the Hub.
    """
    if not path.lower().endswith(".gguf"):
        return path, None
    repository, _, file = path.partition(":")
    if file and is_hub_id(repository) and not Path(path).exists():
        return repository, file
    return str(Path(path).parent), Path(path).name


def model_fingerprint(path: str) -> str | None:
    """Return a hash of a local model's files, or of its GGUF file, None for a name on the Hub."""
    digest = hashlib.sha256()
    place = Path(path)
    if place.is_dir():
        for file in sorted(place.rglob("*")):
            if file.is_file() and file.suffix in MODEL_SUFFIXES:
                _hash_file(digest, file, str(file.relative_to(place)))
    elif place.is_file():
        _hash_file(digest, place, "")  # a model does not change with the name of its file
    else:
        return None
    return digest.hexdigest()[:16]


def _hash_file(digest: hashlib._Hash, file: Path, name: str) -> None:
    size = file.stat().st_size
    digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
    if size <= FULLY_HASHED:
        digest.update(file.read_bytes())
    else:
        _hash_samples(digest, file, size)


def _hash_samples(digest: hashlib._Hash, file: Path, size: int) -> None:
    with open(file, "rb") as content:
        for start in range(0, size, SAMPLE_STRIDE):
            content.seek(start)
            digest.update(content.read(SAMPLE_SIZE))


def pickle_allowed() -> bool:
    """Return whether the user allowed pickled weights, which can run code when they are read."""
    return os.environ.get(ALLOW_PICKLE, "0") not in {"", "0"}


def safe_loading() -> dict[str, bool]:
    """Return the arguments that make `transformers`' loaders read safetensors only."""
    return {} if pickle_allowed() else {"use_safetensors": True}


def check_files(path: str) -> None:
    """Refuse files that cannot be loaded, or not safely. Models on the Hub are checked by their loader.

    Raises:
        ModelError: there is no such folder or file; it holds pointers of Git LFS, GGUF files without saying which, or
            pickled weights only.
    """
    place = Path(path)
    repository, gguf = gguf_in(path)
    if not place.exists() and gguf and is_hub_id(repository) and ":" in path:
        return
    is_file = place.suffix.lower() == ".gguf"
    if not place.exists() and (is_file or path.startswith((".", "/", "~")) or len(place.parts) > 2):
        raise ModelError(f"{path}: there is no such {'file' if is_file else 'folder'}")
    if place.is_file() and not is_file:
        raise ModelError(f"{path}: is a file", "give the folder that holds the model, or a GGUF file")
    for file in _small_files(place):
        if file.read_bytes().startswith(LFS_POINTER):
            raise ModelError(
                f"{file}: is a pointer of Git LFS, not the file itself",
                f"get the files by git lfs pull in {place if place.is_dir() else place.parent}",
            )
    if not place.is_dir():
        return
    if not (place / "config.json").exists() and (files := sorted(place.glob("*.gguf"))):
        raise ModelError(f"{path}: is a folder of GGUF files", f"give one of them, such as {as_it_is(files[0])}")
    if not pickle_allowed():
        _check_not_pickled(place)


def _small_files(place: Path) -> Iterator[Path]:
    """Yield a model's files that are as small as a pointer of Git LFS."""
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file() and file.stat().st_size < 1024:
            yield file


def _check_not_pickled(folder: Path) -> None:
    """Raise `ModelError` if a part of a model has pickled weights only."""
    for pattern in PICKLED:
        for file in sorted(folder.rglob(pattern)):
            if not any(file.parent.glob("*.safetensors")):
                raise ModelError(f"{file}: {ONLY_PICKLED}", PICKLE_REMEDY)


def check_is_whole_model(path: str) -> None:
    """Raise `ModelError` if a folder holds an adapter alone."""
    config = Path(path) / "adapter_config.json"
    if not config.is_file() or (Path(path) / "config.json").exists():
        return
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    remedy = f"give {option_given('model', base or 'MODEL')} {option_given('adapter', path)}"
    raise ModelError(f"{path}: is an adapter, not a model", remedy)
