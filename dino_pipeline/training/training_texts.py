"""Which texts an encoder is trained on, which choose its best checkpoint, and where they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dino_pipeline.cards.hub import Manifest, download
from dino_pipeline.encoder_options import TrainingOptions
from dino_pipeline.errors import DataError, HubError, OptionError, RunError, stage_call
from dino_pipeline.files import digest_files, shard_files
from dino_pipeline.filtering.filter import FilteredPairs
from dino_pipeline.filtering.postprocessed import RANDOM, Pair, described, recognised
from dino_pipeline.layout import LINEAGE
from dino_pipeline.model_files import is_hub_id
from dino_pipeline.readers import LabelType, split_of
from dino_pipeline.rows import RowsRead
from dino_pipeline.run import Run
from dino_pipeline.stage_records import SHARDS, PublishedDataset, TextsOrigin, TextsSettings
from dino_pipeline.text import normalise
from dino_pipeline.training.adapters import TrainingRows, adapt
from dino_pipeline.training.corpus import Corpus, Source, evaluation_source, hold_out, validation_source
from dino_pipeline.training.objectives import Objective

HELD_OUT_SHARE = 0.1
"""Share of the texts that is kept out of training to choose the best checkpoint, if no others are given."""
MAX_HELD_OUT = 500
IN_MEMORY = "examples in memory"
"""Name of texts that a Python user hands over."""


@dataclass(frozen=True)
class TrainingTexts:
    """The texts to train on, and those that choose the best checkpoint."""

    train: Source
    dev: Source | None = None
    """None: a part of the texts to train on is held out."""
    select_on: Source | None = None
    """Pairs scored by people, which choose in place of held-out texts."""
    sentences: TrainingTexts | None = None
    """Texts without labels, which objectives that need sentences learn from in place of these."""
    language: str = "en"
    split_sentences: bool = False
    score_labels: bool = False
    """Whether the user says that labels are scores."""
    origin: TextsOrigin = field(default_factory=TextsOrigin)
    """What is known of where the texts come from."""
    _rows: dict[str, TrainingRows] = field(default_factory=dict, compare=False, repr=False)

    @property
    def run(self) -> Run | None:
        """Return the run whose filtered data is trained on, None for other texts."""
        run = Run(self.train.path.parent)
        return run if self.train.path == run.train and run.is_run else None

    def origin_for(self, run: Run) -> TextsOrigin:
        """Return the origin to record in a run. A run's own texts have theirs in its own record."""
        own = self.run is not None and self.run.path.resolve() == run.path.resolve()
        return TextsOrigin(own=True) if own else self.origin

    def settings(self) -> TextsSettings:
        """Return the options that decide which texts are trained on."""
        return TextsSettings(
            data=self.train.label,
            columns=dict(self.train.columns),
            class_labels=self.train.label_type == "class",
            score_labels=self.score_labels,
            select_on=self.select_on.label if self.select_on else None,
            sentences=self.sentences.train.label if self.sentences else None,
            language=self.language,
            split_sentences=self.split_sentences,
        )

    @property
    def _sources(self) -> list[Source]:
        sources = (self.train, self.dev, self.select_on, self.sentences and self.sentences.train)
        return [source for source in sources if source]

    @property
    def rows_read(self) -> tuple[RowsRead, ...]:
        """Return what was read of each source."""
        return tuple(read for source in self._sources if (read := source.corpus.rows_read))

    def digest(self) -> str:
        """Return the digests of all texts, joined by ``+``; that of the texts to train on is first."""
        return "+".join(source.digest() for source in self._sources)

    @cached_property
    def parts(self) -> tuple[Corpus, Corpus]:
        """Return the texts to train on, and those that choose the best checkpoint.

        Raises:
            DataError: the texts scored by people are not scored pairs, or there are too few to hold some out.
        """
        corpus = self.train.corpus
        if self.select_on:
            if self.select_on.corpus.content != "scored pairs":
                raise DataError(f"{self.select_on.name}: holds {self.select_on.corpus.content}, not pairs with scores")
            return corpus, self.select_on.corpus
        return (corpus, self.dev.corpus) if self.dev else hold_out(corpus, HELD_OUT_SHARE, MAX_HELD_OUT)

    @property
    def selection_name(self) -> str:
        """Return the name of the texts that choose the best checkpoint."""
        chosen = self.select_on or self.dev
        return chosen.label if chosen else f"{self.train.label}, held out"

    def rows(self, objective: Objective) -> TrainingRows:
        """Return the texts to train on as rows for an objective. Objectives that need the same kind share them."""
        if objective.needs not in self._rows:
            corpus, _ = self.parts
            rows = adapt(corpus, objective.needs, objective.name, self.language, split=self.split_sentences)
            if self.origin.filter is None and corpus.content == "scored pairs":
                rows = replace(rows, remarks=(*rows.remarks, *_remarks_on_processing(self.train.corpus, objective)))
            self._rows[objective.needs] = rows
        return self._rows[objective.needs]

    def check_run(self) -> None:
        """Refuse filtered data that no longer is what its run's texts give.

        Raises:
            RunError: a file is damaged, texts were generated since, or the filter was interrupted.
        """
        if self.sentences:
            self.sentences.check_run()
        if self.run is None:
            return
        record = self.run.record()
        filtered = record.filter
        self.run.check(filtered, self.run.train, self.run.dev, every_byte=True)  # all bytes are read for the digest
        self.run.check(record.generate, self.run.shards)
        current = filtered is not None and filtered.is_done
        if filtered and current and filtered.inputs.source == SHARDS:
            current = filtered.sources == digest_files(shard_files(self.run.shards))
        if not current:
            remedy = f"run {stage_call('filter', self.run.path)} first"
            raise RunError(f"{self.run.train}: is not what the run's texts give now", remedy)


def _remarks_on_processing(corpus: Corpus, objective: Objective) -> list[str]:
    """Return what is to say of pairs that were post-processed before, of whose filtering nothing is recorded."""

    def pairs() -> Iterator[Pair]:
        for example in corpus.examples:
            yield normalise(example.text_a), normalise(example.text_b or ""), example.label == RANDOM

    found = recognised([float(example.label or 0) for example in corpus.examples], pairs)
    if not found.random_pairs:
        return []
    said = f"{described(found)}: they are taken as they are"
    if objective.needs == "triplets":
        said += "; random texts are negatives beside those that were written as such"
    return [said]


def training_texts(source: object, options: TrainingOptions) -> TrainingTexts:
    """Return the texts to train on.

    Args:
        source: a run (a `Run` or its folder), a file, a folder or Hub id of a dataset, the result of `filter`, or
            examples in memory: whatever `list_reader` takes.
        options: say how to read them; and the held-out texts, which may be given likewise.

    Raises:
        DataError: the texts cannot be read.
        OptionError: an option does not apply to such a source.
    """
    run = Run.of(source)
    _refuse_unused(source, options)
    if run is not None:
        train, dev, origin = _of_run(run, options)
    elif isinstance(source, str | Path):
        train, dev, origin = _of_dataset(str(source), options)
    else:
        train, dev, origin = _in_memory(source, options)
    if options.dev is not None:
        dev = _source(split_of(options.dev, ("validation", "test")), options, train.label_type)
        if dev.memory is not None and not _has_columns(dev.memory, options.column):
            dev = replace(dev, columns={})  # the names are those of the texts to train on
    language = (options.language or origin.language or "en").split("-")[0]
    select_on = None if options.select_on is None else _select_on_source(options.select_on)
    is_scored = options.label_type == "score"
    texts = TrainingTexts(train, dev, select_on, None, language, options.split_sentences, is_scored, origin)
    if options.sentences is None:
        return texts
    sentences = _source(options.sentences, None)
    return replace(texts, sentences=replace(texts, train=sentences, dev=None, _rows={}))


def _has_columns(memory: Any, columns: Mapping[str, str]) -> bool:
    """Return whether data in memory is a table with some columns."""
    names = getattr(memory, "column_names", getattr(memory, "columns", None))
    if names is None:
        first = next(iter(memory), None) if isinstance(memory, Sequence) else None
        names = first if isinstance(first, Mapping) else ()
    return set(columns.values()) <= set(names)


def _refuse_unused(source: object, options: TrainingOptions) -> None:
    """Raise `OptionError` if an option says how to read a dataset, and neither the source nor the dev data is one."""
    sources = (source, options.dev)
    datasets = [str(each) for each in sources if isinstance(each, str | Path) and Run.of(each) is None]
    of_splits = [name for name in datasets if not Path(name).is_file()]
    of_hub = [name for name in datasets if not Path(name).exists()]
    for option, users, kind in (
        ("split", of_splits, "a dataset in a folder or on the Hub"),
        ("config", of_splits, "a dataset in a folder or on the Hub"),
        ("data_revision", of_hub, "a dataset on the Hub"),
    ):
        value = getattr(options, option)
        if not users and value is not None and option in options.model_fields_set:
            raise OptionError(f"applies to {kind} only", "leave it out", option=option, value=value)


Sources = tuple[Source, Source | None, TextsOrigin]
"""Texts to train on, held-out texts if there are some, and where they come from."""


def _of_run(run: Run, options: TrainingOptions) -> Sources:
    """Return the filtered texts of a run."""
    filtered = run.record().filter
    run.check(filtered, run.train, run.dev)
    if not run.train.exists():
        remedy = f"make it with {stage_call('filter', run.path)}, or name a file"
        raise DataError(f"{run.train}: is not there", remedy)
    # scores are told from classes as in any file: a filter of brought pairs does not say which they are
    label_type: LabelType | None = "class" if filtered and filtered.inputs.label_type == "class" else None
    train = _source(run.train, options, label_type)
    return train, _source(run.held_out, options, label_type) if run.held_out else None, run.origin()


def _of_dataset(name: str, options: TrainingOptions) -> Sources:
    """Return the texts of a file, or of a dataset in a folder or on the Hub."""
    train = _source(name, options)
    origin = _published_origin(name, options.data_revision)
    if origin is None:
        return train, None, TextsOrigin()
    return train, None if options.dev is not None else validation_source(train), origin


def _in_memory(source: Any, options: TrainingOptions) -> Sources:
    """Return texts in memory. The result of `filter` brings its held-out texts and its record along.

    Of a `datasets.DatasetDict`, the splits ``train`` and ``validation`` are taken.
    """
    if isinstance(source, Mapping):
        if "train" not in source:
            raise DataError(f"the splits are {', '.join(map(str, source))}, and train is missing", "give one of them")
        held_out = source.get("validation")
        train = _source(source["train"], options)
        return train, None if held_out is None else _source(held_out, options), TextsOrigin()
    if not isinstance(source, FilteredPairs):
        return _source(source, options), None, TextsOrigin()
    label_type = source.record.inputs.label_type
    train = _source(source.train, options, label_type)
    dev = _source(source.dev, options, label_type) if source.dev else None
    return train, dev, source.origin


def _source(texts: Any, options: TrainingOptions | None, label_type: LabelType | None = None) -> Source:
    """Return a run's filtered texts, a path, a Hub id, or examples in memory as a source.

    Without options, it is read by default. Labels are what ``label_type`` says, unless the options do.
    """
    run = Run.of(texts)
    if run is not None:
        texts = run.train
    in_memory = not isinstance(texts, str | Path)
    if not in_memory:
        Run.check_file(Path(texts))
    name, memory = (IN_MEMORY, texts) if in_memory else (str(texts), None)
    if options is None:
        return Source(name, memory=memory, label_type=label_type, skip_blank=True)
    return Source(
        name,
        split=options.split,
        config=options.config,
        revision=options.data_revision,
        columns=options.column,
        label_type=options.label_type or label_type,
        memory=memory,
        skip_blank=True,
    )


def _select_on_source(texts: Any) -> Source:
    """Return pairs scored by people; of a dataset in a folder or on the Hub, its split to choose or to evaluate on."""
    if isinstance(texts, str | Path) and Run.of(texts) is None and not Path(texts).is_file():
        return evaluation_source(Path(texts), "score")
    return _source(split_of(texts, ("validation", "dev", "test", "train")), None, "score")


def _published_origin(name: str, revision: str | None) -> TextsOrigin | None:
    """Return what is known of a dataset that this package published, None for any other dataset."""
    folder, on_hub = Path(name), not Path(name).exists() and is_hub_id(name)
    with contextlib.suppress(HubError, OSError):  # reading its texts raises an error that says what is wrong
        if on_hub:
            folder = download(name, "dataset", revision, only=[LINEAGE, "run.json", "spec.json"])
        manifest = Manifest.read(folder / LINEAGE, name)
        dataset = PublishedDataset(repository=manifest.repository)
        if on_hub:
            dataset = PublishedDataset(repository=name, commit=folder.name)
        return Run(folder).origin().updated(dataset=dataset)
    return None
