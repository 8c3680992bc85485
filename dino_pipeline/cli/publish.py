"""dino publish: a run as a dataset and a model on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.again import commands
from dino_pipeline.cli.base import command, model_path
from dino_pipeline.cli.candidates import candidates_of
from dino_pipeline.errors import OptionError, RunError

if TYPE_CHECKING:
    from dino_pipeline.hub.licenses import GeneratorLicense
    from dino_pipeline.hub.manifest import Manifest
    from dino_pipeline.hub.upload import Kind, Repository
    from dino_pipeline.run import Run


def repository(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Return a repository's name, if it is one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if name is not None and "/" not in name:
            raise HFValidationError("give user/name")
        validate_repo_id(name or "none")
    except HFValidationError as error:
        raise click.BadParameter(f"{name!r} is no repository: {error}") from error
    return name


def license_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a licence's name, if it may be one."""
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", value):
        raise click.BadParameter(
            f"{value!r} is no licence as the Hub names them, such as cc-by-4.0; any other is: other"
        )
    return value


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--repo", callback=repository, required=True, metavar="USER/NAME", help="The dataset's repository.")
@click.option(
    "--model-repo",
    callback=repository,
    metavar="USER/NAME",
    help="The encoder's repository.  [default: the dataset's name]",
)
@click.option(
    "--what",
    type=click.Choice(["dataset", "model", "both"]),
    help="What to publish.  [default: both, where an encoder is trained]",
)
@click.option(
    "--license",
    "license_",
    callback=license_id,
    metavar="ID",
    help="Of what is published, e.g. cc-by-4.0.  [default: the spec's, else the card's]",
)
@click.option("--no-raw", is_flag=True, help="Leave out what was written and what was dropped.")
@click.option("--widgets", is_flag=True, help="Put a few held-out pairs on the model's page, to try it with.")
@click.option("--private", is_flag=True, help="Make the repositories private.")
@click.option("--dry-run", is_flag=True, help="Write the folders, upload nothing.")
@click.option("--force", is_flag=True, help="Replace what this run did not make.")
@command
def publish(path: Path, **options: Any) -> None:
    """Write a RUN's dataset and encoder, with cards that tell how they were made, to RUN/hub, and upload them, each in
    one commit. What people wrote into the cards is kept.

    The token is the one that `hf auth login` stored, or HF_TOKEN.
    """
    from dino_pipeline.run import Run

    run = Run(path)
    if not run.is_run:
        raise RunError(f"{path}: is no run; name a folder that dino generate or dino filter wrote")
    what = _what(run, options)
    with run.locked():
        known = _learnt_from_it(run, strict=what != "dataset")
        kinds: list[Kind] = ["dataset", "model"]
        places = [_place(run, kind, options) for kind in kinds if what in (kind, "both")]
        dataset = None
        for place in places:
            if place.kind == "dataset":
                dataset = _dataset(run, place, options, with_model=what == "both", known=known)
            else:
                _model(run, place, options, dataset if known else None, of_run=known)


@dataclass(frozen=True)
class _Place:
    """A repository, and what stands there."""

    kind: Kind
    name: str
    remote: Repository | None
    """None in a rehearsal."""
    there: Manifest | None


def _what(run: Run, options: dict[str, Any]) -> str:
    """Return what to publish.

    Raises:
        RunError: it is not there.
    """
    trained = run.stage("finetune").get("status") == "done"
    filtered = run.stage("filter").get("status") == "done"
    what = options["what"] or ("both" if trained or options["model_repo"] else "dataset")
    if what != "model" and not filtered:
        remedy = "publish --what model" if trained else "run dino filter first"
        raise RunError(f"{run.path}: no filtered data is there; {remedy}")
    if what != "dataset" and not trained:
        raise RunError(f"{run.path}: no encoder is trained there; run dino finetune, or publish --what dataset")
    return what


def _place(run: Run, kind: Kind, options: dict[str, Any]) -> _Place:
    """Return where a kind goes; the Hub is asked before anything is written."""
    from dino_pipeline.hub.manifest import origin_of
    from dino_pipeline.hub.upload import Repository

    name = str((options["model_repo"] if kind == "model" else None) or options["repo"])
    if options["dry_run"]:
        return _Place(kind, name, None, None)
    remote = Repository(name, kind)
    origin = origin_of(run.records())
    return _Place(kind, name, remote, remote.check(origin, force=options["force"], private=options["private"]))


def _dataset(run: Run, place: _Place, options: dict[str, Any], *, with_model: bool, known: bool) -> dict[str, str]:
    """Publish the dataset; return its repository and, if it is on the Hub, its commit.

    An encoder that is ``known`` to have learnt from it is named: the one that is published with it, or was before.
    """
    from dino_pipeline.console import Console
    from dino_pipeline.hub.dataset import write_dataset
    from dino_pipeline.hub.dataset_card import CardFacts, Publication
    from dino_pipeline.hub.publish import records
    from dino_pipeline.report.page import report

    generator, license_ = _licenses(run.stage("generate"), run.spec_fields().get("license"), options)
    again, needs_inputs, lacks = commands(run)
    facts = CardFacts(again, needs_inputs, generator, lacks)
    with_it, before = str(options["model_repo"] or options["repo"]), records(run).get("model", {}).get("repository")
    model_repo = (with_it if with_model else before) if known else None
    publication = Publication(place.name, license_, not options["no_raw"], model_repo)
    with contextlib.closing(Console()) as console:
        trained = run.stage("finetune").get("status") == "done"
        candidates = candidates_of(str(run.path), alone=True) if trained else []
        written = report(run, candidates, console, dropped=not options["no_raw"])
    return _publish(
        run, place, options, lambda folder, kept: write_dataset(run, publication, written, facts, folder, kept)
    )


def _licenses(
    generated: Mapping[str, Any], of_spec: str | None, options: dict[str, Any]
) -> tuple[GeneratorLicense | None, str | None]:
    """Return the licence of the generator, if one wrote the texts, and that of what is published.

    Raises:
        OptionError: the first may restrict the second, which is not said.
    """
    from dino_pipeline.hub.licenses import GeneratorLicense, license_of

    model = generated.get("options", {}).get("model")
    license_ = options["license_"] or of_spec
    if model is None:
        return None, license_
    generator = GeneratorLicense(license_of(model_path(model, "GENERATOR")))
    if generator.restricts and not options["license_"]:
        raise OptionError(
            f"the licence of the generator {model} is {generator.license or 'not known'}: it may restrict what is done "
            "with texts that it wrote; read it, and say with --license under which licence these may be published"
        )
    return generator, license_


def _learnt_from_it(run: Run, *, strict: bool) -> bool:
    """Say whether the encoder was trained on what the run's dataset is now.

    Raises:
        RunError: it was trained on what the dataset was before, and that matters.
    """
    from dino_pipeline.training.corpus import Source

    trained = run.stage("finetune")
    if not trained.get("origin", {}).get("own"):
        return False
    same = run.train.exists() and trained["sources"].split("+")[0] == Source(str(run.train)).digest()
    if not same and strict:
        raise RunError(
            f"{run.path}: the encoder was trained on what the dataset was before it was filtered again; run dino "
            "finetune again, or publish --what dataset"
        )
    return same


def _model(run: Run, place: _Place, options: dict[str, Any], dataset: dict[str, str] | None, *, of_run: bool) -> None:
    from dino_pipeline.hub.model import ModelPublication, write_model
    from dino_pipeline.hub.publish import records
    from dino_pipeline.training.finetune import origin_of_texts

    origin = origin_of_texts(run)
    known = records(run).get("dataset")
    if not of_run:
        dataset = origin.get("dataset")
    elif dataset is None and known and known["repository"] == options["repo"]:
        dataset = {"repository": known["repository"], "commit": known["commit"]}
    generator, license_ = _licenses(origin.get("generate") or {}, origin.get("license"), options)
    wanted = ModelPublication(place.name, license_, dataset, generator, options["widgets"])
    _publish(run, place, options, lambda folder, kept: write_model(run, wanted, folder, kept))


def _publish(run: Run, place: _Place, options: dict[str, Any], write: Any) -> dict[str, str]:
    """Write a folder and, unless it is a rehearsal, upload it; return repository and, then, commit."""
    from dino_pipeline.hub.publish import README, remember, write_folder

    remote, there = place.remote, place.there
    of_ours = there and there.origin  # by force, nothing of a stranger's is kept
    card = remote.read(README) if remote and of_ours else None
    folder = write_folder(run, place.kind, place.name, card, write)
    click.echo(f"{folder}: the {place.kind} is written")
    if remote is None:
        return {"repository": place.name}
    published = remote.publish(folder, there, private=options["private"])
    commit = remember(run, place.kind, published)
    said = "is published" if published.changed else "is up to date"
    click.echo(f"{published.address}: {said} (commit {published.commit[:10]})")
    return commit
