"""dino finetune: train a bi-encoder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import FOLDER, HUB_ID, Grouped, command, options_of, under, watching
from dino_pipeline.console import table
from dino_pipeline.errors import DataError, HubError, OptionError
from dino_pipeline.finetune_options import Hyperparameters
from dino_pipeline.models import model_fingerprint, model_path
from dino_pipeline.training.objectives import NAMES

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from dino_pipeline.run import Run
    from dino_pipeline.training.corpus import Source
    from dino_pipeline.training.training_texts import PublishedOrigin, TrainingTexts

HYPERPARAMETERS = tuple(each.name for each in fields(Hyperparameters) if each.name != "options")


def _dimensions(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        found = tuple(sorted({int(each) for each in value.split(",")}, reverse=True))
    except ValueError as error:
        raise click.BadParameter("give whole numbers, as in 256,128,64") from error
    if found[-1] < 1:
        raise click.BadParameter("dimensions are 1 and more")
    return found


def assignments(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Return NAME=VALUE options as a mapping."""
    parted = [value.partition("=") for value in values]
    if wrong := next((value for value, (_, equals, _) in zip(values, parted, strict=True) if not equals), None):
        raise click.BadParameter(f"{wrong}: give {parameter.metavar}")
    return {name.strip(): value.strip() for name, _, value in parted}


SOURCE_OPTIONS = [
    under("The texts"),
    click.option("--split", metavar="NAME", default="train", show_default=True, help="Of a dataset (Hub or folder)."),
    click.option("--config", metavar="NAME", help="Of a dataset from the Hub."),
    click.option("--data-revision", metavar="REVISION", help="Of a dataset from the Hub."),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="ROLE=NAME",
        callback=assignments,
        help="Which column is text_a, text_b or label, where the names do not say.",
    ),
    click.option(
        "--label-type", type=click.Choice(["score", "class"]), help="class: labels are names, whatever they spell."
    ),
    click.option("--language", metavar="CODE", help="Of documents, to find sentences.  [default: the spec's, or en]"),
    click.option("--split-sentences", is_flag=True, help="Texts hold several sentences: train on each."),
    click.option("--dev", "dev_file", metavar="FILE", help="Held-out texts.  [default: the RUN's, or a tenth of DATA]"),
    click.option(
        "--select-on",
        metavar="FILE",
        help="Pairs scored by people that choose the best checkpoint; stamped into card and scores.",
    ),
]
TRAINING_OPTIONS = [
    under("Training"),
    click.option(
        "--encoder", metavar="MODEL", default="pocket", show_default=True, help="Folder or Hub id to start from."
    ),
    click.option("--revision", metavar="REVISION", help="The encoder's revision on the Hub."),
    click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Passes over the texts."),
    click.option("--steps", type=click.IntRange(1), help="In place of epochs."),
    click.option("--batch-size", type=click.IntRange(1), help="Over all processes."),
    click.option("--learning-rate", "--lr", type=click.FloatRange(0, min_open=True), help="Its peak."),
    click.option("--weight-decay", type=click.FloatRange(0), help="AdamW's."),
    click.option("--warmup", type=click.FloatRange(0, 1), help="Share of the steps."),
    click.option("--schedule", type=click.Choice(["linear", "constant"]), help="Of the learning rate."),
    click.option(
        "--max-length",
        type=click.IntRange(1),
        help="Tokens a text is cut at in training.  [default: the objective's, else the encoder's]",
    ),
    click.option(
        "--pooling", type=click.Choice(["mean", "cls", "lasttoken"]), help="For encoders that bring none of their own."
    ),
    click.option("--mini-batch-size", type=click.IntRange(1), help="Rows encoded at once, with gradient caching."),
    click.option("--bf16/--no-bf16", default=None, help="Compute in bfloat16 where that is safe."),
    click.option(
        "--matryoshka", metavar="DIM,...", callback=_dimensions, help="Leading dimensions that are to work alone."
    ),
    click.option(
        "--faithful", is_flag=True, default=None, help="Keep the quirks of the papers' code; --list names them."
    ),
]


@click.command(cls=Grouped)
@click.argument("data", metavar="[RUN|FILE|DATASET]", required=False)
@click.option("--list", "listing", is_flag=True, help="List the objectives with what they need and their defaults.")
@click.option(
    "--objective", type=click.Choice(NAMES), default="dino", show_default=True, help="How it learns; --list says more."
)
@click.option("--run", "run_path", type=FOLDER, help="Folder to write, where what is given is no run.")
@click.option(
    "--loss", type=click.Choice(["cosine", "cosent", "angle"]), help="Of the objective dino.  [default: cosine]"
)
@click.option("--set", "own", multiple=True, metavar="NAME=VALUE", callback=assignments, help="The objective's own.")
@click.option("--seed", default=42, show_default=True, help="Of all random choices.")
@click.option("--fresh", is_flag=True, help="Train again from the start.")
@options_of(TRAINING_OPTIONS)
@options_of(SOURCE_OPTIONS)
@command
def finetune(data: str | None, run_path: Path | None, listing: bool, **options: Any) -> None:
    """Train a bi-encoder on a RUN's filtered data, a FILE (JSONL, or a sentence or document a line), or a DATASET of
    the Hub; goes on from the last checkpoint.

    Hyper-parameters are those of the objective's paper unless given.
    """
    from dino_pipeline.measures import measure_title
    from dino_pipeline.training.finetune import finetune_run
    from dino_pipeline.training.objective import get_objective, resolve_hyperparameters

    if listing:
        _list()
        return
    if data is None:
        raise OptionError("nothing to train on; give a RUN, a FILE or a DATASET, or --list")
    run, texts = texts_of(data, run_path, options)
    objective = get_objective(options["objective"])
    own = {**options["own"], **({"loss": options["loss"]} if options["loss"] else {})}
    given = {name: options[name] for name in HYPERPARAMETERS if options[name] is not None}
    training = resolve_hyperparameters(objective, given, own)
    first_process = os.environ.get("RANK", "0") == "0"
    with watching("Saving a checkpoint") as console, run.locked() if first_process else contextlib.nullcontext():
        state = finetune_run(
            run,
            objective,
            training,
            encoder=identity_of_encoder(options),
            load=partial(load_to_train, options, training),
            texts=texts,
            reporter=console,
            seed=options["seed"],
            fresh=options["fresh"],
        )
    if first_process:
        said = "is up to date" if state == "done" else "is trained"
        chosen = run.stage("finetune")["selection"]
        click.echo(f"{run.model}: {said}; best dev {measure_title(chosen['measure'])}: {chosen['best']:.2f}")


def identity_of_encoder(options: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies the encoder to start from."""

    fingerprint = model_fingerprint(model_path(options["encoder"], "encoder"))
    return {"encoder": options["encoder"], "revision": options["revision"], "fingerprint": fingerprint}


def load_to_train(options: dict[str, Any], training: Hyperparameters | None) -> SentenceTransformer:
    """Load the encoder to start from; pooling that was asked for must be its own. None: it is not to be trained."""
    from dino_pipeline.encoders import load_encoder, pooling_of

    path = model_path(options["encoder"], "encoder")
    if training is None:
        return load_encoder(path, options["revision"])
    model = load_encoder(path, options["revision"], training.pooling)
    if options["pooling"] is not None and pooling_of(model) != training.pooling:
        raise OptionError(
            f"--pooling {training.pooling}: {path} brings its own pooling ({pooling_of(model)}); leave it out"
        )
    return model


def texts_of(data: str, run_path: Path | None, options: dict[str, Any]) -> tuple[Run, TrainingTexts]:
    """Return the run to write, and what to train on."""
    from dino_pipeline.run import Run
    from dino_pipeline.training.corpus import Source, validation
    from dino_pipeline.training.training_texts import TrainingTexts

    given = Run(Path(data))
    is_run = given.is_run
    if is_run and not given.train.exists():
        raise DataError(f"{given.train}: is not there; make it with dino filter {data}, or name a file")
    if not is_run and run_path is None:
        raise OptionError(f"{data}: is no run; say with --run which folder to write")

    def source(name: str) -> Source:
        return Source(
            name,
            split=options["split"],
            config=options["config"],
            revision=options["data_revision"],
            columns=options["columns"],
            classes=options["label_type"] == "class" if options["label_type"] else is_run and not given.numeric_labels,
        )

    published = None if is_run else _published(data, options)
    dev = options["dev_file"] or (str(given.held_out) if is_run and given.held_out else None)
    held_out = source(dev) if dev else None
    if published and not dev:
        held_out = validation(source(data))
    texts = TrainingTexts(
        train=source(str(given.train) if is_run else data),
        dev=held_out,
        select_on=Source(options["select_on"]) if options["select_on"] else None,
        language=options["language"] or _language(published.folder if published else given) or "en",
        split_sentences=options["split_sentences"],
        published=published,
    )
    return Run(run_path) if run_path else given, texts


def _published(data: str, options: dict[str, Any]) -> PublishedOrigin | None:
    """Return what is known of data that dino publish made, in a folder or on the Hub; None if it is none."""
    from dino_pipeline.cards.hub import download
    from dino_pipeline.cards.manifest import Manifest
    from dino_pipeline.layout import LINEAGE
    from dino_pipeline.run import Run
    from dino_pipeline.training.training_texts import PublishedOrigin

    folder, on_hub = Path(data), not Path(data).exists() and HUB_ID.fullmatch(data)
    with contextlib.suppress(HubError, OSError):  # what is wrong with it is said when it is read
        if on_hub:
            folder = download(data, "dataset", options["data_revision"], only=[LINEAGE, "run.json", "spec.json"])
        manifest = Manifest.read(folder / LINEAGE, data)
        named = {"repository": data, "commit": folder.name} if on_hub else {"repository": manifest.repository}
        return PublishedOrigin(Run(folder), {key: value for key, value in named.items() if value})
    return None


def _language(run: Run) -> str | None:
    """Return the language of a run's spec, if it is known."""
    language = run.spec_fields().get("language")
    return str(language).split("-")[0] if language else None


def _list() -> None:
    from dino_pipeline.training.objective import get_objective

    records = [get_objective(name) for name in NAMES]
    header = ["objective", "needs", "epochs", "batch", "rate", "pooling"]
    rows = [
        [each.name, each.needs, f"{t.epochs:g}", str(t.batch_size), f"{t.learning_rate:g}", t.pooling]
        for each in records
        for t in [each.defaults]
    ]
    click.echo(table(header, rows))
    for each in records:
        click.echo(f"\n{each.name}: {each.method}\n  {each.citation}")
        own = ", ".join(f"{name}={value}" for name, value in each.defaults.options.items())
        faithful = ", ".join(f"{name}={value}" for name, value in each.faithful.items())
        click.echo(f"  --set {own}" if own else "  no options of its own")
        if faithful:
            click.echo(f"  --faithful: {faithful}")
