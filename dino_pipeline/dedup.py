"""Near-duplicates: MinHash of character n-grams in bands, every candidate verified by its true Jaccard similarity.

Broder (1997) for MinHash; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, ch. 3, for bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from dino_pipeline.text import normalise

NGRAM = 5
"""Characters of normal form, spaces between words included."""
BANDS, BAND_ROWS = 12, 5
"""Two texts of similarity s share a band with probability 1 - (1 - s^5)^12: 0.991 at 0.8, 0.31 at 0.5, 0.03 at 0.3."""
CROWD = 32
"""Where more texts than this share a band, each is compared with the first so many of them only."""
PAIRS = 2**18
"""Candidates at a time, about."""
TEXTS = 1000
"""Hashed at a time: their n-grams stay in the cache, which makes it ten times as fast."""
SEED = 1
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]
Pairs = NDArray[np.int64]


def grams(text: str) -> frozenset[str]:
    """Return the n-grams of a text in normal form; a shorter text is its own."""
    return frozenset(text[at : at + NGRAM] for at in range(max(1, len(text) - NGRAM + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return how many of the n-grams of both texts they share, in [0, 1]."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def gram_hashes(texts: Sequence[str]) -> tuple[Keys, NDArray[np.int64]]:
    """Return the 64-bit hashes of all n-grams of all texts, and where each text's begin and the last one's end."""
    padded = [text.ljust(NGRAM, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    hashed = np.zeros(max(0, len(codes) - NGRAM + 1), dtype=np.uint64)
    for at in range(NGRAM):  # arithmetic modulo 2^64
        hashed *= _PRIME
        hashed += codes[at : at + len(hashed)]
    hashed ^= hashed >> np.uint64(32)
    hashed *= _PRIME
    hashed ^= hashed >> np.uint64(29)
    counts = lengths - (NGRAM - 1)
    ends = np.cumsum(counts)
    offsets = np.concatenate([[0], ends])
    begins = np.cumsum(lengths) - lengths
    places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - offsets[:-1], counts)
    return hashed[places], offsets


def band_keys(texts: Sequence[str]) -> Keys:
    """Return ``(texts, BANDS)`` keys; texts in normal form that share one are candidates."""
    parts = [_band_keys(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
    return np.concatenate([np.empty((0, BANDS), dtype=np.uint64), *parts])


def _band_keys(texts: Sequence[str]) -> Keys:
    hashes, offsets = gram_hashes(texts)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), BANDS * BAND_ROWS, SEED
    ).to_rows()
    signatures = np.array(rows, dtype=np.uint64).reshape(len(texts), BANDS, BAND_ROWS)
    keys = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64) * _PRIME, signatures.shape[:2]).copy()
    for at in range(BAND_ROWS):
        keys ^= signatures[:, :, at]
        keys *= _PRIME
        keys ^= keys >> np.uint64(31)
    return keys


def candidates(bands: Sequence[Keys]) -> Iterator[Pairs]:
    """Yield the pairs ``(n, 2)`` of places that share a key of a band, smaller place first, each pair once.

    Args:
        bands: for each band the keys of all texts.
    """
    for number, keys in enumerate(bands):
        for pairs in _sharing(keys):
            new = np.ones(len(pairs), dtype=bool)
            for earlier in bands[:number]:
                new &= earlier[pairs[:, 0]] != earlier[pairs[:, 1]]
            if new.any():
                yield pairs[new]


def _sharing(keys: Keys) -> Iterator[Pairs]:
    """Yield the pairs of places with the same key, not too many at a time."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
    sizes = np.diff(np.append(starts, len(keys)))
    for size in np.unique(sizes[sizes > 1]).tolist():
        first, second = _within(size)
        of_size = starts[sizes == size]
        step = max(1, PAIRS // len(first))
        for at in range(0, len(of_size), step):
            groups = order[of_size[at : at + step, None] + np.arange(size)]
            yield np.stack([groups[:, first].ravel(), groups[:, second].ravel()], axis=1)


def _within(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of ``size`` texts to compare with which: all pairs, in a crowd all with the first ones."""
    if size <= CROWD:
        chosen = np.array(list(combinations(range(size), 2)))
        return chosen[:, 0], chosen[:, 1]
    first = np.repeat(np.arange(CROWD), size)
    second = np.tile(np.arange(size), CROWD)
    return first[first < second], second[first < second]


def near_duplicates(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of places whose texts are at least so similar, smaller place first, with their similarity.

    Args:
        texts: as they are; compared in normal form.
        threshold: least true Jaccard similarity of their n-grams. Of the pairs above 0.8, bands miss under 1 %.
    """
    normal = [normalise(text) for text in texts]
    for pairs in candidates(list(band_keys(normal).T)):
        for one, other in pairs.tolist():
            if (similarity := jaccard(grams(normal[one]), grams(normal[other]))) >= threshold:
                yield one, other, similarity


def first_of_kind(pairs: Iterable[tuple[int, int, float]]) -> Iterator[tuple[int, int, float]]:
    """Yield who goes, by whom, and how similar, when whoever resembles an earlier one that stays goes.

    Args:
        pairs: places, smaller first; in the order of the second, then of the first.
    """
    gone: dict[int, None] = {}
    for one, other, similarity in pairs:
        if one not in gone and other not in gone:
            gone[other] = None
            yield other, one, similarity
