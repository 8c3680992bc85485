"""Loading sentence encoders."""

from __future__ import annotations

from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from dino_pipeline.errors import ModelError


def load_encoder(name: str, revision: str | None = None) -> SentenceTransformer:
    """Load a bi-encoder as it is, or any other encoder with mean pooling on top.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return SentenceTransformer(name, revision=revision)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be loaded as an encoder ({str(error).strip().splitlines()[0]}); "
            "give a folder or a Hub id that SentenceTransformer or AutoModel loads, or `pocket`"
        ) from error
