"""Texts as people compare them: normal form, words, overlap."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

_PUNCTUATION = regex.compile(r"[^\w\s\p{M}]|_")  # vowel signs belong to their words
_UNPARTED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_ABSOLUTE = regex.compile(r"(?<![\w./:])/(?:[^\s/:+\"',]+/)+([^\s/:+\"',]+)")
FINGERPRINTS = (
    *(("model", "fingerprint"), ("encoder", "fingerprint")),
    *(("semantic", "semantic_fingerprint"), ("adapter", "adapter_fingerprint")),
)
"""Fields that name a model, and those that say that it lay in a folder."""
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


def public(value: Any) -> Any:
    """Return a JSON value in which paths of this machine are cut to their last part, to be shown to others.

    Fields that may hold relative paths are known by their names, and models in folders by their fingerprints; a
    server's address is left out.
    """
    if isinstance(value, dict):
        paths = {name for name, fingerprint in FINGERPRINTS if value.get(fingerprint) and value.get(name) != "pocket"}
        return {
            key: _names(each) if key in paths or key == "exclude" else public(each)
            for key, each in value.items()
            if key != "base_url"
        }
    if isinstance(value, list | tuple):
        return [public(each) for each in value]
    return _ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def _names(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_names(each) for each in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the texts' word sets, in [0, 1]."""
    words_a, words_b = set(normalise(text_a).split()), set(normalise(text_b).split())
    union = len(words_a | words_b)
    return len(words_a & words_b) / union if union else 1.0
