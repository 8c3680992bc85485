"""How varied texts are while they are being written, and what to do when they no longer are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from dino_pipeline.minhash import band_keys, jaccard, ngrams
from dino_pipeline.text import distinct_n, has_spaced_words, normalise

WINDOW = 400
"""So many of a label's latest texts are looked at, never fewer: figures of fewer texts are higher."""
FALLEN = 0.75
"""Distinct pairs of words, as a share of what they were at first, from which on the fall is told."""
NEARLY = 0.8
"""Jaccard similarity of character 5-grams from which on texts are nearly the same, as in the filter."""
REPEATED = 0.3
"""Share of near-duplicates from which on they are told."""


class Variety(NamedTuple):
    """Of a label's latest texts."""

    distinct_2: float
    """Distinct pairs of neighbouring words / all (Li et al. 2016); of characters, where words are not parted."""
    repeated: float
    """Share of texts that are nearly the same as an earlier one (MinHash, `minhash`)."""


class Diversity:
    """Looks at texts as they come, a label apart from another."""

    def __init__(self, note: Callable[[str], None], advice: str) -> None:
        """Look at nothing yet.

        Args:
            note: is told once of each label whose texts become alike.
            advice: what to do then.
        """
        self.note, self.advice = note, advice
        self.latest: dict[str, deque[str]] = {}
        self.first: dict[str, Variety] = {}
        self.now: dict[str, Variety] = {}
        self.told: set[str] = set()

    def add(self, label: str, texts: Sequence[str]) -> None:
        """Take further texts of a label in."""
        latest = self.latest.setdefault(label, deque(maxlen=WINDOW))
        latest.extend(texts)
        if len(latest) < WINDOW:
            return
        self.now[label] = now = variety(list(latest))
        first = self.first.setdefault(label, now)
        if label not in self.told and (now.distinct_2 < FALLEN * first.distinct_2 or now.repeated > REPEATED):
            self.told.add(label)
            was = f" (at first {first.distinct_2:.2f})" if now.distinct_2 < first.distinct_2 else ""
            self.note(
                f'label "{label}": texts become alike: distinct-2 {now.distinct_2:.2f}{was}, {now.repeated:.0%} are '
                f"nearly the same as earlier ones; {self.advice}"
            )

    @property
    def summary(self) -> str:
        """The figures of all labels in a few words; empty while there are none."""
        if not self.now:
            return ""
        distinct, repeated = (fmean(each[at] for each in self.now.values()) for at in (0, 1))
        return f"distinct-2 {distinct:.2f}, near-duplicates {repeated:.0%}"


def advice(*, inputs: bool, top_k: int, top_p: float) -> str:
    """Return what brings variety: to texts about inputs, or to single ones, sampled like this."""
    said = "more inputs (--num-inputs) bring more than more --samples" if inputs else (
        "variables or examples in the spec bring variety"
    )  # fmt: skip
    narrow = top_k or 0 < top_p < 0.9
    return f"{said}, and so does wider sampling (--top-k 0 --top-p 0.95)" if narrow else said


def variety(texts: Sequence[str]) -> Variety:
    """Return how varied some texts are."""
    worded = [text if has_spaced_words(text) else " ".join(text) for text in texts]
    normal = [normalise(text) for text in texts]
    seen: dict[int, int] = {}
    repeated = 0
    for at, keys in enumerate(band_keys(normal).tolist()):
        candidates = dict.fromkeys(seen[key] for key in keys if key in seen)
        repeated += any(jaccard(ngrams(normal[at]), ngrams(normal[other])) >= NEARLY for other in candidates)
        seen.update(dict.fromkeys(keys, at))
    return Variety(distinct_n(worded, 2), repeated / max(len(texts), 1))
