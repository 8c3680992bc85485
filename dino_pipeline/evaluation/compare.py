"""Which objective learns most from given texts: trains one encoder by each, and puts the scores on one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from dino_pipeline.display import escape_markdown, markdown_table, visible
from dino_pipeline.encoder_options import OBJECTIVES, CompareOptions, EvaluateOptions, Hyperparameters
from dino_pipeline.errors import DataError, ModelError, first_line
from dino_pipeline.evaluation.evaluate import Candidate, baselines, evaluate_run, scores_of
from dino_pipeline.evaluation.suites import evaluation_sets
from dino_pipeline.evaluation.suites.suite import WORD_OVERLAP, EvaluationSet
from dino_pipeline.files import record_json, write_atomic, write_bytes
from dino_pipeline.models import POCKET, ModelRef, load_encoder
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for, table, table_html
from dino_pipeline.record_base import Record
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FinetuneRecord, TextsSettings
from dino_pipeline.training.finetune import finetune_run, folder_or_temporary
from dino_pipeline.training.job import TrainingJob, check_sentences
from dino_pipeline.training.objectives import get_objective, resolve_hyperparameters, rows_are_independent
from dino_pipeline.training.training_texts import TrainingTexts, training_texts

if TYPE_CHECKING:
    import pandas

UNTRAINED = "untrained"
"""Name of the row of the encoder as it is."""


class ComparisonRow(Record):
    """One objective, or a baseline, on the table. Correlations are Spearman x 100."""

    name: str
    learns_from: str
    rows: int = 0
    rows_seen: int = 0
    """Pairs, triplets or documents that training went through, repetitions counted."""
    seconds: float = 0.0
    """Time of training, on the mean over seeds."""
    scores: dict[str, tuple[float | None, ...]] | None = None
    """Correlations by set, one for each seed. None if the objective could not be trained."""
    remarks: tuple[str, ...] = ()

    def values(self, data: str) -> list[float]:
        """Return the correlations on a set, without seeds for which it is undefined."""
        return [value for value in (self.scores or {}).get(data, ()) if value is not None]

    def mean(self, data: str) -> float | None:
        """Return the mean over seeds on a set."""
        values = self.values(data)
        return fmean(values) if values else None


class Comparison(Record):
    """Objectives that were trained on the same texts and evaluated on the same sets, as compare.json holds them."""

    unit: str = "Spearman x 100"
    encoder: ModelRef
    texts: TextsSettings
    seeds: tuple[int, ...]
    training: dict[str, Hyperparameters]
    """Hyper-parameters by objective."""
    rows: tuple[ComparisonRow, ...]
    files: tuple[Path, ...] = Field(default=(), exclude=True)
    """The table as JSON and Markdown, and the chart. Empty if no folder was named."""

    @field_validator("encoder", mode="before")
    @classmethod
    def _of_last_version(cls, encoder: Any) -> Any:
        """Return the encoder of a file of the last version, which called its name ``encoder``."""
        if isinstance(encoder, dict) and "encoder" in encoder:
            return {"name": encoder["encoder"], **{key: encoder[key] for key in encoder if key != "encoder"}}
        return encoder

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Read compare.json.

        Raises:
            DataError: it is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise DataError(f"{path}: is damaged ({first_line(error)})", "run {compare()} again") from error

    @property
    def sets(self) -> list[str]:
        """Return the names of the evaluation sets."""
        return list(dict.fromkeys(name for row in self.rows for name in row.scores or ()))

    def lines(self) -> list[list[str]]:
        """Return the lines of the table, the header first."""
        sets = self.sets
        lines = [["objective", "learns from", "rows", "pairs seen", "seconds", *sets]]
        for row in self.rows:
            counts = [f"{row.rows}", f"{row.rows_seen}", f"{row.seconds:.1f}"] if row.rows else ["-", "-", "-"]
            scores = [_with_spread(row, data) for data in sets]
            lines.append([row.name + "*" * bool(row.remarks), row.learns_from, *counts, *scores])
        return lines

    def remarks(self) -> list[str]:
        """Return the lines below the table, which explain its asterisks."""
        return [f"* {row.name}: {'; '.join(row.remarks)}" for row in self.rows if row.remarks]

    def __repr__(self) -> str:
        header, *lines = self.lines()
        return "\n".join([table(header, lines), *self.remarks()])

    __str__ = __repr__

    def _repr_html_(self) -> str:
        header, *lines = self.lines()
        return table_html("; ".join([self.unit, *self.remarks()]), header, lines)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a pandas frame, with the mean over seeds for each set."""
        import pandas

        records = []
        for row in self.rows:
            record: dict[str, Any] = row.model_dump(exclude={"scores", "remarks"})
            record |= {data: row.mean(data) for data in self.sets}
            records.append(record | {"remarks": "; ".join(row.remarks)})
        return pandas.DataFrame(records)


@accepts(CompareOptions)
def compare(
    source: object, *, progress: bool | Callable[[Progress | str], object] | Reporter = True, **options: Any
) -> Comparison:
    """Train the same encoder by several objectives on the same texts, and evaluate it on the same sets.

    Each training is a run of its own in the folder ``run``, by default the folder ``compare`` of the run that the texts
    are from; of other texts, nothing is kept. Finished trainings are not done again. Hyper-parameters are for all
    objectives; those that are not given are each objective's own.

    Args:
        source: the texts, as `finetune` takes them.
        progress: show progress; a function is called with each `Progress` and each note.

    Raises:
        DinoError: an option, the texts, the encoder or a run does not allow the comparison.
    """
    chosen = CompareOptions.of(options)
    texts = training_texts(source, chosen)
    jobs = [_training_job(name, chosen, texts) for name in chosen.objectives or OBJECTIVES]
    check_sentences(jobs)
    encoder = jobs[0].encoder
    own = Run.of(source)
    to_keep = chosen.run or (own.comparison if own else None)
    with reporter_for(progress) as reporter, folder_or_temporary(to_keep) as folder:
        sets = _sets(chosen, own, reporter, of_pocket=encoder.name == POCKET)
        comparison = Comparison(
            encoder=encoder,
            texts=texts.settings(),
            seeds=tuple(_seeds(chosen)),
            training={job.objective.name: job.hyperparameters for job in jobs},
            rows=(*_baseline_rows(jobs[0], sets, reporter), *_trained_rows(jobs, chosen, sets, folder, reporter)),
        )
        files = _write(comparison, folder)
    return comparison.updated(files=files) if to_keep else comparison


def _sets(options: CompareOptions, own: Run | None, reporter: Reporter, *, of_pocket: bool) -> list[EvaluationSet]:
    """Return the sets of scored pairs to evaluate on."""
    suites = [*(["pairs"] if options.data else []), *([options.suite] if options.suite else [])]
    wanted = EvaluateOptions.of({"suite": tuple(suites), "data": options.data})
    return evaluation_sets(wanted, [own] if own else [], reporter, of_pocket=of_pocket)


def _training_job(name: str, options: CompareOptions, texts: TrainingTexts) -> TrainingJob:
    """Return the training by an objective with the first seed.

    Its hyper-parameters are those for all, as far as it has them, and those for it alone.
    """
    objective = get_objective(name)
    shared = options.hyperparameters
    if not (objective.caches_gradients or rows_are_independent(objective, objective.defaults)):
        shared.pop("mini_batch_size", None)
    if isinstance(objective.faithful, str):
        shared.pop("faithful", None)
    alone, own = options.for_objective(name)
    hyperparameters = resolve_hyperparameters(objective, {**shared, **alone}, own)
    return TrainingJob.of(objective, hyperparameters, options, texts, options.seed)


def _seeds(options: CompareOptions) -> range:
    """Return the seeds of the trainings of each objective."""
    return range(options.seed, options.seed + options.seeds)


def _baseline_rows(job: TrainingJob, sets: Sequence[EvaluationSet], reporter: Reporter) -> list[ComparisonRow]:
    """Return the rows of word overlap and of the encoder as it is."""
    encoder = job.encoder
    untrained = job.start()[0] if encoder.static else load_encoder(encoder.path("encoder"), encoder.revision)
    scores = {WORD_OVERLAP: baselines(sets), UNTRAINED: scores_of(UNTRAINED, untrained, sets, reporter)}
    rows = []
    for name, of_name in scores.items():
        values = {score.data: (score.measures["spearman"].value,) for score in of_name}
        rows.append(ComparisonRow(name=name, learns_from="-", scores=values))
    return rows


def _trained_rows(
    jobs: Sequence[TrainingJob],
    options: CompareOptions,
    sets: Sequence[EvaluationSet],
    folder: Path,
    reporter: Reporter,
) -> list[ComparisonRow]:
    """Train and evaluate each objective with each seed.

    If the user named no objectives, those that the texts or the encoder do not suit are left out with a note.
    """
    rows = []
    refused: Exception | None = None
    for job in jobs:
        objective = job.objective
        try:
            rows.append(_row(job, options, sets, folder, reporter))
        except (DataError, ModelError) as error:
            if options.objectives:
                raise
            reporter.note(f"{objective.name}: left out: {error.message}", error.remedy)
            rows.append(ComparisonRow(name=objective.name, learns_from=objective.needs, remarks=(error.message,)))
            refused = error
    if refused is not None and not any(row.rows for row in rows):
        raise refused
    return rows


def _row(
    job: TrainingJob, options: CompareOptions, sets: Sequence[EvaluationSet], folder: Path, reporter: Reporter
) -> ComparisonRow:
    """Train and evaluate an objective with each seed."""
    name = job.objective.name
    human = job.texts.select_on.label if job.texts.select_on else None
    records: list[FinetuneRecord] = []
    scores: dict[str, tuple[float | None, ...]] = {data.name: () for data in sets}
    for seed in _seeds(options):
        cell = Run(folder / name / f"seed-{seed}")
        with cell.locked():
            finetune_run(cell, replace(job, seed=seed), reporter, fresh=options.fresh)
            record = cell.record().finetune
            assert record is not None
            records.append(record)
            file, _ = evaluate_run(cell, [Candidate(name, str(cell.model), None, human)], sets, reporter)
        for score in file.scores:
            if score.model == name:
                scores[score.data] += (score.measures["spearman"].value,)
    collapsed = ["collapsed"] if any(record.collapsed for record in records) else []
    chosen = [f"chosen on human labels ({human})"] if human else []
    return ComparisonRow(
        name=name,
        learns_from=job.objective.needs,
        rows=records[0].train or 0,
        rows_seen=records[0].rows_seen or 0,
        seconds=fmean(record.seconds or 0.0 for record in records),
        scores=scores,
        remarks=(*collapsed, *chosen),
    )


def _with_spread(row: ComparisonRow, data: str) -> str:
    """Return mean and range over seeds, such as ``75.1 (74.8 .. 75.3)``."""
    values = row.values(data)
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{fmean(values):.1f}" + (f" ({low:.1f} .. {high:.1f})" if low < high else "")


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the table as JSON and Markdown and draw it; return the files."""
    path = folder / "compare"
    write_bytes(path.with_suffix(".json"), record_json(comparison))
    header, *body = comparison.lines()
    markdown = "\n\n".join([markdown_table(header, body), *map(escape_markdown, comparison.remarks())]) + "\n"
    write_bytes(path.with_suffix(".md"), markdown.encode())
    _draw(path.with_suffix(".svg"), comparison)
    return [path.with_suffix(suffix) for suffix in (".json", ".md", ".svg")]


def _draw(path: Path, comparison: Comparison) -> None:
    """Draw each objective's seeds and their mean, one panel per set, with lines for the baselines."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sets = comparison.sets
    trained = [row for row in comparison.rows if row.rows][::-1]
    with rc_context({"svg.hashsalt": "dino", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(4.5 * len(sets) + 1.5, 0.35 * len(trained) + 1.2), layout="constrained")
        panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for panel, data in zip(panels, sets, strict=True):
            for height, row in enumerate(trained):
                values = row.values(data)
                panel.barh(height, row.mean(data) or 0, color="#8fb4d9", height=0.6)
                panel.plot(values, [height] * len(values), "o", color="#1f4e79", markersize=4)
            for base, style in ((UNTRAINED, "--"), (WORD_OVERLAP, ":")):
                value = next((row.mean(data) for row in comparison.rows if row.name == base), None)
                if value is not None:
                    panel.axvline(value, color="#444444", linestyle=style, linewidth=1, label=base)
            panel.set_title(visible(data, 40))
            panel.set_xlabel(comparison.unit)
            panel.set_yticks(range(len(trained)), [visible(row.name, 40) for row in trained])
        panels[-1].legend(loc="lower right", fontsize=7)
        write_atomic(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
