"""A better start for an encoder that never learned to compare texts: rare tokens count more, no direction dominates.

The mean of a language model's token states says little: frequent tokens and a few directions outweigh the rest. Both
are put right without labels, from the texts alone: each token is weighted by how few texts hold it, and the
embeddings are whitened (Su et al. 2021, arXiv:2103.15316).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, WordWeights
from torch import nn

from dino_pipeline.errors import OptionError
from dino_pipeline.models import Vectors, embed, pooling_of

SHRINKAGE = 0.1
"""Share of the mean variance that is added to each direction's, so that directions of small variance stay small."""
MAX_FITTED = 20_000
"""Texts that it is fitted to. More do not make it better."""
MIN_TEXTS = 100
"""Fewer texts do not tell what is frequent."""


def whiten(model: SentenceTransformer, texts: Sequence[str]) -> SentenceTransformer:
    """Return an encoder with token weights before its pooling, and a linear layer behind that whitens its embeddings.

    Both are modules of sentence-transformers, so that the encoder loads anywhere. The layer is trained with the rest;
    the token weights stay.

    Raises:
        OptionError: the encoder does not pool a mean, or there are too few texts.
    """
    if pooling_of(model) != "mean" or model.transformers_model is None:
        raise OptionError("needs an encoder with mean pooling", "leave it out", option="whiten", value=True)
    if len(texts) < MIN_TEXTS:
        raise OptionError(
            f"needs {MIN_TEXTS} different texts and more; these are {len(texts)}", option="whiten", value=True
        )
    if len(texts) > MAX_FITTED:
        texts = Random(0).sample(texts, MAX_FITTED)
    modules: list[nn.Module] = []
    for module in model:
        if isinstance(module, Pooling):
            modules.append(_rarity_weights(model, texts))
        modules.append(module)
    weighted = SentenceTransformer(modules=modules, device=str(model.device))
    weight, bias = whitening(embed(weighted, texts, normalize=False))
    modules.append(Dense(len(bias), len(bias), activation_function=nn.Identity(), init_weight=weight, init_bias=bias))
    return SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )


def _rarity_weights(model: SentenceTransformer, texts: Sequence[str]) -> WordWeights:
    """Return a weight for each token: the logarithm of the number of texts over the number that hold it."""
    counts: Counter[int] = Counter()
    for ids in model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]:
        counts.update(set(ids))
    vocabulary = model.tokenizer.convert_ids_to_tokens(range(len(model.tokenizer)))
    weights = {}
    for token, count in sorted(counts.items()):
        weights[vocabulary[token]] = math.log((len(texts) + 1) / count)
    layer = WordWeights(vocabulary, weights, unknown_word_weight=math.log(len(texts) + 1))
    return layer.requires_grad_(False)


def whitening(embeddings: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight ``(dimension, dimension)`` and bias ``(dimension,)`` of the layer that whitens embeddings.

    ``embeddings @ weight.T + bias`` has mean 0, and about the same variance in all directions.
    """
    mean = embeddings.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(np.cov(embeddings.astype(np.float64), rowvar=False))
    scales = 1 / np.sqrt(np.maximum(variances, 0) + SHRINKAGE * variances.mean())
    weight = (directions * scales).T  # a row a direction
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(-weight @ mean, dtype=torch.float32)
