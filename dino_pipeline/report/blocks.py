"""What a page is made of: sections of paragraphs, tables, pictures, prompts and samples; the template shows them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

FIGURE = re.compile(r"[-+]?\d[\d,.]*( %)?( \.\. -?[\d.]+| \(.*\))?")
OR_NONE = re.compile(rf"{FIGURE.pattern}|-")
LONGEST = 500
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two."""

    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Facts:
    """Terms and what is to be said of each."""

    items: Sequence[tuple[str, str]]
    title: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """Rows below a header; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"

    @property
    def of_figures(self) -> list[bool]:
        """Which columns hold nothing but figures, and stand to the right."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        return [any(map(FIGURE.fullmatch, each)) and all(map(OR_NONE.fullmatch, each)) for each in columns]


@dataclass(frozen=True)
class Histogram:
    """How values are spread."""

    edges: Sequence[float]
    """Of the bins; one more than there are bins."""
    counts: dict[str, list[int]]
    """How many values of each label are in each bin."""


@dataclass(frozen=True)
class Picture:
    """A drawing, with its numbers for those who cannot see it."""

    name: str
    """Of its PNG copy."""
    title: str
    svg: str
    png: bytes
    numbers: Table
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Prompt:
    """What the generator was asked for a label."""

    label: str
    against: str
    """The labels that it is contrasted with, in words."""
    text: str
    kind: ClassVar[str] = "prompt"


@dataclass(frozen=True)
class Samples:
    """Texts to search and filter."""

    rows: Sequence[dict[str, str]]
    labels: Sequence[str]
    fates: Sequence[str]
    """``kept``, ``dropped`` and the reasons."""
    paired: bool
    kind: ClassVar[str] = "samples"


Block = Paragraph | Facts | Table | Picture | Prompt | Samples


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    blocks: Sequence[Block]


class Missing(Exception):  # noqa: N818
    """A section has nothing to show, and why."""


def visible(text: str, longest: int = LONGEST) -> str:
    """Return a text as it can be shown: cut, and characters that hide or turn others around spelt out."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(f"[U+{ord(character):04X}]" if _hides(character) else character for character in cut)


def _hides(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co"} and character not in "\n\t\u200c\u200d"


def number(value: Any) -> str:
    """Return a number as people read it."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def share(part: int, whole: int) -> str:
    """Return a part in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
