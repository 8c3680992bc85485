"""The options of the evaluate stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dino_pipeline.options import Flag, Options

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
        description="raw: texts as they are in the files. tokenized: tokenized and in lower case, as SentEval prepares "
        "them (except SICK).",
    )
    sick: Annotated[Literal["test", "full"], Flag(WITH_STS)] = Field(default="test", description="Part of SICK-R.")


class EvaluateOptions(StsProtocol):
    """What `evaluate` takes besides the encoders."""

    suite: Annotated[
        tuple[SuiteName, ...], Flag(metavar="NAME", default="a run's dev pairs; the suite that fits the data")
    ] = Field(
        default=(),
        description="What to evaluate on; several times, or with commas. sts: the seven sets of the papers. probe: "
        "logistic regression on texts with classes. retrieval: data in BEIR's layout. pairs: scored pairs. pocket: "
        "held-out pairs of the pocket grammar.",
    )
    data: Annotated[tuple[Any, ...], Flag(metavar="[SUITE=]PATH")] = Field(
        default=(),
        description="Scored pairs or texts with classes (JSONL, CSV, Parquet), a folder with train.jsonl and "
        "test.jsonl, or a folder in BEIR's layout; several times. The content decides on the suite (probe, retrieval "
        "or pairs), unless SUITE= names it.",
    )
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

    @field_validator("suite", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Split names at commas and drop repetitions: ``("sts,pairs", "sts")`` is ``("sts", "pairs")``."""
        given = list(value) if isinstance(value, list | tuple) else [value] if value else []
        names: list[Any] = []
        for item in given:
            names += [part.strip() for part in item.split(",") if part.strip()] if isinstance(item, str) else [item]
        return tuple(dict.fromkeys(names))

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
