"""Weights from strangers: safetensors only, for what is pickled can run code when it is read, unless a user asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dino_pipeline.errors import ModelError, first_line

ALLOW = "DINO_ALLOW_PICKLE"
"""The environment variable that `dino --allow-pickle` sets, for processes that this one starts, too."""
PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pkl", "*.ckpt")
REMEDY = (
    "holds pickled weights only, which can run code when they are read; convert them to safetensors or, if you trust "
    "them, run dino --allow-pickle"
)


def allowed() -> bool:
    """Whether the user allowed pickled weights."""
    return os.environ.get(ALLOW, "0") not in {"", "0"}


def safe() -> dict[str, Any]:
    """Return what `transformers`' loaders are told, so that they read safetensors only."""
    return {} if allowed() else {"use_safetensors": True}


def check(name: str) -> None:
    """Look for pickled weights in a model's folder; what is on the Hub is looked at by its loader.

    Raises:
        ModelError: a part of the model has no others, or there is no such folder.
    """
    folder = Path(name)
    if not folder.exists() and (name.startswith((".", "/", "~")) or len(folder.parts) > 2):
        raise ModelError(f"{name}: there is no such folder")
    if allowed() or not folder.is_dir():
        return
    for pattern in PICKLED:
        for file in sorted(folder.rglob(pattern)):
            if not any(file.parent.glob("*.safetensors")):
                raise ModelError(f"{file}: {REMEDY}")


def cause(name: str, error: BaseException) -> str:
    """Return why a model cannot be loaded: what an error says first, or what a user can do about it."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own; if you trust that, let it run with --trust-remote-code"
    pickled = not allowed() and "safetensors" in str(error) and "file named" in str(error)
    if pickled:
        return REMEDY
    found = Path(name).exists() or not isinstance(error, OSError)
    return first_line(error) if found else f"there is no such folder; as to the Hub: {first_line(error)}"
