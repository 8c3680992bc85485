"""The gold set: graded pairs on held-out propositions, whose word overlap is independent of their similarity."""

import re
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

from dino_pipeline.examples import Example
from tools.pocket.frames import Frame, neighbour, random_frame, similarity, stranger, valid
from tools.pocket.grammar import paraphrases

SEED = 7
COUNTS = {"test": 2000, "dev": 400}
BANDS = ((0.1, 0.3), (0.3, 0.45), (0.45, 0.6), (0.6, 0.75), (0.75, 0.95))


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w'-]+", text.lower()))


def jaccard(a: str, b: str) -> float:
    left, right = words(a), words(b)
    return len(left & right) / len(left | right)


def sharing(frame: Frame, other: Frame) -> Frame:
    """Return `other` with the place and time of `frame`, as far as they fit: shared words that mean little."""
    shared: list[dict[str, Any]] = [
        {"place": frame.place, "time": frame.time},
        {"time": frame.time},
        {"place": frame.place},
    ]
    for extra in shared:
        changed = replace(other, **extra) if any(extra.values()) else other
        if valid(changed):
            return changed
    return other


def partner(rng: Random, frame: Frame, draw: float, band: tuple[float, float], split: str) -> Frame:
    """Return the same frame, a neighbour in a band of similarity, or a stranger, by `draw` in [0, 1)."""
    if draw < 0.2:
        return frame
    if draw < 0.8:
        return neighbour(rng, frame, band, split)
    return sharing(frame, stranger(rng, frame, split))


def written_with_overlap(rng: Random, frame: Frame, other: Frame, target: float) -> tuple[str, str] | None:
    """Return sentences for two frames whose word overlap is within 0.02 of `target`. None if there are none."""
    pairs = product(paraphrases(frame, rng, 20), paraphrases(other, rng, 20))
    distance, a, b = min((abs(jaccard(a, b) - target), a, b) for a, b in pairs if a != b)
    return (a, b) if distance < 0.02 else None


def pair_of(rng: Random, split: str) -> Example:
    """Return a pair. Its kind and its word overlap are drawn independently of each other."""
    target, draw = rng.uniform(0.06, 0.2), rng.random()
    band = rng.choice(BANDS)
    while True:
        frame = random_frame(rng, split)
        other = partner(rng, frame, draw, band, split)
        texts = written_with_overlap(rng, frame, other, target)
        if texts:
            return Example(*texts, similarity(frame, other))


def gold_pairs(split: str, count: int) -> list[Example]:
    """Return pairs; pair i depends on (split, i) alone, so a shorter list is a prefix of a longer one."""
    return [pair_of(Random(f"{SEED}/{split}/{index}"), split) for index in range(count)]
