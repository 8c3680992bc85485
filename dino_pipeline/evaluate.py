"""The evaluate stage: what encoders are worth, on suites of data, beside one another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from sentence_transformers import SentenceTransformer

from dino_pipeline.encoders import load_encoder
from dino_pipeline.errors import DataError
from dino_pipeline.measures import RESAMPLES, Sample, mean
from dino_pipeline.progress import Watch
from dino_pipeline.run import model_fingerprint, versions
from dino_pipeline.suites.base import Embedder, EvaluationSet, Measured
from dino_pipeline.suites.sts import SIZES

MEAN = "mean"
"""Name of the row that takes the seven STS sets together."""


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
class Score:
    """What one model, or a baseline, came to on one set; measures times 100."""

    suite: str
    data: str
    model: str
    size: int
    protocol: Mapping[str, str]
    digest: str
    measures: Measured

    def to_json(self) -> dict[str, Any]:
        """Return it as scores.json holds it."""
        measures = {name: _interval_json(each, "value") for name, each in self.measures.items()}
        return {**{key: value for key, value in vars(self).items() if key != "measures"}, "measures": measures}


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
                found.append({**where, "model": name, "minus": names[0], **_interval_json(difference, "difference")})
        return found


def _interval_json(sample: Sample, name: str) -> dict[str, float | None]:
    low, high = sample.interval or (None, None)
    return {name: sample.value, "low": low, "high": high}


def evaluate(
    candidates: Sequence[Candidate], sets: Sequence[EvaluationSet], watch: Watch, *, batch_size: int = 64
) -> Evaluation:
    """Measure encoders, and what no encoder is needed for beside them, on sets of data.

    Args:
        candidates: the encoders; no two have the same name.
        sets: what to evaluate on; no two of a suite have the same name.
        watch: is told how far it is.
        batch_size: texts a batch; changes speed only.

    Raises:
        DataError: two sets, or a set and itself, cannot be told apart.
        ModelError: a model cannot be loaded, or gives no numbers.
    """
    names = [(each.suite, each.name) for each in sets]
    if twice := [name for at, (_, name) in enumerate(names) if names[at] in names[:at]]:
        raise DataError(f"{twice[0]}: is there twice; a set counts once")
    columns, models = [baselines(sets)], []
    for candidate in candidates:
        model = load_encoder(candidate.path, candidate.revision)
        models.append(_identity(candidate, model))
        columns.append(scores_of(candidate.name, model, sets, watch, batch_size))
    by_set = [
        score
        for row in columns[-1]
        for column in columns
        for score in column
        if (score.suite, score.data) == (row.suite, row.data)
    ]
    return Evaluation(models, by_set)


def scores_of(
    name: str, model: SentenceTransformer, sets: Sequence[EvaluationSet], watch: Watch, batch_size: int = 64
) -> list[Score]:
    """Measure a loaded encoder on each set, texts that sets have in common embedded once."""
    embedder = Embedder(name, model, batch_size, watch)
    embedder.learn(text for each in sets for text in each.texts())
    return with_mean([_score(each, name, each.measure(embedder)) for each in sets])


def baselines(sets: Sequence[EvaluationSet]) -> list[Score]:
    """Return what is to be had without an encoder."""
    return with_mean([_score(each, *found) for each in sets if (found := each.baseline())])


def _score(of: EvaluationSet, model: str, measures: Measured) -> Score:
    return Score(of.suite, of.name, model, of.size, dict(of.protocol), of.digest, measures)


def with_mean(scores: Sequence[Score]) -> list[Score]:
    """Add, behind the STS sets of one model, the mean of the seven if all are there."""
    sts = [score for score in scores if score.suite == "sts"]
    if {score.data for score in sts} != set(SIZES):
        return list(scores)
    measures = {name: mean([score.measures[name] for score in sts]) for name in sts[0].measures}
    digest = hashlib.sha256("".join(score.digest for score in sts).encode()).hexdigest()[:16]
    size = sum(score.size for score in sts)
    together = Score("sts", MEAN, sts[0].model, size, _common([score.protocol for score in sts]), digest, measures)
    at = scores.index(sts[-1]) + 1
    return [*scores[:at], together, *scores[at:]]


def _common(protocols: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return protocols as one, each value that sets do not share spelt out."""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    values = {key: list(dict.fromkeys(each[key] for each in protocols if key in each)) for key in keys}
    return {key: " and ".join(found) for key, found in values.items()}


def _identity(candidate: Candidate, model: SentenceTransformer) -> dict[str, Any]:
    backbone = model.transformers_model
    return {
        **asdict(candidate),
        "commit": getattr(backbone.config, "_commit_hash", None) if backbone is not None else None,
        "fingerprint": model_fingerprint(candidate.path),
        "dimension": model.get_embedding_dimension(),
        "max_length": model.max_seq_length,
    }
