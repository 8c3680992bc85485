"""Texts to train on: from a file of JSON lines or plain text, anything that `datasets` reads, the Hub, or memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import ClassLabel, Dataset, get_dataset_split_names

from dino_pipeline.errors import DataError
from dino_pipeline.examples import COLUMN_NAMES, Example, as_examples, read_examples
from dino_pipeline.files import file_digest
from dino_pipeline.readers import JSON_ENDINGS, TABLE_FORMATS, load_table, read_json_lines, read_lines
from dino_pipeline.text import as_number, normalise

Content = Literal["scored pairs", "classified pairs", "pairs", "classified texts", "texts"]


@dataclass(frozen=True)
class Corpus:
    """Texts or pairs of one kind."""

    name: str
    """Where they are from, for errors."""
    examples: list[Example]

    @cached_property
    def content(self) -> Content:
        """Return what the examples are.

        Raises:
            DataError: there are no examples, or they are of several kinds.
        """
        if not self.examples:
            raise DataError(f"{self.name}: holds no text to learn from", "give more")
        first = _kind(self.examples[0])
        for number, example in enumerate(self.examples, start=1):
            if _kind(example) != first:
                raise DataError(
                    f"{self.name}: example 1 belongs to {first}, example {number} to {_kind(example)}",
                    "give each kind in a file of its own",
                )
        return first

    @property
    def has_classes(self) -> bool:
        """Return whether the examples are texts of two or more classes."""
        return self.content == "classified texts" and len({example.label for example in self.examples}) > 1


def _kind(example: Example) -> Content:
    has_class = isinstance(example.label, str)
    if example.text_b is None:
        return "classified texts" if has_class else "texts"
    if example.label is None:
        return "pairs"
    return "classified pairs" if has_class else "scored pairs"


@dataclass(frozen=True)
class Source:
    """Where texts come from: a file, a folder, a dataset on the Hub, or memory."""

    name: str
    """A file, a folder or a Hub id; what they are called if they are in memory."""
    split: str = "train"
    """Split of a folder or a Hub id."""
    config: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns that are ``text_a``, ``text_b`` and ``label``, where their names do not say."""
    classes: bool = False
    """Whether labels are names of classes, even those that are numbers."""
    memory: Any = None
    """Texts in memory, in place of those that the name says: a `datasets.Dataset`, or whatever `as_examples` takes."""

    @property
    def path(self) -> Path:
        """Return the file or folder, if it is one."""
        return Path(self.name)

    @property
    def label(self) -> str:
        """Return words that tell this source from others."""
        if self.memory is not None:
            return self.name
        if self.path.is_file():
            return self.path.name
        name = self.path.name if self.path.exists() else self.name
        columns = (f"{role}={column}" for role, column in self.columns.items())
        return ", ".join(part for part in (name, self.config, self.split, self.revision, *columns) if part)

    def digest(self) -> str:
        """Return a hash of the texts and labels."""
        if self.memory is None and self.path.is_file():
            return file_digest(self.path)[:16]
        digest = hashlib.sha256()
        for example in self.corpus.examples:
            digest.update(json.dumps([example.text_a, example.text_b, example.label]).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def corpus(self) -> Corpus:
        """Return all texts, read once.

        Raises:
            DataError: the source cannot be read, is empty, or has no column of texts.
        """
        if self.memory is not None:
            return Corpus(self.name, self._examples_in_memory())
        suffix = self.path.suffix.lower()
        is_table = suffix in TABLE_FORMATS or bool(self.columns) or _has_other_columns(self.path)
        if is_table or not self.path.is_file():
            table = load_table(self.name, self.config, split=self.split, revision=self.revision)
            return Corpus(self.name, self._examples_of(table))
        if suffix in JSON_ENDINGS:
            return Corpus(self.name, read_examples(self.path, numeric_labels=not self.classes))
        return Corpus(self.name, _read_texts(self.path))

    def _examples_in_memory(self) -> list[Example]:
        if isinstance(self.memory, Dataset):
            return self._examples_of(self.memory)
        examples = []
        for example in as_examples(self.memory):
            examples.append(self._example(example.text_a, example.text_b, example.label, self.classes))
        return examples

    def _examples_of(self, dataset: Dataset) -> list[Example]:
        """Return the rows of a dataset whose columns have any of the `COLUMN_NAMES`."""
        text_a, text_b, label = (self._column(dataset, role) for role in COLUMN_NAMES)
        if text_a is None:
            raise DataError(
                f"{self.name}: none of its columns {', '.join(dataset.column_names)} is known to hold texts",
                "rename them to text_a, text_b and label; for training, {column=text_a=NAME} names one, too",
            )
        class_label = dataset.features[label] if label and isinstance(dataset.features[label], ClassLabel) else None
        missing = [None] * len(dataset)
        columns = [dataset[name] if name else missing for name in (text_a, text_b, label)]
        examples = []
        for first, second, value in zip(*columns, strict=True):
            if class_label is not None:
                if value is None or value < 0:  # -1 marks rows that nobody could label
                    continue
                value = class_label.int2str(value)
            examples.append(self._example(first, second, value, self.classes or class_label is not None))
        if not examples:
            raise DataError(f"{self.name}: holds no rows")
        return examples

    def _column(self, dataset: Dataset, role: str) -> str | None:
        """Return the name of a dataset's column for a role, None if there is none."""
        if role in self.columns:
            name = self.columns[role]
            if name not in dataset.column_names:
                raise DataError(f"{self.name}: has no column {name}, only {', '.join(dataset.column_names)}")
            return name
        free = [name for name in dataset.column_names if name not in self.columns.values()]
        return next((name for name in COLUMN_NAMES[role] if name in free), None)

    def _example(self, text_a: Any, text_b: Any, label: Any, classes: bool) -> Example:
        """Return a row as an example; labels that spell numbers become numbers unless they are classes."""
        if not isinstance(text_a, str) or not isinstance(text_b, str | None):
            raise DataError(f"{self.name}: a row holds {text_a!r:.60} and {text_b!r:.60}; texts must be strings")
        if not isinstance(label, str | int | float | None):
            raise DataError(f"{self.name}: a label is {label!r:.60}; labels are numbers or names")
        is_name = classes or isinstance(label, bool)
        number = label if isinstance(label, float) else None
        if isinstance(label, str | int) and not is_name:
            number = as_number(label) if isinstance(label, str) else float(label)
        if number is not None and not math.isfinite(number):
            raise DataError(f"{self.name}: a label is {label!r:.60}", "give finite numbers")
        if label is None or is_name:
            return Example(text_a, text_b, None if label is None else str(label))
        return Example(text_a, text_b, label if number is None else number)


def _has_other_columns(path: Path) -> bool:
    """Return whether the first row of a JSONL file lacks ``text_a`` but has another name of it in `COLUMN_NAMES`."""
    if path.suffix.lower() not in JSON_ENDINGS:
        return False
    try:
        _, first = next(read_json_lines(path), (1, {}))
    except DataError:
        return False  # the reader raises an error that names the place
    return isinstance(first, dict) and "text_a" not in first and any(name in first for name in COLUMN_NAMES["text_a"])


def _read_texts(path: Path) -> list[Example]:
    """Return the lines of a text file that are not blank."""
    texts = [Example(stripped) for line in read_lines(path) if (stripped := line.strip())]
    if not texts:
        raise DataError(f"{path}: holds no texts", "give a file with a sentence or document a line")
    return texts


def evaluation_source(path: Path, *, classes: bool = False) -> Source:
    """Return a file as a source, or the split of a dataset to evaluate on: test, else validation, else train."""
    source = Source(str(path), classes=classes)
    splits = [] if path.is_file() else _splits(source)
    for name in ("test", "validation", "train"):
        if name in splits:
            return replace(source, split=name)
    return replace(source, split=splits[0]) if splits else source


def validation_source(source: Source) -> Source | None:
    """Return the validation split of a source's dataset, None if it has none."""
    return replace(source, split="validation") if "validation" in _splits(source) else None


def _splits(source: Source) -> list[str]:
    with contextlib.suppress(Exception):  # loading the dataset raises an error that says what is wrong
        return list(get_dataset_split_names(source.name, source.config, revision=source.revision))
    return []


def hold_out(corpus: Corpus, share: float, most: int) -> tuple[Corpus, Corpus]:
    """Split a corpus into a large and a small part that share no first text.

    The split depends on the texts alone, not on their order. The small part has a share of the first texts, but no more
    than ``most`` of them.

    Raises:
        DataError: the corpus is too small to be split.
    """
    firsts = [normalise(example.text_a) for example in corpus.examples]
    groups = list(dict.fromkeys(firsts))
    shuffled = sorted(groups, key=lambda text: hashlib.sha256(text.encode()).digest())
    held_out = set(shuffled[: min(max(round(share * len(groups)), 1), most)])
    inside: list[Example] = []
    outside: list[Example] = []
    for first, example in zip(firsts, corpus.examples, strict=True):
        (inside if first in held_out else outside).append(example)
    if not outside:
        raise DataError(f"{corpus.name}: holds too few texts to keep some out of training", "give more")
    return Corpus(corpus.name, outside), Corpus(f"{corpus.name}, held out", inside)


def distinct_texts(examples: Sequence[Example]) -> list[str]:
    """Return the texts that differ in normal form, all first texts before the second ones."""
    texts = [example.text_a for example in examples] + [example.text_b for example in examples if example.text_b]
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(normalise(text), text)
    return list(distinct.values())
