"""What a user can choose about filtering: every option once, with its default, its bounds and its help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainSerializer

from dino_pipeline.errors import OptionError
from dino_pipeline.examples import Example
from dino_pipeline.options import COLUMN_HELP, ColumnNames, Flag, Options, RunFolder
from dino_pipeline.text import LONGEST_TEXT, as_number

Check = Callable[[Example], str | None]
"""Returns None to keep an example, or the reason to drop it."""
MAX_CUSTOM_RULES = 40
DROPPED = "What is dropped"
LABELS = "Labels, and what is added"
SPEED = "Speed"


class Threshold(NamedTuple):
    """A lower limit of a margin or log-probability."""

    value: float
    is_share: bool
    """The value is not the limit, but the share of examples with the lowest values to drop."""


def _as_tuple(given: Any) -> Any:
    """Return one value as a tuple of one, and a mapping as ``LABEL=VALUE`` texts."""
    if isinstance(given, Mapping):
        return tuple(f"{label}={value}" for label, value in given.items())
    if isinstance(given, str | int | float | Path) or callable(given):
        return (given,)
    return given


def _as_text(given: Any) -> Any:
    """Return a number or a path as text."""
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    return str(given) if is_number or isinstance(given, Path) else given


def _check_threshold(given: str) -> str:
    _, threshold = parse_threshold(given)
    if threshold is None:
        raise ValueError("must be a number such as 0.1, a share such as 10%, or LABEL= and either")
    return given


def parse_threshold(given: str) -> tuple[str, Threshold | None]:
    """Return the label (empty: all labels) and the threshold of ``0.1``, ``10%``, ``0.5=0.1`` or ``0.5=10%``.

    The threshold is None if it cannot be read.
    """
    label, _, limit = given.rpartition("=")
    is_share = limit.endswith("%")
    number = as_number(limit.removesuffix("%"))
    if number is None or not math.isfinite(number) or (is_share and not 0 <= number <= 100):
        return label, None
    return label, Threshold(number / 100 if is_share else number, is_share)


def _check_rules(rules: tuple[Any, ...]) -> tuple[Any, ...]:
    for rule in rules:
        if not isinstance(rule, str) and not callable(rule):
            raise ValueError("must be module:function, or a function of an Example that returns None or a reason")
    if len(rules) > MAX_CUSTOM_RULES:
        raise ValueError(f"{len(rules)} rules, {MAX_CUSTOM_RULES} at most; let one function call others")
    return rules


Names = Annotated[tuple[Annotated[str, BeforeValidator(_as_text)], ...], BeforeValidator(_as_tuple)]
Thresholds = Annotated[
    tuple[Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_threshold)], ...], BeforeValidator(_as_tuple)
]
Rules = Annotated[
    tuple[Any, ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_check_rules),
    PlainSerializer(lambda rules: [rule_name(rule) for rule in rules]),
]


class FilterOptions(Options):
    """The options of the filter stage. The defaults are the paper's post-processing (section 5), and more rules."""

    run: Annotated[RunFolder, Flag(metavar="FOLDER", data=False)] = Field(
        None, description="Folder to write to, if the source is not a run."
    )
    fresh: Annotated[bool, Flag(data=False)] = Field(False, description="Filter again with other options.")
    dry_run: Annotated[bool, Flag(data=False)] = Field(False, description="Show the funnel, write nothing.")
    ablate: Annotated[bool, Flag(data=False)] = Field(
        False, description="Show what each rule alone would drop, write nothing."
    )
    min_chars: Annotated[int, Flag(DROPPED)] = Field(3, ge=0, description="Length of the shortest text to keep.")
    max_chars: Annotated[int, Flag(DROPPED)] = Field(
        5000, ge=1, le=LONGEST_TEXT, description="Length of the longest text to keep."
    )
    max_symbols: Annotated[float, Flag(DROPPED)] = Field(
        0.5, ge=0, le=1, description="Largest share of a text's characters that are neither letters nor digits."
    )
    without: Annotated[Names, Flag(DROPPED, metavar="RULE")] = Field(
        (), description="Built-in rule to switch off; may be given several times."
    )
    rule: Annotated[Rules, Flag(DROPPED, metavar="MODULE:FUNCTION")] = Field(
        (), description="Rule of your own; may be given several times."
    )
    pii: Annotated[Literal["flag", "drop", "keep"], Flag(DROPPED)] = Field(
        "flag", description="Texts with e-mail addresses, phone or card numbers."
    )
    exclude: Annotated[Names, Flag(DROPPED, metavar="FILE|SET")] = Field(
        (), description="Evaluation data to keep out of training: a table or text file, or a name."
    )
    near_duplicates: Annotated[float, Flag(DROPPED)] = Field(
        0.8, ge=0, le=1, description="Least Jaccard similarity of near-duplicates; 0 keeps them."
    )
    semantic: Annotated[str | None, Flag(DROPPED, metavar="MODEL")] = Field(
        None, description="Sentence encoder that finds inputs of the same meaning."
    )
    semantic_threshold: Annotated[float, Flag(DROPPED)] = Field(
        0.95, ge=0, le=1, description="Least cosine of inputs of the same meaning."
    )
    max_per_text: Annotated[int, Flag(DROPPED)] = Field(
        2, ge=0, description="Most text_b for each text_a and label; 0 keeps all."
    )
    min_margin: Annotated[Thresholds, Flag(DROPPED, metavar="[LABEL=]N|N%", default="off")] = Field(
        (), description="Least margin, or the share of lowest margins to drop, for all labels or one."
    )
    min_logprob: Annotated[Thresholds, Flag(DROPPED, metavar="[LABEL=]N|N%", default="off")] = Field(
        (), description="Least log-probability, or the share of lowest ones to drop, for all labels or one."
    )
    verify: Annotated[bool, Flag(DROPPED)] = Field(
        False, description="Let the generator score each pair under every label; keep it if its own label wins."
    )
    verify_margin: Annotated[float, Flag(DROPPED)] = Field(
        0.0, ge=0, description="With verification: nats a token by which a pair's own label must win."
    )
    balance: Annotated[bool, Flag(LABELS)] = Field(True, description="Cap every label at the count of the rarest one.")
    target_per_label: Annotated[int | None, Flag(LABELS, metavar="N")] = Field(
        None, ge=1, description="Keep N pairs of each label, and report how many are missing."
    )
    labels: Annotated[Literal["hard", "smoothed", "posterior"], Flag(LABELS)] = Field(
        "smoothed", description="posterior: the expected label by the generator's scores."
    )
    smoothing: Annotated[float, Flag(LABELS)] = Field(
        0.2, ge=0, le=1, description="Label smoothing: 0.2 takes 0.1 from 1, and adds 0.1 to 0."
    )
    temperature: Annotated[float, Flag(LABELS)] = Field(
        1.0, gt=0, description="Temperature of the posterior; larger is softer."
    )
    random_pairs: Annotated[int, Flag(LABELS)] = Field(
        2, ge=0, description="Unrelated pairs to add for each text_a, with label 0."
    )
    dev_share: Annotated[float, Flag(LABELS)] = Field(0.1, ge=0, le=0.9, description="Share of the dev split.")
    label_type: Annotated[
        Literal["score", "class"] | None, Flag(LABELS, data=False, default="score; of a published dataset its own")
    ] = Field(None, description="class: labels are names, even those that spell numbers.")
    column: Annotated[ColumnNames, Flag(LABELS, metavar="ROLE=NAME", data=False)] = Field(
        default_factory=dict, description=COLUMN_HELP
    )
    seed: Annotated[int, Flag(LABELS)] = Field(42, description="Seed of all random choices.")
    workers: Annotated[int | None, Flag(SPEED, data=False, default="the CPUs")] = Field(
        None, ge=1, description="Processes and threads."
    )
    ray: Annotated[str | None, Flag(SPEED, metavar="[ADDRESS]", data=False, optional_value="auto")] = Field(
        None,
        description="Work on a Ray cluster: at ADDRESS, else at $RAY_ADDRESS, else on one that is started here "
        "(needs ray).",
    )
    memory: Annotated[str, Flag(SPEED, metavar="SIZE", data=False)] = Field(
        "1400MB", description="Memory that set operations take before they spill to disk."
    )
    device: Annotated[str | None, Flag(SPEED, metavar="DEVICE", data=False, default="a GPU if there is one")] = Field(
        None, description="Device of the models that verification, posterior labels and semantic duplicates need."
    )

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """Return the options with some given by name. Refuse those that would change nothing.

        The records of runs are read without this check, because they hold every option.

        Raises:
            OptionError: a name or a value is wrong, or an option belongs to another one that is missing.
        """
        options = super().of(given)
        has_posterior = options.labels == "posterior"
        for name, is_allowed, use, remedy in (
            ("verify_margin", options.verify or options.verify_margin == 0, "verification", "{verify=True}"),
            ("temperature", has_posterior or options.temperature == 1, "posterior labels", "{labels=posterior}"),
            ("smoothing", options.labels == "smoothed", "smoothed labels", "{labels=smoothed}"),
            ("semantic_threshold", options.semantic is not None, "semantic duplicates", "{semantic=MODEL}"),
        ):
            if name in given and not is_allowed:
                message = f"applies to {use} only"
                raise OptionError(message, f"give {remedy}, too, or leave it out", option=name, value=given[name])
        return options

    @property
    def needs_scores(self) -> bool:
        """Whether the generator has to score each example under every label."""
        return self.verify or self.labels == "posterior"


def rule_name(rule: str | Check) -> str:
    """Return the name of a user's own rule: ``module:function``."""
    if isinstance(rule, str):
        return rule
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    return f"{getattr(rule, '__module__', '')}:{name}"


class PostProcessing(BaseModel, frozen=True, extra="forbid"):
    """Post-processing of DINO that scored pairs had when they were read."""

    labels: tuple[float, ...] = ()
    """The smoothed ones; none if the pairs were not post-processed, or nobody can tell."""
    random_pairs: int = 0
    """Pairs of label 0, which join texts at random."""
