"""A linear probe: a logistic regression classifies texts by their frozen embeddings, with settings of its own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.suite import Embedder, Embeddings, Measures, digest_rows, percent
from dino_pipeline.examples import Example
from dino_pipeline.layout import is_unpublished
from dino_pipeline.measures import Integers, accuracy, macro_f1
from dino_pipeline.progress import Progress
from dino_pipeline.rows import RowsRead
from dino_pipeline.tables import TABLE_ENDINGS
from dino_pipeline.training.corpus import Corpus, evaluation_source

FOLDS = 10
INNER_FOLDS = 3
STRENGTHS = tuple(10.0**power for power in range(-4, 2))
"""Inverse strengths of regularisation that cross-validation chooses from, on standardised embeddings."""
SEED = 0
MAJORITY = "most frequent class"


@dataclass(frozen=True)
class Probe:
    """Texts, or pairs of texts, with classes."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example] | None = None
    """None: cross-validation on ``train``."""
    folds: int = FOLDS
    """Folds of the cross-validation."""
    suite: str = "probe"
    counted: str = "texts"
    rows_read: Sequence[RowsRead] = ()
    notes: Sequence[str] = ()

    @classmethod
    def read(cls, name: str, path: Path) -> Probe:
        """Read a file of texts with classes, or a folder with ``train.jsonl`` and ``test.jsonl``.

        Raises:
            DataError: a row has no class, there is only one class, or test has classes that train lacks.
        """
        if not is_unpublished(path):
            return cls.of(name, _read(path))
        files = [_part(path, "train"), _part(path, "test")]
        corpora = [_read(file) for file in files]
        train, test = map(_with_classes, corpora)
        if (train[0].text_b is None) != (test[0].text_b is None):
            raise DataError(f"{path}: one of {files[0].name} and {files[1].name} holds texts, the other pairs")
        _check_classes(str(files[0]), train)
        if unknown := sorted(_class_names(test) - _class_names(train)):
            raise DataError(f"{files[1]}: class {unknown[0]} is not in {files[0].name}, so it cannot be learned")
        return cls(name, train, test, rows_read=_all_read(corpora))

    @classmethod
    def of(cls, name: str, corpus: Corpus) -> Probe:
        """Return a probe by cross-validation on a corpus, each label of which is a class; see `read`."""
        examples = _with_classes(corpus)
        _check_classes(corpus.name, examples)
        rarest, count = min(Counter(str(example.label) for example in examples).items(), key=lambda item: item[1])
        folds = min(FOLDS, count)
        if folds < 2:
            raise DataError(f"{corpus.name}: class {rarest} has only one text; give at least two of each class")
        return cls(name, examples, folds=folds, rows_read=_all_read([corpus]))

    @property
    def protocol(self) -> dict[str, str]:
        return {"split": "train and test" if self.test else f"{self.folds} folds"}

    @property
    def size(self) -> int:
        return len(self.test or self.train)

    @property
    def digest(self) -> str:
        examples = (*self.train, *(self.test or ()))
        return digest_rows((example.text_a, example.text_b, example.label) for example in examples)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted(_class_names(self.train))

    def texts(self) -> Iterator[str]:
        for example in (*self.train, *(self.test or ())):
            yield from example.texts

    def measure(self, embedder: Embedder) -> Measures:
        """Fit the regression and classify examples that it has not seen."""
        gold = self._class_numbers(self.train)
        features = self._features(embedder, self.train)
        with _one_thread_per_fit():
            if self.test is None:
                return self._measures(self._cross_validate(features, gold, embedder), gold)
            test_features = self._features(embedder, self.test)
            return self._measures(_fit_and_classify(features, gold, test_features), self._class_numbers(self.test))

    def baseline(self) -> tuple[str, Measures]:
        """Return the measures of always predicting the most frequent class."""
        gold = self._class_numbers(self.test or self.train)
        most_frequent = int(np.bincount(self._class_numbers(self.train)).argmax())
        return MAJORITY, self._measures(np.full_like(gold, most_frequent), gold)

    def _measures(self, predicted: Integers, gold: Integers) -> Measures:
        f1 = macro_f1(predicted, gold, len(self.classes))
        return percent({"accuracy": accuracy(predicted, gold), "macro-F1": f1})

    def _class_numbers(self, examples: Sequence[Example]) -> Integers:
        """Return the index in `classes` of each example's class, ``(examples,)``."""
        number_of = {name: number for number, name in enumerate(self.classes)}
        return np.array([number_of[str(example.label)] for example in examples])

    def _features(self, embedder: Embedder, examples: Sequence[Example]) -> Embeddings:
        """Return the features of examples.

        Of texts they are the embeddings, ``(texts, dimensions)``; of pairs [|u - v|; u * v], as in SentEval,
        ``(pairs, 2 * dimensions)``.
        """
        first = embedder([example.text_a for example in examples])
        if examples[0].text_b is None:
            return first
        second = embedder([example.text_b or "" for example in examples])
        return np.concatenate([np.abs(first - second), first * second], axis=1)

    def _cross_validate(self, features: Embeddings, gold: Integers, embedder: Embedder) -> Integers:
        """Return the predicted class of each example, by a regression fitted on the folds without it."""
        from joblib import Parallel, delayed
        from sklearn.model_selection import StratifiedKFold

        splits = list(StratifiedKFold(self.folds, shuffle=True, random_state=SEED).split(features, gold))
        predictions = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(
            delayed(_fit_and_classify)(features[train], gold[train], features[test]) for train, test in splits
        )
        predicted = np.empty_like(gold)
        progress = Progress(f"{embedder.name}: folds of {self.name}", total=self.folds)
        embedder.report(progress)
        for (_, test), of_fold in zip(splits, predictions, strict=True):
            predicted[test] = of_fold
            progress.done += 1
            embedder.report(progress)
        return predicted


@contextmanager
def _one_thread_per_fit() -> Iterator[None]:
    """Limit each fit to one thread: folds run in parallel, and more threads on matrices this small only wait.

    scikit-learn's warnings about convergence and its next versions are silenced: a user can do nothing about them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _fit_and_classify(features: Embeddings, gold: Integers, test_features: Embeddings) -> Integers:
    """Fit a logistic regression and return the classes that it predicts, ``(test items,)``.

    Cross-validation within the training items chooses the strength of regularisation, unless a class has only one item.

    Args:
        features: of the training items, ``(items, features)``.
        gold: their classes, ``(items,)``.
        test_features: of the items to classify, ``(test items, features)``.
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rarest = int(np.bincount(gold)[np.unique(gold)].min())
    if rarest < 2:
        regression: LogisticRegression | LogisticRegressionCV = LogisticRegression(max_iter=1000)
    else:
        folds = StratifiedKFold(min(INNER_FOLDS, rarest), shuffle=True, random_state=SEED)
        regression = LogisticRegressionCV(Cs=STRENGTHS, cv=folds, max_iter=1000, scoring="accuracy")
    classifier = make_pipeline(StandardScaler(), regression).fit(features, gold)
    predicted: NDArray[np.int64] = classifier.predict(test_features)
    return predicted


def _part(folder: Path, name: str) -> Path:
    """Return the file of a part of a probe: ``train.jsonl``, or another kind of table."""
    for ending in TABLE_ENDINGS:
        if (path := folder / f"{name}{ending}").exists():
            return path
    raise DataError(f"{folder}/{name}.jsonl: does not exist; the folder of a probe holds train.jsonl and test.jsonl")


def _all_read(corpora: Sequence[Corpus]) -> tuple[RowsRead, ...]:
    return tuple(corpus.rows_read for corpus in corpora if corpus.rows_read)


def _read(path: Path) -> Corpus:
    return evaluation_source(path, "class").corpus


def _with_classes(corpus: Corpus) -> list[Example]:
    """Return examples whose labels are class names.

    Raises:
        DataError: an example has no class, or some are texts and some pairs.
    """
    examples = corpus.examples
    for number, example in enumerate(examples, start=1):
        if example.label is None:
            raise DataError(f"{corpus.name}: example {number} has no class; give it as label")
        if (example.text_b is None) != (examples[0].text_b is None):
            raise DataError(
                f"{corpus.name}: examples 1 and {number} are a text and a pair; give only texts or only pairs"
            )
    return examples


def _class_names(examples: Sequence[Example]) -> set[str]:
    return {str(example.label) for example in examples}


def _check_classes(source: str, examples: Sequence[Example]) -> None:
    if len(_class_names(examples)) < 2:
        raise DataError(f"{source}: all texts have the same class; give at least two classes")
