"""When is a label a number, and how is it written."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_number(label: str) -> float | None:
    """Return the number that a label's name spells (``"0.5"``), or None for any other name (``"nan"``, ``"1_0"``)."""
    return float(label) if _NUMBER.fullmatch(label.strip()) else None


def plain(label: str) -> str:
    """Return a label as people write it: ``1.0`` is 1; a name such as ``v1.0`` stays."""
    return re.sub(r"(?<=\d)\.0+$", "", label) if as_number(label) is not None else label
