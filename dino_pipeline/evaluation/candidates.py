"""The encoders that are evaluated: a run's before and after training, models by name, and encoders in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dino_pipeline.errors import OptionError
from dino_pipeline.evaluation.scores import EvaluatedModel
from dino_pipeline.models import POCKET, ModelRef, model_fingerprint, model_path
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FinetuneRecord

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Candidate:
    """An encoder to evaluate."""

    name: str
    """Name in tables."""
    path: str | None
    """Folder or Hub id; None for an encoder in memory."""
    revision: str | None = None
    chosen_on_human_labels: str | None = None
    """Name of the human-labelled data that its checkpoint was chosen on, if any."""
    model: SentenceTransformer | None = field(default=None, compare=False)
    """The encoder, if it is in memory."""

    def load(self) -> SentenceTransformer:
        """Return the encoder.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self.model is not None:
            return self.model
        from dino_pipeline.encoders import load_encoder

        return load_encoder(str(self.path), self.revision)

    def describe(self, model: SentenceTransformer) -> EvaluatedModel:
        """Return what scores.json holds of the encoder, once it is loaded."""
        backbone = model.transformers_model
        return EvaluatedModel(
            name=self.name,
            path=self.path,
            revision=self.revision,
            chosen_on_human_labels=self.chosen_on_human_labels,
            commit=getattr(backbone.config, "_commit_hash", None) if backbone is not None else None,
            fingerprint=None if self.path is None else model_fingerprint(self.path),
            dimension=model.get_embedding_dimension(),
            max_length=model.max_seq_length,
        )

    @property
    def source(self) -> str:
        """Text that changes if the encoder does; run.json compares it."""
        return f"{self.name}:{model_fingerprint(str(self.path)) or self.path}:{self.revision}"


def all_candidates(targets: Sequence[object]) -> list[Candidate]:
    """Return the encoders of some targets, each once.

    Args:
        targets: runs, models by folder or Hub id (``id@revision``), and encoders in memory.

    Raises:
        OptionError: a target is none of these, a run has no trained encoder, or two encoders have one name.
    """
    only_run = sum(is_run(target) for target in targets) == 1
    candidates: dict[Candidate, None] = {}
    in_memory = 0
    for target in targets:
        if isinstance(target, str | Path | Run):
            candidates.update(dict.fromkeys(candidates_of(target, only_run=only_run)))
        elif hasattr(target, "encode") and hasattr(target, "transformers_model"):
            in_memory += 1
            name = "encoder" if in_memory == 1 else f"encoder {in_memory}"
            candidates[Candidate(name, None, model=target)] = None
        else:
            raise OptionError(
                f"{type(target).__name__}: cannot be evaluated",
                "give a run, a SentenceTransformer, a folder or a Hub id",
            )
    names = [candidate.name for candidate in candidates]
    if repeated := [name for at, name in enumerate(names) if name in names[:at]]:
        raise OptionError(f"{repeated[0]}: two different encoders have this name", "evaluate them one by one")
    return list(candidates)


def is_run(target: object) -> bool:
    """Return whether a target is a run, by its folder or as an object."""
    return isinstance(target, str | Path | Run) and as_run(target).is_run


def as_run(target: str | Path | Run) -> Run:
    """Return the run that a folder may be."""
    return target if isinstance(target, Run) else Run(Path(target))


def candidates_of(target: str | Path | Run, *, only_run: bool) -> list[Candidate]:
    """Return a run's encoder before and after training, or the model that a name stands for.

    Args:
        target: a run, or a model by folder or Hub id.
        only_run: whether no other run is evaluated; else the run's name is part of its encoders' names.

    Raises:
        OptionError: the run has no trained encoder.
    """
    run = as_run(target)
    name = str(run.path if isinstance(target, Run) else target)
    if not run.is_run:
        return [_named_model(name)]
    trained = run.record().finetune
    if trained is None or not trained.is_done:
        raise OptionError(f"{name}: holds no trained encoder", f"run {{finetune({name})}} first")
    encoder = trained.options.encoder
    shown = _public_name(encoder) if only_run else encoder.name
    finetuned = f"{shown} finetuned" if only_run else f"{shown} finetuned on {name.rstrip('/')}"
    return [
        Candidate(f"{shown} before", encoder.path("encoder"), encoder.revision),
        Candidate(finetuned, str(run.model), None, _human_labels(trained)),
    ]


def _named_model(target: str) -> Candidate:
    """Return a model by folder or Hub id, which may have a revision: ``id@revision``."""
    name, at, revision = target.rpartition("@")
    if not at or Path(target).exists():
        name, revision = target, ""
    path = model_path(name, "encoder")
    run = Run(Path(path).parent)
    trained = run.record().finetune if Path(path) == run.model else None
    return Candidate(target, path, revision or None, _human_labels(trained))


def _human_labels(trained: FinetuneRecord | None) -> str | None:
    """Return the name of the human-labelled data that a run's encoder was chosen on, None if there was none."""
    selection = trained.selection if trained else None
    return selection.on if selection and selection.human_labels else None


def _public_name(encoder: ModelRef) -> str:
    """Return the name of an encoder without the folders of this machine."""
    if encoder.fingerprint is None or encoder.name == POCKET:
        return encoder.name
    return re.split(r"[/\\]", encoder.name.rstrip("/\\"))[-1]
