"""How is a text shown that nobody has checked: on a console, in Markdown, in YAML, in HTML?

Texts, labels, columns, models and files may have any name. Each language has one function that shows a text as it is
and lets it do nothing: `spelt` for a console, `escape_markdown` (and `code_span`, `code_block`, `markdown_link`,
`markdown_table`, which are made of it), `yaml_text` and `escape_html`. Templates call them for every value.
"""

from __future__ import annotations

import html
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from urllib.parse import quote

import click

LONGEST = 500
"""Characters of a text that are shown; the rest is cut."""
LONGEST_CELL = 120
"""Characters of a cell of a table on a console."""
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")
_MARKDOWN_START = re.compile(r"\A(\d{0,9})(?=[-+](?:\s|$)|[-=][-=\s]*$|[.)](?:\s|$))")
"""The beginning of a line that would be a list, a rule or the line below a title; its mark follows."""


def spelt(text: object) -> str:
    """Return a text with control, invisible and direction-changing characters spelt as codes, ``[U+001B]``."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(f"[U+{ord(character):04X}]" if _is_hidden(character) else character for character in shown)


def visible(text: str, longest: int = LONGEST) -> str:
    """Return a text that can be shown: cut, and with hidden characters spelt as codes; see `spelt`."""
    return spelt(text if len(text) <= longest else text[: longest - 1] + "…")


def one_line(text: object, longest: int = LONGEST) -> str:
    """Return a text that can be shown on one line."""
    return " ".join(visible(str(text), longest).split())


def _is_hidden(character: str) -> bool:
    # joiners belong to the spelling of several scripts and of emoji
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co"} and character not in "\n\t\u200c\u200d"


def console_cell(text: object) -> str:
    """Return a text as a cell of a table on a console: cut, on one line."""
    return re.sub(r"[\n\t\u2028\u2029]", " ", visible(str(text), LONGEST_CELL))


def escape_html(text: object) -> str:
    """Return a text that HTML shows as it is, in elements and in quoted attributes."""
    return html.escape(spelt(text))


def escape_markdown(text: object) -> str:
    """Return a text that Markdown and HTML show as it is, cut, on one line, wherever in a line it stands."""
    return _MARKDOWN_START.sub(r"\1\\", _escape_inside(text))


def _escape_inside(text: object) -> str:
    """Return what `escape_markdown` does, for a place where no list, rule or title can begin."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(one_line(text), quote=False))


def code_span(text: object) -> str:
    """Return a text as inline code. Where it holds backticks, the delimiters are longer."""
    shown = one_line(text) or " "
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (_longest_run_of_backticks(shown) + 1)
    return f"{fence} {shown} {fence}"


def code_block(text: str, language: str = "") -> str:
    """Return a text as a fenced code block that no backticks in the text can close."""
    shown = spelt(text)
    fence = "`" * max(3, _longest_run_of_backticks(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall(r"`+", text)), default=0)


def markdown_link(text: object, target: str) -> str:
    """Return a link to a relative path, or to an address of http; another target is not linked."""
    address = quote(target, safe="/:?#&=%@+,;~!$'*")
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", target)
    if scheme and scheme[0].lower() not in ("http:", "https:"):
        return escape_markdown(text)
    return f"[{_escape_inside(text)}]({address})"


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; titles and cells are escaped."""
    lines = [[_escape_inside(title) for title in header], ["---"] * len(header)]
    lines += [[_escape_inside(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def yaml_text(fields: Mapping[str, object]) -> str:
    """Return fields as YAML that reads back as the same values."""
    import yaml

    text = yaml.safe_dump(dict(fields), sort_keys=False, width=120, allow_unicode=True)
    # PyYAML writes these characters as they are, and reads them back as the end of a line
    if any(character in text for character in "\x85\u2028\u2029"):
        return str(yaml.safe_dump(dict(fields), sort_keys=False, width=120))
    return str(text)


def say(text: object = "", *, err: bool = False, bold: bool = False) -> None:
    """Print a text that may hold anything; see `spelt`. An error is raised only where a result cannot be printed."""
    with log_may_be_lost() if err else nullcontext():
        click.secho(spelt(text), err=err, bold=bold or None)


@contextmanager
def log_may_be_lost() -> Iterator[None]:
    """Drop messages that standard error cannot take: a full log must not end the work."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
