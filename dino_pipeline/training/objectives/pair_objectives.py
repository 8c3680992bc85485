"""Objectives that learn from pairs of texts: dino (with scores), sbert (with classes) and cpt (without labels)."""

from __future__ import annotations

import math
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
)
from sentence_transformers.util import cos_sim
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import ModelError
from dino_pipeline.training.objectives import Columns, Objective, TrainingContext, fixed_rows
from dino_pipeline.training.objectives.contrastive import EmbeddingLoss, module_per_size

# DINO: the cosine of two embeddings regresses on the pair's score.

SCORE_LOSSES = {"cosine": CosineSimilarityLoss, "cosent": CoSENTLoss, "angle": AnglELoss}
"""``cosine``: the mean of ``(cos(u, v) - score) ** 2``. The others rank pairs by their scores."""


def score_loss(model: SentenceTransformer, context: TrainingContext) -> nn.Module:
    """Return the loss of scored pairs that the option ``loss`` names."""
    return SCORE_LOSSES[context["loss"]](model)


DINO = Objective(
    name="dino",
    needs="scored pairs",
    method="the cosine regresses on the score",
    build=fixed_rows,
    loss=score_loss,
    defaults=Hyperparameters(options={"loss": "cosine"}),
    choices={"loss": tuple(SCORE_LOSSES)},
    citation="Schick & Schütze 2021, Generating Datasets with Pretrained Language Models, arXiv:2104.07540",
)


# SBERT: a linear layer predicts the pair's class from both embeddings and their distance.


def classified_rows(columns: Columns, context: TrainingContext) -> Dataset:
    """Return the columns ``sentence1, sentence2, label``, the classes numbered in the order of their names."""
    names = sorted(dict.fromkeys(columns["label"]))
    text = Value("string")
    features = Features({"sentence1": text, "sentence2": text, "label": ClassLabel(names=names)})
    return Dataset.from_dict(columns, features)


class PairClassificationLoss(EmbeddingLoss):
    """Cross-entropy of ``softmax(W [u; v; |u - v|])`` (Reimers & Gurevych 2019, section 3)."""

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.classifiers = module_per_size(self.dimensions, lambda size: nn.Linear(3 * size, context.classes))

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the cross-entropy of the pairs' classes, ``labels`` being ``(rows,)`` or ``(rows, 1)``."""
        assert labels is not None
        u, v = embeddings
        classifier = self.classifiers[str(u.shape[-1])]
        logits = classifier(torch.cat([u, v, (u - v).abs()], dim=-1))  # (rows, classes)
        return nn.functional.cross_entropy(logits, labels.view(-1))


SBERT = Objective(
    name="sbert",
    needs="classified pairs",
    method="softmax over [u; v; |u - v|]",
    build=classified_rows,
    loss=PairClassificationLoss,
    defaults=Hyperparameters(batch_size=16),
    caches_gradients=True,
    citation="Reimers & Gurevych 2019, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, "
    "arXiv:1908.10084",
)


# cpt: each of two texts that belong together finds the other among a very large batch.

OPEN_QUERY, OPEN_DOCUMENT = "[", "{"
MAX_SCALE = 100.0
"""Upper bound of what cosines are multiplied with, whatever temperature is learned."""


class LearnedTemperature(nn.Module):
    """Cosines times ``exp(t)``, where t is learned (Neelakantan et al. 2022, section 2)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the logits of all pairs, ``(rows of first, rows of second)``."""
        return cos_sim(first, second) * self.t.exp().clamp(max=MAX_SCALE)


def add_delimiters(model: SentenceTransformer) -> None:
    """Make texts begin with a delimiter and end with a token whose state is the embedding.

    The paper closes texts with a second delimiter. Here the tokenizer's own end token closes them, so that a plain
    `encode` computes the embedding that was trained. Texts are queries unless `encode_document` is called.

    Raises:
        ModelError: the tokenizer has no end token.
    """
    model.prompts = {"query": OPEN_QUERY, "document": OPEN_DOCUMENT}
    model.default_prompt_name = "query"
    tokenizer = model.tokenizer
    ids = tokenizer("a")["input_ids"]
    if ids[-1] in tokenizer.all_special_ids:  # it closes texts already
        return
    if tokenizer.eos_token is None or not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError("cpt: the encoder's tokenizer has no token that ends a text", "take another encoder")
    start = [tokenizer.convert_ids_to_tokens(ids[0])] if ids[0] in tokenizer.all_special_ids else []
    special = dict.fromkeys([*start, tokenizer.eos_token])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*start, "$A", tokenizer.eos_token]),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in special],
    )


def two_way_loss(model: SentenceTransformer, context: TrainingContext) -> Any:
    """Return the mean of the cross-entropies over rows and over columns, with cached gradients."""
    hyperparameters = context.hyperparameters
    return CachedMultipleNegativesRankingLoss(
        model,
        scale=1.0,
        similarity_fct=LearnedTemperature(context["temperature"]),
        mini_batch_size=hyperparameters.mini_batch_size or hyperparameters.batch_size,
        gather_across_devices=context.processes > 1,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )


CPT = Objective(
    name="cpt",
    needs="pairs",
    method="each finds the other, learned temperature",
    build=fixed_rows,
    loss=two_way_loss,
    defaults=Hyperparameters(batch_size=12288, mini_batch_size=64, pooling="lasttoken", options={"temperature": 0.07}),
    citation="Neelakantan et al. 2022, Text and Code Embeddings by Contrastive Pre-Training, arXiv:2201.10005",
    in_batch_negatives=True,
    no_duplicates=True,
    caches_gradients=True,
    prompts={"anchor": OPEN_QUERY, "positive": OPEN_DOCUMENT},
    prepare=add_delimiters,
)
