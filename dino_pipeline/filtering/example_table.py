"""Where the examples of one dataset are while they are filtered: from JSON lines to tables larger than memory.

`ExampleChecker` parses a piece of a file, checks each example by the rules about single examples, and writes Parquet.
`ExampleTable` makes these tables of it, in a DuckDB file:

====================  =================================================================================================
``rows``              the examples in the order of the source
``keys``              for each row its ``id`` and what rules compare: hashes of texts, label number, scores
``examples``          the texts and fields of each id
``labels``            number and value of each label, in order
``drops``             dropped ids, with reason, evidence and the id that they repeat
``remaining``         the ``keys`` that are not dropped
====================  =================================================================================================

An id is the row's place in an order that depends on the rows alone: by input, sample, and a hash of the record. Smaller
ids are "earlier". The result is therefore the same for any order of files and any number of processes.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import xxhash
from pyarrow import parquet

from dino_pipeline.database import connect, parquet_rows, quoted, write_errors
from dino_pipeline.errors import DataError, OptionError, OutputError, first_line, short, system_reason, write_remedy
from dino_pipeline.examples import Example, canonical_line, parse_example, parse_examples
from dino_pipeline.filter_options import FilterOptions, rule_name
from dino_pipeline.filtering.contamination import ContaminationFilter
from dino_pipeline.filtering.file_pieces import FilePiece
from dino_pipeline.filtering.text_rules import PromptParts, example_rules, is_plain, personal_data
from dino_pipeline.funnel import MAX_LABELS, Counts, by_tenths
from dino_pipeline.odd_paths import plain_path
from dino_pipeline.stage_records import Label
from dino_pipeline.text import normalise

LINES = 1000
"""Lines parsed at a time."""
PARALLEL_FROM = 50_000
"""Examples from which on several processes are faster than one."""
SCHEMA = pa.schema(
    {
        "line": pa.int64(),  # number of the piece, and of the line in it
        "text_a": pa.string(),
        "text_b": pa.string(),
        "score": pa.float64(),
        "class": pa.string(),
        "logprob": pa.float64(),
        "margin": pa.float64(),
        "input": pa.int64(),
        "sample": pa.int64(),
        "hash_a": pa.uint64(),  # hashes of the texts in normal form
        "hash_b": pa.uint64(),
        "random_rank": pa.uint64(),  # hash of the record: its place in a random order
        "broken_rules": pa.int64(),  # bit i is set if the example breaks rule i
        "reason": pa.string(),  # by the first of these rules
        "personal_data": pa.string(),
    }
)
BATCH = 4096
"""Rows streamed at a time."""
DROPS = pa.schema({"id": pa.int64(), "evidence": pa.string(), "duplicate_of": pa.int64()})
"""Columns of a query that finds rows to drop: the row, evidence for it, and the row that it repeats."""


class ExampleChecker:
    """Writes a piece's examples to a Parquet file of `SCHEMA`, with what the rules say of them.

    Each worker process makes its own. With ``numeric_labels``, labels that spell a number are read as numbers.
    """

    def __init__(
        self, options: FilterOptions, prompt: PromptParts, excluded: Sequence[str], numeric_labels: bool, folder: Path
    ) -> None:
        self.options, self.numeric_labels, self.folder = options, numeric_labels, folder
        rules = example_rules(options, prompt, excluded)
        self.own_rules = [rule_name(rule) for rule in options.rule]
        self.rules = list(enumerate(rules))
        self.rules_if_plain = [(number, rule) for number, rule in self.rules if not rule.skip_if_plain]
        self.contamination = [rule.check for rule in rules if isinstance(rule.check, ContaminationFilter)]
        self.analyse_input = lru_cache(maxsize=1024)(self._analyse)  # the same input comes many times in a row

    def _analyse(self, text: str) -> tuple[bool, int]:
        """Return whether a text is plain, and the 64-bit hash of its normal form."""
        return is_plain(text, self.options), xxhash.xxh3_64_intdigest(normalise(text).encode())

    def __call__(self, piece: FilePiece) -> Path:
        """Check a piece's examples and write them to a file of their own.

        Raises:
            DataError: a line is not an example, or has no label.
            OutputError: the file cannot be written.
        """
        lines = [(number, line) for number, line in enumerate(piece.lines()) if line and not line.isspace()]
        tables: list[pa.Table] = []
        gc.disable()  # saves time: nothing here makes cycles of references
        try:
            for start in range(0, max(1, len(lines)), LINES):
                tables.append(self._check_lines(lines[start : start + LINES], piece))
        finally:
            gc.enable()
        path = self.folder / f"{piece.number:08d}.parquet"
        try:
            with open(path, "wb") as file:  # of a path, pyarrow may make an address
                parquet.write_table(pa.concat_tables(tables), file, compression="none", use_dictionary=False)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {system_reason(error)}", write_remedy(error)) from error
        return path

    def _check_lines(self, lines: Sequence[tuple[int, bytes]], piece: FilePiece) -> pa.Table:
        """Return the table of some lines, each with its number in the piece."""
        examples = parse_examples([line for _, line in lines], self.numeric_labels)
        if examples is None:  # a label must be converted, or an error reported with its line
            examples = [
                parse_example(line, partial(piece.place, number), self.numeric_labels) for number, line in lines
            ]
        for contamination in self.contamination:
            contamination.prepare(examples)
        rows = []
        for (number, _), example in zip(lines, examples, strict=True):
            is_plain_a, hash_a = self.analyse_input(example.text_a)
            is_plain_b, hash_b = (True, None) if example.text_b is None else self._analyse(example.text_b)
            all_plain = is_plain_a and is_plain_b
            broken_rules, reason = self._check(example, all_plain, partial(piece.place, number))
            is_flagged = self.options.pii == "flag" and not all_plain
            is_name = isinstance(example.label, str)
            rows.append(
                (  # in the order of SCHEMA
                    piece.number << 32 | number,
                    example.text_a,
                    example.text_b,
                    None if is_name else example.label,
                    example.label if is_name else None,
                    example.logprob,
                    example.margin,
                    example.input,
                    example.sample,
                    hash_a,
                    hash_b,
                    xxhash.xxh3_64_intdigest(canonical_line(example), self.options.seed),
                    broken_rules,
                    reason,
                    personal_data(example) if is_flagged else None,
                )
            )
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in SCHEMA]
        return pa.table(columns, schema=SCHEMA)

    def _check(self, example: Example, all_plain: bool, place: Callable[[], str]) -> tuple[int, str | None]:
        """Return the bit mask of the rules that an example breaks, and the reason given by the first of them.

        Raises:
            DataError: the example has no label, or one of the user's own rules failed on it.
        """
        if example.label is None:
            raise DataError(f"{place()}: has no label", "give each example one")
        broken_rules, first_reason = 0, None
        for number, rule in self.rules_if_plain if all_plain else self.rules:
            try:
                reason = rule.check(example)
                if not isinstance(reason, str | None):
                    raise TypeError(f"returned {reason!r}; return None, or the reason to drop the text")
            except Exception as error:
                if rule.name not in self.own_rules:
                    raise
                raise DataError(f"{place()}: the rule {rule.name} failed ({type(error).__name__}: {error})") from error
            if reason is not None:
                broken_rules |= 1 << number
                first_reason = first_reason or reason
        return broken_rules, first_reason


class ExampleTable:
    """The examples of one dataset, in a DuckDB file.

    Args:
        file: created here; data that does not fit into memory is spilled next to it.
        source: name of the data, for errors.
        memory: that DuckDB may take before it spills, such as ``2GB``.

    Raises:
        OptionError: the memory is not an amount of memory.
        OutputError: the file cannot be written.
    """

    def __init__(self, file: Path, source: str, threads: int, memory: str) -> None:
        self.file, self.source = file, source
        try:
            with self._errors():
                self.db = connect(file, memory=memory, threads=threads, spill=file.parent / "spilled")
        except (duckdb.ParserException, duckdb.InvalidInputException) as error:
            raise OptionError(f"{first_line(error)}; write, say, 2GB", option="memory", value=memory) from error
        self.labels: list[Label] = []
        """The value of each label number."""
        self.has_scores = True
        """Labels are numbers: similarities. Else they are names of classes."""
        self.size = 0
        """Number of rows."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with write_errors(self.file, "make room on the disk, or raise {memory}, and run again"):
            yield

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Carry out a statement and return its rows."""
        with self._errors():
            return self.db.execute(sql, values).fetchall()

    def value(self, sql: str, *values: Any) -> Any:
        """Return the single value of a query."""
        return self.run(sql, *values)[0][0]

    def stream(self, sql: str) -> Iterator[dict[str, list[Any]]]:
        """Yield a query's rows in batches, each as columns by name. Run no other statement meanwhile."""
        with self._errors():
            for batch in self.db.sql(sql).to_arrow_reader(BATCH):
                yield batch.to_pydict()

    def stream_rows(self, sql: str) -> Iterator[Any]:
        """Yield a query's rows. Run no other statement meanwhile."""
        for batch in self.stream(sql):
            yield from zip(*batch.values(), strict=True)

    def store(self, table: str, rows: pa.Table) -> None:
        """Make a temporary table of rows, replacing a table of this name."""
        self.db.register("arrow_rows", rows)
        self.run(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM arrow_rows")
        self.db.unregister("arrow_rows")

    def insert(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table."""
        self.db.register("arrow_rows", rows)
        self.run(f"INSERT INTO {table} SELECT * FROM arrow_rows")
        self.db.unregister("arrow_rows")

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def open(self, files: Sequence[Path]) -> int:
        """Make all tables from Parquet files of `SCHEMA`; return the number of rows.

        Raises:
            DataError: some labels are numbers and some are names, or some examples have one text and some two.
        """
        self.run(f"CREATE VIEW rows AS SELECT * FROM {parquet_rows(files)}")
        ((self.size, scores, names, second_texts),) = self.run(
            'SELECT count(*), count(score), count("class"), count(text_b) FROM rows'
        )
        if scores and names:
            number, name = self.run('SELECT min(score), min("class") FROM rows')[0]
            raise DataError(
                f"{self.source}: some labels are numbers, such as {number + 0:g}, and some are names, such as {name!r}",
                "use one kind; {label_type=class} takes all for names",
            )
        if second_texts not in (0, self.size):
            alone = self.value("SELECT text_a FROM rows WHERE text_b IS NULL LIMIT 1")
            raise DataError(
                f'{self.source}: some examples have a "text_b" and some have none, such as {short(alone)}',
                "fill it in, or leave them out",
            )
        self.has_scores = bool(scores)
        self._index()
        return self.size

    def _index(self) -> None:
        """Make the other tables from ``rows``."""
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
    def is_large(self) -> bool:
        """Whether several processes work faster on the texts than one."""
        return self.size >= PARALLEL_FROM

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
        """Write a query's rows as JSON objects, one a line.

        Each thread that sorts rows holds parts of them outside the spilled ones. Where long texts leave no memory for
        that, one thread goes on alone. It writes the same.
        """
        written = f"COPY ({query}) TO {quoted(plain_path(path))} (FORMAT json)"
        with self._errors():
            try:
                self.db.execute(written)
            except duckdb.OutOfMemoryException:
                self.db.execute("SET threads = 1")
                self.db.execute(written)
