"""A linear probe: how well a logistic regression on frozen embeddings tells classes apart, as SentEval and cpt do."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.base import Embedder, Embeddings, Measured, percent
from dino_pipeline.examples import Example
from dino_pipeline.layout import is_unpublished
from dino_pipeline.measures import Integers, accuracy, macro_f1
from dino_pipeline.progress import Progress
from dino_pipeline.text import plain_label
from dino_pipeline.training.corpus import to_evaluate_on

FOLDS = 10
INNER_FOLDS = 3
STRENGTHS = tuple(10.0**power for power in range(-4, 2))
"""Inverse strengths of regularisation to choose from, on standardised embeddings."""
SEED = 0
MAJORITY = "most frequent class"


@dataclass(frozen=True)
class Probe:
    """Texts, or pairs of texts, with classes."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example] | None = None
    """None: folds of ``train`` take turns."""
    folds: int = FOLDS
    """How many take turns."""
    suite: str = "probe"
    counted: str = "texts"

    @classmethod
    def read(cls, name: str, path: Path) -> Probe:
        """Read a file of texts with classes, or a folder with ``train.jsonl`` and ``test.jsonl``.

        Raises:
            DataError: a row has no class, there is one class only, or test has classes that train has not.
        """
        if is_unpublished(path):
            files = [path / f"{part}.jsonl" for part in ("train", "test")]
            if missing := [file for file in files if not file.exists()]:
                raise DataError(f"{missing[0]}: is not there; a probe's folder holds train.jsonl and test.jsonl")
            train, test = map(_read, files)
            if (train[0].text_b is None) != (test[0].text_b is None):
                raise DataError(f"{path}: one of train.jsonl and test.jsonl holds texts, the other pairs")
            _check_classes(path / "train.jsonl", train)
            if strange := sorted({str(each.label) for each in test} - {str(each.label) for each in train}):
                raise DataError(
                    f"{path / 'test.jsonl'}: class {strange[0]} is not in train.jsonl; nothing is known of it"
                )
            return cls(name, train, test)
        examples = _read(path)
        _check_classes(path, examples)
        rarest, number = min(Counter(str(each.label) for each in examples).items(), key=lambda found: found[1])
        folds = min(FOLDS, number)
        if folds < 2:
            raise DataError(f"{path}: class {rarest} has one text only; give at least two of each")
        return cls(name, examples, folds=folds)

    @property
    def protocol(self) -> dict[str, str]:
        return {"split": "train and test" if self.test else f"{self.folds} folds"}

    @property
    def size(self) -> int:
        return len(self.test or self.train)

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for each in (*self.train, *(self.test or ())):
            digest.update(f"{each.text_a}\0{each.text_b}\0{each.label}\0".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return sorted({str(each.label) for each in self.train})

    def texts(self) -> Iterator[str]:
        for each in (*self.train, *(self.test or ())):
            yield from each.texts

    def measure(self, embedder: Embedder) -> Measured:
        """Fit the regression and classify what it has not seen."""
        gold = self._gold(self.train)
        features = self._features(embedder, self.train)
        others = self._features(embedder, self.test) if self.test else None
        with _one_thread_a_fit():
            if others is None:
                return self._measured(self._in_turn(features, gold, embedder), gold)
            return self._measured(_fit_and_classify(features, gold, others), self._gold(self.test or ()))

    def baseline(self) -> tuple[str, Measured]:
        """Return what it is worth to name the most frequent class always."""
        gold = self._gold(self.test or self.train)
        most = int(np.bincount(self._gold(self.train)).argmax())
        return MAJORITY, self._measured(np.full_like(gold, most), gold)

    def _measured(self, given: Integers, gold: Integers) -> Measured:
        return percent({"accuracy": accuracy(given, gold), "macro-F1": macro_f1(given, gold, len(self.classes))})

    def _gold(self, examples: Sequence[Example]) -> Integers:
        at = {name: number for number, name in enumerate(self.classes)}
        return np.array([at[str(each.label)] for each in examples])

    def _features(self, embedder: Embedder, examples: Sequence[Example]) -> Embeddings:
        """Return the embeddings, ``(texts, dimensions)``; of pairs [|u - v|; u * v], ``(pairs, 2 * dimensions)``."""
        first = embedder([each.text_a for each in examples])
        if examples[0].text_b is None:
            return first
        second = embedder([each.text_b or "" for each in examples])
        return np.concatenate([np.abs(first - second), first * second], axis=1)

    def _in_turn(self, features: Embeddings, gold: Integers, embedder: Embedder) -> Integers:
        """Classify each fold by what is fitted on the others."""
        from joblib import Parallel, delayed
        from sklearn.model_selection import StratifiedKFold

        splits = list(StratifiedKFold(self.folds, shuffle=True, random_state=SEED).split(features, gold))
        found = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(
            delayed(_fit_and_classify)(features[train], gold[train], features[test]) for train, test in splits
        )
        given = np.empty_like(gold)
        progress = Progress(f"{embedder.name}: folds of {self.name}", total=self.folds)
        embedder.reporter.update(progress)
        for (_, test), of_fold in zip(splits, found, strict=True):
            given[test] = of_fold
            progress.done += 1
            embedder.reporter.update(progress)
        return given


@contextmanager
def _one_thread_a_fit() -> Iterator[None]:
    """Give each fit one thread: on matrices this small threads wait for one another, and folds run side by side.

    What scikit-learn says of steps that were not enough, and of its next versions, is nothing a user can act on.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _fit_and_classify(features: Embeddings, gold: Integers, others: Embeddings) -> Integers:
    """Fit a logistic regression, its strength chosen by cross-validation within, and classify others.

    Args:
        features: what to fit on, ``(items, features)``.
        gold: their classes, ``(items,)``.
        others: what to classify, ``(others, features)``.
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inner = min(INNER_FOLDS, int(np.bincount(gold)[np.unique(gold)].min()))
    if inner < 2:
        regression: LogisticRegression | LogisticRegressionCV = LogisticRegression(max_iter=1000)
    else:
        folds = StratifiedKFold(inner, shuffle=True, random_state=SEED)
        regression = LogisticRegressionCV(Cs=STRENGTHS, cv=folds, max_iter=1000, scoring="accuracy")
    fitted = make_pipeline(StandardScaler(), regression).fit(features, gold)
    given: NDArray[np.int64] = fitted.predict(others)
    return given


def _read(path: Path) -> list[Example]:
    examples = to_evaluate_on(path, classes=True).corpus.examples
    for number, each in enumerate(examples, start=1):
        if each.label is None:
            raise DataError(f"{path}: example {number} has no class; give it as label")
        if (each.text_b is None) != (examples[0].text_b is None):
            raise DataError(f"{path}: example {number} and the first are not both texts or both pairs")
    return [replace(each, label=plain_label(str(each.label))) for each in examples]


def _check_classes(path: Path, examples: Sequence[Example]) -> None:
    if len({each.label for each in examples}) < 2:
        raise DataError(f"{path}: all texts have the same class; give at least two")
