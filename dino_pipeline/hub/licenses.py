"""Under which licence a generator is, and whether it restricts what may be done with texts that it writes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from dino_pipeline import pocket
from dino_pipeline.errors import HubError
from dino_pipeline.hub.card import README, read_card, split
from dino_pipeline.hub.markdown import plain

FREE = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "unlicense"),
    *("isc", "zlib", "artistic-2.0", "ecl-2.0", "afl-3.0", "postgresql", "wtfpl", "mpl-2.0", "bsl-1.0", "odc-by"),
)
"""Licences that say nothing of what a model writes; any other may, and people have to look."""


def license_of(model: str) -> str | None:
    """Return the licence that a generator's card names, in its folder or on the Hub; None if that cannot be known."""
    folder = pocket.GENERATOR if model == "pocket" else Path(model)
    found: Any = None
    if folder.is_dir():
        with contextlib.suppress(HubError, FileNotFoundError):
            found = split(read_card(folder / README))[0].get("license")
    else:
        with contextlib.suppress(Exception):  # without the Hub it is not known, and that is said
            found = (HfApi().model_info(model, timeout=10).card_data or {}).get("license")
    return str(found) if found else None


@dataclass(frozen=True)
class GeneratorLicense:
    """Under which licence the model is that wrote the texts."""

    license: str | None
    """None where it is not known."""

    @property
    def restricts(self) -> bool:
        """Whether it may restrict what is done with the model's texts; one that is not known may."""
        return self.license not in FREE

    @property
    def said(self) -> str:
        """What a card says of it, as Markdown."""
        known = f"`{plain(self.license)}`" if self.license else "not known"
        if not self.restricts:
            return f"The generator's licence is {known}."
        return (
            f"> **Mind the generator's licence, {known}: it may restrict what is done with texts that it wrote, and "
            "with models that are trained on them.**"
        )
