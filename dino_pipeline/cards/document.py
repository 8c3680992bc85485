"""What is a document made of?

A `Section` holds blocks of data. The page's template shows them as HTML and the cards' templates as Markdown, so each
block is described once. Texts of a run may hold anything: every value that a template shows is escaped, for HTML or
for Markdown (see `display`), unless it is marked as being that language already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dino_pipeline.display import (
    code_block,
    code_span,
    escape_html,
    escape_markdown,
    markdown_link,
    markdown_table,
)
from dino_pipeline.errors import Wording, worded

_FIGURE = re.compile(r"[-+]?\d[\d,.]*( %)?( \.\. -?[\d.]+| \(.*\))?")
_FIGURE_OR_DASH = re.compile(rf"{_FIGURE.pattern}|-")


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two."""

    text: str
    hint: str = ""
    """A template of `errors.worded` that is shown in brackets after the text: which option would change this."""
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class FactList:
    """Terms, each with a value."""

    items: Sequence[tuple[str, str]]
    title: str = ""
    """A template of `errors.worded`."""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class DataTable:
    """Rows below a header; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"

    @property
    def numeric_columns(self) -> list[bool]:
        """Return for each column if it holds only figures and dashes; such columns are aligned to the right."""
        numeric = []
        for column in range(len(self.header)):
            cells = [row[column] for row in self.rows]
            numeric.append(any(map(_FIGURE.fullmatch, cells)) and all(map(_FIGURE_OR_DASH.fullmatch, cells)))
        return numeric


@dataclass(frozen=True)
class Picture:
    """A chart, with its numbers for readers who cannot see it."""

    name: str
    """Of its PNG copy, without the suffix."""
    title: str
    svg: str
    png: bytes
    numbers: DataTable
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class PromptText:
    """The prompt of a label."""

    label: str
    contrast: str
    """The labels that it is contrasted with, in words."""
    text: str
    kind: ClassVar[str] = "prompt"


@dataclass(frozen=True)
class SampleTable:
    """Texts to search and filter."""

    rows: Sequence[Mapping[str, str]]
    """With the keys fate, reason, evidence, label, first, second, logprob and margin; all are ready to be shown."""
    labels: Sequence[str]
    fates: Sequence[str]
    """``kept``, ``dropped`` and the reasons."""
    paired: bool
    kind: ClassVar[str] = "samples"


Block = Paragraph | FactList | DataTable | Picture | PromptText | SampleTable


@dataclass(frozen=True)
class Section:
    """A part of a document."""

    id: str
    title: str
    blocks: Sequence[Block]


def number(value: float | None) -> str:
    """Return a number with separators between thousands, or with two decimals; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def percent(part: int, whole: int) -> str:
    """Return a part of a whole in percent; a dash if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def render_markdown(template: str, **context: Any) -> str:
    """Return a Markdown template's text; all values are escaped but those that its filters made Markdown of."""
    environment = _environment(autoescape=True)
    environment.finalize = _as_markdown
    environment.filters |= {"code": _marked(code_span), "one_line": _one_line, "json": _json}
    environment.globals |= {
        "table": _marked(markdown_table),
        "code_block": _marked(code_block),
        "link": _marked(markdown_link),
    }
    return environment.get_template(template).render(context)


def _marked(function: Callable[..., str]) -> Callable[..., Markup]:
    """Return a function whose result is marked as being Markdown, for `_as_markdown`."""
    return lambda *arguments: Markup(function(*arguments))


def _as_markdown(value: object) -> Markup:
    """Return a value as Markdown; numbers stand as they are."""
    if hasattr(value, "__html__"):
        return Markup(value)
    return Markup(value if isinstance(value, int | float) else escape_markdown(value))


def _one_line(markdown: Markup) -> Markup:
    return Markup(" ".join(str(markdown).split()))


def _json(value: object) -> Markup:
    """Return a value as JSON, for code that a template shows in a block."""
    return Markup(json.dumps(value, ensure_ascii=False))


def render_html(template: str, **context: Any) -> str:
    """Return an HTML template's text; all values are escaped."""
    environment = _environment(autoescape=True)
    environment.finalize = _as_html
    return environment.get_template(template).render(context)


def _as_html(value: object) -> Markup:
    return Markup(value if hasattr(value, "__html__") else escape_html(value))


def read_template(name: str) -> str:
    """Return the source of a file in the templates' folder."""
    environment = _environment(autoescape=False)
    assert environment.loader
    return environment.loader.get_source(environment, name)[0]


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("dino_pipeline.cards"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["worded"] = lambda template: worded(template, document_wording())
    return environment


def document_wording() -> Wording:
    """Return the wording of options and stages in documents: that of the command line, which a template knows."""
    return _TemplateWording(_environment(autoescape=False))


class _TemplateWording:
    def __init__(self, environment: Environment) -> None:
        self.macros: Any = environment.get_template("command_line.j2").module

    def option(self, name: str, value: object = None) -> str:
        return str(self.macros.option(name, None if value is None else str(value)))

    def stage(self, name: str, target: str) -> str:
        return str(self.macros.stage(name, target))
