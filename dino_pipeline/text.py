"""Texts and labels in the form in which they are compared: normal form, units of it, overlap, numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import regex

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() else ord(" ") for code in range(128)) + bytes(128)

IDEOGRAPHS = (
    (0x2E80, 0x2FFF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0xA4CF), (0xF900, 0xFAFF),
    (0x16FE0, 0x18DFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""First and last code points, iteration marks included."""
KANA = (
    (0x3031, 0x3035), (0x303C, 0x303C), (0x3041, 0x30FA), (0x30FC, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF),
    (0xFF66, 0xFF9F), (0x1AFF0, 0x1B2FF),
)  # fmt: skip
"""Those of kana, with their iteration and length marks, and of Bopomofo."""
CJK = (*IDEOGRAPHS, *KANA)
SOUTHEAST_ASIAN = (
    (0x0E01, 0x0E3A), (0x0E40, 0x0E4E), (0x0E81, 0x0ECE), (0x0EDC, 0x0EDF), (0x1000, 0x103F), (0x1050, 0x108F),
    (0x109A, 0x109D), (0x1780, 0x17D3), (0x17D7, 0x17DD), (0x1950, 0x19CF), (0x1A20, 0x1A7F), (0x1AA0, 0x1AAD),
    (0x1B00, 0x1B4C), (0xA980, 0xA9C0), (0xA9E0, 0xA9EF), (0xA9FA, 0xA9FE), (0xAA60, 0xAADF), (0x11700, 0x1172B),
)  # fmt: skip
"""Those of letters and signs in Thai, Lao, Burmese, Khmer, Tai, Balinese and Javanese."""
HANGUL = (0xAC00, 0xD7A3)
DENSE = (*CJK, HANGUL)
"""Code points of characters that say as much as two or three letters."""


def character_class(ranges: Iterable[tuple[int, int]]) -> str:
    """Return the inside of a regular expression's class of characters."""
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


UNSPACED = character_class((*CJK, *SOUTHEAST_ASIAN))
"""Inside of a class of characters of scripts that write no blanks between words."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_IDEOGRAPH = re.compile(f"[{character_class(IDEOGRAPHS)}]")
_BLANK = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
_UNIT = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^ {UNSPACED}]+")
_PUNCTUATION = regex.compile(r"[^\w\s\p{M}]|_")  # vowel signs belong to their words
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
"""Soft hyphens, joiners, marks of direction, variation selectors."""
_OPTIONAL = (
    "\u0640\u0610-\u061a\u064b-\u0653\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1"
    "\u08e3-\u08ff\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
)
"""Tatweel, Arabic vowel signs, Hebrew points: most writers leave them out."""
_IGNORED = re.compile(f"[{_INVISIBLE}{_OPTIONAL}]+")
_LONE_ACCENT = re.compile("(?<= )[\u0300-\u036f]+")  # what NFKC makes of an acute accent in place of an apostrophe
_PLAIN = re.compile("[\x00-\xac\xae-\u0130\u0132-\u02af\u0370-\u052f\u2010-\u2027\u2030-\u205e\u20a0-\u20cf]*")
"""Latin, Greek and Cyrillic texts, of which neither removes anything."""
_SYMBOL = regex.compile(rf"[^\w\s\p{{M}}{_INVISIBLE}]|_")

WORD_WEIGHT, IDEOGRAPH_WEIGHT, LETTER_WEIGHT = 4, 2, 1
"""Of a word between blanks, of an ideograph, and of any other letter of a script without blanks."""


@lru_cache(maxsize=4096)  # several rules normalise the same text in a row
def normalise(text: str) -> str:
    """Return the text as it is compared: without case, punctuation, width, signs that writers leave out, extra space.

    Words are parted by one blank, but for scripts that write none: there, and beside them, blanks and punctuation
    vanish. A text that is only punctuation keeps it, because such texts must stay distinct.
    """
    if text.isascii():
        if bare := b" ".join(text.encode().translate(_ASCII).split()):
            return bare.decode()
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    is_plain = _PLAIN.fullmatch(folded)
    if not is_plain:
        folded = folded.replace("i\u0307", "i").replace("ı", "i")  # Turkish: capitals do not tell which i they are
        folded = _LONE_ACCENT.sub("", _IGNORED.sub("", folded))
    folded = unicodedata.normalize("NFKC", folded)
    bare_text = " ".join(_PUNCTUATION.sub(" ", folded).split())
    if not is_plain and _UNSPACED.search(bare_text):
        bare_text = _BLANK.sub("", bare_text)
    return bare_text or " ".join(folded.split())


def has_spaced_words(text: str) -> bool:
    """Return whether a text is in a script that puts spaces between words."""
    return text.isascii() or not _UNSPACED.search(text)


def units(normal: str) -> list[str]:
    """Return the words of a normal form and, in scripts without blanks, the letters with their marks."""
    return normal.split() if has_spaced_words(normal) else _UNIT.findall(normal)


def weight(unit: str) -> int:
    """Return how much of a word a unit is, in quarters."""
    if has_spaced_words(unit):
        return WORD_WEIGHT
    return IDEOGRAPH_WEIGHT if _IDEOGRAPH.match(unit) else LETTER_WEIGHT


def is_inside_word(text: str, place: int) -> bool:
    """Return whether the characters before and at a place belong to one unit."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after)[0] == "M":
        return True
    is_letter = before.isalnum() or unicodedata.category(before)[0] == "M"
    return is_letter and after.isalnum() and has_spaced_words(before + after)


def joined(parts: Iterable[str]) -> str:
    """Return units as a normal form."""
    text = " ".join(parts)
    return text if has_spaced_words(text) else _BLANK.sub("", text)


def count_words(text: str) -> int:
    """Return the number of words between blanks; where a script has none, of `WORD_WEIGHT` in units, rounded up."""
    if has_spaced_words(text):
        return len(text.split())
    return -(-sum(map(weight, units(normalise(text)))) // WORD_WEIGHT)


def count_symbols(text: str) -> int:
    """Return the number of visible characters that are neither letters, nor digits, nor marks of letters."""
    return len(_SYMBOL.findall(unicodedata.normalize("NFKC", text)))


def distinct_n(texts: Iterable[str], size: int) -> float:
    """Return distinct n-grams / all n-grams of words, in [0, 1] (Li et al. 2016, section 5.3).

    Args:
        texts: the texts, taken together.
        size: units in an n-gram.
    """
    distinct: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = units(normalise(text))
        ngrams = list(zip(*(words[first:] for first in range(size)), strict=False))
        distinct.update(ngrams)
        total += len(ngrams)
    return len(distinct) / total if total else 0.0


def word_overlap(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the texts' sets of units, in [0, 1]."""
    words_a, words_b = set(units(normalise(text_a))), set(units(normalise(text_b)))
    union = len(words_a | words_b)
    return len(words_a & words_b) / union if union else 1.0


LONGEST_TEXT = 1_000_000
"""Characters of a text, wherever it comes from. A longer one is a book, or no text."""


def excess(text: str) -> str:
    """Return what is wrong with a text that is too long, in words; nothing if it is not."""
    if len(text) <= LONGEST_TEXT:
        return ""
    return f"has {len(text):,} characters, and a text has {LONGEST_TEXT:,} at most"


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
