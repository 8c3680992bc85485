"""Which texts an encoder is trained on, which choose its best checkpoint, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dino_pipeline.errors import DataError, RunError
from dino_pipeline.files import digest_files, shard_files
from dino_pipeline.run import Run
from dino_pipeline.training.adapters import TrainingRows, adapt
from dino_pipeline.training.corpus import Corpus, Source, hold_out
from dino_pipeline.training.objective import Objective

HELD_OUT_SHARE = 0.1
"""Share of the texts that is kept out of training to choose the best checkpoint, if no others are given."""
MAX_HELD_OUT = 500


@dataclass(frozen=True)
class PublishedOrigin:
    """A published dataset as the origin of texts."""

    folder: Run
    """Holds the dataset's run.json and spec.json."""
    dataset: Mapping[str, str]
    """Repository and commit, as far as they are known."""


@dataclass(frozen=True)
class TrainingTexts:
    """The texts to train on, and those that choose the best checkpoint."""

    train: Source
    dev: Source | None = None
    """None: a part of the texts to train on is held out."""
    select_on: Source | None = None
    """Pairs scored by people, which choose in place of held-out texts."""
    language: str = "en"
    split_sentences: bool = False
    published: PublishedOrigin | None = None
    """Set if the texts are a published dataset."""
    _rows: dict[str, TrainingRows] = field(default_factory=dict, compare=False, repr=False)

    @property
    def origin(self) -> Run | None:
        """Return the run whose filtered data is trained on, if it is a run's."""
        run = Run(self.train.path.parent)
        return run if self.train.path == run.train and run.is_run else None

    def provenance(self, run: Run) -> dict[str, Any]:
        """Return what is known of the texts' origin.

        That is ``{"own": True}`` for the run's own texts, the records of another run, or nothing.
        """
        source = self.published.folder if self.published else self.origin
        if source is None:
            return {}
        if source.path.resolve() == run.path.resolve():
            return {"own": True}
        return {**_records_of(source), "dataset": dict(self.published.dataset) if self.published else None}

    def options(self) -> dict[str, Any]:
        """Return the options that decide which texts are trained on."""
        return {
            "data": self.train.label,
            "columns": dict(self.train.columns),
            "class_labels": self.train.classes,
            "select_on": self.select_on.label if self.select_on else None,
            "language": self.language,
            "split_sentences": self.split_sentences,
        }

    def digest(self) -> str:
        """Return a hash of all texts."""
        sources = (self.train, self.dev, self.select_on)
        return "+".join(source.digest() for source in sources if source)

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
            self._rows[objective.needs] = adapt(
                corpus, objective.needs, objective.name, self.language, split=self.split_sentences
            )
        return self._rows[objective.needs]

    def check_origin(self) -> None:
        """Refuse filtered data that no longer is what the run's texts give.

        Raises:
            RunError: texts were generated since, or the filter was interrupted.
        """
        run = self.origin
        if run is None:
            return
        filtered = run.stage("filter")
        current = filtered.get("status") == "done"
        if current and filtered["options"]["source"] == "shards":
            current = filtered["sources"] == digest_files(shard_files(run.shards))
        if not current:
            raise RunError(
                f"{run.train}: is not what the run's texts give now", "run {filter(" + str(run.path) + ")} first"
            )


def origin_of_texts(run: Run) -> dict[str, Any]:
    """Return what is known of the texts that a run's encoder learnt from: records, language, license, dataset."""
    origin: dict[str, Any] = run.stage("finetune").get("origin", {})
    return {**origin, **_records_of(run)} if origin.get("own") else origin


def _records_of(run: Run) -> dict[str, Any]:
    """Return a run's records of its texts, with their language and license."""
    spec = run.spec_fields()
    return {
        "generate": run.stage("generate"),
        "filter": run.stage("filter"),
        "language": spec.get("language"),
        "license": spec.get("license"),
    }
