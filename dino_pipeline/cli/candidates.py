"""Which encoders a RUN or a MODEL stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_pipeline.errors import OptionError
from dino_pipeline.models import model_path
from dino_pipeline.public import public

if TYPE_CHECKING:
    from dino_pipeline.evaluation.evaluate import Candidate


def candidates_of(target: str, *, alone: bool) -> list[Candidate]:
    """Return a run's encoder before and after training, or the model itself.

    A run is named where it is not the only one.
    """
    from dino_pipeline.evaluation.evaluate import Candidate
    from dino_pipeline.run import Run

    run = Run(Path(target))
    if not run.is_run:
        name, at, revision = target.rpartition("@")
        if not at or Path(target).exists():
            name, revision = target, ""
        path = model_path(name, "encoder")
        return [Candidate(target, path, revision or None, _human_labels(Path(path)))]
    trained = run.stage("finetune")
    if trained.get("status") != "done":
        raise OptionError(f"{target}: no encoder is trained there; run dino finetune {target} first")
    encoder = trained["options"]["encoder"]
    shown = public(trained["options"])["encoder"] if alone else encoder
    finetuned = f"{shown} finetuned" if alone else f"{shown} finetuned on {target.rstrip('/')}"
    return [
        Candidate(f"{shown} before", model_path(encoder, "encoder"), trained["options"]["revision"]),
        Candidate(finetuned, str(run.model), None, _human_labels(run.model)),
    ]


def _human_labels(model: Path) -> str | None:
    """Return the human labels that a run's model was chosen on, None if it was chosen without."""
    from dino_pipeline.run import Run

    run = Run(model.parent)
    chosen = run.stage("finetune").get("selection", {}) if model == run.model else {}
    return chosen["on"] if chosen.get("human_labels") else None
