"""Rules about examples beside one another, as set operations in DuckDB: larger than memory, whatever the threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from numpy.typing import NDArray

from dino_pipeline.errors import OptionError, OutputError, first_line
from dino_pipeline.filtering.funnel import MOST_COLUMNS, Counts, Label, by_tenths
from dino_pipeline.sql import connect, parquet_rows, quoted

BATCH = 4096
DROPS = pa.schema({"id": pa.int64(), "evidence": pa.string(), "duplicate_of": pa.int64()})
"""Rows that a rule drops, why, and because of which row."""


class Table:
    """The examples of one dataset, in a DuckDB file.

    ``plain`` holds them as records, ``keys`` what rules look at, ``drops`` which rows went and why, ``alive`` the keys
    of the others. A row's id is its place in an order that depends on nothing but the rows: input, sample, and a hash.
    """

    def __init__(self, file: Path, threads: int, memory: str) -> None:
        """Open an empty database that spills beside its file.

        Raises:
            OptionError: the memory is no amount of memory.
        """
        self.file = file
        try:
            self.db = connect(file, memory=memory, threads=threads, spill=file.parent / "spilled")
        except (duckdb.ParserException, duckdb.InvalidInputException) as error:
            raise OptionError(f"--memory {memory}: {first_line(error)}; write, say, 2GB") from error
        self.labels: list[Label] = []
        self.scored = True
        self.size = 0

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            told = first_line(error)
            raise OutputError(
                f"{self.file}: {told}; make room on the disk, or raise --memory, and run again"
            ) from error

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Carry out a statement and return its rows."""
        with self._errors():
            return self.db.execute(sql, values).fetchall()

    def value(self, sql: str, *values: Any) -> Any:
        """Return the one value that a query gives."""
        return self.run(sql, *values)[0][0]

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        return bool(self.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", table))

    def stream(self, sql: str) -> Iterator[dict[str, list[Any]]]:
        """Yield a query's rows in batches of columns; no other statement may run meanwhile."""
        with self._errors():
            for found in self.db.sql(sql).to_arrow_reader(BATCH):
                yield found.to_pydict()

    def columns(self, sql: str) -> dict[str, NDArray[Any]]:
        """Return a query's columns."""
        with self._errors():
            return self.db.sql(sql).fetchnumpy()

    def store(self, table: str, rows: pa.Table) -> None:
        """Make a temporary table of these rows, in place of one of this name."""
        self._from_arrow(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM arrow_rows", rows)

    def insert(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table."""
        self._from_arrow(f"INSERT INTO {table} SELECT * FROM arrow_rows", rows)

    def _from_arrow(self, statement: str, rows: pa.Table) -> None:
        self.db.register("arrow_rows", rows)
        self.run(statement)
        self.db.unregister("arrow_rows")

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()

    def load(self, files: Sequence[Path]) -> None:
        """Look at the examples in Parquet files of `ingest.SCHEMA`, in any order, as ``rows``."""
        self.run(f"CREATE VIEW rows AS SELECT * FROM {parquet_rows(files)}")

    def index(self) -> None:
        """Make ``keys``, ``plain``, ``drops`` and ``alive``; all labels must be of one kind."""
        self.scored = self.value("SELECT count(score) > 0 FROM rows")
        label = "score" if self.scored else '"class"'
        self.run(f"""
            CREATE TABLE labels AS
            SELECT row_number() OVER (ORDER BY v) - 1 AS label, v FROM (SELECT DISTINCT {label} AS v FROM rows)
        """)
        self.labels = [value for (value,) in self.run("SELECT v FROM labels ORDER BY label")]
        # what a pair is known by; a similarity is one in both directions
        one, other = ("least(a, b)", "greatest(a, b)") if self.scored else ("a", "coalesce(b, 0)")
        self.run(f"""
            CREATE TABLE keys AS SELECT row_number() OVER () - 1 AS id, * FROM (
                SELECT
                    line, labels.label::INTEGER AS label, a, b, {one} AS one, {other} AS other,
                    rank, logprob, margin, hits
                FROM rows JOIN labels ON rows.{label} = labels.v
                ORDER BY input NULLS LAST, sample NULLS LAST, rank, margin NULLS LAST
            )
        """)
        self.run(f"""
            CREATE VIEW plain AS
            SELECT id, text_a, text_b, {label} AS label, rows.logprob, rows.margin, input, sample, reason, flag
            FROM keys JOIN rows USING (line)
        """)
        self.run("CREATE TABLE drops (id BIGINT, reason VARCHAR, evidence VARCHAR, duplicate_of BIGINT, step INTEGER)")
        self.run("CREATE VIEW alive AS SELECT * FROM keys ANTI JOIN drops USING (id)")

    def drop(self, reason: str, query: str) -> Counts:
        """Drop the rows that a query of `DROPS` finds, and count them."""
        step = self.value("SELECT coalesce(max(step), 0) + 1 FROM drops")
        self.run(f"INSERT INTO drops SELECT id, ?, evidence, duplicate_of, {step} FROM ({query})", reason)
        return self.count(f"SELECT id FROM drops WHERE step = {step}")

    def count(self, query: str) -> Counts:
        """Count by label the rows whose ``id`` a query finds."""
        return self.counts(f"keys SEMI JOIN ({query}) AS found USING (id)")

    def counts(self, rows: str) -> Counts:
        """Count the rows of a table by label."""
        return self.by_label(self.run(f"SELECT label, count(*) FROM {rows} GROUP BY label"))

    def by_label(self, counts: Iterable[tuple[int, int]]) -> Counts:
        """Return counts under the labels themselves, in order."""
        return by_tenths({self.labels[label]: count for label, count in counts}, self.scale)

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest score: 0 and 1, unless a label lies outside."""
        values = [float(label) for label in self.labels] if self.scored else []
        return (min(0.0, *values), max(1.0, *values)) if len(values) > 1 else (0.0, 1.0)

    @property
    def unrelated(self) -> float:
        """The score of texts that have nothing to do with each other."""
        low, high = self.scale
        return 0.0 if (low, high) == (0.0, 1.0) else float(self.labels[0])

    @property
    def graded(self) -> bool:
        """Whether labels are scores of many grades, such as people's, rather than a spec's few."""
        return self.scored and len(self.labels) > MOST_COLUMNS

    def drops_by_reason(self, names: Sequence[str]) -> dict[str, Counts]:
        """Count the drops by reason and label; first those named, in this order, then others by name."""
        found: dict[str, Counter[Label]] = {name: Counter() for name in names}
        for reason, label, count in self.run(
            "SELECT reason, label, count(*) FROM drops JOIN keys USING (id) GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(reason, Counter())[self.labels[label]] += count
        return {reason: dict(counts) for reason, counts in found.items()}

    def write_jsonl(self, query: str, path: Path) -> None:
        """Write a query's rows as JSON objects, one a line."""
        self.run(f"COPY ({query}) TO {quoted(path)} (FORMAT json)")


def duplicates(rows: str) -> str:
    """Find rows whose texts and label an earlier row has."""
    return f"""
        SELECT id, NULL AS evidence, first AS duplicate_of
        FROM {rows} JOIN (
            SELECT one, other, label, min(id) AS first FROM {rows} GROUP BY ALL HAVING count(*) > 1
        ) USING (one, other, label)
        WHERE id <> first
    """


def conflicts(rows: str) -> str:
    """Find rows whose texts stand under another label, too."""
    return f"""
        WITH torn AS (SELECT one, other FROM {rows} GROUP BY one, other HAVING min(label) <> max(label)),
        every AS (
            SELECT id, v::VARCHAR AS v, one, other
            FROM {rows} SEMI JOIN torn USING (one, other) JOIN labels USING (label)
        )
        SELECT
            id,
            'under ' || string_agg(DISTINCT v, ' and ' ORDER BY v) OVER (PARTITION BY one, other) AS evidence,
            NULL AS duplicate_of
        FROM every
    """


def beyond_cap(rows: str, most: int) -> str:
    """Find rows that come after ``most`` others of the same text_a and label."""
    return f"""
        SELECT id, NULL AS evidence, NULL AS duplicate_of
        FROM {rows} SEMI JOIN (SELECT a, label FROM {rows} GROUP BY ALL HAVING count(*) > {most}) USING (a, label)
        QUALIFY row_number() OVER (PARTITION BY a, label ORDER BY id) > {most}
    """


def surplus(rows: str, most: str) -> str:
    """Find rows beyond ``most`` (a number or a query) of their label; who goes is drawn by the row's hash."""
    return f"""
        SELECT id, NULL AS evidence, NULL AS duplicate_of FROM {rows}
        QUALIFY row_number() OVER (PARTITION BY label ORDER BY rank, id) > ({most})
    """


def smallest(rows: str) -> str:
    """Count the rarest label."""
    return f"SELECT min(count) FROM (SELECT count(*) AS count FROM {rows} GROUP BY label)"


def below(rows: str, column: str, limits: Mapping[int, tuple[float, bool]]) -> str:
    """Find rows under a limit of a column; rows without a value stay.

    Args:
        rows: a table.
        column: ``margin`` or ``logprob``.
        limits: by label; a number, and whether it is the share of the label's rows to find, lowest first.
    """
    nobody = "SELECT NULL::BIGINT AS id, NULL AS evidence, NULL AS duplicate_of WHERE false"
    parts = [
        f"""
        SELECT id, '{column} ' || printf('%.3f', {column}) AS evidence, NULL AS duplicate_of
        FROM {rows} WHERE label = {label} AND {column} IS NOT NULL
        """
        + (
            f"QUALIFY row_number() OVER (ORDER BY {column}, rank, id) <= {limit!r} * count(*) OVER ()"
            if relative
            else f"AND {column} < {limit!r}"
        )
        for label, (limit, relative) in limits.items()
    ]
    return " UNION ALL ".join([nobody, *(f"({part})" for part in parts)])


def unconfirmed(rows: str, least: float) -> str:
    """Find rows whose own label is not the likeliest in ``scores`` by at least so much, in nats a token."""
    return f"""
        WITH known AS (SELECT id, k.label = s.label AS is_own, s.logprob, v FROM {rows} AS k
            JOIN scores AS s USING (id) JOIN labels ON labels.label = s.label),
        compared AS (
            SELECT
                id, max(logprob) FILTER (is_own) AS own, max(logprob) FILTER (NOT is_own) AS other,
                arg_max(v::VARCHAR, logprob) FILTER (NOT is_own) AS best
            FROM known GROUP BY id
        )
        SELECT id, printf('own label %.3f, label %s %.3f', own, best, other) AS evidence, NULL AS duplicate_of
        FROM compared WHERE own - other < {least!r} OR own <= other
    """
