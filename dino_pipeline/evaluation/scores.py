"""scores.json as types, and the tables that show scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from dino_pipeline.errors import DataError, OptionError, system_reason
from dino_pipeline.evaluation.suites.sts import MEAN, OTHER_TEXTS, PUBLISHED, SIZES, usual_size
from dino_pipeline.measures import RESAMPLES, measure_title
from dino_pipeline.progress import table, table_html
from dino_pipeline.record_base import Record
from dino_pipeline.rows import RowsRead

if TYPE_CHECKING:
    import pandas

COLUMNS = ("data", "model", "size", "measure", "value", "95 % interval", "protocol")
"""Header of `score_rows`."""
MARK = "†"
"""Marks a column that is not comparable with the others."""


class Figure(Record):
    """The value of a measure and its 95 % interval, times 100. None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class ScoreRow(Record):
    """The measures of one encoder, or of a baseline, on one set of data."""

    suite: str
    data: str
    """Name of the set."""
    model: str
    """Name of the encoder or of the baseline."""
    counted: str
    """Kind of the set's items: pairs, texts or queries."""
    size: int
    protocol: dict[str, str]
    """Settings that must be equal for two rows to be comparable."""
    digest: str
    """Hash of the data."""
    measures: dict[str, Figure] = Field(min_length=1)
    """By name; the first is the main measure."""

    @property
    def main(self) -> tuple[str, Figure]:
        """The name and the value of the main measure."""
        return next(iter(self.measures.items()))


class Difference(Record):
    """How far an encoder is from the first one on a set, by the main measure, with a paired 95 % interval."""

    suite: str
    data: str
    measure: str
    model: str
    minus: str
    """Name of the first encoder."""
    difference: float | None
    low: float | None
    high: float | None


class EvaluatedModel(Record):
    """An encoder that was evaluated."""

    name: str
    path: str | None
    """Folder or Hub id; None for an encoder that was in memory."""
    revision: str | None
    chosen_on_human_labels: str | None
    """Name of the human-labelled data that its checkpoint was chosen on, if any."""
    commit: str | None
    """Commit of a model from the Hub."""
    fingerprint: str | None
    """Hash of a local model's files."""
    dimension: int | None
    max_length: int | None


class ScoresFile(Record):
    """scores.json."""

    format: Literal[1] = 1
    unit: str = "x 100"
    interval: str = f"95 % percentile bootstrap over items, {RESAMPLES} resamples"
    versions: dict[str, str]
    models: tuple[EvaluatedModel, ...]
    scores: tuple[ScoreRow, ...]
    """Set by set, the baseline first."""
    differences: tuple[Difference, ...]
    rows_read: tuple[RowsRead, ...] = ()
    """What was read of the user's data."""

    @classmethod
    def read(cls, path: Path) -> ScoresFile:
        """Read a scores.json.

        Raises:
            DataError: it does not exist, is damaged, or is of another version.
        """
        remedy = "make it again with {evaluate()}"
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {system_reason(error)}", remedy) from error
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise DataError(f"{path}: holds no scores of this version ({place}: {problem['msg']})", remedy) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: holds no scores of this version (not JSON: {error})", remedy) from error

    def human_label_remarks(self) -> dict[str, str]:
        """Return a remark on each encoder whose checkpoint was chosen on human labels, by its name."""
        return {
            model.name: f"{model.name}: its checkpoint was chosen on human labels ({model.chosen_on_human_labels})"
            for model in self.models
            if model.chosen_on_human_labels
        }

    def score_rows(self) -> list[list[str]]:
        """Return each score by its main measure, as the cells of `COLUMNS`."""
        rows = []
        for score in self.scores:
            name, figure = score.main
            protocol = ", ".join(f"{key}: {value}" for key, value in score.protocol.items())
            cells = [score.data, score.model, str(score.size), measure_title(name)]
            rows.append([*cells, _shown(figure.value), interval_text(figure), protocol])
        return rows

    def difference_rows(self) -> list[list[str]]:
        """Return the cells of each difference: data, the two models, measure, difference, interval."""
        rows = []
        for row in self.differences:
            value = "-" if row.difference is None else f"{row.difference:+.2f}"
            models = f"{row.model} - {row.minus}"
            rows.append([row.data, models, measure_title(row.measure), value, interval_text(row)])
        return rows


def interval_text(figure: Figure | Difference) -> str:
    """Return an interval as tables show it."""
    return "-" if figure.low is None or figure.high is None else f"{figure.low:.2f} .. {figure.high:.2f}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


class Scores(Sequence[ScoreRow]):
    """The scores of encoders and baselines. As a string they are the tables of the command line.

    Args:
        file: the content of scores.json.
        path: where it is kept; None if it was not written.
        was_kept: whether it was there already and up to date.
        unlike_papers: the settings in which suite sts differs from published figures; None to leave those out.
    """

    def __init__(
        self,
        file: ScoresFile,
        *,
        path: Path | None = None,
        was_kept: bool = False,
        unlike_papers: Sequence[str] | None = None,
    ) -> None:
        self.file = file
        self.path = path
        self.was_kept = was_kept
        self.unlike_papers = unlike_papers

    @property
    def rows(self) -> tuple[ScoreRow, ...]:
        """One row for each set and model, the baseline of a set first."""
        return self.file.scores

    @property
    def differences(self) -> tuple[Difference, ...]:
        """For each set, the paired difference of each later encoder from the first."""
        return self.file.differences

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ScoreRow]:
        return iter(self.rows)

    def __getitem__(self, key: int | slice | str) -> ScoreRow | Sequence[ScoreRow] | float | None:  # type: ignore[override]
        """Return rows by position, or the value of a measure by its name, as `value` does."""
        return self.value(key) if isinstance(key, str) else self.rows[key]

    def value(self, measure: str, *, data: str | None = None, model: str | None = None) -> float | None:
        """Return the value of one measure, times 100.

        Args:
            measure: its name: ``pearson``, ``spearman``, ``accuracy``, ``ndcg@10`` ...
            data: name of the set; not needed if only one has the measure.
            model: name of the encoder or the baseline; not needed for the only encoder.

        Raises:
            OptionError: no row fits, or several do.
        """
        names = [model] if model else [encoder.name for encoder in self.file.models]
        rows = [row for row in self.rows if measure in row.measures and row.model in names]
        rows = [row for row in rows if data in (None, row.data)]
        if len(rows) == 1:
            return rows[0].measures[measure].value
        choices = "; ".join(f"data={row.data!r}, model={row.model!r}" for row in rows or self.rows)
        problem = f"{len(rows)} scores fit" if rows else "no score fits"
        raise OptionError(f"{problem} measure {measure!r}", f"name data and model: {choices}")

    def to_pandas(self) -> pandas.DataFrame:
        """Return the scores as a pandas frame, one row for each set, model and measure."""
        import pandas

        records = []
        for row in self.rows:
            for measure, figure in row.measures.items():
                identity = {"suite": row.suite, "data": row.data, "model": row.model, "size": row.size}
                records.append({**identity, "measure": measure, **figure.model_dump()})
        return pandas.DataFrame(records)

    def __repr__(self) -> str:
        """Return a table for each kind of data, the differences, remarks, and the published figures."""
        remarks = self.file.human_label_remarks()
        parts = []
        # Pairs of the pocket grammar share the table of other pairs.
        for suite, group in groupby(self.rows, key=lambda score: score.suite.replace("pocket", "pairs")):
            scores = list(group)
            parts += _sts_tables(scores, remarks) if suite == "sts" else [_set_table(scores, remarks)]
        if differences := self.file.difference_rows():
            parts.append(table(["data", "difference", "of", "", "95 % interval"], differences))
        parts += [f"* {remark}" for remark in remarks.values()]
        if self.unlike_papers:
            problems = "; ".join(self.unlike_papers)
            parts.append(f"Published figures are of another protocol and not shown: {problems}")
        elif self.unlike_papers is not None:
            rows = [[name, *map(_shown, values)] for name, values in PUBLISHED.items()]
            parts += [table(["published, Spearman x 100", *SIZES, MEAN], rows), OTHER_TEXTS]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        return table_html(f"scores, {self.file.unit}", COLUMNS, self.file.score_rows())


def _set_table(scores: Sequence[ScoreRow], remarked: Mapping[str, str]) -> str:
    """Return a line for each set and model. Protocol settings that differ have columns of their own."""
    values: dict[str, set[str | None]] = {}
    for key in chain.from_iterable(score.protocol for score in scores):
        values[key] = {score.protocol.get(key) for score in scores}
    differing = [key for key in values if len(values[key]) > 1]
    main, *others = scores[0].measures
    header = ["data", "model", scores[0].counted, *differing, measure_title(main), "95 % interval"]
    header += map(measure_title, others)
    rows = []
    for score in scores:
        first, *more = score.measures.values()
        model = score.model + "*" * (score.model in remarked)
        protocol = [score.protocol.get(key, "-") for key in differing]
        cells = [score.data, model, str(score.size), *protocol, _shown(first.value), interval_text(first)]
        rows.append(cells + [_shown(figure.value) for figure in more])
    return table(header, rows)


def _sts_tables(scores: Sequence[ScoreRow], remarked: Mapping[str, str]) -> list[str]:
    """Return a table for each correlation with a line for each model, as papers have it, and its remarks."""
    sets = list(dict.fromkeys(score.data for score in scores))
    models = list(dict.fromkeys(score.model for score in scores))
    by_place = {(score.data, score.model): score for score in scores}
    columns = [by_place[name, models[0]] for name in sets]
    marks = _sts_marks(columns)
    parts = []
    for measure in scores[0].measures:
        header = [measure_title(measure), *(name + MARK * (name in marks) for name in sets), "95 % of " + sets[-1]]
        rows = []
        for model in models:
            figures = [by_place[name, model].measures[measure] for name in sets]
            values = [_shown(figure.value) for figure in figures]
            rows.append([model + "*" * (model in remarked), *values, interval_text(figures[-1])])
        parts.append(table(header, rows))
    protocol = {**columns[-1].protocol, **columns[0].protocol}
    parts.append(", ".join(f"{key}: {value}" for key, value in protocol.items()))
    return parts + [f"{MARK} {name}: {remark}" for name, remark in marks.items()]


def _sts_marks(columns: Sequence[ScoreRow]) -> dict[str, str]:
    """Return, by set, the reason why a column is not comparable with the others or with papers' column of that name."""
    marks = {}
    texts = [score.protocol["text"] for score in columns if score.data != MEAN]
    usual_text = max(dict.fromkeys(texts), key=texts.count)
    for score in columns:
        if score.data == MEAN:
            continue
        reasons = []
        expected = usual_size(score.data, score.protocol)
        if score.size != expected:
            reasons.append(f"{score.size} pairs in place of {expected}")
        if score.protocol.get("sick") == "full":
            reasons.append("train and trial pairs too")
        if score.protocol["text"] != usual_text:
            reasons.append(f"text {score.protocol['text']}, the others {usual_text}")
        if reasons:
            marks[score.data] = ", ".join(reasons)
    if marks and columns[-1].data == MEAN:
        marks[MEAN] = f"of {', '.join(marks)} too"
    return marks
