"""dino publish: a run as a dataset and a model on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.again import commands
from dino_pipeline.cli.base import candidates_of, command, model_path
from dino_pipeline.errors import OptionError, RunError

if TYPE_CHECKING:
    from dino_pipeline.hub.licenses import GeneratorLicense
    from dino_pipeline.hub.upload import Kind
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
    "--license", "license_", metavar="ID", help="Of what is published, e.g. cc-by-4.0.  [default: the spec's]"
)
@click.option("--no-raw", is_flag=True, help="Leave out what was written and what was dropped.")
@click.option("--widgets", is_flag=True, help="Put a few held-out pairs on the model's page, to try it with.")
@click.option("--private", is_flag=True, help="Make new repositories private.")
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
    if options["what"] != "model" and run.stage("filter").get("status") != "done":
        raise RunError(f"{path}: no filtered data is there; run dino filter first")
    trained = run.stage("finetune").get("status") == "done"
    what = options["what"] or ("both" if trained or options["model_repo"] else "dataset")
    if what != "dataset" and not trained:
        raise RunError(f"{path}: no encoder is trained there; run dino finetune, or publish --what dataset")
    of_run = what != "dataset" and _learnt_from_it(run)
    with run.locked():
        dataset = None
        if what in ("dataset", "both"):
            dataset = _dataset(run, options, with_model=what == "both" and of_run)
        if what in ("model", "both"):
            _model(run, options, dataset, of_run=of_run)


def _dataset(run: Run, options: dict[str, Any], *, with_model: bool) -> dict[str, str] | None:
    """Publish the dataset; return its repository and commit, if it is on the Hub."""
    from dino_pipeline.console import Console
    from dino_pipeline.hub.dataset import Publication, write_dataset
    from dino_pipeline.hub.dataset_card import CardFacts
    from dino_pipeline.hub.publish import records
    from dino_pipeline.report.page import report

    generator, license_ = _licenses(run, options)
    again, needs_inputs, lacks = commands(run)
    facts = CardFacts(again, needs_inputs, generator, lacks)
    repo = options["repo"]
    known = records(run).get("model", {}).get("repository") if _learnt_from_it(run, strict=False) else None
    model_repo = _model_repo(options) if with_model else known
    publication = Publication(repo, license_, not options["no_raw"], model_repo)
    with contextlib.closing(Console()) as console:
        trained = run.stage("finetune").get("status") == "done"
        candidates = candidates_of(str(run.path), alone=True) if trained else []
        written = report(run, candidates, console)
    return _publish(
        run,
        "dataset",
        repo,
        options,
        lambda folder, kept: write_dataset(run, publication, written, facts, folder, kept),
    )


def _licenses(
    run: Run, options: dict[str, Any], *, of_texts: bool = True
) -> tuple[GeneratorLicense | None, str | None]:
    """Return the licence of the generator, if one wrote the texts, and that of what is published.

    Raises:
        OptionError: the first may restrict the second, which is not said.
    """
    from dino_pipeline.hub.licenses import GeneratorLicense, license_of

    license_ = options["license_"] or run.spec_fields().get("license")
    model = run.stage("generate").get("options", {}).get("model")
    if model is None or not of_texts:
        return None, license_
    generator = GeneratorLicense(license_of(model_path(model, "GENERATOR")))
    if generator.restricts and not options["license_"]:
        raise OptionError(
            f"the licence of the generator {model} is {generator.license or 'not known'}: it may restrict what is done "
            "with texts that it wrote; read it, and say with --license under which licence these may be published"
        )
    return generator, license_


def _learnt_from_it(run: Run, *, strict: bool = True) -> bool:
    """Say whether the encoder was trained on what the run's dataset is now.

    Raises:
        RunError: it was trained on what the dataset was before, and that matters.
    """
    from dino_pipeline.corpus import Source

    trained = run.stage("finetune")
    if not trained or trained["options"]["data"] != run.train.name:
        return False
    same = run.train.exists() and trained["sources"].split("+")[0] == Source(str(run.train)).digest()
    if not same and strict:
        raise RunError(
            f"{run.path}: the encoder was trained on what the dataset was before it was filtered again; run dino "
            "finetune again, or publish --what dataset"
        )
    return same


def _model(run: Run, options: dict[str, Any], dataset: dict[str, str] | None, *, of_run: bool) -> None:
    from dino_pipeline.hub.model import ModelPublication, write_model
    from dino_pipeline.hub.publish import records

    known = records(run).get("dataset")
    if not of_run:
        dataset = None
    elif dataset is None and known and known["repository"] == options["repo"]:
        dataset = {"repository": known["repository"], "commit": known["commit"]}
    repo = _model_repo(options)
    own = run.stage("finetune")["options"]["data"] == run.train.name
    generator, license_ = _licenses(run, options, of_texts=own)
    wanted = ModelPublication(repo, license_, dataset, generator, options["widgets"])
    _publish(run, "model", repo, options, lambda folder, kept: write_model(run, wanted, folder, kept))


def _model_repo(options: dict[str, Any]) -> str:
    return str(options["model_repo"] or options["repo"])


def _publish(run: Run, kind: Kind, repo: str, options: dict[str, Any], write: Any) -> dict[str, str] | None:
    """Write a folder and, unless it is a rehearsal, upload it."""
    from dino_pipeline.hub.manifest import origin_of
    from dino_pipeline.hub.publish import README, remember, write_folder
    from dino_pipeline.hub.upload import Repository

    remote = Repository(repo, kind)
    there = None if options["dry_run"] else remote.check(origin_of(run.records()), force=options["force"])
    of_ours = there and there.origin  # by force, nothing of a stranger's is kept
    folder = write_folder(run, kind, repo, remote.read(README) if of_ours else None, write)
    click.echo(f"{folder}: the {kind} is written")
    if options["dry_run"]:
        return None
    published = remote.publish(folder, there, private=options["private"])
    commit = remember(run, kind, published)
    said = "is published" if published.changed else "is up to date"
    click.echo(f"{published.address}: {said} (commit {published.commit[:10]})")
    if options["private"] and not published.private:
        click.echo(f"{published.address}: is public; --private is for new repositories, change others on the Hub")
    return commit
