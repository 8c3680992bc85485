"""Which options do the report, a publication, its verification and an export have?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dino_pipeline.options import Flag, Options


def _check_repository(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "/" not in name:
        raise ValueError("is not the name of a repository: give user/name")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"is not the name of a repository: {error}") from error
    return name


def _check_license(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise ValueError("is not a license as the Hub spells it, such as cc-by-4.0; the name of any other is: other")
    return name


def _as_names(value: object) -> object:
    return (str(value),) if isinstance(value, str | Path) else value


RepositoryName = Annotated[str, AfterValidator(_check_repository)]
LicenseName = Annotated[str, AfterValidator(_check_license)]


class ReportOptions(Options):
    """The options of a report."""

    encoder: Annotated[
        tuple[str, ...],
        BeforeValidator(_as_names),
        Flag(metavar="MODEL", default="the run's, before and after training"),
    ] = Field((), description="Encoder that shows how similar the texts of pairs are; may be given several times.")


class PublishOptions(Options):
    """The options of a publication."""

    repo: Annotated[RepositoryName, Flag(metavar="USER/NAME")] = Field(description="The dataset's repository.")
    model_repo: Annotated[RepositoryName | None, Flag(metavar="USER/NAME", default="the dataset's name")] = Field(
        None, description="The encoder's repository."
    )
    what: Annotated[Literal["dataset", "model", "both"] | None, Flag(default="both, if an encoder is trained")] = Field(
        None, description="What to publish."
    )
    license: Annotated[LicenseName | None, Flag(metavar="ID", default="the spec's, else the card's")] = Field(
        None, description="License of what is published, such as cc-by-4.0."
    )
    raw: bool = Field(True, description="Publish all written and dropped texts, too.")
    widgets: bool = Field(False, description="Put a few held-out pairs on the model's page, to try it with.")
    private: bool = Field(False, description="Make the repositories private.")
    dry_run: bool = Field(False, description="Write the folders, upload nothing.")
    force: bool = Field(False, description="Replace the files of a repository that this run did not make.")

    def repository(self, kind: Literal["dataset", "model"]) -> str:
        return (self.model_repo if kind == "model" else None) or self.repo


class VerifyOptions(Options):
    """The options of a verification."""

    model: bool = Field(False, description="The repository holds a model, not a dataset.")
    revision: Annotated[str | None, Flag(metavar="REVISION")] = Field(None, description="Revision of the repository.")


class ExportOptions(Options):
    """The options of an export."""

    output: Annotated[Path, Flag(metavar="FILE")] = Field(description="The JSONL file to write.")
    split: Literal["train", "validation"] = Field("train", description="Which pairs to write.")
