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
            ``(text_a, text_b)`` tuples, or of single texts; a `datasets.Dataset`; a pandas frame. Of a
            `datasets.DatasetDict`, the split ``train`` is taken.

    Returns:
        The examples. A label that is a whole number stays an int, because as the name of a class it is ``1``, not
        ``1.0``.

    Raises:
        DataError: an item is none of these, or holds a wrong value; the message names its position.
    """
    if isinstance(source, str):
        raise DataError(f"{short(source)}: is one text", "give a list of texts or examples")
    if isinstance(source, Mapping):
        if "train" not in source:
            names = ", ".join(map(str, source)) or "none"
            raise DataError(f"a dict of {names}: is not a list of examples", "give a list, a dataset or a frame")
        source = source["train"]  # a split of a datasets.DatasetDict
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
    """Return whether a value is what a frame holds where there is none: NaN, or pandas' NA or NaT."""
    value = _plain(value)
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """Return a scalar of numpy as a value of Python, anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _checked(example: Example, where: str) -> Example:
    """Return an example with plain values.

    Raises:
        DataError: a field holds a wrong value.
    """
    values = {name: _plain(getattr(example, name)) for name in FIELDS}
    for name in ("text_a", "text_b"):
        if not (isinstance(values[name], str) or (values[name] is None and name == "text_b")):
            raise DataError(f"{where}: {name} must be a string (it is {short(values[name])})")
    label = values["label"]
    if not (label is None or isinstance(label, str) or _is_finite(label)):
        raise DataError(f"{where}: label must be a finite number or a name (it is {short(label)})")
    for name in ("logprob", "margin"):
        if values[name] is not None and not _is_finite(values[name]):
            raise DataError(f"{where}: {name} must be a finite number (it is {short(values[name])})")
    for name in ("input", "sample"):
        if values[name] is None:
            continue
        if not _is_finite(values[name]) or values[name] != int(values[name]):
            raise DataError(f"{where}: {name} must be a whole number (it is {short(values[name])})")
        values[name] = int(values[name])  # pandas makes floats of a column in which some are missing
    return Example(**values)


def _is_finite(value: object) -> bool:
    """Return whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


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
    def __getitem__(self, index: slice) -> ExampleList: ...

    def __getitem__(self, index: int | slice) -> Example | ExampleList:
        return ExampleList(self.examples[index]) if isinstance(index, slice) else self.examples[index]

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

        return Dataset.from_list(self.to_dicts()) if len(self) else Dataset.from_dict({name: [] for name in FIELDS})

    def to_pandas(self) -> pandas.DataFrame:
        """Return the examples as a pandas frame, one column per field."""
        import pandas

        return pandas.DataFrame(self.to_dicts(), columns=list(FIELDS))

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
