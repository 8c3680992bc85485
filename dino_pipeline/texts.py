"""Texts as people compare them: normal form, words, overlap."""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = re.compile(r"[^\w\s]|_", re.UNICODE)


def normalise(text: str) -> str:
    """Return the text after Unicode compatibility composition, case-folding, and without punctuation or extra space.

    A text of nothing but punctuation keeps it, so that such texts stay distinct.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    bare = " ".join(_PUNCTUATION.sub(" ", folded).split())
    return bare or " ".join(folded.split())


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the texts' word sets, in [0, 1]."""
    words_a, words_b = set(normalise(text_a).split()), set(normalise(text_b).split())
    union = len(words_a | words_b)
    return len(words_a & words_b) / union if union else 1.0
