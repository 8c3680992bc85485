"""The examples that a user brings to a filter: from memory, a file, a folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dino_pipeline.cards.hub import Manifest, download
from dino_pipeline.dataset_tables import open_tables
from dino_pipeline.errors import DataError, HubError
from dino_pipeline.examples import PROVENANCE, write_examples
from dino_pipeline.filtering.filter_source import FilterSource, file_source
from dino_pipeline.filtering.text_rules import PromptParts
from dino_pipeline.layout import LINEAGE
from dino_pipeline.readers import ExampleReader, LabelType, list_reader
from dino_pipeline.record import public
from dino_pipeline.rows import Row, Table
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import FilterRecord

EXAMPLES = "examples"
"""Name of examples in memory."""


@dataclass(frozen=True)
class BroughtExamples:
    """Examples that a user brings, in memory or in tables, before they are written to a file that a filter can read."""

    reader: ExampleReader
    name: str
    """What is recorded."""
    place: str
    """Where they are, for errors."""
    prompt: PromptParts
    is_final: bool

    @contextmanager
    def written(self, run: Run) -> Iterator[FilterSource]:
        """Write the examples to a file in the run's folder, which is locked, and delete it afterwards."""
        with run.scratch("source") as folder:
            file = folder / "source.jsonl"
            write_examples(file, self.reader)
            numeric, read = self.reader.numeric_labels, self.reader.rows_read
            yield FilterSource(
                [file], self.place, self.name, numeric, self.prompt, is_final=self.is_final, rows_read=read
            )


def open_examples(
    source: Any,
    spec: TaskSpec | None,
    label_type: LabelType | None,
    before: FilterRecord | None,
    columns: Mapping[str, str],
) -> FilterSource | BroughtExamples:
    """Return the source for examples that do not come from a run.

    Args:
        source: the examples, or where they are.
        spec: the task spec that they were written by, if it is known.
        label_type: what the labels are, if the user says.
        before: the record of the filter that they have passed already, if they have.
        columns: see `ExampleReader`.

    Raises:
        DataError: there are no examples, or they cannot be read.
    """
    prompt = PromptParts(spec.stop, spec.fields) if spec else PromptParts()
    is_final = before is not None
    if before is not None:
        prompt = prompt if spec else PromptParts(before.inputs.stop, before.inputs.fields)
        label_type = label_type or before.inputs.label_type
    if label_type is None and spec:
        label_type = "score" if spec.is_scored else "class"
    if not isinstance(source, str | Path):
        reader, name, place = list_reader(source, label_type), f"{EXAMPLES}.jsonl", "the examples"
    elif (path := Path(source)).exists() and not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: is not a file that can be read twice; save it to one first")
        Run.check_file(path)
        name, place = path.name, str(path)
        reader = ExampleReader(name, open_tables(place), columns, label_type)
        if reader.holds_records and label_type != "score":  # several processes read it as it is
            return file_source(path, reader.numeric_labels, prompt)
    else:
        place = public(str(source)).strip("./").replace("/", "--")
        reader, is_final = _published_examples(str(source), place, label_type)
        name = f"{place}.jsonl"
    return BroughtExamples(replace(reader, columns=columns, labelled=True), name, place, prompt, is_final)


def _published_examples(source: str, name: str, label_type: LabelType | None) -> tuple[ExampleReader, bool]:
    """Return the examples of a dataset in a folder or on the Hub, and whether they were filtered before.

    A dataset of this package holds the filtered texts and, in the configuration ``raw``, those that were written.

    Raises:
        DataError: the dataset does not exist, or cannot be read.
    """
    tables, is_ours = open_tables(source), _is_of_this_package(source)
    if is_ours:
        with suppress(DataError):  # the dataset may lack this configuration
            raw = open_tables(source, config="raw")
            if {"text_a", "label", *PROVENANCE} <= set(_first_row(raw)):
                tables, is_ours = raw, False
        if label_type is None:
            label_type = "score" if isinstance(_first_row(tables).get("label"), float) else "class"
    return ExampleReader(name, tables, label_type=label_type), is_ours


def _first_row(tables: Sequence[Table]) -> Row:
    return next((row for table in tables for _, row in table.rows()), {})


def _is_of_this_package(source: str) -> bool:
    """Return whether a dataset in a folder or on the Hub was published by this package."""
    with suppress(HubError, OSError):
        folder = Path(source) if Path(source).exists() else download(source, "dataset", None, only=[LINEAGE])
        Manifest.read(folder / LINEAGE, source)
        return True
    return False
