"""Loading sentence encoders."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import is_sentence_transformer_model

from dino_pipeline.models import check_weights, load_error, safe_loading


def load_encoder(name: str, revision: str | None = None, pooling: str = "mean") -> SentenceTransformer:
    """Load a bi-encoder as it is, or any other encoder with pooling on top.

    Args:
        name: a folder or a Hub id.
        revision: on the Hub.
        pooling: for encoders that bring none.

    Raises:
        ModelError: it cannot be loaded.
    """
    check_weights(name)
    try:
        model = SentenceTransformer(name, revision=revision, model_kwargs=safe_loading())
        if not is_sentence_transformer_model(name, revision=revision) and pooling_of(model) != pooling:
            at = next(number for number, module in enumerate(model) if isinstance(module, Pooling))
            model[at] = Pooling(model[at].embedding_dimension, pooling_mode=pooling)
    except Exception as error:  # files that are not what their names say raise anything: EOFError, IndexError ...
        remedy = "give a folder or a Hub id that SentenceTransformer or AutoModel loads, or `pocket`"
        raise load_error(name, error, "cannot be loaded as an encoder", remedy) from error
    if model.transformers_model is not None and getattr(model.tokenizer, "pad_token", "") is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    return model


def pooling_of(model: SentenceTransformer) -> str:
    """Return how a model pools token states."""
    return next((str(module.pooling_mode) for module in model if isinstance(module, Pooling)), "none of its own")
