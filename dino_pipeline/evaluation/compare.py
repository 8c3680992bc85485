"""Trains one encoder by every objective on the same texts, several seeds each, and puts the scores on one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sentence_transformers import SentenceTransformer

from dino_pipeline.errors import DataError, ModelError, first_line
from dino_pipeline.evaluation.candidates import Candidate
from dino_pipeline.evaluation.evaluate import baselines, evaluate_run, scores_of
from dino_pipeline.evaluation.suites.pairs import WORD_OVERLAP
from dino_pipeline.evaluation.suites.suite import EvaluationSet, Score
from dino_pipeline.files import write_atomic, write_bytes, write_json
from dino_pipeline.finetune_options import Hyperparameters
from dino_pipeline.progress import Reporter
from dino_pipeline.run import Run
from dino_pipeline.training.finetune import finetune_run
from dino_pipeline.training.objective import Objective
from dino_pipeline.training.training_texts import TrainingTexts

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    folder: Path
    objectives: Sequence[tuple[Objective, Hyperparameters]]
    seeds: Sequence[int]
    encoder: Mapping[str, Any]
    """What identifies the encoder that each training starts from."""
    load: Callable[[Hyperparameters | None], SentenceTransformer]
    """Loads the encoder for a training, or as it is untrained."""
    texts: TrainingTexts
    sets: Sequence[EvaluationSet]
    """Of scored pairs."""


@dataclass(frozen=True)
class Row:
    """An objective on the table; correlations are Spearman x 100."""

    name: str
    learns_from: str
    rows: int = 0
    rows_seen: int = 0
    """Pairs, triplets or documents that training went through, repetitions counted."""
    seconds: float = 0.0
    """Of training, on the mean over seeds."""
    scores: Mapping[str, Sequence[float | None]] | None = None
    """By set, one of each seed; None where it could not be trained."""
    remarks: Sequence[str] = ()

    def values(self, name: str) -> list[float]:
        """Return what the seeds came to on a set."""
        return [value for value in (self.scores or {}).get(name, ()) if value is not None]

    def mean(self, name: str) -> float | None:
        """Return the mean over seeds on a set."""
        found = self.values(name)
        return fmean(found) if found else None


def compare(plan: Plan, reporter: Reporter, *, lenient: bool, fresh: bool = False) -> list[Row]:
    """Train and evaluate each objective with each seed, but for what is finished already, and return the table.

    Args:
        plan: what is compared.
        reporter: is told how far it is.
        lenient: an objective that the texts or the encoder do not suit is said and left out.
        fresh: start over.

    Raises:
        DataError: the texts do not suit an objective.
        ModelError: the encoder does not.
        RunError: a cell was begun with other options.
    """
    untrained = plan.load(None)
    rows = [
        Row(WORD_OVERLAP, "-", scores=_spearman(baselines(plan.sets))),
        Row(UNTRAINED, "-", scores=_spearman(scores_of(UNTRAINED, untrained, plan.sets, reporter))),
    ]
    for objective, training in plan.objectives:
        try:
            rows.append(_row(plan, objective, training, reporter, fresh))
        except (DataError, ModelError) as error:
            if not lenient:
                raise
            reporter.note(f"{objective.name}: left out: {error}")
            rows.append(Row(objective.name, objective.needs, remarks=(first_line(error),)))
            refused = error
    if not any(row.rows for row in rows):
        raise refused
    return rows


def _row(plan: Plan, objective: Objective, training: Hyperparameters, reporter: Reporter, fresh: bool) -> Row:
    human = plan.texts.select_on.label if plan.texts.select_on else None
    records, scores = [], []
    for seed in plan.seeds:
        cell = Run(plan.folder / objective.name / f"seed-{seed}")
        with cell.locked():
            finetune_run(
                cell,
                objective,
                training,
                encoder=dict(plan.encoder),
                load=lambda: plan.load(training),
                texts=plan.texts,
                reporter=reporter,
                seed=seed,
                fresh=fresh,
            )
            scores.append(_cell_scores(cell, Candidate(objective.name, str(cell.model), None, human), plan, reporter))
            records.append(cell.stage("finetune"))
    remarks = ["collapsed"] if any(record["collapsed"] for record in records) else []
    if human:
        remarks.append(f"chosen on human labels ({human})")
    return Row(
        objective.name,
        objective.needs,
        rows=records[0]["train"],
        rows_seen=records[0]["rows_seen"],
        seconds=fmean(record["seconds"] for record in records),
        scores={each.name: [found[each.name] for found in scores] for each in plan.sets},
        remarks=tuple(remarks),
    )


def _cell_scores(cell: Run, trained: Candidate, plan: Plan, reporter: Reporter) -> dict[str, float | None]:
    """Return a trained cell's Spearman x 100 by set."""
    found, _ = evaluate_run(cell, [trained], plan.sets, reporter)
    own = [score for score in found.scores if score.model == trained.name]
    return {score.data: score.measures["spearman"].value for score in own}


def _spearman(scores: Sequence[Score]) -> dict[str, list[float | None]]:
    return {each.data: [each.measures["spearman"].value] for each in scores}


def as_table(rows: Sequence[Row], sets: Sequence[str]) -> list[list[str]]:
    """Return the table's lines, the header first."""
    header = ["objective", "learns from", "rows", "pairs seen", "seconds", *sets]
    lines = [header]
    for row in rows:
        counts = [f"{row.rows}", f"{row.rows_seen}", f"{row.seconds:.1f}"] if row.rows else ["-", "-", "-"]
        shown = [_with_spread(row, name) for name in sets]
        lines.append([row.name + "*" * bool(row.remarks), row.learns_from, *counts, *shown])
    return lines


def _with_spread(row: Row, name: str) -> str:
    found = row.values(name)
    if not found:
        return "-"
    low, high = min(found), max(found)
    return f"{fmean(found):.1f}" + (f" ({low:.1f} .. {high:.1f})" if low < high else "")


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what is to be said below the table."""
    return [f"* {row.name}: {'; '.join(row.remarks)}" for row in rows if row.remarks]


def write_comparison(plan: Plan, rows: Sequence[Row]) -> list[Path]:
    """Write the table as JSON and Markdown and draw it; return the files."""
    sets = [each.name for each in plan.sets]
    path = plan.folder / "compare"
    found = {
        "unit": "Spearman x 100",
        "encoder": dict(plan.encoder),
        "texts": plan.texts.options(),
        "seeds": list(plan.seeds),
        "training": {objective.name: asdict(training) for objective, training in plan.objectives},
        "rows": [asdict(row) for row in rows],
    }
    write_json(path.with_suffix(".json"), found)
    _write_markdown(path.with_suffix(".md"), as_table(rows, sets), remarks(rows))
    draw(path.with_suffix(".svg"), rows, sets)
    return [path.with_suffix(suffix) for suffix in (".json", ".md", ".svg")]


def _write_markdown(path: Path, lines: Sequence[Sequence[str]], below: Sequence[str]) -> None:
    header, *body = [f"| {' | '.join(line)} |" for line in lines]
    text = "\n".join([header, "|" + "---|" * len(lines[0]), *body, "", *below]).rstrip() + "\n"
    write_bytes(path, text.encode())


def draw(path: Path, rows: Sequence[Row], sets: Sequence[str]) -> None:
    """Draw each objective's seeds and their mean, a panel a set, beside the untrained encoder."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    trained = [row for row in rows if row.rows][::-1]
    with rc_context({"svg.hashsalt": "dino", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.5 * len(sets) + 1.5, 0.35 * len(trained) + 1.2), layout="constrained")
        panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, sets, strict=True):
            for height, row in enumerate(trained):
                values = row.values(name)
                panel.barh(height, row.mean(name) or 0, color="#8fb4d9", height=0.6)
                panel.plot(values, [height] * len(values), "o", color="#1f4e79", markersize=4)
            for base, style in ((UNTRAINED, "--"), (WORD_OVERLAP, ":")):
                value = next((row.mean(name) for row in rows if row.name == base), None)
                if value is not None:
                    panel.axvline(value, color="#444444", linestyle=style, linewidth=1, label=base)
            panel.set_title(name)
            panel.set_xlabel("Spearman x 100")
            panel.set_yticks(range(len(trained)), [row.name for row in trained])
        panels[-1].legend(loc="lower right", fontsize=7)
        write_atomic(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
