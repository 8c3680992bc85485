"""The parts that all suites share: a set of data, an encoder's embeddings, and the score of an encoder on a set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.errors import ModelError
from dino_pipeline.measures import Measurement, Vector
from dino_pipeline.processes import Stopped
from dino_pipeline.progress import Progress, Reporter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Embeddings = NDArray[np.float32]
Measures = dict[str, Measurement]
"""Measurements by the name of the measure, times 100. The first is the main measure, by which models are compared."""
TEXTS_PER_UPDATE = 4096
"""Texts that are embedded between two reports of progress."""


class EvaluationSet(Protocol):
    """Data that an encoder is evaluated on."""

    @property
    def suite(self) -> str:
        """Suite that the data belongs to."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def counted(self) -> str:
        """Kind of its items: pairs, texts or queries."""

    @property
    def size(self) -> int:
        """Number of items."""

    @property
    def protocol(self) -> Mapping[str, str]:
        """The settings that must be equal for two scores to be comparable."""

    @property
    def digest(self) -> str:
        """Hash of the data."""

    def texts(self) -> Iterable[str]:
        """Yield the texts that `measure` embeds, if they are few enough to keep their embeddings in memory."""

    def measure(self, embedder: Embedder) -> Measures:
        """Measure an encoder."""

    def baseline(self) -> tuple[str, Measures] | None:
        """Return name and measures of a baseline that needs no encoder. None if the suite has no baseline."""


@dataclass(frozen=True)
class Score:
    """The measures of one encoder, or of a baseline, on one set."""

    suite: str
    data: str
    """Name of the set."""
    model: str
    """Name of the encoder or of the baseline."""
    counted: str
    size: int
    protocol: Mapping[str, str]
    digest: str
    measures: Measures

    @classmethod
    def on(cls, data: EvaluationSet, model: str, measures: Measures) -> Score:
        """Return the score of a model on a set."""
        return cls(data.suite, data.name, model, data.counted, data.size, dict(data.protocol), data.digest, measures)


class Embedder:
    """The embeddings of one encoder. Each text is embedded once, texts of similar length together.

    Args:
        name: the encoder's name in messages.
        model: the encoder.
        batch_size: texts per batch; changes speed only.
        reporter: follows the progress.
    """

    def __init__(self, name: str, model: SentenceTransformer, batch_size: int, reporter: Reporter) -> None:
        self.name = name
        self.model = model
        self.batch_size = batch_size
        self.reporter = reporter
        self._row_of: dict[str, int] = {}
        self._cache: Embeddings = np.empty((0, 0), dtype=np.float32)  # (cached texts, dimensions)

    def cache(self, texts: Iterable[str]) -> None:
        """Embed texts and keep their embeddings for later calls. They all stay in memory.

        Raises:
            ModelError: an embedding holds values that are not numbers.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._row_of]
        if not new:
            return
        new.sort(key=len, reverse=True)  # the longest first: too little memory shows at once
        progress = Progress(f"{self.name}: texts", total=len(new))
        self.report(progress)
        parts = [self._cache] if len(self._cache) else []
        for first in range(0, len(new), TEXTS_PER_UPDATE):
            chunk = new[first : first + TEXTS_PER_UPDATE]
            parts.append(self.embed(chunk))
            progress.done += len(chunk)
            self.report(progress)
        for text in new:
            self._row_of[text] = len(self._row_of)
        self._cache = np.concatenate(parts)

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        """Return the embeddings of texts as the encoder gives them, ``(texts, dimensions)``; all are cached."""
        self.cache(texts)
        return self._cache[[self._row_of[text] for text in texts]]

    def report(self, progress: Progress) -> None:
        """Report progress.

        Raises:
            Stopped: the user asked to stop.
        """
        self.reporter.update(progress)
        if self.reporter.should_stop():
            raise Stopped

    def embed(self, texts: Sequence[str], *, role: str = "") -> Embeddings:
        """Return the embeddings of texts, ``(texts, dimensions)``, without caching them.

        Args:
            texts: the texts.
            role: ``query`` or ``document``, for encoders that embed the two differently.

        Raises:
            ModelError: an embedding holds values that are not numbers.
        """
        encode = getattr(self.model, f"encode_{role}") if role else self.model.encode
        embeddings = encode(list(texts), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        if not np.isfinite(embeddings).all():
            raise ModelError(f"{self.name}: some of its embeddings are not numbers (NaN); it cannot be scored")
        return np.asarray(embeddings, dtype=np.float32)


def cosines(embedder: Embedder, pairs: Iterable[tuple[str, str]]) -> Vector:
    """Return the cosine similarity of each pair of texts, ``(pairs,)``."""
    first_texts, second_texts = zip(*pairs, strict=True)
    return np.asarray((unit(embedder(first_texts)) * unit(embedder(second_texts))).sum(axis=1), dtype=float)


def unit(embeddings: Embeddings) -> Embeddings:
    """Return embeddings scaled to length one, so that their products are cosines. Zeros stay zeros."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, 1e-12, dtype=np.float32)


def percent(measures: Mapping[str, Measurement]) -> Measures:
    """Return measures times 100."""
    return {name: measurement.percent() for name, measurement in measures.items()}
