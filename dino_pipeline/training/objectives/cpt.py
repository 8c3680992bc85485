"""cpt: of two texts that belong together, each finds the other among a very large batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from dino_pipeline.errors import ModelError
from dino_pipeline.training.objectives.base import Objective, Recipe, Training
from dino_pipeline.training.objectives.views import as_they_are

OPEN_QUERY, OPEN_DOCUMENT = "[", "{"
HIGHEST = 100.0
"""No temperature makes cosines count more than this."""


class LearnedTemperature(nn.Module):
    """Cosines times ``exp(t)``, where t is learned (Neelakantan et al. 2022, section 2)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the logits of all pairs, ``(rows of first, rows of second)``."""
        return cos_sim(first, second) * self.t.exp().clamp(max=HIGHEST)


def prepare(model: SentenceTransformer) -> None:
    """Have texts begin with their delimiter and end with a token whose state is the embedding.

    The paper closes texts with a second delimiter. Here the tokenizer's own end closes them, so that a plain `encode`
    gives what was trained: texts are queries unless `encode_document` is called.
    """
    model.prompts = {"query": OPEN_QUERY, "document": OPEN_DOCUMENT}
    model.default_prompt_name = "query"
    _close_texts(model.tokenizer)


def _close_texts(tokenizer: Any) -> None:
    """Let a tokenizer end texts with its end token, if it does not end them with a token of its own.

    Raises:
        ModelError: it has none.
    """
    ids = tokenizer("a")["input_ids"]
    if ids[-1] in tokenizer.all_special_ids:
        return
    if tokenizer.eos_token is None or not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError("cpt: the encoder's tokenizer has no token that ends a text; take another encoder")
    start = [tokenizer.convert_ids_to_tokens(ids[0])] if ids[0] in tokenizer.all_special_ids else []
    special = dict.fromkeys([*start, tokenizer.eos_token])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*start, "$A", tokenizer.eos_token]),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in special],
    )


def loss(model: SentenceTransformer, recipe: Recipe) -> Any:
    """Return the mean of the cross-entropies over rows and over columns, with cached gradients."""
    return CachedMultipleNegativesRankingLoss(
        model,
        scale=1.0,
        similarity_fct=LearnedTemperature(recipe["temperature"]),
        mini_batch_size=recipe.training.mini_batch_size or recipe.training.batch_size,
        gather_across_devices=recipe.processes > 1,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )


OBJECTIVE = Objective(
    name="cpt",
    needs="pairs",
    method="each finds the other, learned temperature",
    build=as_they_are,
    loss=loss,
    defaults=Training(batch_size=12288, mini_batch_size=64, pooling="lasttoken", options={"temperature": 0.07}),
    citation="Neelakantan et al. 2022, Text and Code Embeddings by Contrastive Pre-Training, arXiv:2201.10005",
    in_batch=True,
    distinct=True,
    caches=True,
    prompts={"anchor": OPEN_QUERY, "positive": OPEN_DOCUMENT},
    prepare=prepare,
)
