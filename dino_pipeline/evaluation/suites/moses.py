"""Texts tokenized by Moses, as SentEval prepares the STS sets, and how to tell that files were prepared before."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

RAW = "raw"
HERE = "tokenized here"
IN_FILES = "tokenized in the files"
TWICE = "tokenized twice in the files"
"""What scores record of the texts of a set."""
LOWER_SHARE, APART_SHARE = 0.99, 0.8
"""Texts count as tokenized if this share of them is in lower case, and this share of their marks is set apart."""
MARK = re.compile(r"(.)(?:'(?= ?\w)|,(?= |$)|(?<!\.\w)[.?!]$)")
"""A mark that the tokenizer sets apart, after the character before it. Not that of u.s., which it once left."""
LAST_STOP = re.compile(r"(?<=[^\s.])\.$")
CONTRACTION = re.compile(r"\w '( ?)(?:s|t|re|ve|ll|d|m)\b")
"""The end of woman 's, and of woman ' s, which the tokenizer makes of it when it runs again."""


@cache
def _tokenizer() -> Callable[..., str]:
    from sacremoses import MosesTokenizer

    tokenize: Callable[..., str] = MosesTokenizer(lang="en").tokenize
    return tokenize


def tokenized(text: str, *, lower: bool = True) -> str:
    """Return a text as SentEval's script prepares it: by Moses' tokenizer for English, nothing escaped.

    Since November 2018 Moses sets the last full stop apart after abbreviations, too (u.s .); sacremoses does not.

    Args:
        text: with single spaces.
        lower: whether it is put in lower case, as all sets but SICK are.
    """
    words = LAST_STOP.sub(" .", _tokenizer()(text, escape=False, return_str=True)).strip()
    return words.lower() if lower else words


def found_text(texts: Sequence[str], *, lower: bool = True) -> str:
    """Return what the texts of a set are as their files have them: `RAW`, `IN_FILES` or `TWICE`.

    Args:
        texts: of the whole set.
        lower: whether tokenized texts of this set are in lower case.
    """
    if lower and sum(text == text.lower() for text in texts) < LOWER_SHARE * len(texts):
        return RAW
    before = [character for text in texts for character in MARK.findall(text)]
    if not before or before.count(" ") < APART_SHARE * len(before):
        return RAW
    spaces = [space for text in texts for space in CONTRACTION.findall(text)]
    return TWICE if spaces.count(" ") > len(spaces) / 2 else IN_FILES
