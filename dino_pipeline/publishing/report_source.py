"""What is a report made from: the records of a run, its texts in a database, and encoders to compare them with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from dino_pipeline.errors import PYTHON, DataError, RunError, Wording, first_line, worded
from dino_pipeline.evaluation.evaluate import Candidate
from dino_pipeline.examples import FIELDS, REASONS
from dino_pipeline.files import connect, json_rows, shard_files
from dino_pipeline.progress import Reporter
from dino_pipeline.record import RunRecord
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import EvaluateRecord, FilterRecord, FinetuneRecord, GenerateRecord, StageRecord
from dino_pipeline.text import as_number, plain_label

COLUMN_TYPES = {
    "text_a": "VARCHAR",
    "text_b": "VARCHAR",
    "label": "VARCHAR",
    "logprob": "DOUBLE",
    "margin": "DOUBLE",
    "input": "BIGINT",
    "sample": "BIGINT",
    "reason": "VARCHAR",
    "evidence": "VARCHAR",
}
"""The SQL type of each field of an example, and of a dropped one."""
assert tuple(COLUMN_TYPES) == (*FIELDS, *REASONS)
AnyRecord = TypeVar("AnyRecord", bound=StageRecord)

MOST_LABELS = 12
"""Labels that pictures and samples show: the most frequent ones."""
BINS = 24
MEMORY = "1GB"


class SectionMissing(Exception):  # noqa: N818
    """A section has nothing to show.

    Args:
        reason: why, shown as it is.
        remedy: a template of `errors.worded`, shown after the reason.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def worded(self, wording: Wording) -> str:
        """Return reason and remedy for one kind of caller."""
        return "; ".join(part for part in (self.reason, worded(self.remedy, wording)) if part)

    def __str__(self) -> str:
        return self.worded(PYTHON)

    __repr__ = __str__


@dataclass(frozen=True)
class Histogram:
    """The distribution of a value by label."""

    edges: Sequence[float]
    """Of the bins; one more than there are bins."""
    counts: dict[str, list[int]]
    """Values in each bin, by label."""


@dataclass(frozen=True)
class OpenedRun:
    """A run with its record and its task spec, each read once."""

    run: Run
    record: RunRecord
    spec: TaskSpec | None
    """None if the texts came from a file."""

    @classmethod
    @contextmanager
    def locked(cls, run: Run | Path | str) -> Iterator[OpenedRun]:
        """Hold a run's folder for this process, and read its record and its spec.

        Raises:
            RunError: the folder is not a run, its run.json is damaged, or another process holds it.
            SpecError: its spec.json is damaged.
        """
        found = Run.of(run)
        if found is None or not found.is_run:
            remedy = "give a run's folder; {run=FOLDER} makes a stage keep one"
            if isinstance(run, str | Path | Run):
                remedy = "name a folder that {generate()} or {filter()} wrote"
            raise RunError(f"{run.path if isinstance(run, Run) else run}: is not a run", remedy)
        with found.locked():
            spec = load_spec(found.spec) if found.spec.exists() else None
            yield cls(found, found.record(), spec)


@dataclass(frozen=True)
class ReportSource:
    """Everything that the sections of a report are made from."""

    run: Run
    record: RunRecord
    """As others may see it: without paths of this machine."""
    spec: TaskSpec | None
    texts: RunTexts
    candidates: Sequence[Candidate]
    """Encoders that show how similar the texts of each label are."""
    reporter: Reporter
    shows_dropped: bool = True
    """False keeps dropped texts out of the samples."""

    def generated(self) -> GenerateRecord:
        """Return the record of a finished generate stage."""
        return self._done(self.record.generate, "generate")

    def filtered(self) -> FilterRecord:
        """Return the record of a finished filter stage."""
        return self._done(self.record.filter, "filter")

    def finetuned(self) -> FinetuneRecord:
        """Return the record of a finished finetune stage."""
        return self._done(self.record.finetune, "finetune")

    def evaluated(self) -> EvaluateRecord:
        """Return the record of a finished evaluate stage."""
        return self._done(self.record.evaluate, "evaluate")

    def _done(self, record: AnyRecord | None, stage: str) -> AnyRecord:
        """Return the record of a stage.

        Raises:
            SectionMissing: the stage has not run, or has not ended.
        """
        if record is None or not record.is_done:
            raise SectionMissing("", f"{{{stage}()}} has not {'ended' if record else 'run'}")
        return record

    def kept(self) -> dict[str, int]:
        """Return the number of kept texts by label.

        Raises:
            SectionMissing: the filter kept nothing, or has not run.
        """
        if counts := self.texts.counts("kept"):
            return counts
        self.filtered()
        raise SectionMissing("the filter kept nothing")

    def labels(self, table: str = "kept") -> list[str]:
        """Return the labels that are shown, in order: the `MOST_LABELS` most frequent ones of a table."""
        counts = self.texts.counts(table)
        return in_order(sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS])


class RunTexts:
    """A run's texts as tables of a database: written, rejected, kept (train and dev), dropped, dev.

    Args:
        run: the run whose files are read.
        folder: for temporary files of the database.

    Raises:
        DataError: a file cannot be read.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.db = connect(folder / "report.duckdb", memory=MEMORY)
        files = {
            "written": shard_files(run.shards),
            "rejected": shard_files(run.rejected),
            "kept": [path for path in (run.train, run.dev) if path.exists()],
            "dev": [run.dev] if run.dev.exists() else [],
            "dropped": [run.dropped] if run.dropped.exists() else [],
        }
        self.filled = {name for name, paths in files.items() if any(path.stat().st_size for path in paths)}
        for name, paths in files.items():
            self._load(name, paths if name in self.filled else [])

    def _load(self, name: str, paths: Sequence[Path]) -> None:
        columns = ", ".join(f"{field} {kind}" for field, kind in COLUMN_TYPES.items())
        self.db.execute(f"CREATE TABLE {name} ({columns})")
        if not paths:
            return
        try:
            self.db.execute(f"INSERT INTO {name} FROM {json_rows(paths, COLUMN_TYPES)}")
        except duckdb.Error as error:
            names = ", ".join(map(str, paths))
            raise DataError(f"{names}: cannot be read ({first_line(error)})", "make it again") from error

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self.db.execute(sql).fetchall()

    def counts(self, table: str) -> dict[str, int]:
        """Return the number of a table's rows by label, in the order of labels."""
        counts: Counter[str] = Counter()
        for label, count in self.rows(f"SELECT label, count(*) FROM {table} GROUP BY 1"):
            counts[label_name(label)] += count
        return {label: counts[label] for label in in_order(counts)}

    @cached_property
    def paired(self) -> bool:
        """Return True if the texts are pairs."""
        return any(self.rows(f"SELECT count(text_b) FROM {table}")[0][0] for table in ("kept", "written"))

    def histogram(self, table: str, value: str, labels: Sequence[str]) -> Histogram | None:
        """Return the distribution of an SQL expression by label, in bins of equal width.

        The bins span the middle 99 % of all values; the outer bins count the values beyond them. Return None if all
        values are the same, or if there are none.
        """
        bounds = f"quantile_cont({value}, 0.005), quantile_cont({value}, 0.995)"
        low, high = self.rows(f"SELECT {bounds} FROM {table} WHERE {value} IS NOT NULL")[0]
        if low is None or high <= low:
            return None
        width = (high - low) / BINS
        position = f"greatest(0, least({BINS - 1}, floor(({value} - {low}) / {width})))::INTEGER"
        counts: dict[str, list[int]] = {}
        for label, position_, count in self.rows(
            f"SELECT label, {position}, count(*) FROM {table} WHERE {value} IS NOT NULL GROUP BY 1, 2"
        ):
            counts.setdefault(label_name(label), [0] * BINS)[position_] += count
        edges = [low + edge * width for edge in range(BINS + 1)]
        return Histogram(edges, {label: counts[label] for label in labels if label in counts})

    def quantiles(self, table: str, value: str) -> dict[str, list[float]]:
        """Return the count and the 5th, 50th and 95th percentile of an SQL expression, by label."""
        sql = f"SELECT label, count({value}), quantile_cont({value}, [0.05, 0.5, 0.95]) FROM {table} GROUP BY 1"
        by_label = {label_name(label): [count, *cuts] for label, count, cuts in self.rows(sql) if cuts}
        return {label: by_label[label] for label in in_order(by_label)}

    def sample(
        self, table: str, fields: str, count: int, by: str = "label", most: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Return up to ``count`` rows for each value of ``by``, and up to ``most`` in all.

        The choice looks random, and is the same whenever the table holds the same rows.
        """
        order = "md5(concat_ws(chr(0), text_a, text_b, label)), input, sample, logprob, margin"
        return self.rows(
            f"SELECT {fields} FROM {table} QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {order}) <= {count} "
            f"ORDER BY {by}, {order} LIMIT {'ALL' if most is None else most}"
        )


def label_name(label: str | None) -> str:
    """Return a label as tables show it: ``1.0`` is 1."""
    return plain_label(label) if label else "(empty)"


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels in order: numbers by size, then names by letter."""
    return sorted(labels, key=lambda label: (as_number(label) is None, as_number(label) or 0.0, label))
