"""What the filter stage is told, and the rules about single examples that follow from it."""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dino_pipeline.errors import OptionError
from dino_pipeline.filtering.contamination import REASON, Gate
from dino_pipeline.filtering.hygiene import Check, HygieneOptions, Rule, hygiene_rules, personal_data
from dino_pipeline.text import as_number

PERSONAL_DATA = Rule("personal data", personal_data, "an e-mail address, a phone number or a card number", True)
UNSEEN = (PERSONAL_DATA.name, REASON)
"""What is dropped for these is dropped so that nobody sees it: no report shows it, and it is not published."""
MOST_CUSTOM = 40


@dataclass(frozen=True)
class FilterOptions:
    """All that decides what is kept. The defaults are the paper's post-processing (section 5) and hygiene."""

    hygiene: HygieneOptions = field(default_factory=HygieneOptions)
    without: tuple[str, ...] = ()
    """Built-in rules that are switched off."""
    custom: tuple[str, ...] = ()
    """A user's own rules, ``module:function``."""
    pii: Literal["flag", "drop", "keep"] = "flag"
    """What becomes of examples with personal data."""
    exclude: tuple[str, ...] = ()
    """Evaluation data, files or names, that must not be trained on."""
    near_duplicates: float = 0.8
    """Least Jaccard similarity of character 5-grams at which texts count as the same; 0 lets them be."""
    semantic: str | None = None
    """A sentence encoder by whose cosine inputs count as the same, too."""
    semantic_threshold: float = 0.95
    max_per_text: int = 2
    """At most so many text_b per (text_a, label); 0 keeps all."""
    min_margin: tuple[str, ...] = ()
    """Least margin: ``0.1``, the lowest ``10%`` of each label, or either for one label, ``0.5=10%``."""
    min_logprob: tuple[str, ...] = ()
    verify: bool = False
    """Drop examples whose own label the generator does not find the likeliest."""
    verify_margin: float = 0.0
    """By how much it has to be likelier, in nats a token."""
    balance: bool = True
    """Cap every label at the smallest label's count."""
    target_per_label: int | None = None
    """Keep at most so many of each label."""
    labels: Literal["hard", "smoothed", "posterior"] = "smoothed"
    smoothing: float = 0.2
    """Pull labels towards the middle of their scale: y becomes (1 - s) y + s / 2 for labels from 0 to 1."""
    temperature: float = 1.0
    """Divides the posterior's log-likelihoods; larger is softer."""
    random_pairs: int = 2
    """Add so many random text_b, with label 0, to every text_a of a similarity task."""
    dev_share: float = 0.1
    seed: int = 42

    @property
    def needs_scores(self) -> bool:
        """Whether the generator has to score each example under every label."""
        return self.verify or self.labels == "posterior"


def record_rules(options: FilterOptions, excluded: Sequence[str]) -> list[Rule]:
    """Return the rules about single examples in the order in which they are tried.

    Args:
        options: what the stage is told.
        excluded: files that hold evaluation data.

    Raises:
        OptionError: a rule to be switched off, or a user's own, does not exist.
    """
    rules = hygiene_rules(options.hygiene)
    names = [rule.name for rule in rules]
    if unknown := [name for name in options.without if name not in names]:
        raise OptionError(f"--without {unknown[0]!r}: no such rule; choose from {', '.join(map(repr, names))}")
    if len(options.custom) > MOST_CUSTOM:
        raise OptionError(f"--rule: {len(options.custom)} rules, {MOST_CUSTOM} at most; let one function call others")
    rules = [rule for rule in rules if rule.name not in options.without]
    if options.pii == "drop":
        rules.append(PERSONAL_DATA)
    if excluded:
        # before all else: what leaked is to be called so
        rules.insert(0, Rule(REASON, Gate(excluded, options.near_duplicates or 1.0), "a text of --exclude"))
    return rules + [Rule(name, custom_rule(name), "your own") for name in options.custom]


def custom_digest(names: Sequence[str]) -> str:
    """Return a hash of the files that hold a user's own rules, so that a change of them is a change of options."""
    digest = hashlib.sha256()
    for name in names:
        custom_rule(name)
        file = sys.modules[name.partition(":")[0]].__file__
        digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()[:16]


def custom_rule(name: str) -> Check:
    """Return the function that ``module:function`` names; modules are looked for in the current folder, too.

    Raises:
        OptionError: there is none.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the user's code
        raise OptionError(
            f"--rule {name}: cannot be imported ({type(error).__name__}: {error}); write module:function"
        ) from error
    if not callable(found):
        raise OptionError(f"--rule {name}: is no function; it takes an Example and returns None or a reason")
    return found


def thresholds(given: Sequence[str], labels: Sequence[float | str], option: str) -> dict[int, tuple[float, bool]]:
    """Return the limit of each label, by its place: a number, and whether it is a share of the label's examples.

    Args:
        given: ``0.1``, ``10%``, or either after ``LABEL=``; what names a label goes before what does not.
        labels: all labels, in order.
        option: its name, for errors.

    Raises:
        OptionError: it is neither, or there is no such label.
    """
    found: dict[int, tuple[float, bool]] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, _, limit = text.rpartition("=")
        relative = limit.endswith("%")
        number = as_number(limit.removesuffix("%"))
        if number is None or not math.isfinite(number) or (relative and not 0 <= number <= 100):
            raise OptionError(
                f"{option} {text}: must be a number such as 0.1, a share such as 10%, or LABEL= and either"
            )
        chosen = [at for at, label in enumerate(labels) if name in ("", str(label)) or as_number(name) == label]
        if not chosen:
            raise OptionError(f"{option} {text}: there is no label {name}; choose from {', '.join(map(str, labels))}")
        found.update(dict.fromkeys(chosen, (number / 100 if relative else number, relative)))
    return found
