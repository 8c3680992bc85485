"""What all suites share: a set to evaluate on, an encoder's embeddings, and what the encoder came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.errors import ModelError
from dino_pipeline.measures import Sample, Vector
from dino_pipeline.progress import Progress, Reporter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Embeddings = NDArray[np.float32]
Measured = dict[str, Sample]
"""What a model came to, by measure; the first is what models are compared by."""
AT_ONCE = 4096
"""Texts between two looks at how far it is."""


class EvaluationSet(Protocol):
    """Data that an encoder is evaluated on."""

    @property
    def suite(self) -> str:
        """The suite it belongs to."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def counted(self) -> str:
        """What its measures are over: pairs, texts or queries."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def protocol(self) -> Mapping[str, str]:
        """What has to agree for two figures to be comparable."""

    @property
    def digest(self) -> str:
        """A hash of the data."""

    def texts(self) -> Iterable[str]:
        """Yield what `measure` will want embedded, if that is little enough to be kept."""

    def measure(self, embedder: Embedder) -> Measured:
        """Evaluate an encoder."""

    def baseline(self) -> tuple[str, Measured] | None:
        """Return what no encoder is needed for, and its name."""


@dataclass(frozen=True)
class Score:
    """What one model, or a baseline, came to on one set; measures times 100."""

    suite: str
    data: str
    model: str
    counted: str
    size: int
    protocol: Mapping[str, str]
    digest: str
    measures: Measured

    @classmethod
    def on(cls, data: EvaluationSet, model: str, measures: Measured) -> Score:
        """Return a score on a set."""
        return cls(data.suite, data.name, model, data.counted, data.size, dict(data.protocol), data.digest, measures)

    def to_json(self) -> dict[str, Any]:
        """Return it as scores.json holds it."""
        measures = {name: with_interval(each, "value") for name, each in self.measures.items()}
        return {**{key: value for key, value in vars(self).items() if key != "measures"}, "measures": measures}


def with_interval(sample: Sample, name: str) -> dict[str, float | None]:
    """Return a value under its name, with the ends of its interval."""
    low, high = sample.interval or (None, None)
    return {name: sample.value, "low": low, "high": high}


class Embedder:
    """One encoder's embeddings: each text embedded once however often it comes, texts of like length together."""

    def __init__(self, name: str, model: SentenceTransformer, batch_size: int, reporter: Reporter) -> None:
        """Embed nothing yet.

        Args:
            name: the model's, for messages.
            model: the encoder.
            batch_size: texts a batch; changes speed only.
            reporter: is told how far it is.
        """
        self.name = name
        self.model = model
        self.batch_size = batch_size
        self.reporter = reporter
        self._rows: dict[str, int] = {}
        self._known: Embeddings = np.empty((0, 0), dtype=np.float32)

    def learn(self, texts: Iterable[str]) -> None:
        """Embed texts that `__call__` will be asked for; only where it is called is memory needed for all of them.

        Raises:
            ModelError: an embedding holds what is no number.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if not new:
            return
        new.sort(key=len, reverse=True)
        progress = Progress(f"{self.name}: texts", total=len(new))
        self.reporter.update(progress)
        parts = [self._known] if len(self._known) else []
        for first in range(0, len(new), AT_ONCE):
            some = new[first : first + AT_ONCE]
            parts.append(self.embed(some))
            progress.done += len(some)
            self.reporter.update(progress)
        self._rows.update(zip(new, range(len(self._rows), len(self._rows) + len(new)), strict=True))
        self._known = np.concatenate(parts)

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        """Return embeddings as the encoder gives them, ``(texts, dimensions)``, of texts learnt or new."""
        self.learn(texts)
        return self._known[[self._rows[text] for text in texts]]

    def embed(self, texts: Sequence[str], *, role: str = "") -> Embeddings:
        """Return embeddings, and remember none.

        Args:
            texts: what to embed.
            role: ``query`` or ``document`` where the encoder is to treat the two apart.
        """
        encode = getattr(self.model, f"encode_{role}") if role else self.model.encode
        found = encode(list(texts), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        if not np.isfinite(found).all():
            raise ModelError(f"{self.name}: some of its embeddings are not numbers (NaN); it cannot be scored")
        return np.asarray(found, dtype=np.float32)


def cosines(embedder: Embedder, pairs: Iterable[tuple[str, str]]) -> Vector:
    """Return the cosine of each pair's embeddings, ``(pairs,)``."""
    firsts, seconds = zip(*pairs, strict=True)
    return np.asarray((unit(embedder(firsts)) * unit(embedder(seconds))).sum(axis=1), dtype=float)


def unit(embeddings: Embeddings) -> Embeddings:
    """Return embeddings of length one, so that a product is a cosine; zeros stay zeros."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, 1e-12, dtype=np.float32)


def percent(measures: Mapping[str, Sample]) -> Measured:
    """Return measures times 100, as they are shown and stored."""
    return {
        name: Sample(None if each.value is None else 100 * each.value, 100 * each.resampled)
        for name, each in measures.items()
    }
