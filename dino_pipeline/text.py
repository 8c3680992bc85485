"""Texts and labels in the form in which they are compared: normal form, words, overlap, numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import regex

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PUNCTUATION = regex.compile(r"[^\w\s\p{M}]|_")  # vowel signs belong to their words
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() else ord(" ") for code in range(128)) + bytes(128)


@lru_cache(maxsize=4096)  # several rules normalise the same text in a row
def normalise(text: str) -> str:
    """Return the text after Unicode compatibility composition and case-folding, without punctuation or extra space.

    A text that is only punctuation keeps it, because such texts must stay distinct.
    """
    if text.isascii():
        if bare := b" ".join(text.encode().translate(_ASCII).split()):
            return bare.decode()
        folded, bare_text = text.lower(), ""
    else:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        bare_text = " ".join(_PUNCTUATION.sub(" ", folded).split())
    return bare_text or " ".join(folded.split())


def has_spaced_words(text: str) -> bool:
    """Return whether a text is in a script that puts spaces between words."""
    return text.isascii() or not _UNSPACED.search(text)


def distinct_n(texts: Iterable[str], size: int) -> float:
    """Return distinct n-grams / all n-grams of words, in [0, 1] (Li et al. 2016, section 5.3).

    Args:
        texts: the texts, taken together.
        size: words in an n-gram.
    """
    distinct: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = normalise(text).split()
        ngrams = list(zip(*(words[first:] for first in range(size)), strict=False))
        distinct.update(ngrams)
        total += len(ngrams)
    return len(distinct) / total if total else 0.0


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the texts' word sets, in [0, 1]."""
    words_a, words_b = set(normalise(text_a).split()), set(normalise(text_b).split())
    union = len(words_a | words_b)
    return len(words_a & words_b) / union if union else 1.0


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def as_number(label: str) -> float | None:
    """Return the number that a label spells (``"0.5"``), None for any other name (``"nan"``, ``"1_0"``)."""
    return float(label) if _NUMBER.fullmatch(label.strip()) else None


def plain_label(label: str) -> str:
    """Return a label as people write it: ``1.0`` becomes ``1``; a name such as ``v1.0`` stays."""
    return re.sub(r"(?<=\d)\.0+$", "", label) if as_number(label) is not None else label
