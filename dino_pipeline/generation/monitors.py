"""Monitors of a run: whether it is as fast as a preview estimated, and whether its texts become alike."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import JsonValue

from dino_pipeline.files import write_json
from dino_pipeline.minhash import band_keys, jaccard, ngrams
from dino_pipeline.progress import Progress, Reporter, clock
from dino_pipeline.run import Run
from dino_pipeline.stage_records import GenerateSettings
from dino_pipeline.text import distinct_n, has_spaced_words, normalise

LONG_ENOUGH = 6.0
"""Seconds of writing that suffice to measure its speed."""
SLOWDOWN = 0.3
"""Note a run that is slower than its estimate by more than this share."""
MIN_TEXTS = 200
"""Texts that a run must have written before its speed is compared with the estimate."""
WINDOW = 400
"""The latest texts of a label that are measured together. Always this many: fewer texts have higher figures."""
LEAST_DISTINCT = 0.75
"""Note a fall of distinct-2 below this share of its first value."""
SIMILARITY = 0.8
"""Jaccard similarity of character 5-grams at which texts are near-duplicates, as in the filter."""
MOST_REPEATED = 0.3
"""Note a larger share of near-duplicates than this."""


def estimate_key(settings: GenerateSettings) -> dict[str, JsonValue]:
    """Return what an estimate depends on: it holds for runs of the same key only."""
    names = {"spec", "model", "num_inputs", "samples", "best_of", "sampling"}
    return settings.model_dump(mode="json", include=names)


@dataclass(frozen=True)
class Estimate:
    """Time, memory and quality of a run, estimated from a short trial."""

    texts: int
    """To write in all."""
    per_second: float
    seconds: float
    """Of the whole run, with the inputs and loading the model."""
    row_tokens: int
    """Tokens to compute: those of each text, once for every prompt that it is written under."""
    memory: int
    """Bytes that this process has held at most, with the device's."""
    accepted: Mapping[str, float]
    """Share of accepted texts by label."""
    margins: Mapping[str, float | None]
    """Mean margin by label."""
    tokens: float
    """Tokens per text, on average."""

    def write(self, run: Run, key: Mapping[str, JsonValue]) -> None:
        """Store it in a run's folder, for `SpeedMonitor`."""
        write_json(run.estimate, {"asked": key, "seconds": round(self.seconds, 1), "per_second": self.per_second})


class SpeedMonitor:
    """A reporter that notes once if a run is much slower than its estimate, and passes everything on to another.

    Args:
        reporter: the other.
        run: whose folder may hold an estimate.
        key: of the run, see `estimate_key`.
    """

    def __init__(self, reporter: Reporter, run: Run, key: Mapping[str, JsonValue]) -> None:
        self.reporter, self.note, self.should_stop = reporter, reporter.note, reporter.should_stop
        self.estimate: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):  # without an intact estimate nothing is compared
            stored = json.loads(run.estimate.read_text(encoding="utf-8"))
            self.estimate = stored if stored.get("asked") == dict(key) else {}
        self.start: tuple[float, int] | None = None
        """Time and number of texts at the first update."""

    def update(self, progress: Progress) -> None:
        """Pass the update on; compare the speed once there are enough texts."""
        self.reporter.update(progress)
        if progress.title != "texts" or not self.estimate:
            return
        now = time.monotonic()
        if self.start is None:
            self.start = now, progress.done
        started, done_before = self.start
        done = progress.done - done_before
        if done < max(MIN_TEXTS, progress.total // 10) or now - started < LONG_ENOUGH:
            return
        rate, expected = done / (now - started), self.estimate["per_second"]
        if rate < (1 - SLOWDOWN) * expected:
            left = clock((progress.total - progress.done) / rate)
            self.note(
                f"{rate:.1f} texts a second, {expected:.1f} were measured by the preview: {left} are left "
                f"(expected were {clock(self.estimate['seconds'])} in all)"
            )
        self.estimate = {}


class Variety(NamedTuple):
    """Measures of a list of texts."""

    distinct_2: float
    """Distinct word bigrams / all word bigrams (Li et al. 2016); of characters in scripts without spaces."""
    repeated: float
    """Share of texts that are near-duplicates of an earlier text (MinHash, see `minhash`)."""


class DiversityMonitor:
    """Measures the latest texts of each label, and notes once per label if they become alike.

    Args:
        note: receives the note and its remedy; see `Reporter.note`.
        remedy: what makes the texts more varied; see `variety_remedy`.
    """

    def __init__(self, note: Callable[[str, str], None], remedy: str) -> None:
        self.note, self.remedy = note, remedy
        self.latest_texts: dict[str, deque[str]] = {}
        self.first: dict[str, Variety] = {}
        self.latest: dict[str, Variety] = {}
        self.noted: set[str] = set()

    def add(self, label: str, texts: Sequence[str]) -> None:
        """Add further texts of a label."""
        window = self.latest_texts.setdefault(label, deque(maxlen=WINDOW))
        window.extend(texts)
        if len(window) < WINDOW:
            return
        self.latest[label] = latest = variety(list(window))
        first = self.first.setdefault(label, latest)
        is_alike = latest.distinct_2 < LEAST_DISTINCT * first.distinct_2 or latest.repeated > MOST_REPEATED
        if is_alike and label not in self.noted:
            self.noted.add(label)
            fallen = f" (at first {first.distinct_2:.2f})" if latest.distinct_2 < first.distinct_2 else ""
            self.note(
                f'label "{label}": texts become alike: distinct-2 {latest.distinct_2:.2f}{fallen}, '
                f"{latest.repeated:.0%} are nearly the same as earlier ones",
                self.remedy,
            )

    @property
    def summary(self) -> str:
        """The mean figures of all labels in a few words; empty before there are any."""
        if not self.latest:
            return ""
        distinct = fmean(latest.distinct_2 for latest in self.latest.values())
        repeated = fmean(latest.repeated for latest in self.latest.values())
        return f"distinct-2 {distinct:.2f}, near-duplicates {repeated:.0%}"


def variety_remedy(*, needs_inputs: bool, top_k: int, top_p: float) -> str:
    """Return what makes texts more varied, given how they are sampled; a template of `errors.worded`."""
    remedy = (
        "more inputs ({num_inputs}) bring more than more {samples}"
        if needs_inputs
        else "variables or examples in the spec bring variety"
    )
    is_narrow = top_k or 0 < top_p < 0.9
    return f"{remedy}, and so does wider sampling ({{top_k=0}} {{top_p=0.95}})" if is_narrow else remedy


def variety(texts: Sequence[str]) -> Variety:
    """Measure how varied a list of texts is."""
    spaced = [text if has_spaced_words(text) else " ".join(text) for text in texts]
    normalised = [normalise(text) for text in texts]
    latest_with_key: dict[int, int] = {}  # MinHash band key -> index of the latest text that has it
    repeated = 0
    for index, keys in enumerate(band_keys(normalised).tolist()):
        candidates = dict.fromkeys(latest_with_key[key] for key in keys if key in latest_with_key)
        own_ngrams = ngrams(normalised[index])
        repeated += any(jaccard(own_ngrams, ngrams(normalised[other])) >= SIMILARITY for other in candidates)
        latest_with_key.update(dict.fromkeys(keys, index))
    return Variety(distinct_n(spaced, 2), repeated / max(len(texts), 1))
