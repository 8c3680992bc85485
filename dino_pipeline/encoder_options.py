"""The options of everything that trains, compares and evaluates encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, create_model, field_validator

from dino_pipeline.errors import OptionError
from dino_pipeline.models import STATIC
from dino_pipeline.options import COLUMN_HELP, ColumnNames, Flag, Options, RunFolder, flags_of
from dino_pipeline.text import as_number

OBJECTIVES = {
    "triplets": "view_objectives",
    "dino": "pairs",
    "sbert": "pairs",
    "simcse": "view_objectives",
    "simcse-sup": "view_objectives",
    "mirror-bert": "mirror",
    "is-cse": "view_objectives",
    "declutr": "masked_words",
    "cpt": "pairs",
    "cmlm": "masked_words",
}
"""The objectives in the order in which they are listed, and the module of ``training.objectives`` that defines each."""
if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[*OBJECTIVES]
ScoreLoss = Literal["cosine", "cosent", "angle"]
"""Losses of scored pairs."""
WhitenTime = Literal["no", "start", "end"]
"""When embeddings are whitened: before the first step or after the last one."""
OptionValue = float | int | str
"""The value of an option that one objective alone has."""
MAX_SEED = 2**32 - 1
"""The largest seed that numpy takes."""
TEXTS, TRAINING = "The texts", "Training (default of most: the objective's)"


def _parts(value: object) -> object:
    """Return the parts of a list with commas, each once: ``("sts,pairs", "sts")`` is ``("sts", "pairs")``."""
    if not isinstance(value, tuple | list):
        value = ("" if value is None else value,)
    parts: list[object] = []
    for item in value:
        parts += item.split(",") if isinstance(item, str) else [item]
    stripped = [part.strip() if isinstance(part, str) else part for part in parts]
    if any(isinstance(part, list | dict) for part in stripped):
        raise ValueError("must be a list of single values")
    return tuple(dict.fromkeys(part for part in stripped if part != ""))


def _dimensions(value: object) -> object:
    """Return dimensions as whole numbers, the largest first."""
    parts = None if value is None else _parts(value)
    if not isinstance(parts, tuple):
        return parts
    try:
        dimensions = [int(str(part)) for part in parts]
    except ValueError as error:
        raise ValueError("give whole numbers, as in 256,128,64") from error
    if any(dimension < 1 for dimension in dimensions):
        raise ValueError("dimensions are 1 and more")
    return tuple(sorted(set(dimensions), reverse=True))


def _number(value: object) -> object:
    """Return the number that a string spells, an integer if it is whole; other values as they are."""
    if value is None:
        return None
    number = as_number(value) if isinstance(value, str) else value
    if not isinstance(number, int | float):
        raise ValueError("must be a number")
    return int(number) if isinstance(value, str) and float(number).is_integer() else number


def _when(value: object) -> object:
    """Return when to whiten. Records of earlier versions hold True and False."""
    return ("start" if value else "no") if isinstance(value, bool) else value


class Hyperparameters(Options):
    """Hyper-parameters of a training. Each objective has defaults of its own, mostly its paper's."""

    epochs: Annotated[int | float, BeforeValidator(_number), Flag(TRAINING, metavar="FLOAT")] = Field(
        default=1, gt=0, description="Passes over the texts."
    )
    steps: Annotated[int | None, Flag(TRAINING)] = Field(
        default=None,
        ge=0,
        description="Steps in all, in place of epochs. 0: no training, only what goes with it, such as whitening.",
    )
    batch_size: Annotated[int, Flag(TRAINING)] = Field(default=32, ge=1, description="Rows a step, over all processes.")
    learning_rate: Annotated[float, Flag(TRAINING, aliases=("lr",))] = Field(
        default=2e-5, gt=0, description="Peak of the learning rate."
    )
    weight_decay: Annotated[float, Flag(TRAINING)] = Field(default=0.01, ge=0, description="Weight decay of AdamW.")
    warmup: Annotated[float, Flag(TRAINING)] = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises."
    )
    schedule: Annotated[Literal["linear", "constant"], Flag(TRAINING)] = Field(
        default="linear", description="Learning rate after the warm-up: it falls to zero, or stays."
    )
    max_length: Annotated[int | None, Flag(TRAINING)] = Field(
        default=None,
        ge=1,
        description="Tokens after which training texts are cut. Default: the objective's or the encoder's.",
    )
    pooling: Annotated[Literal["mean", "cls", "lasttoken"], Flag(TRAINING)] = Field(
        default="mean", description="How token states become an embedding, for encoders without pooling of their own."
    )
    whiten: Annotated[Literal["no", "auto", "start", "end"], BeforeValidator(_when), Flag(TRAINING)] = Field(
        default="no",
        description="Weight tokens by their rarity, and whiten embeddings before training (start) or after it (end), "
        "both fitted to the texts. auto: at the end, if the encoder brings no pooling of its own and there are 100 "
        "texts.",
    )
    freeze_embeddings: Annotated[bool, Flag(TRAINING)] = Field(
        default=False,
        description="Leave token embeddings as they are: large vocabularies train in half the time and memory.",
    )
    lora: Annotated[int | None, Flag(TRAINING, metavar="RANK")] = Field(
        default=None, ge=1, description="Train adapters (LoRA) of this rank, and leave the layers as they are."
    )
    lora_save: Annotated[Literal["merged", "adapter"], Flag(TRAINING)] = Field(
        default="merged",
        description="merged: save a whole encoder. adapter: save what the adapters hold; the encoder that was trained "
        "is needed to load it.",
    )
    mini_batch_size: Annotated[int | None, Flag(TRAINING)] = Field(
        default=None, ge=1, description="Rows encoded at once, with cached or accumulated gradients, to save memory."
    )
    bf16: Annotated[bool, Flag(TRAINING)] = Field(default=False, description="Compute in bfloat16 where that is safe.")
    matryoshka: Annotated[tuple[int, ...], BeforeValidator(_dimensions), Flag(TRAINING, metavar="DIM,...")] = Field(
        default=(), description="Leading dimensions to train as embeddings of their own."
    )
    faithful: Annotated[bool, Flag(TRAINING)] = Field(
        default=False, description="Follow the papers' reference code where the defaults differ from it."
    )
    options: Annotated[dict[str, OptionValue], Flag(hidden=True)] = Field(
        default_factory=dict, description="The objective's own options."
    )

    def updated(self, **changes: Any) -> Self:
        """Return a copy with some values replaced, validated again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


HYPERPARAMETERS = tuple(name for name in Hyperparameters.model_fields if name != "options")
"""Names of the hyper-parameters that every objective has."""


def _choosable(model: type[Options], names: tuple[str, ...]) -> type[Options]:
    """Return a model with some options of another, each None unless it is given."""
    fields: dict[str, Any] = {}
    for name, _, field in flags_of(model):
        if name in names:
            kind: Any = field.annotation
            fields[name] = (Annotated[kind | None, *field.metadata], Field(default=None, description=field.description))
    return create_model(f"Chosen{model.__name__}", __base__=Options, **fields)


ChosenHyperparameters: Any = _choosable(Hyperparameters, HYPERPARAMETERS)


class TrainingOptions(ChosenHyperparameters):
    """Options that a training by one objective and a comparison of several have in common."""

    encoder: Annotated[str, Flag(TRAINING, metavar="MODEL")] = Field(
        default="pocket",
        description="Encoder to start from: a folder or Hub id. static:MODEL: a table of its token vectors, "
        "without its layers.",
    )
    revision: Annotated[str | None, Flag(TRAINING)] = Field(
        default=None, description="Revision of the encoder on the Hub."
    )
    split: Annotated[str, Flag(TEXTS, metavar="NAME")] = Field(
        default="train", description="Split of a dataset (Hub or folder)."
    )
    config: Annotated[str | None, Flag(TEXTS, metavar="NAME")] = Field(
        default=None, description="Configuration of a dataset on the Hub."
    )
    data_revision: Annotated[str | None, Flag(TEXTS, metavar="REVISION")] = Field(
        default=None, description="Revision of a dataset on the Hub."
    )
    column: Annotated[ColumnNames, Flag(TEXTS, metavar="ROLE=NAME")] = Field(
        default_factory=dict, description=COLUMN_HELP
    )
    label_type: Annotated[Literal["score", "class"] | None, Flag(TEXTS)] = Field(
        default=None, description="class: labels are names, whatever they spell."
    )
    language: Annotated[str | None, Flag(TEXTS, metavar="CODE", default="the spec's, or en")] = Field(
        default=None, description="Language of documents, whose rules find sentences."
    )
    split_sentences: Annotated[bool, Flag(TEXTS)] = Field(
        default=False, description="Texts hold several sentences: train on each."
    )
    dev: Annotated[Any, Flag(TEXTS, metavar="FILE", default="the RUN's, or a tenth of the texts")] = Field(
        default=None, description="Held-out texts, which choose the best checkpoint."
    )
    sentences: Annotated[Any, Flag(TEXTS, metavar="FILE")] = Field(
        default=None, description="Texts without labels, for whitening and for objectives that need sentences."
    )
    select_on: Annotated[Any, Flag(TEXTS, metavar="FILE")] = Field(
        default=None,
        description="Pairs scored by people that choose the best checkpoint instead. Card and scores say so.",
    )

    @field_validator("encoder")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.removeprefix(STATIC):
            raise ValueError("names no model; give a folder or a Hub id after static:")
        return value

    @property
    def hyperparameters(self) -> dict[str, object]:
        """Return the hyper-parameters that were given, by name."""
        return {name: value for name in HYPERPARAMETERS if (value := getattr(self, name)) is not None}


class FinetuneOptions(TrainingOptions):
    """Options of a training by one objective."""

    run: Annotated[RunFolder, Flag(metavar="FOLDER")] = Field(
        default=None, description="Run to write, where the texts are not a run's."
    )
    fresh: bool = Field(default=False, description="Train again from the start.")
    objective: Annotated[ObjectiveName | None, Flag(metavar="NAME", default="what suits the texts")] = Field(
        default=None,
        description=f"How the encoder learns: {', '.join(OBJECTIVES)}.",
    )
    loss: Annotated[ScoreLoss | None, Flag(default="cosine")] = Field(
        default=None, description="Loss of the objective dino."
    )
    objective_options: Annotated[dict[str, OptionValue], Flag(metavar="NAME=VALUE", aliases=("set",))] = Field(
        default_factory=dict, description="The objective's own options."
    )
    seed: int = Field(default=42, ge=0, le=MAX_SEED, description="Seed of all random choices.")

    @property
    def own_options(self) -> dict[str, OptionValue]:
        """Return the objective's own options that were given, the loss included."""
        return {**self.objective_options, **({"loss": self.loss} if self.loss else {})}


class CompareOptions(TrainingOptions):
    """Options of a comparison of objectives."""

    run: Annotated[RunFolder, Flag(metavar="FOLDER", default="compare in the RUN")] = Field(
        default=None, description="Folder to write."
    )
    fresh: bool = Field(default=False, description="Train all again.")
    objectives: Annotated[tuple[ObjectiveName, ...], Flag(metavar="NAME,...", default="all")] = Field(
        default=(), description=f"Objectives to compare: {', '.join(OBJECTIVES)}."
    )
    seeds: int = Field(default=3, ge=1, description="Trainings of each objective.")
    seed: int = Field(default=42, ge=0, le=MAX_SEED, description="First seed; the others follow it.")
    data: Annotated[tuple[Any, ...], Flag(metavar="FILE")] = Field(
        default=(), description="Tables of scored pairs to evaluate on."
    )
    suite: Literal["pocket"] | None = Field(
        default=None, description="Evaluate on held-out pairs of the pocket grammar."
    )
    objective_options: Annotated[dict[str, OptionValue], Flag(metavar="OBJECTIVE:NAME=VALUE", aliases=("set",))] = (
        Field(
            default_factory=dict,
            description="A hyper-parameter, or an option of its own, for one objective.",
        )
    )

    @field_validator("objectives", mode="before")
    @classmethod
    def _all_objectives(cls, value: object) -> object:
        parts = _parts(value)
        if parts == ("all",):
            return ()
        if isinstance(value, str | tuple | list) and value and parts == ():
            raise ValueError(f"names no objective; choose from {', '.join(OBJECTIVES)}, or all")
        return parts

    @field_validator("seed")
    @classmethod
    def _check_last_seed(cls, value: int, info: ValidationInfo) -> int:
        seeds = info.data.get("seeds", 1)
        if value + seeds - 1 > MAX_SEED:
            raise ValueError(f"the last of {seeds} seeds must be at most {MAX_SEED}")
        return value

    @field_validator("data", mode="before")
    @classmethod
    def _sources(cls, value: object) -> object:
        return EvaluateOptions.of({"data": value}).data

    def for_objective(self, name: str) -> tuple[dict[str, object], dict[str, OptionValue]]:
        """Return the hyper-parameters and the own options that were given for one objective alone.

        Raises:
            OptionError: a name is not OBJECTIVE:NAME, or a value is wrong.
        """
        hyperparameters: dict[str, object] = {}
        own: dict[str, OptionValue] = {}
        for key, value in self.objective_options.items():
            objective, colon, option = key.partition(":")
            if not colon or objective not in OBJECTIVES:
                raise OptionError("must be OBJECTIVE:NAME=VALUE", option="objective_options", value=f"{key}={value}")
            if objective == name and option in HYPERPARAMETERS:
                hyperparameters[option] = getattr(Hyperparameters.of({option: value}), option)
            elif objective == name:
                own[option] = value
        return hyperparameters, own


SuiteName = Literal["sts", "probe", "retrieval", "pairs", "pocket"]
Aggregate = Literal["all", "mean", "wmean"]
WITH_STS = "With suite sts"


class StsProtocol(Options):
    """The settings in which published STS figures differ (Reimers & Gurevych 2019; Gao et al. 2021, appendix B)."""

    aggregate: Annotated[Aggregate, Flag(WITH_STS)] = Field(
        default="all",
        description="all: one correlation over all subsets of a year. mean: the mean of the subsets' correlations. "
        "wmean: their mean, weighted by size.",
    )
    text: Annotated[Literal["raw", "tokenized"], Flag(WITH_STS)] = Field(
        default="raw",
        description="raw: texts as they are in the files. tokenized: tokenized and, but for SICK, in lower case, as "
        "SentEval's script leaves them.",
    )
    sick: Annotated[Literal["test", "full"], Flag(WITH_STS)] = Field(default="test", description="Part of SICK-R.")


class EvaluateOptions(StsProtocol):
    """What `evaluate` takes besides the encoders."""

    suite: Annotated[
        tuple[SuiteName, ...],
        BeforeValidator(_parts),
        Flag(metavar="NAME", default="a run's dev pairs; the suite that fits the data"),
    ] = Field(
        default=(),
        description="What to evaluate on; several times, or with commas. sts: the seven sets of the papers. probe: "
        "logistic regression on texts with classes. retrieval: data in BEIR's layout. pairs: scored pairs. pocket: "
        "held-out pairs of the pocket grammar.",
    )
    data: Annotated[tuple[Any, ...], Flag(metavar="[SUITE=]PATH")] = Field(
        default=(),
        description="Scored pairs or texts with classes in a table, a folder with train.jsonl and "
        "test.jsonl, or a folder in BEIR's layout; several times. The content decides on the suite (probe, retrieval "
        "or pairs), unless SUITE= names it.",
    )
    column: Annotated[ColumnNames, Flag(metavar="ROLE=NAME")] = Field(default_factory=dict, description=COLUMN_HELP)
    output: Annotated[Path | None, Flag(metavar="FILE")] = Field(
        default=None, description="File to write. By default a run keeps its scores in its folder."
    )
    batch_size: Annotated[int, Flag(data=False)] = Field(
        default=64, ge=1, description="Texts that are embedded at a time; changes speed only."
    )
    data_dir: Annotated[Path | None, Flag(WITH_STS, metavar="FOLDER", default="download from the Hub")] = Field(
        default=None, description="Folder in SentEval's layout (STS/, SICK/), or with files such as STS12.MSRpar.tsv."
    )
    published: Annotated[bool, Flag(WITH_STS)] = Field(
        default=False, description="Show the papers' figures, too, if they were made with the same protocol."
    )

    @field_validator("data", mode="before")
    @classmethod
    def _as_sources(cls, value: Any) -> Any:
        """Return a tuple of sources. A Python user gives one source, a list of several, or a dict with their names."""
        if value is None:
            return ()
        if isinstance(value, Mapping):
            return tuple(value.items())
        if isinstance(value, list | tuple) and all(map(_is_source, value)):
            return tuple(value)
        return (value,)


def _is_source(value: Any) -> bool:
    """Return whether a value holds examples, as a path, a dataset or a list do, and is not an example itself."""
    if isinstance(value, str | Path):
        return True
    if isinstance(value, list):
        return not all(isinstance(item, str | int | float | None) for item in value)
    return isinstance(value, Iterable) and not isinstance(value, Mapping | tuple)


STS_OPTIONS = (*StsProtocol.model_fields, "data_dir", "published")
"""Options that only suite sts takes."""
