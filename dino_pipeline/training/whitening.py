"""What an encoder gains from unlabelled texts without training: rare tokens count more, no direction dominates.

`weigh` belongs before training, `whiten` before or after it. `static_student` folds both into a token table.

The mean of a language model's token states says little: frequent tokens and a few directions outweigh the rest. Both
are put right without labels, from the texts alone: each token is weighted by how few texts hold it, and the
embeddings are whitened (Su et al. 2021, arXiv:2103.15316).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding, WordWeights
from torch import nn
from transformers import PreTrainedTokenizerFast

from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.models import Vectors, embed, pooling_of

SHRINKAGE = 1.0
"""Share of the mean variance that is added to each direction's, so that directions of small variance stay small."""
MAX_FITTED = 4_000
"""Texts that it is fitted to. More did not make it better."""
MIN_TEXTS = 100
"""Fewer texts do not tell what is frequent."""
STATIC_DIMENSIONS = 512
"""Dimensions of a static student, at most. The first ones hold the most."""
STATIC_SCALE = 0.02
"""Standard deviation of a static student's table: that of new layers, for which learning rates are chosen."""


def can_be_weighed(model: SentenceTransformer) -> bool:
    """Return whether an encoder has layers and pools the mean of their tokens' states."""
    return pooling_of(model) == "mean" and model.transformers_model is not None


def weigh(model: SentenceTransformer, texts: Sequence[str]) -> SentenceTransformer:
    """Return an encoder whose pooling weights each token by its rarity. An encoder that does so already stays as it is.

    The weights are a stock module of sentence-transformers, so that the encoder loads anywhere. They are not trained.
    Special tokens weigh least: a mask would outweigh the words around it.

    Raises:
        OptionError: the encoder does not pool a mean, or there are too few texts.
    """
    if not can_be_weighed(model):
        raise OptionError("needs an encoder with layers and mean pooling", "leave it out", option="whiten")
    _check_enough(texts, "whiten")
    modules: list[nn.Module] = []
    for module in model:
        if isinstance(module, WordWeights):
            return model
        if isinstance(module, Pooling):
            modules.append(_rarity_weights(model, texts))
        modules.append(module)
    return _with_modules(model, modules)


def whiten(model: SentenceTransformer, texts: Sequence[str]) -> SentenceTransformer:
    """Return an encoder with a linear layer at its end that whitens its embeddings of the texts.

    The layer is a stock module of sentence-transformers, so that the encoder loads anywhere.

    Raises:
        OptionError: there are too few texts.
    """
    _check_enough(texts, "whiten")
    weight, bias = fit_whitening(embed(model, texts, normalize=False))
    layer = Dense(len(bias), len(bias), activation_function=nn.Identity(), init_weight=weight, init_bias=bias)
    return _with_modules(model, [*model, layer])


def _with_modules(model: SentenceTransformer, modules: list[nn.Module]) -> SentenceTransformer:
    """Return an encoder of other modules with a model's settings."""
    return SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )


def _rarity_weights(model: SentenceTransformer, texts: Sequence[str]) -> WordWeights:
    """Return the layer that weights each token by its rarity."""
    rarity = token_rarity(model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"])
    everywhere = math.log((len(texts) + 1) / len(texts))
    rarity |= dict.fromkeys(model.tokenizer.all_special_ids, everywhere)  # a mask says nothing, however rare it is
    names = {number: token for token, number in model.tokenizer.get_vocab().items()}
    vocabulary = [names.get(number, f"<unused {number}>") for number in range(max(names) + 1)]
    weights = {vocabulary[token]: weight for token, weight in sorted(rarity.items())}
    return WordWeights(vocabulary, weights, unknown_word_weight=math.log(len(texts) + 1))


def token_rarity(texts: Sequence[Sequence[int]]) -> dict[int, float]:
    """Return a weight for each token: the logarithm of the number of texts, and one, over the number that hold it."""
    counts: Counter[int] = Counter()
    for ids in texts:
        counts.update(set(ids))
    return {token: math.log((len(texts) + 1) / count) for token, count in counts.items()}


def fit_whitening(embeddings: Vectors, dimensions: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight ``(dimensions, dimension)`` and bias ``(dimensions,)`` of the layer that whitens embeddings.

    ``embeddings @ weight.T + bias`` has mean 0, and about the same variance in all directions. The directions of the
    largest variance come first; the others can be left out.
    """
    mean = embeddings.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(np.cov(embeddings.astype(np.float64), rowvar=False))
    scales = 1 / np.sqrt(np.maximum(variances, 0) + SHRINKAGE * variances.mean())
    weight = np.flip((directions * scales).T, axis=0)[:dimensions].copy()  # a row a direction
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(-weight @ mean, dtype=torch.float32)


def static_student(model: SentenceTransformer, texts: Sequence[str]) -> SentenceTransformer:
    """Return an encoder that is a table: a text's embedding is the mean of its tokens' rows.

    The rows are the token vectors that enter the model's first layer, weighted and whitened. No layer is left, so that
    it encodes texts many times faster.

    Raises:
        ModelError: the model has no table of token vectors, or no tokenizer of its own for them.
        OptionError: there are too few texts.
    """
    _check_enough(texts, "encoder")
    tokenizer = model.tokenizer
    if model.transformers_model is None or not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            "a static student needs an encoder with layers and a fast tokenizer",
            "name another encoder, or this one without `static:`",
        )
    table = model.transformers_model.get_input_embeddings().weight.detach().float().cpu()  # (tokens, dimension)
    if max(tokenizer.get_vocab().values()) >= len(table):
        raise ModelError(f"the tokenizer has more tokens than the encoder's table has rows ({len(table)})")
    rarity = token_rarity(
        tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    )
    weights = torch.full((len(table), 1), math.log(len(texts) + 1))
    for token, weight in rarity.items():
        weights[token] = weight
    table = table * weights
    matrix, bias = fit_whitening(embed(_of_table(tokenizer, table), texts, normalize=False), STATIC_DIMENSIONS)
    table = table @ matrix.T + bias  # of a mean of rows, this is the mean
    return _of_table(tokenizer, table * (STATIC_SCALE / table.std())).to(model.device)


def _of_table(tokenizer: PreTrainedTokenizerFast, table: torch.Tensor) -> SentenceTransformer:
    # a copy: the layer switches the tokenizer's padding off
    return SentenceTransformer(modules=[StaticEmbedding(deepcopy(tokenizer), embedding_weights=table)], device="cpu")


def _check_enough(texts: Sequence[str], option: str) -> None:
    if len(texts) < MIN_TEXTS:
        found = f"needs at least {MIN_TEXTS} different texts; there are {len(texts)}"
        raise OptionError(found, "give more of them, by {sentences=FILE}", option=option)
