"""Texts to train on, from a JSONL or plain-text file, any file or folder that `datasets` reads, or the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import ClassLabel, Dataset, get_dataset_split_names

from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example, read_examples
from dino_pipeline.files import file_digest
from dino_pipeline.readers import JSON_ENDINGS, TABLE_FORMATS, load_table, read_json_lines, read_lines
from dino_pipeline.text import as_number, normalise

Content = Literal["scored pairs", "classified pairs", "pairs", "classified texts", "texts"]
NAMES = {
    "text_a": (
        "text_a",
        "sentence1",
        "premise",
        "anchor",
        "query",
        "question",
        "text",
        "sentence",
        "document",
        "content",
    ),
    "text_b": ("text_b", "sentence2", "hypothesis", "positive", "passage", "answer", "code"),
    "label": ("label", "score", "similarity_score", "class"),
}
"""Under which names a dataset's columns are found; the first that is there counts."""


@dataclass(frozen=True)
class Corpus:
    """Texts of one kind."""

    name: str
    """Where it is from, for errors."""
    examples: list[Example]

    @cached_property
    def content(self) -> Content:
        """What the examples are.

        Raises:
            DataError: there are none, or not all are of one kind.
        """
        kinds = [_kind(example) for example in self.examples]
        if not kinds:
            raise DataError(f"{self.name}: holds no text to learn from; give more")
        first = kinds[0]
        other = next((number for number, kind in enumerate(kinds) if kind != first), None)
        if other is not None:
            raise DataError(
                f"{self.name}: example 1 belongs to {first}, example {other + 1} to {kinds[other]}; "
                "give each kind in a file of its own"
            )
        return first


def _kind(example: Example) -> Content:
    if example.text_b is None:
        return "classified texts" if isinstance(example.label, str) else "texts"
    if example.label is None:
        return "pairs"
    return "classified pairs" if isinstance(example.label, str) else "scored pairs"


@dataclass(frozen=True)
class Source:
    """Where texts come from."""

    name: str
    """A file, a folder or a Hub id."""
    split: str = "train"
    """Of a folder or a Hub id."""
    config: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Which of its columns are ``text_a``, ``text_b`` and ``label``, where their names do not say."""
    classes: bool = False
    """Its labels are class names, even those that are numbers."""

    @property
    def path(self) -> Path:
        """The file or folder, if it is one."""
        return Path(self.name)

    @property
    def label(self) -> str:
        """What tells this source from others, in words."""
        if self.path.is_file():
            return self.path.name
        more = (self.config, self.split, self.revision, *(f"{role}={name}" for role, name in self.columns.items()))
        return ", ".join([self.path.name if self.path.exists() else self.name, *(each for each in more if each)])

    def digest(self) -> str:
        """Return a hash of what it holds."""
        if self.path.is_file():
            return file_digest(self.path)[:16]
        digest = hashlib.sha256()
        for example in self.corpus.examples:
            digest.update(json.dumps([example.text_a, example.text_b, example.label]).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def corpus(self) -> Corpus:
        """All that it holds, read once.

        Raises:
            DataError: it cannot be read, is empty, or has no column of texts.
        """
        suffix = self.path.suffix.lower()
        if self.path.is_file() and suffix not in TABLE_FORMATS and not self.columns and not _has_other_names(self.path):
            examples = (
                read_examples(self.path, numeric_labels=not self.classes)
                if suffix in JSON_ENDINGS
                else _read_texts(self.path)
            )
        else:
            examples = self._from_dataset(load_table(self.name, self.config, split=self.split, revision=self.revision))
        return Corpus(self.name, examples)

    def _from_dataset(self, dataset: Dataset) -> list[Example]:
        named = {role: self._column(dataset, role) for role in NAMES}
        if named["text_a"] is None:
            raise DataError(
                f"{self.name}: none of its columns {', '.join(dataset.column_names)} is known to hold texts; "
                "name one with --column text_a=NAME"
            )
        label = dataset.features[named["label"]] if named["label"] else None
        text_a, text_b, labels = [dataset[name] if name else [None] * len(dataset) for name in named.values()]
        rows: Iterable[tuple[Any, Any, Any]] = zip(text_a, text_b, labels, strict=True)
        if isinstance(label, ClassLabel):  # where nobody could say, a class is -1
            rows = ((a, b, label.int2str(number)) for a, b, number in rows if number is not None and number >= 0)
        classes = self.classes or isinstance(label, ClassLabel)
        examples = [self._example(*row, classes) for row in rows]
        if not examples:
            raise DataError(f"{self.name}: holds no rows")
        return examples

    def _column(self, dataset: Dataset, role: str) -> str | None:
        if role in self.columns:
            name = self.columns[role]
            if name not in dataset.column_names:
                raise DataError(f"{self.name}: has no column {name}, only {', '.join(dataset.column_names)}")
            return name
        free = [name for name in dataset.column_names if name not in self.columns.values()]
        return next((name for name in NAMES[role] if name in free), None)

    def _example(self, text_a: Any, text_b: Any, label: Any, classes: bool) -> Example:
        if not isinstance(text_a, str) or not isinstance(text_b, str | None):
            raise DataError(f"{self.name}: a row holds {text_a!r:.60} and {text_b!r:.60}; texts must be strings")
        if not isinstance(label, str | int | float | None):
            raise DataError(f"{self.name}: a label is {label!r:.60}; labels are numbers or names")
        if label is None or classes or isinstance(label, bool):
            return Example(text_a, text_b, None if label is None else str(label))
        number = as_number(label) if isinstance(label, str) else float(label)
        if number is not None and not math.isfinite(number):
            raise DataError(f"{self.name}: a label is {label!r:.60}; give finite numbers")
        return Example(text_a, text_b, label if number is None else number)


def _has_other_names(path: Path) -> bool:
    """Say whether a JSONL file's fields are some other dataset's, so that texts are found by `NAMES`."""
    if path.suffix.lower() not in JSON_ENDINGS:
        return False
    try:
        _, first = next(read_json_lines(path), (1, {}))
    except DataError:
        return False  # reading says what is wrong, and where
    return isinstance(first, dict) and "text_a" not in first and any(name in first for name in NAMES["text_a"])


def _read_texts(path: Path) -> list[Example]:
    texts = [Example(stripped) for line in read_lines(path) if (stripped := line.strip())]
    if not texts:
        raise DataError(f"{path}: holds no texts; give a file with a sentence or document a line")
    return texts


def to_evaluate_on(path: Path, *, classes: bool = False) -> Source:
    """Return a file, or of a dataset's splits that to evaluate on: test, else validation, else train."""
    source = Source(str(path), classes=classes)
    there = [] if path.is_file() else _splits(source)
    preferred = (name for name in ("test", "validation", "train") if name in there)
    return replace(source, split=next(preferred, (there or [source.split])[0]))


def validation(source: Source) -> Source | None:
    """Return the validation split of the dataset that a source is a split of, if it has one."""
    return replace(source, split="validation") if "validation" in _splits(source) else None


def _splits(source: Source) -> list[str]:
    with contextlib.suppress(Exception):  # loading it says what is wrong
        return list(get_dataset_split_names(source.name, source.config, revision=source.revision))
    return []


def hold_out(corpus: Corpus, share: float, most: int) -> tuple[Corpus, Corpus]:
    """Split a corpus into a large and a small part that have no first text in common, the same way each time.

    Args:
        corpus: at least two different first texts.
        share: of the first texts that go to the small part.
        most: first texts in the small part.

    Raises:
        DataError: it is too small to be split.
    """
    firsts = [normalise(example.text_a) for example in corpus.examples]
    groups = list(dict.fromkeys(firsts))
    ordered = sorted(groups, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = set(ordered[: min(max(round(share * len(groups)), 1), most)])
    inside = [example for first, example in zip(firsts, corpus.examples, strict=True) if first in held]
    outside = [example for first, example in zip(firsts, corpus.examples, strict=True) if first not in held]
    if not outside:
        raise DataError(f"{corpus.name}: holds too few texts to keep some out of training; give more")
    return Corpus(corpus.name, outside), Corpus(f"{corpus.name}, held out", inside)


def distinct_texts(examples: Sequence[Example]) -> list[str]:
    """Return the texts that are not the same in normal form, first texts first."""
    texts = [example.text_a for example in examples] + [example.text_b for example in examples if example.text_b]
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(normalise(text), text)
    return list(found.values())
