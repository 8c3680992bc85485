"""What is a document made of, and how is text shown in it that nobody has checked?

A `Section` holds blocks of data. The page's template shows them as HTML and the cards' templates as Markdown, so each
block is described once. Texts of a run may hold anything: `escape_markdown`, `code_span` and `code_block` show a text
in Markdown as it is, and Jinja's autoescape does so on the page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from dino_pipeline.errors import Wording, worded

LONGEST = 500
"""Characters of a text that are shown; the rest is cut."""
_FIGURE = re.compile(r"[-+]?\d[\d,.]*( %)?( \.\. -?[\d.]+| \(.*\))?")
_FIGURE_OR_DASH = re.compile(rf"{_FIGURE.pattern}|-")
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")


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


def visible(text: str, longest: int = LONGEST) -> str:
    """Return a text that can be shown: cut, and with invisible and direction-changing characters spelt as codes."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(f"[U+{ord(character):04X}]" if _is_hidden(character) else character for character in cut)


def _is_hidden(character: str) -> bool:
    # joiners belong to the spelling of several scripts and of emoji
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co"} and character not in "\n\t\u200c\u200d"


def number(value: float | None) -> str:
    """Return a number with separators between thousands, or with two decimals; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def percent(part: int, whole: int) -> str:
    """Return a part of a whole in percent; a dash if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def escape_markdown(text: object) -> str:
    """Return a text that Markdown and HTML show as it is, on one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", escape(" ".join(visible(str(text)).split()), quote=False))


def code_span(text: object) -> str:
    """Return a text as inline code. Where it holds backticks, the delimiters are longer."""
    shown = " ".join(visible(str(text)).split()) or " "
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (_longest_run_of_backticks(shown) + 1)
    return f"{fence} {shown} {fence}"


def code_block(text: str, language: str = "") -> str:
    """Return a text as a fenced code block that no backticks in the text can close."""
    fence = "`" * max(3, _longest_run_of_backticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall(r"`+", text)), default=0)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with escaped cells."""
    lines = [list(header), ["---"] * len(header)]
    lines += [[escape_markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render_markdown(template: str, **context: Any) -> str:
    """Return a Markdown template's text. Values are inserted as they are unless the template escapes them."""
    environment = _environment(autoescape=False)
    environment.filters |= {"text": escape_markdown, "code": code_span, "one_line": lambda text: " ".join(text.split())}
    environment.globals |= {"table": markdown_table, "code_block": code_block}
    return environment.get_template(template).render(context)


def render_html(template: str, **context: Any) -> str:
    """Return an HTML template's text; all values are escaped."""
    return _environment(autoescape=True).get_template(template).render(context)


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
