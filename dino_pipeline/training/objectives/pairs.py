"""Objectives that learn from pairs of texts (dino, sbert, cpt), and what losses of whole embeddings share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed
from datasets import ClassLabel, Dataset, Features, Value
from pydantic import Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from dino_pipeline.encoder_options import Hyperparameters, ScoreLoss
from dino_pipeline.errors import ModelError
from dino_pipeline.options import Options
from dino_pipeline.training.objectives import Columns, Objective, TrainingContext, fixed_rows
from dino_pipeline.training.objectives.reference import Reference

NT_XENT_DIRECTIONS = ("query_to_doc", "query_to_query")
"""The stock loss then takes both the second views and the other first views of a batch as negatives."""


class EmbeddingLoss(CachedLossMixin, nn.Module):
    """A loss computed from one embedding per column and row, with or without gradient caching.

    `MatryoshkaLoss` calls it once for each dimension.
    """

    model: Any

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__()
        self.model = model
        self.mini_batch_size = context.hyperparameters.mini_batch_size or 0
        self.uses_gradient_cache = self.mini_batch_size > 0
        self.dimensions = embedding_sizes(model, context)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of a batch from the embeddings of its columns, each ``(rows, dimension)``."""
        raise NotImplementedError

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of a column's texts, ``(rows, dimension)``."""
        embeddings: Tensor = self.model(features)["sentence_embedding"]
        return embeddings

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss from each column's embeddings in mini-batches; see `CachedLossMixin`."""
        loss = self.compare([torch.cat(column) for column in reps], labels)  # each (rows, dimension)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        if self.mini_batch_size:
            return CachedLossMixin.forward_cached(self, sentence_features, labels)
        return self.compare([self.embed(features) for features in sentence_features], labels)


class ContrastOptions(Options):
    """Options of objectives in which a text is told from the others of its batch."""

    temperature: float = Field(default=0.05, gt=0, description="What cosines are divided by.")


class InfoNCELoss(EmbeddingLoss):
    """InfoNCE (van den Oord et al. 2018, section 2.3), one way.

    Cross-entropy of finding a row's text in the second column, from its text in the first, among the texts of all
    other columns of the batch.
    """

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.stock = ranking_loss(model, context)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of anchors, positives and, if there is a third column, negatives."""
        return self.stock.compute_loss_from_embeddings(embeddings, None)


class NTXentLoss(EmbeddingLoss):
    """NT-Xent between the two views of each row."""

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__(model, context)
        self.stock = ranking_loss(model, context, directions=NT_XENT_DIRECTIONS)

    def compare(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of the first and the second views."""
        first, second = embeddings
        return nt_xent(self.stock, first, second)


def ranking_loss(model: SentenceTransformer, context: TrainingContext, **kwargs: Any) -> MultipleNegativesRankingLoss:
    """Return the stock loss at the objective's temperature, with the batches of all processes as negatives."""
    return MultipleNegativesRankingLoss(
        model, scale=1 / context["temperature"], gather_across_devices=context.processes > 1, **kwargs
    )


def nt_xent(loss: MultipleNegativesRankingLoss, first: Tensor, second: Tensor) -> Tensor:
    """Return NT-Xent (Chen et al. 2020, section 2.1) over the views of N rows.

    The positive of a view is the row's other view. Its negatives are the remaining 2N - 2 views of the batch. Both are
    ``(rows, dimension)``. The stock loss has `NT_XENT_DIRECTIONS`.
    """
    forwards = loss.compute_loss_from_embeddings([first, second], None)
    backwards = loss.compute_loss_from_embeddings([second, first], None)
    return torch.stack([forwards, backwards]).mean()


def embedding_sizes(model: SentenceTransformer, context: TrainingContext) -> tuple[int, ...]:
    """Return the sizes of the embeddings that are trained, the whole embedding first."""
    return (model.get_embedding_dimension(), *context.hyperparameters.matryoshka)


def module_per_size(sizes: Sequence[int], make: Callable[[int], nn.Module]) -> nn.ModuleDict:
    """Return a module for each embedding size, under the size as its name."""
    return nn.ModuleDict({str(size): make(size) for size in sizes})


def own_tensors(loss: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Return a loss's parameters and buffers that are not the encoder's: heads, temperatures, memories."""
    model_ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    named = (*loss.named_parameters(), *loss.named_buffers())
    return {name: tensor for name, tensor in named if id(tensor) not in model_ids}


def average_gradients(tensors: Iterable[Tensor]) -> None:
    """Average the gradients of parameters over all processes.

    Parameters of the loss need this because the distributed wrapper only holds the encoder.
    """

    def average(parameter: Any) -> None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= torch.distributed.get_world_size()

    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]


# DINO: the cosine of two embeddings regresses on the pair's score.

SCORE_LOSSES = {"cosine": CosineSimilarityLoss, "cosent": CoSENTLoss, "angle": AnglELoss}
"""``cosine``: the mean of ``(cos(u, v) - score) ** 2``. The others rank pairs by their scores."""


class DinoOptions(Options):
    """Options of dino."""

    loss: ScoreLoss = Field(default="cosine", description="How cosines learn from scores.")


def score_loss(model: SentenceTransformer, context: TrainingContext) -> nn.Module:
    """Return the loss of scored pairs that the option ``loss`` names."""
    return SCORE_LOSSES[context["loss"]](model)


DINO = Objective(
    name="dino",
    needs="scored pairs",
    method="the cosine regresses on the score",
    build=fixed_rows,
    loss=score_loss,
    hyperparameters=Hyperparameters(),
    options=DinoOptions,
    citation="Schick & Schütze 2021, Generating Datasets with Pretrained Language Models, arXiv:2104.07540",
    faithful=Reference(code="github.com/timoschick/dino", more="AdamW of transformers 4", epsilon=1e-6),
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
    hyperparameters=Hyperparameters(batch_size=16),
    caches_gradients=True,
    citation="Reimers & Gurevych 2019, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, "
    "arXiv:1908.10084",
    faithful=Reference(
        code="github.com/UKPLab/sentence-transformers v0.2.6",
        more="AdamW without the correction of its moments' bias; the head is clipped, texts are cut in encoding, too",
        hyperparameters={"warmup": 0.1 / 16, "max_length": 131},
        adam="uncorrected",
        epsilon=1e-6,
        keeps_length=True,
    ),
)


# cpt: each of two texts that belong together finds the other among a very large batch.

OPEN_QUERY, OPEN_DOCUMENT = "[", "{"
MAX_SCALE = 100.0
"""Upper bound of what cosines are multiplied with, whatever temperature is learned."""


class CptOptions(Options):
    """Options of cpt."""

    temperature: float = Field(default=0.07, gt=0, description="What cosines are divided by at first; it is learned.")


class LearnedTemperature(nn.Module):
    """Cosines times ``exp(t)``, where t is learned (Neelakantan et al. 2022, section 2)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the logits of all pairs, ``(rows of first, rows of second)``."""
        return cos_sim(first, second) * self.t.exp().clamp(max=MAX_SCALE)


def add_delimiters(model: SentenceTransformer, hyperparameters: Hyperparameters) -> None:
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
    hyperparameters=Hyperparameters(batch_size=12288, mini_batch_size=64, pooling="lasttoken"),
    options=CptOptions,
    faithful="has no code of its authors, and closes texts by another delimiter than the paper",
    citation="Neelakantan et al. 2022, Text and Code Embeddings by Contrastive Pre-Training, arXiv:2201.10005",
    in_batch_negatives=True,
    no_duplicates=True,
    caches_gradients=True,
    prompts={"anchor": OPEN_QUERY, "positive": OPEN_DOCUMENT},
    prepare=add_delimiters,
)
