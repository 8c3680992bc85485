"""Publishes a run's dataset and encoder, first as folders, then on the Hub; decides what, where and which license."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dino_pipeline.cards.card import README, GeneratorLicense, HandWritten, read_card, texts_origin
from dino_pipeline.cards.hub import Kind, PublishedRecord, Repository, Upload, license_of, run_manifest
from dino_pipeline.errors import HubError, OptionError, RunError
from dino_pipeline.files import folder_replaced
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.publish_options import PublishOptions
from dino_pipeline.publishing.folders import Licenses, write_dataset, write_model
from dino_pipeline.publishing.report import write_report
from dino_pipeline.publishing.run_texts import OpenedRun
from dino_pipeline.run import Run
from dino_pipeline.stage_records import PublishedDataset
from dino_pipeline.training.corpus import Source


@dataclass(frozen=True)
class Publication:
    """A dataset or model that was written as a folder and, unless it was a dry run, uploaded."""

    kind: Kind
    folder: Path
    repository: str
    upload: Upload | None = None
    """None if nothing was uploaded."""

    def __str__(self) -> str:
        lines = [f"{self.folder}: the {self.kind} is written"]
        if self.upload:
            state = "is published" if self.upload.changed else "is up to date"
            lines.append(f"{self.upload.address}: {state} (commit {self.upload.commit[:10]})")
        return "\n".join(lines)


@dataclass(frozen=True)
class Published:
    """What `publish` wrote and uploaded; None for what it did not."""

    dataset: Publication | None = None
    model: Publication | None = None

    def __str__(self) -> str:
        return "\n".join(str(publication) for publication in (self.dataset, self.model) if publication)

    __repr__ = __str__


@accepts(PublishOptions)
def publish(
    run: Run | Path | str,
    *,
    progress: bool | Callable[[Progress | str], object] | Reporter = True,
    **options: Any,
) -> Published:
    """Write a run's dataset and encoder as folders with cards, and upload each in one commit.

    What people wrote into the cards outside of the generated marks is kept. The token is the one that the Hub's client
    stored, or HF_TOKEN.

    Args:
        run: the run to publish.
        progress: True shows progress; a function is called with it.

    Raises:
        HubError: the Hub refuses, or holds the files of another run.
        OptionError: an option is wrong; or the generator's license may restrict the use of its texts, and no license
            is given.
        OutputError: a folder cannot be written.
        RunError: data or encoder are missing, or do not belong together.
    """
    chosen = PublishOptions.of(options)
    with OpenedRun.locked(run) as opened, reporter_for(progress) as reporter:
        return _Publisher(opened, chosen, reporter).publish()


class _Publisher:
    """One publication of a run."""

    def __init__(self, opened: OpenedRun, options: PublishOptions, reporter: Reporter) -> None:
        self.run, self.record, self.spec = opened.run, opened.record, opened.spec
        self.opened, self.options, self.reporter = opened, options, reporter
        self.last = PublishedRecord.read(self.run.hub)

    def publish(self) -> Published:
        """Write the folders and, unless it is a dry run, upload them."""
        options = self.options
        places = {kind: Repository(options.repository(kind), kind, private=options.private) for kind in self._kinds()}
        self._check_files(places)
        trained_on_it = self._is_trained_on_dataset(strict="model" in places)
        licenses = {kind: self._licenses(kind) for kind in places}  # all is checked before anything is written
        if not options.dry_run:
            for kind, place in places.items():
                place.check(run_manifest(self.record, kind, place.name), force=options.force)
        dataset = model = None
        if "dataset" in places:
            encoder = None
            if trained_on_it:
                last = self.last.model
                encoder = places["model"].name if "model" in places else last.repository if last else None
            report = write_report(self.opened, self.reporter, dropped=options.raw)
            write = partial(write_dataset, self.opened, report, options, licenses["dataset"], encoder)
            dataset = publish_folder(self.run.hub, places["dataset"], write, dry_run=options.dry_run)
        if "model" in places:
            training_data = self._training_data(dataset, trained_on_it=trained_on_it)
            write = partial(write_model, self.opened, options, licenses["model"], training_data)
            model = publish_folder(self.run.hub, places["model"], write, dry_run=options.dry_run)
        return Published(dataset, model)

    def _kinds(self) -> list[Kind]:
        """Return the kinds of repository to publish.

        Raises:
            RunError: the run has no such data or encoder.
        """
        filtered, finetuned = self.record.filter, self.record.finetune
        trained = finetuned is not None and finetuned.is_done
        what = self.options.what or ("both" if trained or self.options.model_repo else "dataset")
        if what != "model" and not (filtered and filtered.is_done):
            remedy = "publish with {what=model}" if trained else "run {filter()} first"
            raise RunError(f"{self.run.path}: holds no filtered data", remedy)
        if what != "dataset" and not trained:
            remedy = "run {finetune()}, or publish with {what=dataset}"
            raise RunError(f"{self.run.path}: no encoder is trained there", remedy)
        options = finetuned.options if finetuned else None
        if what != "dataset" and options and options.lora_save == "adapter" and options.encoder.fingerprint:
            raise RunError(
                f"{self.run.path}: the encoder is an adapter, and others do not have the folder of what it adapts, "
                f"{options.encoder.name}",
                "train with {lora_save=merged}, or publish with {what=dataset}",
            )
        return ["dataset", "model"] if what == "both" else [what]

    def _check_files(self, kinds: Collection[Kind]) -> None:
        """Raise `RunError` if a file that is published is damaged; each byte is read."""
        texts = self.record.generate if self.options.raw else None
        stages = {"dataset": (texts, self.record.filter), "model": (self.record.finetune, self.record.evaluate)}
        for kind in kinds:
            for made in filter(None, stages[kind]):
                self.run.check(made, *self.run.outputs(made.stage), every_byte=True)

    def _is_trained_on_dataset(self, *, strict: bool) -> bool:
        """Return True if the encoder was trained on the run's dataset as it is now.

        Raises:
            RunError: ``strict``, and the encoder was trained on an older version of the dataset.
        """
        finetuned, train = self.record.finetune, self.run.train
        if finetuned is None or not finetuned.origin.own:
            return False
        # the digest of the training file comes first, see `TrainingTexts.digest`
        same = train.exists() and finetuned.sources.split("+")[0] == Source(str(train)).digest()
        if not same and strict:
            raise RunError(
                f"{self.run.path}: the dataset was filtered again after the encoder was trained on it",
                "run {finetune()} again, or publish with {what=dataset}",
            )
        return same

    def _training_data(self, dataset: Publication | None, *, trained_on_it: bool) -> PublishedDataset | None:
        """Return the dataset that the encoder was trained on, if it is (``dataset``) or was published."""
        if not trained_on_it:
            return texts_origin(self.record, self.spec).dataset
        # read again: the dataset may have been uploaded just now
        last = PublishedRecord.read(self.run.hub).last("dataset", self.options.repo)
        if dataset:
            return PublishedDataset(
                repository=dataset.repository, commit=last.commit if dataset.upload and last else None
            )
        return PublishedDataset(repository=last.repository, commit=last.commit) if last else None

    def _licenses(self, kind: Kind) -> Licenses:
        """Return the license under which the dataset or the encoder is published, and the generator's.

        Raises:
            OptionError: the generator's license may restrict that of its texts, and the user has not chosen one.
        """
        generated, license = self.record.generate, self.spec.license if self.spec else None
        if kind == "model":
            origin = texts_origin(self.record, self.spec)
            generated, license = origin.generate, origin.license
        if generated is None:
            return Licenses(self.options.license or license, None)
        model = generated.options.model.name
        generator = GeneratorLicense(license_of(model))
        if generator.restricts and not self.options.license:
            raise OptionError(
                f"the license of the generator {model} is {generator.name or 'not known'}: it may restrict what is "
                "done with texts that it wrote",
                "read it, and choose with {license=ID} under which license these may be published",
            )
        return Licenses(self.options.license or license, generator)


def publish_folder(
    hub: Path, place: Repository, write: Callable[[Path, HandWritten], object], *, dry_run: bool
) -> Publication:
    """Write a folder and, unless it is a dry run, upload it and record that.

    Args:
        hub: holds published.json, and a folder each for the dataset and the model, which is replaced as a whole.
        write: fills an empty folder; takes the hand-written parts of the earlier card, too.
    """
    folder = hub / place.kind
    record = PublishedRecord.read(hub)
    last = record.last(place.kind, place.name)
    with folder_replaced(folder) as empty:  # until the end of the block, the earlier folder is still there to read
        write(empty, _hand_written(folder, place, last.card if last else ""))
        record = record.seal(hub, place.kind, is_written=False)  # the digest is of the earlier folder
    record = record.seal(hub, place.kind, is_written=True)
    if dry_run:
        return Publication(place.kind, folder, place.name)
    upload = place.upload(folder)
    record.write(hub, place.kind, upload)
    return Publication(place.kind, folder, place.name, upload)


def _hand_written(folder: Path, place: Repository, published: str) -> HandWritten:
    """Return what people wrote into the card: in the folder or, if only that was edited since, on the Hub.

    ``published`` is the card that was published last; it is empty if none was.

    Raises:
        HubError: a card cannot be read, or people changed both.
    """
    here, on_hub = folder / README, place.card()
    parts_on_hub = HandWritten()
    if on_hub:
        with _errors_named(place.name):
            parts_on_hub = HandWritten.of(read_card(on_hub))
    if not here.exists():
        return parts_on_hub
    with _errors_named(str(folder)):
        parts = HandWritten.of(read_card(here))
        return parts.or_newer(parts_on_hub, HandWritten.of(published)) if on_hub else parts


@contextlib.contextmanager
def _errors_named(place: str) -> Iterator[None]:
    """Let errors about a card begin with the folder or repository that holds it."""
    try:
        yield
    except HubError as error:
        raise HubError(f"{place}/{error.message}", error.remedy) from error
