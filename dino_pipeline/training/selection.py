"""Which checkpoint is the best: chosen by held-out texts, without labels made by people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example
from dino_pipeline.models import BATCH_SIZE, Vectors, embed
from dino_pipeline.training.adapters import contrast_classes
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.objectives import Objective

MAX_TEXTS = 2000
"""Texts that uniformity compares with one another."""


@dataclass(frozen=True)
class SelectionCriterion:
    """Chooses the best checkpoint: the one with the highest measure on held-out texts."""

    evaluator: BaseEvaluator
    measure: str
    """Name of the measure, as it is shown."""
    scale: float
    """Factor by which the measure is multiplied where it is shown."""
    rows: int
    """Number of pairs or texts that it is computed on."""

    @property
    def metric(self) -> str:
        """Return the measure's name among the trainer's metrics."""
        return f"eval_{self.evaluator.primary_metric}"


def selection_criterion(held_out: Corpus) -> SelectionCriterion:
    """Return the criterion for held-out texts: Spearman for scored pairs, else alignment and uniformity.

    Raises:
        DataError: all scores are the same.
    """
    if held_out.content != "scored pairs":
        views = AlignmentUniformity(held_out.examples[:MAX_TEXTS], paired=held_out.content == "pairs")
        return SelectionCriterion(views, "alignment and uniformity", 1, len(views.first))
    scores = [example.label for example in held_out.examples]
    if len(dict.fromkeys(scores)) < 2:
        raise DataError(
            f"{held_out.name}: must hold scored pairs with at least two different scores", "filter a larger dataset"
        )
    evaluator: Any = EmbeddingSimilarityEvaluator(
        sentences1=[example.text_a for example in held_out.examples],
        sentences2=[example.text_b for example in held_out.examples],
        scores=scores,
        batch_size=BATCH_SIZE,
        name="dev",
        similarity_fn_names=["cosine"],
        write_csv=False,
    )
    evaluator.primary_metric = "dev_spearman_cosine"
    return SelectionCriterion(evaluator, "Spearman", 100, len(scores))


def criterion_for(held_out: Corpus, objective: Objective, *, learns_classes: bool) -> SelectionCriterion:
    """Return the criterion for an objective.

    If it learns from pairs within and between classes, such pairs of the held-out texts choose.
    """
    of_classes = learns_classes and held_out.content == "classified texts"
    if of_classes and objective.needs in ("scored pairs", "triplets"):
        pairs = contrast_classes(held_out.examples)
        if len({pair.label for pair in pairs}) > 1:  # a few texts may all be of one class
            return selection_criterion(Corpus(held_out.name, pairs))
    return selection_criterion(held_out)


class AlignmentUniformity(BaseEvaluator):
    """Alignment of pairs and uniformity of embeddings (Wang & Isola 2020, section 4).

    A pair is two texts that belong together, or a text and itself with one word left out.

    Args:
        examples: the texts.
        paired: whether the two texts of an example belong together.
    """

    def __init__(self, examples: Sequence[Example], *, paired: bool) -> None:
        super().__init__()
        self.primary_metric = "dev_alignment_uniformity"
        random = Random(0)
        self.first: list[str] = []
        self.second: list[str] = []
        for example in examples:
            self.first.append(example.text_a)
            view = example.text_b if paired else None
            self.second.append(view or _drop_a_word(example.text_a, random))

    def __call__(self, model: SentenceTransformer, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return minus the sum of alignment and uniformity; each is better the lower it is."""
        first, second = embed(model, self.first), embed(model, self.second)
        return {self.primary_metric: -alignment(first, second) - uniformity(first)}


def alignment(first: Vectors, second: Vectors) -> float:
    """Return the mean squared distance of pairs of vectors of length 1, each ``(pairs, dimension)``."""
    return float(((first - second) ** 2).sum(axis=1).mean())


def uniformity(vectors: Vectors) -> float:
    """Return the logarithm of the mean of ``exp(-2 d^2)`` over all pairs of ``(texts, dimension)`` of length 1."""
    if len(vectors) < 2:
        return 0.0
    return float(np.log(np.exp(-2 * pdist(vectors, "sqeuclidean")).mean()))


def _drop_a_word(text: str, random: Random) -> str:
    words = text.split()
    if len(words) > 1:
        del words[random.randrange(len(words))]
    return " ".join(words)
