"""What a run's files hold, counted and drawn from in DuckDB, however many rows there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from dino_pipeline.errors import DataError, first_line
from dino_pipeline.files import shard_files
from dino_pipeline.report.blocks import Histogram
from dino_pipeline.run import Run
from dino_pipeline.sql import COLUMN_TYPES, connect, json_rows
from dino_pipeline.text import as_number, plain_label

BINS = 24
MEMORY = "1GB"


class TextsOfRun:
    """A run's texts: ``written`` by the generator, ``rejected``, ``kept`` (train and dev), ``dropped``, ``dev``."""

    def __init__(self, run: Run, folder: Path) -> None:
        """Read those of the files that are there.

        Args:
            run: whose files.
            folder: for what does not fit in memory.

        Raises:
            DataError: a file cannot be read.
        """
        self.db = connect(folder / "report.duckdb", memory=MEMORY)
        files = {
            "written": shard_files(run.shards),
            "rejected": shard_files(run.rejected),
            "kept": [path for path in (run.train, run.dev) if path.exists()],
            "dev": [run.dev] if run.dev.exists() else [],
            "dropped": [run.dropped] if run.dropped.exists() else [],
        }
        self.there = {name for name, paths in files.items() if any(path.stat().st_size for path in paths)}
        for name, paths in files.items():
            self._load(name, paths if name in self.there else [])

    def _load(self, name: str, paths: Sequence[Path]) -> None:
        self.db.execute(f"CREATE TABLE {name} ({', '.join(f'{field} {kind}' for field, kind in COLUMN_TYPES.items())})")
        if paths:
            try:
                self.db.execute(f"INSERT INTO {name} FROM {json_rows(paths)}")
            except duckdb.Error as error:
                raise DataError(
                    f"{', '.join(map(str, paths))}: cannot be read ({first_line(error)}); make it again"
                ) from error

    def close(self) -> None:
        """Let go of the folder."""
        self.db.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return what a query gives."""
        return self.db.execute(sql).fetchall()

    def counts(self, table: str) -> dict[str, int]:
        """Count a table's rows by label."""
        found: Counter[str] = Counter()
        for label, count in self.rows(f"SELECT label, count(*) FROM {table} GROUP BY 1"):
            found[label_name(label)] += count
        return {label: found[label] for label in in_order(found)}

    @cached_property
    def paired(self) -> bool:
        """Whether the texts are pairs."""
        return any(self.rows(f"SELECT count(text_b) FROM {table}")[0][0] for table in ("kept", "written"))

    def histogram(self, table: str, value: str, labels: Sequence[str]) -> Histogram | None:
        """Count values of an expression in bins of equal width that hold all but its most extreme hundredth."""
        bounds = f"quantile_cont({value}, 0.005), quantile_cont({value}, 0.995)"
        low, high = self.rows(f"SELECT {bounds} FROM {table} WHERE {value} IS NOT NULL")[0]
        if low is None or high <= low:
            return None
        width = (high - low) / BINS
        place = f"greatest(0, least({BINS - 1}, floor(({value} - {low}) / {width})))::INTEGER"
        found: dict[str, list[int]] = {}
        for label, bin_, count in self.rows(
            f"SELECT label, {place}, count(*) FROM {table} WHERE {value} IS NOT NULL GROUP BY 1, 2"
        ):
            found.setdefault(label_name(label), [0] * BINS)[bin_] += count
        edges = [low + at * width for at in range(BINS + 1)]
        return Histogram(edges, {label: found[label] for label in labels if label in found})

    def quantiles(self, table: str, value: str) -> dict[str, list[float]]:
        """Return the count and the 5th, 50th and 95th percentile of an expression, by label."""
        sql = f"SELECT label, count({value}), quantile_cont({value}, [0.05, 0.5, 0.95]) FROM {table} GROUP BY 1"
        found = {label_name(label): [count, *quantiles] for label, count, quantiles in self.rows(sql) if quantiles}
        return {label: found[label] for label in in_order(found)}

    def drawn(
        self, table: str, fields: str, count: int, by: str = "label", most: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Draw so many rows of each label, or of each value of another field, and so many at most; always the same."""
        order = "md5(concat_ws(chr(0), text_a, text_b, label)), input, sample, logprob, margin"
        return self.rows(
            f"SELECT {fields} FROM {table} QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {order}) <= {count} "
            f"ORDER BY {by}, {order} LIMIT {'ALL' if most is None else most}"
        )


def label_name(label: str | None) -> str:
    """Return a label as tables show it."""
    return plain_label(label) if label else "(empty)"


def in_order(labels: Any) -> list[str]:
    """Return labels as people order them: numbers by size, names by letter."""
    return sorted(labels, key=lambda label: (as_number(label) is None, as_number(label) or 0.0, label))
