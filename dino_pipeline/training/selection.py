"""Chooses the best checkpoint without labels, and notices embeddings that have collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example
from dino_pipeline.training.corpus import Corpus, distinct_texts

COLLAPSED = 0.99
"""Embeddings whose cosines average this much say nothing."""
BATCH = 128
"""Texts encoded at once to be looked at."""
MOST = 2000
"""Texts whose distances from one another are taken."""
PROBED = 256
"""Texts that collapse is looked for in."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Selection:
    """What chooses the best checkpoint."""

    evaluator: BaseEvaluator
    measure: str
    """Name of what it measures; higher is better."""
    factor: float
    """What the measure is multiplied with to be shown."""
    rows: int

    @property
    def metric(self) -> str:
        """The measure's name among the trainer's metrics."""
        return f"eval_{self.evaluator.primary_metric}"


def selection(corpus: Corpus) -> Selection:
    """Return what chooses on held-out texts: Spearman where they are scored pairs, else alignment and uniformity.

    Raises:
        DataError: all scores are the same.
    """
    evaluator: Any
    if corpus.content != "scored pairs":
        evaluator = AlignmentUniformity(corpus.examples[:MOST], paired=corpus.content == "pairs")
        return Selection(evaluator, "alignment and uniformity", 1, len(evaluator.first))
    scores = [example.label for example in corpus.examples]
    if len(dict.fromkeys(scores)) < 2:
        raise DataError(
            f"{corpus.name}: must hold scored pairs with at least two different scores; filter a larger dataset"
        )
    evaluator = EmbeddingSimilarityEvaluator(
        sentences1=[example.text_a for example in corpus.examples],
        sentences2=[example.text_b for example in corpus.examples],
        scores=scores,
        batch_size=BATCH,
        name="dev",
        similarity_fn_names=["cosine"],
        write_csv=False,
    )
    evaluator.primary_metric = "dev_spearman_cosine"
    return Selection(evaluator, "Spearman", 100, len(scores))


class AlignmentUniformity(BaseEvaluator):
    """How near the two of a pair are, and how evenly all lie on the sphere (Wang & Isola 2020, section 4).

    The pair is two texts that belong together, or a text and itself with a word left out.
    """

    def __init__(self, examples: Sequence[Example], *, paired: bool) -> None:
        super().__init__()
        self.primary_metric = "dev_alignment_uniformity"
        draw = Random(0)
        self.first = [example.text_a for example in examples]
        self.second = [
            example.text_b if paired and example.text_b else _without_a_word(example.text_a, draw)
            for example in examples
        ]

    def __call__(self, model: SentenceTransformer, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return minus the sum of alignment and uniformity, of each of which lower is better."""
        first, second = (encoded(model, texts) for texts in (self.first, self.second))
        return {self.primary_metric: -align(first, second) - uniform(first)}


def align(first: Vectors, second: Vectors) -> float:
    """Return the mean squared distance of pairs of vectors of length 1, each ``(pairs, dimension)``."""
    return float(((first - second) ** 2).sum(axis=1).mean())


def uniform(vectors: Vectors) -> float:
    """Return the logarithm of the mean of ``exp(-2 d^2)`` over all pairs of ``(texts, dimension)`` of length 1."""
    if len(vectors) < 2:
        return 0.0
    return float(np.log(np.exp(-2 * pdist(vectors, "sqeuclidean")).mean()))


def mean_cosine(model: SentenceTransformer, texts: Sequence[str]) -> float:
    """Return the mean cosine of different texts."""
    vectors = encoded(model, texts)
    return float((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].mean()) if len(texts) > 1 else 0.0


def probe(examples: Sequence[Example]) -> list[str]:
    """Return texts to look for collapse in."""
    return distinct_texts(examples[:PROBED])[:PROBED]


def encoded(model: SentenceTransformer, texts: Sequence[str], *, normalize: bool = True) -> Vectors:
    """Return embeddings, ``(texts, dimension)``, of length 1 unless they are to stay as they are."""
    vectors: Vectors = model.encode(
        list(texts), batch_size=BATCH, normalize_embeddings=normalize, show_progress_bar=False
    )
    return vectors


def _without_a_word(text: str, draw: Random) -> str:
    words = text.split()
    if len(words) > 1:
        del words[draw.randrange(len(words))]
    return " ".join(words)
