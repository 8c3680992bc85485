"""The report's blocks as Markdown for a card; texts are shown and never obeyed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from dino_pipeline.report.blocks import Block, Facts, Paragraph, Picture, Prompt, Samples, Section, Table, visible

SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")


def plain(text: str) -> str:
    """Return a text that Markdown and HTML leave as it is, on one line."""
    return SPECIAL.sub(r"\\\1", escape(" ".join(visible(text).split()), quote=False))


def fenced(text: str, language: str = "") -> str:
    """Return a text as a code block, whatever backticks it holds."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(section: Section) -> str:
    """Return what a section shows, without its title."""
    return "\n\n".join(_block(block) for block in section.blocks)


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return plain(block.text)
    if isinstance(block, Facts):
        return table(["", ""], block.items)
    if isinstance(block, Table):
        return f"{plain(block.caption)}:\n\n{table(block.header, block.rows)}"
    if isinstance(block, Picture):
        return f"![{plain(block.title)}](pictures/{block.name}.png)\n\n{_block(block.numbers)}"
    if isinstance(block, Prompt):
        return f"**{plain(block.label)}** ({plain(block.against)})\n\n{fenced(block.text, 'text')}"
    assert isinstance(block, Samples)
    return samples(block, len(block.rows))


def samples(block: Samples, each: int) -> str:
    """Return the first kept samples of each label as a table."""
    names = ("label", "first", "second") if block.paired else ("label", "first")
    header = ["label", "text_a", "text_b"] if block.paired else ["label", "text"]
    kept = [row for row in block.rows if row["fate"] == "kept"]
    rows = [row for label in block.labels for row in [row for row in kept if row["label"] == label][:each]]
    return table(header, [[row[name] for name in names] for row in rows])
