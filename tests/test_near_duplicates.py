from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer

from dino_pipeline.examples import Example
from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.minhash import (
    MAX_BUCKET_SIZE,
    NGRAM,
    candidate_pairs,
    jaccard,
    later_duplicates,
    ngram_hashes,
    ngrams,
    similar_pairs,
)
from dino_pipeline.text import normalise
from tests.pairs import Words, dropped, filtered, kept, raw, reasons


def mutated(text: str, edits: int, rng: random.Random) -> str:
    """Return the text with some letters exchanged."""
    letters = list(text)
    for at in rng.sample(range(len(letters)), min(edits, len(letters))):
        letters[at] = rng.choice("abcdefghij ")
    return "".join(letters)


def brute_force(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """Return all similar pairs by a product of matrices, without any of the module's functions."""
    vectorizer = CountVectorizer(analyzer="char", ngram_range=(NGRAM, NGRAM), binary=True, lowercase=False)
    matrix = csr_array(vectorizer.fit_transform(texts), dtype=np.int32)
    sizes = np.asarray(matrix.sum(axis=1)).ravel()
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(texts), 2000):
        common = (matrix[start : start + 2000] @ matrix.T).tocoo()
        one, other = common.coords[0] + start, common.coords[1]
        similarity = common.data / (sizes[one] + sizes[other] - common.data)
        chosen = (one < other) & (similarity >= threshold)
        pairs = zip(one[chosen].tolist(), other[chosen].tolist(), strict=True)
        found.update(zip(pairs, similarity[chosen].tolist(), strict=True))
    return found


@pytest.mark.slow
def test_of_20000_texts_nearly_all_similar_pairs_are_found_and_no_other() -> None:
    rng, words = random.Random(3), Words(3)
    texts = [normalise(words.sentence(5, 16)) for _ in range(10_000)]
    texts += [mutated(rng.choice(texts), rng.randint(0, 6), rng) for _ in range(10_000)]
    texts = [normalise(text) for text in texts]
    rng.shuffle(texts)
    expected = brute_force(texts, 0.8)
    found = {(one, other): similarity for one, other, similarity in similar_pairs(texts, 0.8)}
    assert len(expected) > 3000
    assert all(expected[pair] == pytest.approx(similarity) for pair, similarity in found.items()), "precision 1"
    assert len(found) / len(expected) >= 0.98


def test_short_and_strange_texts() -> None:
    texts = ["", "a", "a", "ab", "日本", "日本", "x" * 300, "x" * 299]
    assert sorted(pair[:2] for pair in similar_pairs(texts, 0.8)) == [(1, 2), (4, 5), (6, 7)]
    hashes, offsets = ngram_hashes(["abcdef", "ab", "zabcdef"])
    assert offsets.tolist() == [0, 2, 3, 6]
    assert hashes[0] == hashes[4]
    assert ngrams("abcdef") == {"abcde", "bcdef"}
    assert jaccard(ngrams("abcdef"), ngrams("abcdeg")) == pytest.approx(1 / 3)


def test_in_a_large_bucket_each_is_compared_with_the_first_texts() -> None:
    bands = [np.zeros(1000, dtype=np.uint64), np.arange(1000, dtype=np.uint64), np.zeros(1000, dtype=np.uint64)]
    pairs = np.concatenate(list(candidate_pairs(bands)))
    assert len(pairs) == MAX_BUCKET_SIZE * 1000 - MAX_BUCKET_SIZE * (MAX_BUCKET_SIZE + 1) // 2
    assert set(pairs[:, 1].tolist()) == set(range(1, 1000))


def test_a_text_that_resembles_dropped_texts_only_is_kept() -> None:
    pairs = [(0, 1, 0.9), (1, 2, 0.8), (2, 3, 0.85), (0, 4, 1.0), (2, 4, 0.9)]
    assert list(later_duplicates(pairs)) == [(1, 0, 0.9), (3, 2, 0.85), (4, 0, 1.0)]


def test_inputs_that_say_the_same_go_with_all_their_pairs(tmp_path: Path) -> None:
    pairs = Words().pairs(40)
    first = pairs[0].text_a
    copy = [Example(first[:-1] + "s!", f"Text {n}", 0.5, input=90, sample=n) for n in range(3)]
    run = filtered(tmp_path, [*pairs, *copy], raw(near_duplicates=0.8))
    gone = dropped(run)
    assert [(row["text_b"], row["reason"]) for row in gone] == [(f"Text {n}", "near-duplicate input") for n in range(3)]
    assert {row["duplicate_of"]["text_a"] for row in gone} == {first}
    assert gone[0]["evidence"].startswith("similarity 0.9")
    assert not dropped(filtered(tmp_path, [*pairs, *copy], raw(near_duplicates=0)))


def test_texts_that_say_the_same_for_one_input_and_label_go(tmp_path: Path) -> None:
    text = "Somebody plays an old guitar on the stage tonight."
    examples = [
        Example("One input.", text, 1.0, sample=0),
        Example("One input.", text.replace("tonight", "tonite"), 1.0, sample=1),
        Example("One input.", text.replace("tonight", "tonights"), 0.5, sample=0),
        Example("Another input.", text.replace("an", "any"), 1.0, sample=0),
    ]
    run = filtered(tmp_path, examples, raw(near_duplicates=0.8))
    assert list(reasons(run).values()) == ["near-duplicate text_b"]
    assert dropped(run)[0]["duplicate_of"]["text_b"] == text
    assert len(kept(run)) == 3


def test_many_texts_of_one_input_are_compared_by_bands(tmp_path: Path) -> None:
    words = Words(4)
    examples = [Example("One input.", words.sentence(), 1.0, sample=n) for n in range(2000)]
    copies = [Example("One input.", (each.text_b or "")[:-1] + "s!", 1.0, sample=9000) for each in examples[:50]]
    run = filtered(tmp_path, examples + copies, raw(near_duplicates=0.8))
    assert sum(row["sample"] == 9000 for row in dropped(run)) >= 49
    assert len(dropped(run)) <= 52


def test_inputs_of_the_same_meaning_go_by_a_sentence_encoder(tmp_path: Path) -> None:
    meanings = {"A dog runs.": [1.0, 0.0], "The hound is racing.": [0.99, 0.141], "It rains.": [0.0, 1.0]}
    examples = [Example(text, f"{text} So.", 1.0, input=at) for at, text in enumerate(meanings)]
    runtime = FilterRuntime(embed=lambda texts: np.array([meanings[text] for text in texts], dtype=np.float32))
    run = filtered(tmp_path, examples, raw(semantic="some-encoder", semantic_threshold=0.95), runtime=runtime)
    (gone,) = dropped(run)
    assert (gone["text_a"], gone["reason"]) == ("The hound is racing.", "input of the same meaning")
    assert (gone["evidence"], gone["duplicate_of"]["text_a"]) == ("similarity 0.99", "A dog runs.")
