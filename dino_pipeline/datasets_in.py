"""Examples from what Python users have at hand: lists, datasets, frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dino_pipeline.errors import DataError, short
from dino_pipeline.examples import FIELDS, Example

ALIASES = {"sentence1": "text_a", "sentence2": "text_b", "score": "label", "text": "text_a"}
"""Column names that are taken for a field of the record where the field itself is missing."""


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
    return [_example(item, number) for number, item in enumerate(_items(source))]


def _items(source: Iterable[Any]) -> Iterator[Any]:
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas frame
        yield from source.to_dict(orient="records")
    else:
        yield from source


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
    named = {ALIASES.get(name, name) if ALIASES.get(name) not in item else name: value for name, value in item.items()}
    if "text_a" not in named:
        raise DataError(f"{where}: text_a is missing (the fields are {', '.join(map(str, item)) or 'none'})")
    return {name: None if _is_missing(value) else value for name, value in named.items() if name in FIELDS}


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
