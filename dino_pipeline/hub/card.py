"""Cards: front matter that the Hub reads, what we write of a run, and what people wrote around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dino_pipeline.errors import HubError, first_line

BEGIN, END = "<!-- written by dino_pipeline: begin -->", "<!-- written by dino_pipeline: end -->"
HINT = "<!-- what stands outside of the two marks is kept when this is published again -->"
OURS = (
    *("pretty_name", "size_categories", "task_categories", "annotations_creators", "language_creators"),
    *("source_datasets", "configs", "dataset_info", "library_name", "pipeline_tag", "datasets", "base_model"),
    *("model-index", "widget", "tags"),
)
"""Fields that say what we found: what they said before is not kept. Licence and language are, where we know none."""
_FRONT = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)


def card(front: Mapping[str, Any], body: str, before: str = "") -> str:
    """Return a card.

    Args:
        front: what the Hub reads.
        body: what we say.
        before: the card that stands there now: fields that are not ours, further tags, and what is written outside of
            our marks are kept.
    """
    old_front, old_body = split(before)
    tags = old_front.get("tags")
    old_front = {key: value for key, value in old_front.items() if key not in OURS}
    merged = {**old_front, **{key: value for key, value in front.items() if value is not None}}
    if isinstance(tags, list):
        merged["tags"] = list(dict.fromkeys([*front.get("tags", []), *map(str, tags)]))
    above, below = _around(old_body)
    text = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n{above}{BEGIN}\n{HINT}\n\n{body.strip()}\n\n{END}{below or chr(10)}"


def onto(ours: str, before: str) -> str:
    """Return a card of ours with what people wrote into the card that stands there now."""
    front, body = split(ours)
    return card(front, body.partition(BEGIN)[2].rpartition(END)[0].replace(HINT, "", 1), before)


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
