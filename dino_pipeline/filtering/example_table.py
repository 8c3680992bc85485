"""Where the examples of one dataset are while they are filtered: tables in a DuckDB file, larger than memory.

====================  =================================================================================================
``rows``              the examples as `ingest` wrote them to Parquet files, in the order of the source
``keys``              for each row its ``id`` and what rules compare: hashes of texts, label number, scores
``examples``          the texts and fields of each id
``labels``            number and value of each label, in order
``drops``             dropped ids, with reason, evidence and the id that they repeat
``remaining``         the ``keys`` that are not dropped
====================  =================================================================================================

An id is the row's place in an order that depends on the rows alone: by input, sample, and a hash of the line. Smaller
ids are "earlier". The result is therefore the same for any order of files and any number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from numpy.typing import NDArray

from dino_pipeline.errors import OptionError, OutputError, first_line
from dino_pipeline.funnel import MAX_LABELS, Counts, by_tenths
from dino_pipeline.sql import connect, parquet_rows, quoted
from dino_pipeline.stage_records import Label

BATCH = 4096
"""Rows streamed at a time."""
DROPS = pa.schema({"id": pa.int64(), "evidence": pa.string(), "duplicate_of": pa.int64()})
"""Columns of a query that finds rows to drop: the row, evidence for it, and the row that it repeats."""


class ExampleTable:
    """The examples of one dataset, in a DuckDB file.

    Args:
        file: created here; data that does not fit into memory is spilled next to it.
        threads: of DuckDB.
        memory: that DuckDB may take before it spills, such as ``2GB``.

    Raises:
        OptionError: the memory is not an amount of memory.
    """

    def __init__(self, file: Path, threads: int, memory: str) -> None:
        self.file = file
        try:
            self.db = connect(file, memory=memory, threads=threads, spill=file.parent / "spilled")
        except (duckdb.ParserException, duckdb.InvalidInputException) as error:
            raise OptionError(f"{first_line(error)}; write, say, 2GB", option="memory", value=memory) from error
        self.labels: list[Label] = []
        """The value of each label number."""
        self.has_scores = True
        """Labels are numbers: similarities. Else they are names of classes."""
        self.size = 0

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise OutputError(
                f"{self.file}: {first_line(error)}", "make room on the disk, or raise {memory}, and run again"
            ) from error

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Carry out a statement and return its rows."""
        with self._errors():
            return self.db.execute(sql, values).fetchall()

    def value(self, sql: str, *values: Any) -> Any:
        """Return the single value of a query."""
        return self.run(sql, *values)[0][0]

    def has(self, table: str) -> bool:
        """Return whether there is a table of this name."""
        return bool(self.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", table))

    def stream(self, sql: str) -> Iterator[dict[str, list[Any]]]:
        """Yield a query's rows in batches, each as columns by name. Run no other statement meanwhile."""
        with self._errors():
            for batch in self.db.sql(sql).to_arrow_reader(BATCH):
                yield batch.to_pydict()

    def stream_rows(self, sql: str) -> Iterator[Any]:
        """Yield a query's rows. Run no other statement meanwhile."""
        for batch in self.stream(sql):
            yield from zip(*batch.values(), strict=True)

    def columns(self, sql: str) -> dict[str, NDArray[Any]]:
        """Return the columns of a query by name."""
        with self._errors():
            return self.db.sql(sql).fetchnumpy()

    def store(self, table: str, rows: pa.Table) -> None:
        """Make a temporary table of rows, replacing a table of this name."""
        self._from_arrow(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM arrow_rows", rows)

    def insert(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table."""
        self._from_arrow(f"INSERT INTO {table} SELECT * FROM arrow_rows", rows)

    def _from_arrow(self, statement: str, rows: pa.Table) -> None:
        self.db.register("arrow_rows", rows)
        self.run(statement)
        self.db.unregister("arrow_rows")

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def open_rows(self, files: Sequence[Path]) -> None:
        """Make the view ``rows`` of Parquet files of `ingest.SCHEMA`."""
        self.run(f"CREATE VIEW rows AS SELECT * FROM {parquet_rows(files)}")

    def index(self) -> None:
        """Make all other tables from ``rows``. All labels must be numbers, or all names."""
        self.has_scores = self.value("SELECT count(score) > 0 FROM rows")
        label = "score" if self.has_scores else '"class"'
        self.run(f"""
            CREATE TABLE labels AS
            SELECT row_number() OVER (ORDER BY value) - 1 AS label, value
            FROM (SELECT DISTINCT {label} AS value FROM rows)
        """)
        self.labels = [value for (value,) in self.run("SELECT value FROM labels ORDER BY label")]
        # Pairs with equal first_hash and second_hash are the same pair. A similarity is the same in both directions:
        # its hashes are sorted, so that (a, b) equals (b, a). Classes have a direction.
        if self.has_scores:
            first_hash, second_hash = "least(hash_a, hash_b)", "greatest(hash_a, hash_b)"
        else:
            first_hash, second_hash = "hash_a", "coalesce(hash_b, 0)"
        self.run(f"""
            CREATE TABLE keys AS SELECT row_number() OVER () - 1 AS id, * FROM (
                SELECT
                    line, labels.label::INTEGER AS label, hash_a, hash_b,
                    {first_hash} AS first_hash, {second_hash} AS second_hash,
                    random_rank, logprob, margin, broken_rules
                FROM rows JOIN labels ON rows.{label} = labels.value
                ORDER BY input NULLS LAST, sample NULLS LAST, random_rank, margin NULLS LAST
            )
        """)
        self.run(f"""
            CREATE VIEW examples AS
            SELECT
                id, text_a, text_b, {label} AS label, rows.logprob, rows.margin, input, sample, reason, personal_data
            FROM keys JOIN rows USING (line)
        """)
        self.run("CREATE TABLE drops (id BIGINT, reason VARCHAR, evidence VARCHAR, duplicate_of BIGINT, step INTEGER)")
        self.run("CREATE VIEW remaining AS SELECT * FROM keys ANTI JOIN drops USING (id)")

    def drop_by_example_rules(self) -> None:
        """Drop the rows that a rule about single examples objected to when they were read.

        The reason ``"too short: 'x'"`` becomes the reason ``too short`` and the evidence ``'x'``.
        """
        self.run("""
            INSERT INTO drops
            SELECT id, rule, nullif(substr(reason, length(rule) + 3), '') AS evidence, NULL AS duplicate_of, 0 AS step
            FROM (
                SELECT id, reason, split_part(reason, ': ', 1) AS rule FROM examples WHERE reason IS NOT NULL
            )
        """)

    def drop(self, reason: str, query: str) -> Counts:
        """Drop the rows that a query with the columns `DROPS` finds; return their number by label."""
        step = self.value("SELECT coalesce(max(step), 0) + 1 FROM drops")
        self.run(f"INSERT INTO drops SELECT id, ?, evidence, duplicate_of, {step} FROM ({query})", reason)
        return self.count(f"SELECT id FROM drops WHERE step = {step}")

    def count(self, query: str) -> Counts:
        """Return the number of rows by label whose ``id`` a query finds."""
        return self.counts(f"keys SEMI JOIN ({query}) AS chosen USING (id)")

    def counts(self, rows: str) -> Counts:
        """Return the number of a table's rows by label."""
        return self.by_label(self.run(f"SELECT label, count(*) FROM {rows} GROUP BY label"))

    def by_label(self, counts: Iterable[tuple[int, int]]) -> Counts:
        """Return counts by label value, in order, from counts by label number."""
        return by_tenths({self.labels[label]: count for label, count in counts}, self.scale)

    def drops_by_reason(self, names: Sequence[str]) -> dict[str, Counts]:
        """Return the number of drops by reason and label: the given reasons, in this order, then others by name."""
        by_reason: dict[str, Counter[Label]] = {name: Counter() for name in names}
        for reason, label, count in self.run(
            "SELECT reason, label, count(*) FROM drops JOIN keys USING (id) GROUP BY ALL ORDER BY ALL"
        ):
            by_reason.setdefault(reason, Counter())[self.labels[label]] += count
        return {reason: dict(counts) for reason, counts in by_reason.items()}

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest score: 0 and 1, unless a label lies outside."""
        values = [float(label) for label in self.labels] if self.has_scores else []
        return (min(0.0, *values), max(1.0, *values)) if len(values) > 1 else (0.0, 1.0)

    @property
    def unrelated(self) -> float:
        """The score of unrelated texts: 0, or the lowest label of a scale other than 0 to 1."""
        return 0.0 if self.scale == (0.0, 1.0) else float(self.labels[0])

    @property
    def has_graded_scores(self) -> bool:
        """Whether labels are scores of many grades, such as people give, rather than the few labels of a spec."""
        return self.has_scores and len(self.labels) > MAX_LABELS

    def write_jsonl(self, query: str, path: Path) -> None:
        """Write a query's rows as JSON objects, one a line."""
        self.run(f"COPY ({query}) TO {quoted(path)} (FORMAT json)")
