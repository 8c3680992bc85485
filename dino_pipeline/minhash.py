"""Which texts of a list are nearly the same: MinHash bands propose pairs, their true Jaccard similarity decides.

A text is the set of its character n-grams. MinHash (Broder 1997) condenses the set to a signature, which is cut into
bands. Texts that agree in a whole band are candidates (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets,
chapter 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from dino_pipeline.text import DENSE, character_class, normalise

NGRAM = 5
"""Characters of an n-gram of the normal form, spaces between words included."""
DENSE_NGRAM = 2
"""Those of an n-gram that begins with an ideograph, kana or Hangul, or the space before one: they say as much."""
END = "\0" * (NGRAM - 1)
_DENSE = re.compile(f" ?[{character_class(DENSE)}]")
BANDS, BAND_ROWS = 12, 5
"""Two texts of similarity s share a band with probability 1 - (1 - s^5)^12: 0.991 at 0.8, 0.31 at 0.5, 0.03 at 0.3."""
MAX_BUCKET_SIZE = 32
"""Texts with the same key of a band form a bucket. In a larger one, each text is compared with the first 32 only."""
MAX_PAIRWISE = 64
"""Lists up to this size are compared pairwise, larger ones by bands."""
PAIRS_AT_ONCE = 2**18
"""Candidates in one array, about."""
TEXTS_AT_ONCE = 1000
"""Texts hashed in one array: its n-grams stay in the CPU's cache, which makes hashing ten times as fast."""
SEED = 1
_PRIME = np.uint64(0x9E3779B97F4A7C15)

BandKeys = NDArray[np.uint64]
IndexPairs = NDArray[np.int64]
SimilarPair = tuple[int, int, float]
"""The numbers of two texts, the smaller first, and their similarity."""


def ngrams(text: str) -> frozenset[str]:
    """Return the n-grams of a text in normal form; a shorter text is its own n-gram.

    In a text with dense characters, one n-gram begins at each character. Those at its end are filled up with NULs.
    """
    if text.isascii() or not _DENSE.search(text):
        return frozenset(text[start : start + NGRAM] for start in range(max(1, len(text) - NGRAM + 1)))
    filled = text + END
    sizes = (DENSE_NGRAM if _DENSE.match(text, start) else NGRAM for start in range(len(text)))
    return frozenset(filled[start : start + size] for start, size in enumerate(sizes))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the size of the intersection over the size of the union, in [0, 1]."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def ngram_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    r"""Return the 64-bit hashes of the n-grams of all texts, and where the hashes of each text begin.

    One pass hashes all texts: they are joined, every position of the joined text gets the hash of the n-gram that
    begins there, and positions whose n-gram crosses the end of a text are left out. ``["abcdef", "ab"]`` is joined to
    ``"abcdefab\0\0\0"``. Positions 0 and 1 belong to the first text, 6 to the second, and 2 to 5 cross the border.

    Returns:
        ``(n-grams,)`` hashes, and ``(texts + 1,)`` offsets: text i has ``hashes[offsets[i] : offsets[i + 1]]``.
    """
    padded = [_filled(text) for text in texts]
    joined = "".join(padded).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, dtype="<u4").astype(np.uint64)  # (characters of all texts,)
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))  # (texts,)

    # A polynomial of NGRAM characters at each position, modulo 2^64.
    hashes = np.zeros(max(0, len(codes) - NGRAM + 1), dtype=np.uint64)
    is_short = _begins_dense(codes)[: len(hashes)]
    for shift in range(NGRAM):
        if shift == DENSE_NGRAM:
            short_hashes = hashes[is_short]
        hashes *= _PRIME
        hashes += codes[shift : shift + len(hashes)]
    hashes[is_short] = short_hashes
    # Mix the high bits into the low ones: the polynomial's low bits depend on the characters' low bits alone.
    hashes ^= hashes >> np.uint64(32)
    hashes *= _PRIME
    hashes ^= hashes >> np.uint64(29)

    counts = lengths - (NGRAM - 1)  # (texts,) n-grams of each
    offsets = np.concatenate([[0], np.cumsum(counts)])
    starts = np.cumsum(lengths) - lengths  # (texts,) where each begins in the joined text
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return hashes[positions], offsets


def _filled(text: str) -> str:
    """Return a text whose last n-gram ends where it does; of one with dense characters, see `ngrams`."""
    if text.isascii() or not _DENSE.search(text):
        return text.ljust(NGRAM, "\0")
    return text + END


def _begins_dense(codes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return for each character whether the n-gram that begins there is short."""
    if not len(codes) or codes.max() < min(DENSE)[0]:
        return np.zeros(len(codes), dtype=bool)
    is_dense = np.zeros(len(codes) + 1, dtype=bool)
    for first, last in DENSE:
        is_dense[:-1] |= (codes >= first) & (codes <= last)
    return is_dense[:-1] | ((codes == ord(" ")) & is_dense[1:])


def band_keys(texts: Sequence[str]) -> BandKeys:
    """Return ``(texts, BANDS)`` keys of texts in normal form; texts that share a key are candidates."""
    chunks = [np.empty((0, BANDS), dtype=np.uint64)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunks.append(_band_keys(texts[start : start + TEXTS_AT_ONCE]))
    return np.concatenate(chunks)


def _band_keys(texts: Sequence[str]) -> BandKeys:
    hashes, offsets = ngram_hashes(texts)
    minima = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), BANDS * BAND_ROWS, SEED
    ).to_rows()
    signatures = np.array(minima, dtype=np.uint64).reshape(len(texts), BANDS, BAND_ROWS)
    # Each band starts from its own number, so that equal rows in two different bands do not make equal keys.
    band_numbers = np.arange(1, BANDS + 1, dtype=np.uint64) * _PRIME
    keys = np.broadcast_to(band_numbers, (len(texts), BANDS)).copy()
    for row in range(BAND_ROWS):
        keys ^= signatures[:, :, row]
        keys *= _PRIME
        keys ^= keys >> np.uint64(31)
    return keys


def candidate_pairs(bands: Sequence[BandKeys]) -> Iterator[IndexPairs]:
    """Yield ``(pairs, 2)`` numbers of texts that share the key of a band, the smaller first, each pair once.

    Args:
        bands: for each band the keys of all texts, ``(texts,)``.
    """
    for band, keys in enumerate(bands):
        for pairs in _pairs_with_equal_keys(keys):
            first, second = pairs[:, 0], pairs[:, 1]
            is_new = np.ones(len(pairs), dtype=bool)
            for earlier_keys in bands[:band]:  # a pair that shares an earlier band was yielded there
                is_new &= earlier_keys[first] != earlier_keys[second]
            if is_new.any():
                yield pairs[is_new]


def _pairs_with_equal_keys(keys: BandKeys) -> Iterator[IndexPairs]:
    """Yield the pairs of texts with the same key, about `PAIRS_AT_ONCE` in one array.

    Sorting brings equal keys together. Buckets of one size are handled as one matrix. The keys ``[7, 3, 7, 7]``, for
    example, are sorted to ``[3, 7, 7, 7]`` by ``order = [1, 0, 2, 3]``. The one bucket of size 3 begins at place 1 and
    holds the texts ``[0, 2, 3]``, which gives the pairs ``(0, 2), (0, 3), (2, 3)``.
    """
    order = np.argsort(keys, kind="stable")  # stable: texts of a bucket stay in their order
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))  # (buckets,)
    sizes = np.diff(np.append(starts, len(keys)))  # (buckets,)
    for size in np.unique(sizes[sizes > 1]).tolist():
        first, second = _pairs_of_bucket(size)
        starts_of_size = starts[sizes == size]
        step = max(1, PAIRS_AT_ONCE // len(first))
        for begin in range(0, len(starts_of_size), step):
            places = starts_of_size[begin : begin + step, None] + np.arange(size)  # (buckets, size)
            texts = order[places]
            yield np.stack([texts[:, first].ravel(), texts[:, second].ravel()], axis=1)


def _pairs_of_bucket(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places within a bucket to compare: all pairs, or in a large bucket all pairs with the first texts."""
    if size <= MAX_BUCKET_SIZE:
        pairs = np.array(list(combinations(range(size), 2)))
        return pairs[:, 0], pairs[:, 1]
    first = np.repeat(np.arange(MAX_BUCKET_SIZE), size)
    second = np.tile(np.arange(size), MAX_BUCKET_SIZE)
    return first[first < second], second[first < second]


def similar_pairs(texts: Sequence[str], threshold: float) -> Iterator[SimilarPair]:
    """Yield the pairs of texts whose similarity is at least the threshold.

    Args:
        texts: compared in normal form.
        threshold: least Jaccard similarity of the n-grams. Of the pairs above 0.8, bands miss under 1 %.
    """
    normal = [normalise(text) for text in texts]
    if len(texts) <= MAX_PAIRWISE:
        yield from _similar_pairwise(normal, threshold)
        return
    for pairs in candidate_pairs(list(band_keys(normal).T)):
        for first, second in pairs.tolist():
            similarity = jaccard(ngrams(normal[first]), ngrams(normal[second]))
            if similarity >= threshold:
                yield first, second, similarity


def _similar_pairwise(normal: Sequence[str], threshold: float) -> Iterator[SimilarPair]:
    sets = [ngrams(text) for text in normal]
    for first, second in combinations(range(len(sets)), 2):
        smaller, larger = sorted((len(sets[first]), len(sets[second])))
        if smaller < threshold * larger:
            continue  # the similarity is at most the ratio of the sizes
        similarity = jaccard(sets[first], sets[second])
        if similarity >= threshold:
            yield first, second, similarity


def later_duplicates(pairs: Iterable[SimilarPair]) -> Iterator[SimilarPair]:
    """Yield the texts to drop, each as ``(dropped text, kept text, similarity)``.

    A text is dropped if it resembles an earlier text that is kept. A text that resembles dropped texts only is kept.

    Args:
        pairs: in the order of their second texts, then of their first.
    """
    dropped: dict[int, None] = {}
    for first, second, similarity in pairs:
        if first not in dropped and second not in dropped:
            dropped[second] = None
            yield second, first, similarity
