"""Examples from what Python users have at hand: lists, datasets, frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dino_pipeline.errors import DataError, short
from dino_pipeline.examples import FIELDS, Example

TEXT_A_NAMES = (
    "text_a", "sentence1", "premise", "anchor", "query", "question", "text", "sentence", "document", "content",
)  # fmt: skip
TEXT_B_NAMES = ("text_b", "sentence2", "hypothesis", "positive", "passage", "answer", "code")
LABEL_NAMES = ("label", "score", "similarity_score", "class")
COLUMN_NAMES = {"text_a": TEXT_A_NAMES, "text_b": TEXT_B_NAMES, "label": LABEL_NAMES}
"""Names under which other people's data holds a field; the first that is there counts."""


def as_examples(source: Iterable[Any]) -> list[Example]:
    """Return examples of whatever holds them.

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
    """Yield the rows of a dataset, class numbers replaced by names; rows of an unknown class (-1) are left out."""
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
