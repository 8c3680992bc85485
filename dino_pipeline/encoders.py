"""Sentence encoders: load one, see how it pools, embed texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import is_sentence_transformer_model

from dino_pipeline.models import check_weights, load_error, quiet_loading, safe_loading

BATCH_SIZE = 128
"""Texts that `embed` encodes at once."""
Vectors = NDArray[np.float32]


def load_encoder(name: str, revision: str | None = None, pooling: str = "mean") -> SentenceTransformer:
    """Load a bi-encoder as it is, or any other encoder with pooling on top.

    Args:
        name: a folder or a Hub id.
        revision: on the Hub.
        pooling: for encoders without pooling of their own.

    Raises:
        ModelError: it cannot be loaded.
    """
    check_weights(name)
    try:
        with quiet_loading():
            model = SentenceTransformer(name, revision=revision, model_kwargs=safe_loading())
        if not is_sentence_transformer_model(name, revision=revision) and pooling_of(model) != pooling:
            place = next(number for number, module in enumerate(model) if isinstance(module, Pooling))
            model[place] = Pooling(model[place].embedding_dimension, pooling_mode=pooling)
    except Exception as error:  # files that are not what their names say raise anything: EOFError, IndexError ...
        remedy = "give a folder or a Hub id that SentenceTransformer or AutoModel loads, or `pocket`"
        raise load_error(name, error, "cannot be loaded as an encoder", remedy) from error
    if model.transformers_model is not None and getattr(model.tokenizer, "pad_token", "") is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    return model


def pooling_of(model: SentenceTransformer) -> str:
    """Return the name of an encoder's pooling mode."""
    return next((str(module.pooling_mode) for module in model if isinstance(module, Pooling)), "none of its own")


def embed(model: SentenceTransformer, texts: Sequence[str], *, normalize: bool = True) -> Vectors:
    """Return embeddings, ``(texts, dimension)``, scaled to length 1 unless ``normalize`` is False."""
    vectors: Vectors = model.encode(
        list(texts), batch_size=BATCH_SIZE, normalize_embeddings=normalize, show_progress_bar=False
    )
    return vectors


def mean_cosine(model: SentenceTransformer, texts: Sequence[str]) -> float:
    """Return the mean cosine of all pairs of different texts, 0 if there are fewer than two."""
    if len(texts) < 2:
        return 0.0
    vectors = embed(model, texts)
    cosines = vectors @ vectors.T  # (texts, texts)
    return float(cosines[np.triu_indices(len(vectors), 1)].mean())
