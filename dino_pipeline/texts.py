"""Texts as people compare them: normal form, words, overlap."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import regex

_PUNCTUATION = regex.compile(r"[^\w\s\p{M}]|_")  # vowel signs belong to their words
_UNPARTED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() else ord(" ") for code in range(128)) + bytes(128)


@lru_cache(maxsize=4096)  # rules look at the same texts one after another
def normalise(text: str) -> str:
    """Return the text after Unicode compatibility composition, case-folding, and without punctuation or extra space.

    A text of nothing but punctuation keeps it, so that such texts stay distinct.
    """
    if text.isascii():
        if bare := b" ".join(text.encode().translate(_ASCII).split()):
            return bare.decode()
        folded, bare_text = text.lower(), ""
    else:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        bare_text = " ".join(_PUNCTUATION.sub(" ", folded).split())
    return bare_text or " ".join(folded.split())


def parts_words(text: str) -> bool:
    """Say whether a text is in a script that puts spaces between words."""
    return text.isascii() or not _UNPARTED.search(text)


def distinct_n(texts: Iterable[str], size: int) -> float:
    """Return distinct runs of so many neighbouring words / all such runs, 0 to 1 (Li et al. 2016, section 5.3)."""
    found: dict[tuple[str, ...], None] = {}
    total = 0
    for text in texts:
        words = normalise(text).split()
        runs = list(zip(*(words[first:] for first in range(size)), strict=False))
        found.update(dict.fromkeys(runs))
        total += len(runs)
    return len(found) / total if total else 0.0


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the texts' word sets, in [0, 1]."""
    words_a, words_b = set(normalise(text_a).split()), set(normalise(text_b).split())
    union = len(words_a | words_b)
    return len(words_a & words_b) / union if union else 1.0
