"""Texts to learn from or to be scored on, all in memory: from a file, a dataset, or what a Python user hands in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dino_pipeline.dataset_tables import evaluation_split, open_tables, split_names
from dino_pipeline.errors import DataError
from dino_pipeline.examples import Example
from dino_pipeline.files import file_digest
from dino_pipeline.readers import Content, ExampleReader, LabelType, content_of, list_reader
from dino_pipeline.rows import RowsRead
from dino_pipeline.text import normalise


@dataclass(frozen=True)
class Corpus:
    """Texts or pairs of one kind."""

    name: str
    """Where they are from, for errors."""
    examples: list[Example]
    rows_read: RowsRead | None = None
    """What was read to get them."""

    @property
    def content(self) -> Content:
        """Return what the examples are.

        Raises:
            DataError: there are no examples.
        """
        if not self.examples:
            raise DataError(f"{self.name}: holds no text to learn from", "give more")
        return content_of(self.examples[0])

    @property
    def has_classes(self) -> bool:
        """Return whether the examples are texts of two or more classes."""
        return self.content == "classified texts" and len({example.label for example in self.examples}) > 1


@dataclass(frozen=True, eq=False)
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
    label_type: LabelType | None = None
    """Whether labels are scores or names of classes; None: see `readers`."""
    memory: Any = None
    """Texts in memory, in place of those that the name says: whatever `list_reader` takes."""
    skip_blank: bool = False
    """Whether rows without text are left out."""

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
            reader = list_reader(self.memory, name=self.name)
        else:
            tables = open_tables(self.name, split=self.split, config=self.config, revision=self.revision)
            reader = ExampleReader(self.label, tables)
        reader = replace(reader, columns=self.columns, label_type=self.label_type, skip_blank=self.skip_blank)
        examples = list(reader)
        if not examples:
            read = reader.rows_read
            counted = f" ({read.told})" if read.rows else ""
            raise DataError(f"{self.name}: holds no texts{counted}", "give a file with a sentence or document a line")
        return Corpus(self.name, examples, reader.rows_read)


def evaluation_source(path: Path, label_type: LabelType | None = None) -> Source:
    """Return a file as a source, or the split of a dataset to evaluate on."""
    source = Source(str(path), label_type=label_type)
    return source if path.is_file() else replace(source, split=evaluation_split(source.name))


def validation_source(source: Source) -> Source | None:
    """Return the validation split of a source's dataset, None if it has none."""
    names = split_names(source.name, source.config, source.revision)
    return replace(source, split="validation") if "validation" in names else None


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
    return replace(corpus, examples=outside), Corpus(f"{corpus.name}, held out", inside)


def distinct_texts(examples: Sequence[Example]) -> list[str]:
    """Return the texts that differ in normal form, all first texts before the second ones."""
    texts = [example.text_a for example in examples] + [example.text_b for example in examples if example.text_b]
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(normalise(text), text)
    return list(distinct.values())
