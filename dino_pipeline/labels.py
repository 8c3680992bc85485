"""When is a label a number."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_number(label: str) -> float | None:
    """Return the number that a label's name spells (``"0.5"``), or None for any other name (``"nan"``, ``"1_0"``)."""
    return float(label) if _NUMBER.fullmatch(label.strip()) else None
