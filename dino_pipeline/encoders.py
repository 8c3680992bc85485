"""Loading sentence encoders."""

from __future__ import annotations

from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import is_sentence_transformer_model

from dino_pipeline.errors import ModelError


def load_encoder(name: str, revision: str | None = None, pooling: str = "mean") -> SentenceTransformer:
    """Load a bi-encoder as it is, or any other encoder with pooling on top.

    Args:
        name: a folder or a Hub id.
        revision: on the Hub.
        pooling: for encoders that bring none.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        model = SentenceTransformer(name, revision=revision)
        if pooling != "mean" and not is_sentence_transformer_model(name, revision=revision):
            at = next(number for number, module in enumerate(model) if isinstance(module, Pooling))
            model[at] = Pooling(model[at].embedding_dimension, pooling_mode=pooling)
        return model
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be loaded as an encoder ({str(error).strip().splitlines()[0]}); "
            "give a folder or a Hub id that SentenceTransformer or AutoModel loads, or `pocket`"
        ) from error
