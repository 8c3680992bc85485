"""Cards: front matter that the Hub reads, what we write of a run, and what people wrote around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dino_pipeline.errors import HubError, first_line

README = "README.md"
"""Where a card stands."""
BEGIN, END = "<!-- written by dino_pipeline: begin -->", "<!-- written by dino_pipeline: end -->"
HINT = "<!-- what stands outside of the two marks is kept when this is published again -->"
OURS = (
    *("pretty_name", "size_categories", "task_categories", "annotations_creators", "language_creators"),
    *("source_datasets", "configs", "dataset_info", "library_name", "pipeline_tag", "datasets", "base_model"),
    *("model-index", "widget", "tags"),
)
"""Fields that say what we found: what they said before is not kept. Licence and language are, where we know none."""
_FRONT = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Kept:
    """What a card holds that is not ours."""

    front: Mapping[str, Any] = field(default_factory=dict)
    """Fields, and all tags: whose they are cannot be told."""
    above: str = ""
    below: str = ""

    @classmethod
    def of(cls, text: str) -> Kept:
        """Take it from a card.

        Raises:
            HubError: its front matter is no YAML.
        """
        front, body = split(text)
        return cls({key: value for key, value in front.items() if key not in OURS or key == "tags"}, *_around(body))

    def joined(self, there: Kept, base: Kept) -> Kept:
        """Return it with what people wrote elsewhere since both were ``base``.

        Raises:
            HubError: both were changed in the same place, and neither has all that the other has.
        """
        front: dict[str, Any] = {}
        for key in dict.fromkeys([*self.front, *there.front]):
            here, other, before = (each.front.get(key) for each in (self, there, base))
            value = _tags(here, other, before) if key == "tags" else _newer(here, other, before, f"its field {key}")
            front |= {} if value is None else {key: value}
        above, below = (
            _newer(getattr(self, part), getattr(there, part), getattr(base, part), f"what stands {part} our part")
            for part in ("above", "below")
        )
        return Kept(front, above, below)


def _newer(here: Any, there: Any, base: Any, what: str) -> Any:
    if here == there or there == base or _holds(here, there):
        return here
    if here == base or _holds(there, here):
        return there
    raise HubError(f"README.md: {what} was changed here and on the Hub; bring both together here, and run again")


def _holds(text: Any, other: Any) -> bool:
    """Say whether a text has all lines of another."""
    texts = isinstance(text, str) and isinstance(other, str)
    return texts and {*text.split("\n"), ""} >= {*other.split("\n")}


def _tags(here: Any, there: Any, base: Any) -> list[str]:
    """Return the tags of both but for those that one of them lost."""
    mine, theirs, before = ([*map(str, each)] if isinstance(each, list) else [] for each in (here, there, base))
    both = dict.fromkeys([*mine, *theirs])
    return [tag for tag in both if tag not in before or (tag in mine and tag in theirs)]


def read_card(path: Path) -> str:
    """Return a card's text.

    Raises:
        HubError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HubError(f"README.md: is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def card(front: Mapping[str, Any], body: str, kept: Kept) -> str:
    """Return a card.

    Args:
        front: what the Hub reads.
        body: what we say.
        kept: of the card that stands there now.
    """
    ours = {key: value for key, value in front.items() if value is not None}
    merged = {**ours, **{key: value for key, value in kept.front.items() if key not in ours}}
    if isinstance(tags := kept.front.get("tags"), list):
        merged["tags"] = list(dict.fromkeys([*front.get("tags", []), *map(str, tags)]))
    dump = partial(yaml.safe_dump, merged, sort_keys=False, width=120)
    if "\x85" in (text := dump(allow_unicode=True)):  # which PyYAML writes as it is, and reads as a line's end
        text = dump()
    written = f"{BEGIN}\n{HINT}\n\n{body.strip()}\n\n{END}"
    return f"---\n{text}---\n{kept.above}{written}{kept.below or chr(10)}"


def split(text: str) -> tuple[dict[str, Any], str]:
    """Return a card's front matter and its body; a text without front matter is all body.

    Raises:
        HubError: the front matter is no YAML.
    """
    found = _FRONT.match(text.replace("\r\n", "\n"))
    if not found:
        return {}, text
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise HubError(
            f"README.md: its front matter is no YAML ({first_line(error)}); mend what is written there"
        ) from error
    return (front if isinstance(front, dict) else {}), found[2]


def _around(body: str) -> tuple[str, str]:
    """Return what stands before and after our marks; all of a body without them comes after."""
    if BEGIN in body and END in body:
        above, _, rest = body.partition(BEGIN)
        return above, rest.rpartition(END)[2]
    return "", f"\n\n{body.strip()}\n" if body.strip() else ""
