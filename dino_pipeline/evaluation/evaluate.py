"""The evaluate stage: what encoders are worth, on suites of data, beside one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from dino_pipeline.evaluation.scores import FORMAT, read_scores
from dino_pipeline.evaluation.suites.suite import Embedder, EvaluationSet, Score, with_interval
from dino_pipeline.evaluation.suites.sts import with_mean
from dino_pipeline.files import write_json
from dino_pipeline.measures import RESAMPLES
from dino_pipeline.models import model_fingerprint
from dino_pipeline.progress import Reporter
from dino_pipeline.record import versions
from dino_pipeline.run import Run, Stage

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Candidate:
    """An encoder to evaluate."""

    name: str
    """What it is called in tables."""
    path: str
    """A folder or a Hub id."""
    revision: str | None = None
    chosen_on_human_labels: str | None = None
    """What its checkpoint was chosen on, if people had scored that."""


@dataclass(frozen=True)
class Evaluation:
    """What models came to."""

    models: list[dict[str, Any]]
    """What identifies each of them."""
    scores: list[Score]
    """Set by set, the baseline first."""

    def to_json(self) -> dict[str, Any]:
        """Return what scores.json holds."""
        return {
            "format": FORMAT,
            "unit": "x 100",
            "interval": f"95 % percentile bootstrap over items, {RESAMPLES} resamples",
            "versions": versions(),
            "models": self.models,
            "scores": [score.to_json() for score in self.scores],
            "differences": self.differences(),
        }

    def differences(self) -> list[dict[str, Any]]:
        """Return for each set how far each later model is from the first, resampled in pairs, by the main measure."""
        names = [model["name"] for model in self.models]
        found = []
        for _, group in groupby(self.scores, key=lambda score: (score.suite, score.data)):
            of_set = {score.model: score for score in group}
            first = of_set[names[0]]
            measure = next(iter(first.measures))
            for name in names[1:]:
                difference = of_set[name].measures[measure] - first.measures[measure]
                where = {"suite": first.suite, "data": first.data, "measure": measure}
                found.append({**where, "model": name, "minus": names[0], **with_interval(difference, "difference")})
        return found


def evaluate(
    candidates: Sequence[Candidate], sets: Sequence[EvaluationSet], reporter: Reporter, *, batch_size: int = 64
) -> Evaluation:
    """Measure encoders, and what no encoder is needed for beside them, on sets of data.

    Args:
        candidates: the encoders; no two have the same name.
        sets: what to evaluate on; no two of a suite have the same name.
        reporter: is told how far it is.
        batch_size: texts a batch; changes speed only.

    Raises:
        ModelError: a model cannot be loaded, or gives no numbers.
    """
    from dino_pipeline.encoders import load_encoder

    columns, models = [baselines(sets)], []
    for candidate in candidates:
        model = load_encoder(candidate.path, candidate.revision)
        models.append(_identity(candidate, model))
        columns.append(scores_of(candidate.name, model, sets, reporter, batch_size))
    place = {(score.suite, score.data): at for at, score in enumerate(columns[-1])}
    return Evaluation(models, sorted(chain(*columns), key=lambda score: place[score.suite, score.data]))


def evaluate_run(
    run: Run,
    candidates: Sequence[Candidate],
    sets: Sequence[EvaluationSet],
    reporter: Reporter,
    *,
    batch_size: int = 64,
) -> tuple[dict[str, Any], bool]:
    """Return what a run's scores.json holds, and whether it was there, of these encoders and sets; else it is made."""
    sources = "+".join(
        [f"{each.suite}:{each.name}:{each.digest}:{json.dumps(dict(each.protocol))}" for each in sets]
        + [f"{each.name}:{model_fingerprint(each.path) or each.path}:{each.revision}" for each in candidates]
    )
    done = run.begin(Stage("evaluate", {}, outputs=[run.scores], sources=sources)) == "done"
    if done and (found := read_scores(run.scores)):  # and not damaged
        return found, True
    found = evaluate(candidates, sets, reporter, batch_size=batch_size).to_json()
    write_json(run.scores, found)
    run.finish("evaluate")
    return found, False


def scores_of(
    name: str, model: SentenceTransformer, sets: Sequence[EvaluationSet], reporter: Reporter, batch_size: int = 64
) -> list[Score]:
    """Measure a loaded encoder on each set, texts that sets have in common embedded once."""
    embedder = Embedder(name, model, batch_size, reporter)
    embedder.cache(text for each in sets for text in each.texts())
    return with_mean([Score.on(each, name, each.measure(embedder)) for each in sets])


def baselines(sets: Sequence[EvaluationSet]) -> list[Score]:
    """Return what is to be had without an encoder."""
    return with_mean([Score.on(each, *found) for each in sets if (found := each.baseline())])


def _identity(candidate: Candidate, model: SentenceTransformer) -> dict[str, Any]:
    backbone = model.transformers_model
    return {
        **asdict(candidate),
        "commit": getattr(backbone.config, "_commit_hash", None) if backbone is not None else None,
        "fingerprint": model_fingerprint(candidate.path),
        "dimension": model.get_embedding_dimension(),
        "max_length": model.max_seq_length,
    }
