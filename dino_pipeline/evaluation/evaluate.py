"""The evaluate stage: score encoders, and baselines, on sets of data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_pipeline.encoder_check import check_limit
from dino_pipeline.encoder_options import STS_OPTIONS, EvaluateOptions
from dino_pipeline.errors import DataError, OptionError, stage_call
from dino_pipeline.evaluation.scores import Difference, EvaluatedModel, Figure, ScoreRow, Scores, ScoresFile
from dino_pipeline.evaluation.suites import evaluation_sets
from dino_pipeline.evaluation.suites.sts import unlike_papers, with_mean
from dino_pipeline.evaluation.suites.suite import Embedder, EvaluationSet, Score
from dino_pipeline.files import is_there, write_json
from dino_pipeline.measures import Measurement
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.models import POCKET, STATIC, ModelRef, load_encoder, max_length_of, model_path
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.record import versions
from dino_pipeline.run import Run
from dino_pipeline.stage_records import EvaluateRecord, FinetuneRecord

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
            ModelError: it cannot be loaded, or takes more tokens than it has positions for.
        """
        if self.model is None:
            return load_encoder(str(self.path), self.revision)
        check_limit(self.model, self.name)
        return self.model

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
            max_length=max_length_of(model),
        )

    @property
    def source(self) -> str:
        """Text that changes if the encoder does; run.json compares it."""
        return f"{self.name}:{model_fingerprint(str(self.path)) or self.path}:{self.revision}"


@accepts(EvaluateOptions)
def evaluate(
    *targets: str | Path | Run | SentenceTransformer,
    data: object = None,
    suite: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool | Callable[[Progress | str], object] | Reporter = True,
    **options: Any,
) -> Scores:
    """Score encoders on sets of data, with 95 % intervals, and paired differences from the first encoder.

    If one target is a run, none is in memory and no ``output`` is given, the scores are kept in the run's folder. They
    are computed again only if the encoders or the data have changed.

    Args:
        targets: runs (their encoder before and after training), encoders by folder or Hub id (``id@revision``), or
            `SentenceTransformer` objects.
        data: what to evaluate on: a file or folder (``"[SUITE=]PATH"``), a list of examples, a dataset or frame, a list
            of several of these, or a dict of them by name. By default the dev pairs of a run.
        suite: suites to evaluate on: ``sts``, ``probe``, ``retrieval``, ``pairs``, ``pocket``.
        output: file to write the scores to.
        progress: show progress; a function is called with each `Progress` and each note.

    Raises:
        RunError: the run cannot be read, or another process uses it.
        OptionError: an option is wrong, or there is nothing to evaluate.
        DataError: data is malformed.
        ModelError: an encoder cannot be loaded, or gives values that are not numbers.
    """
    chosen = EvaluateOptions.of({"data": data, "suite": suite, "output": output, **options})
    _refuse_sts_options(chosen)
    if chosen.column and not chosen.data:
        raise OptionError("says how data is read, and there is none", "add {data=FILE}", option="column")
    if not targets:
        raise OptionError("there is nothing to evaluate", "give a run, or encoders by folder or Hub id")
    if chosen.output:
        _check_output(chosen.output)
    runs = [run for target in targets if (run := Run.of(target))]
    candidates = _all_candidates(targets, only_run=len(runs) == 1)
    with reporter_for(progress) as reporter:
        sets = evaluation_sets(chosen, runs, reporter, of_pocket=any(map(_starts_from_pocket, runs)))
        differing = unlike_papers(sets) if chosen.published else None
        if chosen.output is None and len(runs) == 1 and all(candidate.path for candidate in candidates):
            with runs[0].locked():
                file, was_kept = evaluate_run(runs[0], candidates, sets, reporter, batch_size=chosen.batch_size)
            return Scores(file, path=runs[0].scores, was_kept=was_kept, unlike_papers=differing)
        file = score_candidates(candidates, sets, reporter, batch_size=chosen.batch_size)
    if chosen.output:
        write_json(chosen.output, file.model_dump(mode="json"))
    return Scores(file, path=chosen.output, unlike_papers=differing)


def _refuse_sts_options(options: EvaluateOptions) -> None:
    """Raise `OptionError` if an option of suite sts is given and the suite is not evaluated."""
    if "sts" in options.suite:
        return
    for name, value in options.given().items():
        if name in STS_OPTIONS:
            remedy = "leave it out, or add {suite=sts}"
            raise OptionError("has an effect with suite sts only", remedy, option=name, value=value)


def _check_output(path: Path) -> None:
    """Raise a `DinoError` if scores cannot be written to a file, or would replace something else."""
    if is_there(path):
        try:
            ScoresFile.read(path)
        except DataError as error:
            remedy = "move it, or choose another {output=FILE}"
            raise OptionError(f"{path}: exists and holds no scores of this version", remedy) from error
    if not os.access(path.parent, os.W_OK):
        raise OptionError(
            f"{path}: {path.parent} is not a folder that can be written to", "choose another {output=FILE}"
        )


def _starts_from_pocket(run: Run) -> bool:
    """Return whether a run's encoder was trained from the pocket encoder."""
    trained = run.record().finetune
    return trained is not None and trained.options.encoder.name == POCKET


def evaluate_run(
    run: Run,
    candidates: Sequence[Candidate],
    sets: Sequence[EvaluationSet],
    reporter: Reporter,
    *,
    batch_size: int = 64,
) -> tuple[ScoresFile, bool]:
    """Return a run's scores. They are computed and kept unless it holds those of these encoders on these sets.

    Returns:
        The scores, and whether they were there already.
    """
    sources = [f"{data.suite}:{data.name}:{data.digest}:{json.dumps(dict(data.protocol))}" for data in sets]
    sources += [candidate.source for candidate in candidates]
    record = EvaluateRecord(sources="+".join(sources))
    if run.begin(record, note=reporter.note) == "done":
        try:
            return ScoresFile.read(run.scores), True
        except DataError as error:
            reporter.note(f"{error.message}; it is made again")
    file = score_candidates(candidates, sets, reporter, batch_size=batch_size)
    write_json(run.scores, file.model_dump(mode="json"))
    run.finish(record)
    return file, False


def score_candidates(
    candidates: Sequence[Candidate], sets: Sequence[EvaluationSet], reporter: Reporter, *, batch_size: int = 64
) -> ScoresFile:
    """Score encoders and baselines on sets of data.

    There is at least one encoder. Their names must differ, and so must the sets' within a suite.

    Raises:
        ModelError: an encoder cannot be loaded, or gives values that are not numbers.
    """
    scores = baselines(sets)
    models = []
    for candidate in candidates:
        model = candidate.load()
        models.append(candidate.describe(model))
        last = scores_of(candidate.name, model, sets, reporter, batch_size)
        scores += last
    # sorted by set; baselines, which not every set has, come first. Every encoder has the same sets, so the last tells.
    place = {(score.suite, score.data): number for number, score in enumerate(last)}
    scores.sort(key=lambda score: place[score.suite, score.data])
    return ScoresFile(
        versions=versions(),
        models=tuple(models),
        scores=tuple(map(_score_row, scores)),
        differences=tuple(_differences(scores, [candidate.name for candidate in candidates])),
        rows_read=tuple(chain.from_iterable(data.rows_read for data in sets)),
    )


def scores_of(
    name: str, model: SentenceTransformer, sets: Sequence[EvaluationSet], reporter: Reporter, batch_size: int = 64
) -> list[Score]:
    """Return the scores of an encoder on each set. Texts that several sets share are embedded once."""
    embedder = Embedder(name, model, batch_size, reporter)
    embedder.cache(chain.from_iterable(data.texts() for data in sets))
    return with_mean([Score.on(data, name, data.measure(embedder)) for data in sets])


def baselines(sets: Sequence[EvaluationSet]) -> list[Score]:
    """Return the scores of the baselines, which need no encoder."""
    scores = []
    for data in sets:
        if baseline := data.baseline():
            name, measures = baseline
            scores.append(Score.on(data, name, measures))
    return with_mean(scores)


def _score_row(score: Score) -> ScoreRow:
    measures = {name: _figure(measurement) for name, measurement in score.measures.items()}
    return ScoreRow(**{**vars(score), "measures": measures})


def _figure(measurement: Measurement) -> Figure:
    low, high = measurement.interval or (None, None)
    return Figure(value=measurement.value, low=low, high=high)


def _differences(scores: Sequence[Score], names: Sequence[str]) -> list[Difference]:
    """Return the paired differences of later encoders from the first on each set, by the main measure.

    The scores of a set, baselines included, follow one another.
    """
    differences = []
    for _, group in groupby(scores, key=lambda score: (score.suite, score.data)):
        by_model = {score.model: score for score in group}
        first = by_model[names[0]]
        measure = next(iter(first.measures))  # the first one is the main one
        for name in names[1:]:
            figure = _figure(by_model[name].measures[measure] - first.measures[measure])
            where = {"suite": first.suite, "data": first.data, "measure": measure, "model": name, "minus": names[0]}
            differences.append(Difference(**where, difference=figure.value, low=figure.low, high=figure.high))
    return differences


# The encoders of targets


def _all_candidates(targets: Sequence[object], *, only_run: bool) -> list[Candidate]:
    """Return the encoders of targets, each once.

    Raises:
        OptionError: a target is not an encoder, a run has no trained encoder, or two encoders have one name.
    """
    candidates: dict[Candidate, None] = {}  # a set that keeps the order
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


def candidates_of(target: str | Path | Run, *, only_run: bool = True) -> list[Candidate]:
    """Return a run's encoder before and after training, or the one encoder of a folder or Hub id.

    Args:
        target: a run, or a model by folder or Hub id, which may have a revision: ``id@revision``.
        only_run: whether no other run is evaluated; else the run's name is part of its encoders' names.

    Raises:
        OptionError: the run has no trained encoder.
        RunError: the encoder is damaged.
    """
    run = Run.of(target)
    name = str(target.path if isinstance(target, Run) else target)
    if run is None:
        return [_named_model(name)]
    trained = run.record().finetune
    if trained is None or not trained.is_done:
        raise OptionError(f"{name}: holds no trained encoder", f"run {stage_call('finetune', name)} first")
    run.check(trained)
    encoder = trained.options.encoder
    shown = _public_name(encoder) if only_run else encoder.name
    student = f"{STATIC}{shown}" if encoder.static else shown
    finetuned = f"{student} finetuned" if only_run else f"{student} finetuned on {name.rstrip('/')}"
    return [
        Candidate(f"{shown} before", encoder.path("encoder"), encoder.revision),
        Candidate(finetuned, str(run.model), None, _human_labels(trained)),
    ]


def _named_model(target: str) -> Candidate:
    """Return the encoder of ``PATH`` or ``ID[@REVISION]``. Of ``RUN/model``, the run's record is read, too."""
    name, at, revision = target.rpartition("@")
    if not at or Path(target).exists():
        name, revision = target, ""
    path = model_path(name, "encoder")
    run = Run(Path(path).parent)
    trained = run.record().finetune if Path(path) == run.model else None
    run.check(trained)
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
