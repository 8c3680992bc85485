"""What suites share: sets of data, an encoder's embeddings and its score on a set, and sets of scored pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.encoder_options import Aggregate
from dino_pipeline.errors import DataError, ModelError
from dino_pipeline.measures import Measurement, Vector, mean, pearson, spearman
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.rows import RowsRead
from dino_pipeline.stopping import Stopped
from dino_pipeline.text import word_overlap
from dino_pipeline.training.corpus import Corpus, evaluation_source

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Embeddings = NDArray[np.float32]
Measures = dict[str, Measurement]
"""Measurements by the name of the measure, times 100. The first is the main measure, by which models are compared."""
TEXTS_PER_UPDATE = 4096
"""Texts that are embedded between two reports of progress."""
WORD_OVERLAP = "word overlap (Jaccard)"
"""Name of the baseline of scored pairs."""
Pair = tuple[str, str, float]
"""Two texts and their gold score."""


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

    @property
    def rows_read(self) -> Sequence[RowsRead]:
        """What was read to get the data."""

    @property
    def notes(self) -> Sequence[str]:
        """Warnings about the data."""

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
    """The embeddings of one encoder. Each text is embedded once, texts of similar length together."""

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

        Some encoders embed texts of the roles ``query`` and ``document`` differently.

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


def digest_rows(rows: Iterable[Sequence[object]]) -> str:
    """Return a hash of the data of a set."""
    digest = hashlib.sha256()
    for row in rows:
        for value in row:
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with gold scores, in one part or several."""

    name: str
    parts: Sequence[Sequence[Pair]]
    suite: str = "pairs"
    counted: str = "pairs"
    aggregate: Aggregate = "all"
    """``all``: one correlation over the pairs of all parts. ``mean``: the mean of the parts' correlations. ``wmean``:
    their mean, weighted by size."""
    protocol: Mapping[str, str] = field(default_factory=lambda: {"similarity": "cosine"})
    rows_read: Sequence[RowsRead] = ()
    notes: Sequence[str] = ()

    @classmethod
    def read(cls, name: str, path: Path, suite: str = "pairs") -> ScoredPairs:
        """Read a file of pairs.

        Raises:
            DataError: a row is not a pair with a number, or all numbers are equal.
        """
        return cls.of(name, evaluation_source(path, "score").corpus, suite)

    @classmethod
    def of(cls, name: str, corpus: Corpus, suite: str = "pairs") -> ScoredPairs:
        """Return the pairs of a corpus; see `read`."""
        pairs = []
        for number, example in enumerate(corpus.examples, start=1):
            if example.text_b is None or not isinstance(example.label, float | int):
                raise DataError(
                    f"{corpus.name}: example {number} is not a scored pair; give text_a, text_b and a number as label"
                )
            pairs.append((example.text_a, example.text_b, float(example.label)))
        if len({gold for _, _, gold in pairs}) < 2:
            raise DataError(f"{corpus.name}: all pairs have the same label; a correlation needs different ones")
        return cls(name, [pairs], suite, rows_read=tuple(filter(None, [corpus.rows_read])))

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    @property
    def digest(self) -> str:
        return digest_rows(chain.from_iterable(self.parts))

    def texts(self) -> Iterator[str]:
        for part in self.parts:
            for first, second, _ in part:
                yield from (first, second)

    def measure(self, embedder: Embedder) -> Measures:
        return self.correlate(lambda part: cosines(embedder, [(first, second) for first, second, _ in part]))

    def baseline(self) -> tuple[str, Measures]:
        """Return the correlation of word overlap with the gold scores."""
        return WORD_OVERLAP, self.correlate(lambda part: np.array([word_overlap(a, b) for a, b, _ in part]))

    def correlate(self, predict: Callable[[Sequence[Pair]], Vector]) -> Measures:
        """Return Spearman and Pearson correlation x 100 of predicted with gold scores, over parts as `aggregate` says.

        ``predict`` returns a score for each pair of a part, ``(pairs,)``.
        """
        predicted, gold = [], []
        for part in self.parts:
            predicted.append(predict(part))
            gold.append(np.array([score for _, _, score in part], dtype=float))
        if self.aggregate == "all":
            predicted, gold = [np.concatenate(predicted)], [np.concatenate(gold)]
        weights = [len(part) for part in gold] if self.aggregate == "wmean" else None

        def over_parts(correlation: Callable[[Vector, Vector], Measurement]) -> Measurement:
            of_parts = [correlation(*part) for part in zip(predicted, gold, strict=True)]
            return mean(of_parts, weights)

        return percent({"spearman": over_parts(spearman), "pearson": over_parts(pearson)})
