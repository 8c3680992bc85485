"""Examples in memory: what Python users hand in, and what they get back."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, overload

from dino_pipeline.errors import DataError, short
from dino_pipeline.examples import FIELDS, Example

if TYPE_CHECKING:
    import datasets
    import pandas


TEXT_A_NAMES = (
    "text_a", "sentence1", "premise", "anchor", "query", "question", "text", "sentence", "document", "content",
)  # fmt: skip
TEXT_B_NAMES = ("text_b", "sentence2", "hypothesis", "positive", "passage", "answer", "code")
LABEL_NAMES = ("label", "score", "similarity_score", "class")
COLUMN_NAMES = {"text_a": TEXT_A_NAMES, "text_b": TEXT_B_NAMES, "label": LABEL_NAMES}
"""Names under which other people's data holds a field; the first that is there counts."""


def as_examples(source: Iterable[Any]) -> list[Example]:
    """Return the examples in data that a Python user hands in.

    Args:
        source: a list of `Example`, of dicts with the record's fields, of ``(text_a, text_b, label)`` or
            ``(text_a, text_b)`` tuples, or of single texts; a `datasets.Dataset`; a pandas frame.

    Raises:
        DataError: an item is none of these, or holds a wrong value; the message names its position.
    """
    if isinstance(source, str):
        raise DataError(f"{short(source)}: is one text", "give a list of texts or examples")
    if not isinstance(source, Iterable):
        raise DataError(f"{short(source)}: holds no examples", "give a list of examples, a dataset or a frame")
    return [_example(item, number) for number, item in enumerate(_items(source))]


def _items(source: Iterable[Any]) -> Iterator[Any]:
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas frame
        yield from source.to_dict(orient="records")
    elif hasattr(source, "features") and hasattr(source, "column_names"):  # a datasets.Dataset
        yield from _with_class_names(source)
    else:
        yield from source


def _with_class_names(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset with names for class numbers. Rows without a class (None or -1) are left out."""
    classes = {name: feature for name, feature in dataset.features.items() if hasattr(feature, "int2str")}
    label = next((name for name in LABEL_NAMES if name in dataset.column_names), None)
    for row in dataset:
        if label in classes:
            if row[label] is None or row[label] < 0:
                continue
            row[label] = classes[label].int2str(row[label])
        yield row


def _example(item: Any, number: int) -> Example:
    where = f"example {number}"
    if isinstance(item, Example):
        return _checked(item, where)
    if isinstance(item, str):
        return _checked(Example(item), where)
    if isinstance(item, Mapping):
        return _checked(Example(**_known_fields(item, where)), where)
    if isinstance(item, tuple | list) and 1 <= len(item) <= 3:
        return _checked(Example(*item), where)
    raise DataError(
        f"{where}: is {short(item)}", "give an Example, a dict with text_a, a tuple (text_a, text_b, label), or a text"
    )


def _known_fields(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {name: item[name] for name in FIELDS if name in item}
    for field, names in COLUMN_NAMES.items():
        if column := next((name for name in names if name in item), None):
            known[field] = item[column]
    if "text_a" not in known:
        raise DataError(f"{where}: text_a is missing (the fields are {', '.join(map(str, item)) or 'none'})")
    return {name: None if _is_missing(value) else value for name, value in known.items()}


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _checked(example: Example, where: str) -> Example:
    for name in ("text_a", "text_b"):
        value = getattr(example, name)
        if not (isinstance(value, str) or (value is None and name == "text_b")):
            raise DataError(f"{where}: {name} must be a string (it is {short(value)})")
    label = example.label
    if isinstance(label, bool) or not (label is None or isinstance(label, str | int | float)):
        raise DataError(f"{where}: label must be a number or a name (it is {short(label)})")
    if isinstance(label, int):
        return Example(**{**{name: getattr(example, name) for name in FIELDS}, "label": float(label)})
    return example


SHOWN = 5
"""Examples that a notebook shows."""


class ExampleList(Sequence[Example]):
    """Examples in a fixed order. Base of the results of stages.

    Args:
        examples: the examples.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"

    @property
    def summary(self) -> str:
        """Return what the list holds, in a line."""
        return f"{len(self)} examples"

    def to_dicts(self) -> list[dict[str, object]]:
        """Return the examples as dicts with the record's fields."""
        return [asdict(example) for example in self]

    def to_dataset(self) -> datasets.Dataset:
        """Return the examples as a `datasets.Dataset`, one column per field."""
        from datasets import Dataset

        return Dataset.from_list(self.to_dicts())

    def to_pandas(self) -> pandas.DataFrame:
        """Return the examples as a pandas frame, one column per field."""
        import pandas

        return pandas.DataFrame(self.to_dicts())

    def _repr_html_(self) -> str:
        return table_html(self.summary, ("text_a", "text_b", "label"), [_cells(each) for each in self[:SHOWN]])


def _cells(example: Example) -> tuple[str, ...]:
    return tuple("" if value is None else str(value) for value in (example.text_a, example.text_b, example.label))


def table_html(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a small table for a notebook, every cell escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<p>{html.escape(title)}</p><table>{line('th', header)}{body}</table>"
