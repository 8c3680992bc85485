"""How varied the texts are while they are being written, with a note if they become alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from dino_pipeline.minhash import band_keys, jaccard, ngrams
from dino_pipeline.text import distinct_n, has_spaced_words, normalise

WINDOW = 400
"""The latest texts of a label that are measured together. Always this many: fewer texts have higher figures."""
LEAST_DISTINCT = 0.75
"""Note a fall of distinct-2 below this share of its first value."""
SIMILARITY = 0.8
"""Jaccard similarity of character 5-grams at which texts are near-duplicates, as in the filter."""
MOST_REPEATED = 0.3
"""Note a larger share of near-duplicates than this."""


class Variety(NamedTuple):
    """Measures of a list of texts."""

    distinct_2: float
    """Distinct word bigrams / all word bigrams (Li et al. 2016); of characters in scripts without spaces."""
    repeated: float
    """Share of texts that are near-duplicates of an earlier text (MinHash, see `minhash`)."""


class DiversityMonitor:
    """Measures the latest texts of each label, and notes once per label if they become alike.

    Args:
        note: receives the note and its remedy; see `Reporter.note`.
        remedy: what makes the texts more varied; see `variety_remedy`.
    """

    def __init__(self, note: Callable[[str, str], None], remedy: str) -> None:
        self.note, self.remedy = note, remedy
        self.latest_texts: dict[str, deque[str]] = {}
        self.first: dict[str, Variety] = {}
        self.latest: dict[str, Variety] = {}
        self.noted: set[str] = set()

    def add(self, label: str, texts: Sequence[str]) -> None:
        """Add further texts of a label."""
        window = self.latest_texts.setdefault(label, deque(maxlen=WINDOW))
        window.extend(texts)
        if len(window) < WINDOW:
            return
        self.latest[label] = latest = variety(list(window))
        first = self.first.setdefault(label, latest)
        is_alike = latest.distinct_2 < LEAST_DISTINCT * first.distinct_2 or latest.repeated > MOST_REPEATED
        if is_alike and label not in self.noted:
            self.noted.add(label)
            fallen = f" (at first {first.distinct_2:.2f})" if latest.distinct_2 < first.distinct_2 else ""
            self.note(
                f'label "{label}": texts become alike: distinct-2 {latest.distinct_2:.2f}{fallen}, '
                f"{latest.repeated:.0%} are nearly the same as earlier ones",
                self.remedy,
            )

    @property
    def summary(self) -> str:
        """The mean figures of all labels in a few words; empty before there are any."""
        if not self.latest:
            return ""
        distinct = fmean(latest.distinct_2 for latest in self.latest.values())
        repeated = fmean(latest.repeated for latest in self.latest.values())
        return f"distinct-2 {distinct:.2f}, near-duplicates {repeated:.0%}"


def variety_remedy(*, needs_inputs: bool, top_k: int, top_p: float) -> str:
    """Return what makes texts more varied, given how they are sampled; a template of `errors.worded`."""
    remedy = (
        "more inputs ({num_inputs}) bring more than more {samples}"
        if needs_inputs
        else "variables or examples in the spec bring variety"
    )
    is_narrow = top_k or 0 < top_p < 0.9
    return f"{remedy}, and so does wider sampling ({{top_k=0}} {{top_p=0.95}})" if is_narrow else remedy


def variety(texts: Sequence[str]) -> Variety:
    """Measure how varied a list of texts is."""
    spaced = [text if has_spaced_words(text) else " ".join(text) for text in texts]
    normalised = [normalise(text) for text in texts]
    latest_with_key: dict[int, int] = {}  # MinHash band key -> index of the latest text that has it
    repeated = 0
    for index, keys in enumerate(band_keys(normalised).tolist()):
        candidates = dict.fromkeys(latest_with_key[key] for key in keys if key in latest_with_key)
        own_ngrams = ngrams(normalised[index])
        repeated += any(jaccard(own_ngrams, ngrams(normalised[other])) >= SIMILARITY for other in candidates)
        latest_with_key.update(dict.fromkeys(keys, index))
    return Variety(distinct_n(spaced, 2), repeated / max(len(texts), 1))
