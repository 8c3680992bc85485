"""The filter stage: which examples are fit to train on, and why the others are not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dino_pipeline.errors import DataError, OptionError, RunError
from dino_pipeline.examples import write_json
from dino_pipeline.hygiene import Rule
from dino_pipeline.ingest import Judge, pieces
from dino_pipeline.labels import as_number
from dino_pipeline.near import Embed, near_inputs, near_texts, semantic_inputs
from dino_pipeline.processes import side_by_side
from dino_pipeline.rules import FilterOptions, record_rules
from dino_pipeline.run import Run, State, digest_files, shard_files
from dino_pipeline.sets import (
    Counts,
    Label,
    Table,
    below,
    beyond_cap,
    conflicts,
    duplicates,
    label_counts,
    random_pairs,
    reasons,
    smallest,
    split,
    surplus,
    write_jsonl,
)
from dino_pipeline.spec import load_spec

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)


class Scores(Protocol):
    """Knows how likely the generator finds each text under each label's instruction."""

    def fill(self, table: Table, rows: str) -> None:
        """Put what is missing into ``scores (id, label, logprob, tokens)``: mean natural-log probability, and tokens."""


@dataclass(frozen=True)
class Means:
    """What a filter works with beside its options; none of it changes the result."""

    workers: int = 1
    memory: str = "1400MB"
    """What DuckDB may take before it spills."""
    scores: Scores | None = None
    embed: Embed | None = None
    excluded: tuple[str, ...] = ()
    """Files that stand for ``options.exclude``."""


@dataclass
class Funnel:
    """How many examples of each label were left after each step."""

    steps: list[tuple[str, Counts]] = field(default_factory=list)

    def add(self, step: str, counts: Counts) -> None:
        """Note what is left, or dropped, in a step."""
        self.steps.append((step, counts))

    def labels(self) -> list[Label]:
        """Return all labels in a fixed order."""
        found = dict.fromkeys(label for _, counts in self.steps for label in counts)
        return sorted(found, key=lambda label: (isinstance(label, str), label))

    def rows(self) -> list[list[str]]:
        """Return the funnel as a table: a step a row, a label a column, and the total."""
        labels = self.labels()
        return [
            [step, *(str(counts.get(label, 0)) for label in labels), str(sum(counts.values()))]
            for step, counts in self.steps
        ]

    def header(self) -> list[str]:
        """Return the column titles of `rows`."""
        return ["step", *(f"{label:g}" if isinstance(label, float) else str(label) for label in self.labels()), "all"]

    def to_json(self) -> list[Any]:
        """Return the funnel as run.json holds it."""
        return [[step, [list(item) for item in counts.items()]] for step, counts in self.steps]


@dataclass(frozen=True)
class SetRule:
    """A rule about examples beside one another."""

    name: str
    find: Callable[[str], str]
    """Returns a query of `sets.DROPS` for the rows that go from a table."""


@dataclass(frozen=True)
class Filter:
    """One pass over a dataset in a table."""

    table: Table
    options: FilterOptions
    means: Means
    source: str
    rules: Sequence[Rule]

    def load(self, files: Sequence[Path], numeric_labels: bool) -> None:
        """Read and judge the examples.

        Raises:
            DataError: a line is no example, labels are missing or of two kinds, or there is nothing at all.
        """
        every = pieces(files)
        judge = Judge(self.options, self.means.excluded, numeric_labels, self.table.file.parent)
        with side_by_side(judge, 1 if len(every) < 2 else self.means.workers) as spread:
            files = list(spread(iter(every)))
        if not files:
            raise DataError(f"{self.source}: holds no examples; give a file with one JSON object a line")
        self.table.load(files)
        count, scores, names, second = self.table.run('SELECT count(*), count(score), count("class"), count(text_b) FROM rows')[0]
        if not count:
            raise DataError(f"{self.source}: holds no examples; give a file with one JSON object a line")
        if scores and names:
            raise DataError(f"{self.source}: some labels are numbers and some are names; use one kind")
        if second not in (0, count):
            raise DataError(f'{self.source}: some examples have a "text_b" and some have none; split the file')
        self.table.index()

    def set_rules(self) -> list[SetRule]:
        """Return the rules about examples beside one another, in order."""
        options, workers = self.options, self.means.workers
        rules = [SetRule("duplicate", duplicates), SetRule("conflicting labels", conflicts)]

        def near(name: str, find: Callable[[str], None]) -> Callable[[str], str]:
            def query(rows: str) -> str:
                find(rows)
                return f"SELECT * FROM {name}"

            return query

        if options.near_duplicates:
            inputs = partial(near_inputs, self.table, threshold=options.near_duplicates, workers=workers)
            texts = partial(near_texts, self.table, threshold=options.near_duplicates, workers=workers)
            rules += [
                SetRule("near-duplicate input", near("near_inputs", inputs)),
                SetRule("near-duplicate text_b", near("near_texts", texts)),
            ]
        if self.means.embed:
            meant = partial(
                semantic_inputs, self.table, threshold=options.semantic_threshold, embed=self.means.embed
            )
            rules.append(SetRule("input of the same meaning", near("semantic_inputs", meant)))
        rules += [self._limit(column, getattr(options, f"min_{column}")) for column in ("margin", "logprob")]
        if options.verify:
            rules.append(SetRule("label not confirmed", self._unconfirmed))
        if most := options.max_per_text:
            rules.append(SetRule(f"more than {most} per text and label", lambda rows: beyond_cap(rows, most)))
        if options.target_per_label is not None:
            rules.append(SetRule("beyond the target", lambda rows: surplus(rows, str(options.target_per_label))))
        if options.balance:
            rules.append(SetRule("balance", lambda rows: surplus(rows, smallest(rows))))
        return [rule for rule in rules if rule.name]

    def _limit(self, column: str, given: Sequence[str]) -> SetRule:
        limits = thresholds(given, self.table.labels, f"--min-{column}")
        return SetRule(f"low {column}" if given else "", lambda rows: below(rows, column, limits))

    def _unconfirmed(self, rows: str) -> str:
        assert self.means.scores
        self.means.scores.fill(self.table, rows)
        own, other = "max(logprob) FILTER (s.label = k.label)", "max(logprob) FILTER (s.label <> k.label)"
        return (
            f"SELECT id, printf('own label %.3f, label %s %.3f', own, best, other) AS evidence, NULL AS duplicate_of FROM ("
            f"SELECT id, {own.replace('logprob', 's.logprob')} AS own, {other.replace('logprob', 's.logprob')} AS other, "
            "arg_max(v::VARCHAR, s.logprob) FILTER (s.label <> k.label) AS best "
            f"FROM {rows} AS k JOIN scores AS s USING (id) JOIN labels ON labels.label = s.label GROUP BY id) "
            f"WHERE own - other < {self.options.verify_margin!r} OR own <= other"
        )

    def carry_out(self) -> Funnel:
        """Drop what the rules find, part the rest into train and dev, and count all along.

        Raises:
            DataError: nothing is left of a label, or of a side.
        """
        table, options = self.table, self.options
        funnel = Funnel()
        funnel.add("read", label_counts(table, "keys"))
        table.run(
            "INSERT INTO drops SELECT id, split_part(reason, ': ', 1), nullif(substr(reason, length(split_part(reason, "
            "': ', 1)) + 3), ''), NULL FROM plain WHERE reason IS NOT NULL"
        )
        for reason, counts in reasons(table, [rule.name for rule in self.rules if rule.name not in options.custom]).items():
            funnel.add(f"- {reason}", counts)
        self._check_left(funnel)
        for rule in self.set_rules():
            table.drop(rule.name, rule.find("alive"))
            funnel.add(f"- {rule.name}", reasons(table, [rule.name])[rule.name])
            self._check_left(funnel)
        funnel.add("kept", label_counts(table, "alive"))
        self._count_more(funnel)
        self._part(funnel)
        return funnel

    def _check_left(self, funnel: Funnel) -> None:
        left = self.table.run("SELECT DISTINCT label FROM alive")
        lost = [f"{label}" for number, label in enumerate(self.table.labels) if (number,) not in left]
        if lost:
            last = next((step[2:] for step, counts in reversed(funnel.steps) if step[0] == "-" and counts), "")
            raise DataError(
                f'{self.source}: no example of label {", ".join(lost)} is left (the last went as "{last}"); '
                "generate more, or look at the spec's instruction for it with dino spec show"
            )

    def _count_more(self, funnel: Funnel) -> None:
        """Add to the funnel what thresholds that are off would drop, and what is flagged."""
        for column, limit in (("margin", "0"), ("logprob", "5%")):
            if getattr(self.options, f"min_{column}"):
                continue
            known = self.table.run(f"SELECT label, count({column}), count(*) FILTER ({column} < 0) FROM alive GROUP BY label")
            if any(number for _, number, _ in known):
                would = [(label, negative if column == "margin" else number // 20) for label, number, negative in known]
                funnel.add(f"(--min-{column} {limit} would drop)", self.table.by_label(would))
        if self.options.pii == "flag":
            funnel.add("(flagged: personal data)", self.table.count("SELECT id FROM plain WHERE flag IS NOT NULL AND id IN (SELECT id FROM alive)"))

    def _part(self, funnel: Funnel) -> None:
        options, table = self.options, self.table
        kept = table.run("SELECT count(*) FROM alive")[0][0]
        split(table, options.dev_share, options.seed)
        sides = dict(table.run("SELECT dev, count(*) FROM parts GROUP BY dev"))
        if not sides.get(False) or (options.dev_share and not sides.get(True)):
            raise DataError(
                f"{self.source}: {kept} examples are too few for a train and a dev side without a common text; "
                "generate more, or --dev-share 0"
            )
        self._label()
        extra = table.scored and options.random_pairs and table.run("SELECT count(b) FROM keys")[0][0]
        if extra:
            random_pairs(table, options.random_pairs, options.seed)
            funnel.add("+ random pairs", {0.0: table.run("SELECT count(*) FROM extra")[0][0]})
        for side, dev in (("train", False), ("dev", True)):
            counted = table.run("SELECT label, count(*) FROM labelled WHERE dev = ? GROUP BY label", dev)
            counts = {label: count for label, count in counted}
            if extra:
                drawn = table.run("SELECT count(*) FROM extra WHERE dev = ?", dev)[0][0]
                counts[0.0] = counts.get(0.0, 0) + drawn
            funnel.add(side, grouped(counts))

    def _label(self) -> None:
        """Give every row that is kept the label it is trained with, in ``labelled (id, line, dev, label)``."""
        options, table = self.options, self.table
        label = "v"
        if table.scored and options.labels == "smoothed":
            middle = (min(0.0, *map(float, table.labels)) + max(1.0, *map(float, table.labels))) / 2
            label = f"round(v * {1 - options.smoothing!r} + {options.smoothing * middle!r}, 6)"
        if options.labels == "posterior":
            if not table.scored:
                raise OptionError("--labels posterior: these labels are classes, without a mean; use --labels hard")
            assert self.means.scores
            self.means.scores.fill(table, "alive")
            table.run(
                "CREATE TABLE labelled AS WITH likely AS (SELECT id, v, logprob * tokens / "
                f"{options.temperature!r} AS x FROM scores JOIN alive USING (id) JOIN labels ON labels.label = scores.label), "
                "weighed AS (SELECT id, v, exp(x - max(x) OVER (PARTITION BY id)) AS weight FROM likely) "
                "SELECT id, line, dev, round(sum(v * weight) / sum(weight), 6) AS label FROM weighed JOIN parts USING (id) GROUP BY ALL"
            )
        else:
            table.run(f"CREATE TABLE labelled AS SELECT id, line, dev, {label} AS label FROM parts JOIN labels USING (label)")

    def alone(self) -> Funnel:
        """Count what each rule would drop if it were the only one."""
        funnel = Funnel()
        funnel.add("read", label_counts(self.table, "keys"))
        for number, rule in enumerate(self.rules):
            funnel.add(f"- {rule.name}", self.table.count(f"SELECT id FROM keys WHERE hits & {1 << number} <> 0"))
        for each in self.set_rules():
            funnel.add(f"- {each.name}", self.table.count(each.find("keys")))
        return funnel

    def write(self, folder: Path) -> None:
        """Write train, dev, dropped and flagged examples into a folder."""
        extra = self.table.run("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'extra'")[0][0]
        for side, dev in (("train", "false"), ("dev", "true")):
            query = (
                "SELECT text_a, text_b, label, logprob, margin, input, sample FROM rows JOIN labelled "
                f"USING (line) WHERE dev = {dev} ORDER BY id"
            )
            if extra:
                query = (
                    f"SELECT * FROM ({query}) UNION ALL SELECT * FROM (SELECT one.text_a, two.text_b, 0.0, NULL, NULL, NULL, NULL "
                    f"FROM extra JOIN plain AS one USING (id) JOIN plain AS two ON two.id = other WHERE dev = {dev} "
                    "ORDER BY extra.id, draw)"
                )
            write_jsonl(self.table, query, folder / f"{side}.jsonl")
        other = ", ".join(f"'{name}': other.{name}" for name in ("text_a", "text_b", "label", "input", "sample"))
        write_jsonl(
            self.table,
            "SELECT plain.* EXCLUDE (id, flag, reason), drops.reason, evidence, CASE WHEN duplicate_of IS NOT NULL THEN {" + other + "} END "
            "AS duplicate_of FROM drops JOIN plain USING (id) LEFT JOIN plain AS other ON other.id = duplicate_of ORDER BY id",
            folder / "dropped.jsonl",
        )
        write_jsonl(
            self.table,
            "SELECT plain.* EXCLUDE (id, flag, reason), split_part(flag, ': ', 1) AS reason, split_part(flag, ': ', 2) AS evidence "
            "FROM plain SEMI JOIN parts USING (id) WHERE flag IS NOT NULL ORDER BY id",
            folder / "flagged.jsonl",
        )

    def results(self) -> dict[str, Any]:
        """Return what the record holds beside the funnel: what is missing to the target, and quantiles for thresholds."""
        found: dict[str, Any] = {}
        kept = label_counts(self.table, "alive")
        if target := self.options.target_per_label:
            found["missing"] = [[label, target - count] for label, count in kept.items() if count < target]
        for column in ("margin", "logprob"):
            quantiles = self.table.run(
                f"SELECT v, quantile_disc({column}, {list(QUANTILES)}) FROM keys JOIN labels USING (label) "
                f"WHERE {column} IS NOT NULL GROUP BY v ORDER BY v"
            )
            if quantiles:
                found[f"{column}_quantiles"] = [[label, dict(zip(map(str, QUANTILES), of, strict=True))] for label, of in quantiles]
        return found


def grouped(counts: Counts) -> Counts:
    """Return counts by label; many different labels (posterior means) are counted by tenths."""
    if len(counts) <= 12:
        return dict(sorted(counts.items(), key=lambda item: (isinstance(item[0], str), item[0])))
    found: Counts = {}
    for label, count in counts.items():
        tenth = round(float(label), 1)
        found[tenth] = found.get(tenth, 0) + count
    return dict(sorted(found.items()))


def thresholds(given: Sequence[str], labels: Sequence[Label], option: str) -> dict[int, tuple[float, bool]]:
    """Return each label's limit: a number, and whether it is a share of the label's examples.

    Args:
        given: ``0.1``, ``10%``, or either after ``LABEL=``; what names a label goes before what does not.
        labels: all labels, in order.
        option: its name, for errors.

    Raises:
        OptionError: it is neither, or there is no such label.
    """
    found: dict[int, tuple[float, bool]] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, _, limit = text.rpartition("=")
        relative = limit.endswith("%")
        number = as_number(limit.removesuffix("%"))
        if number is None or (relative and not 0 <= number <= 100):
            raise OptionError(f"{option} {text}: must be a number such as 0.1, a share such as 10%, or LABEL= and either")
        chosen = [at for at, label in enumerate(labels) if not name or name == str(label) or as_number(name) == label]
        if not chosen:
            raise OptionError(f"{option} {text}: there is no label {name}; choose from {', '.join(map(str, labels))}")
        found.update(dict.fromkeys(chosen, (number / 100 if relative else number, relative)))
    return found


def filter_run(
    run: Run,
    options: FilterOptions,
    means: Means | None = None,
    *,
    source: Path | None = None,
    numeric_labels: bool = True,
    fresh: bool = False,
) -> tuple[State, Funnel]:
    """Filter a run's shards, or a JSONL file, into the run's train, dev, dropped and flagged files.

    Killed at any moment, it leaves the files as they were before, or all of the new ones.

    Args:
        run: where to write, and to read unless ``source`` is given.
        options: the rules' settings.
        means: what it works with; nothing there changes the result.
        source: a JSONL file of examples to read instead of the run's shards.
        numeric_labels: read labels that spell a number as numbers.
        fresh: redo it with other options than before.

    Raises:
        DataError: the data cannot be used.
        RunError: the run was filtered with other options, or its texts are not all written.
    """
    means = means or Means()
    files, options = _sources(run, options, source)
    recorded = {**asdict(options), "numeric_labels": numeric_labels, "source": "shards" if source is None else source.name}
    outputs = [run.train, run.dev, run.dropped]
    digest = digest_files([*files, *map(Path, means.excluded)])
    state = run.check("filter", recorded, outputs=outputs, sources=digest, fresh=fresh)
    if state == "done":
        return state, load_funnel(run)
    with run.scratch("filter") as scratch:
        each = _open(run, options, means, scratch, files, numeric_labels, source)
        try:
            funnel = each.carry_out()
            ready = scratch / "ready"
            ready.mkdir()
            each.write(ready)
            results = each.results()
        finally:
            each.table.close()
        record = run.record(recorded, digest, funnel=funnel.to_json(), **results)
        run.replace("filter", ready, record)
    return state, funnel


def look(
    run: Run,
    options: FilterOptions,
    means: Means | None = None,
    *,
    source: Path | None = None,
    numeric_labels: bool = True,
    ablate: bool = False,
) -> tuple[Funnel, dict[str, Any]]:
    """Return the funnel that `filter_run` would make, or with ``ablate`` what each rule alone drops; write nothing."""
    means = means or Means()
    files, options = _sources(run, options, source)
    with run.scratch("look") as scratch:
        each = _open(run, options, means, scratch, files, numeric_labels, source)
        try:
            return (each.alone(), {}) if ablate else (each.carry_out(), each.results())
        finally:
            each.table.close()


def _sources(run: Run, options: FilterOptions, source: Path | None) -> tuple[list[Path], FilterOptions]:
    """Return the files to read, and the options with what the run's spec says of its texts."""
    if source is not None:
        return [source], options
    if run.stage("generate").get("status") != "done":
        raise RunError(f"{run.path}: its texts are not all written; finish with dino generate, or name a JSONL file")
    counts = run.stage("generate").get("counts", {})
    if empty := [label for label, count in counts.items() if not count["accepted"]]:
        raise DataError(f"{run.shards}: no text of label {', '.join(empty)} was accepted; {run.rejected} says why")
    spec = load_spec(run.spec)
    return shard_files(run.shards), replace(options, hygiene=replace(options.hygiene, stop=spec.stop, fields=spec.fields))


def _open(
    run: Run,
    options: FilterOptions,
    means: Means,
    scratch: Path,
    files: Sequence[Path],
    numeric_labels: bool,
    source: Path | None,
) -> Filter:
    rules = record_rules(options, means.excluded)
    table = Table(scratch / "filter.duckdb", means.workers, means.memory)
    each = Filter(table, options, means, str(source or run.shards), rules)
    try:
        each.load(files, numeric_labels)
    except BaseException:
        table.close()
        raise
    return each


def load_funnel(run: Run) -> Funnel:
    """Return the funnel that run.json holds."""
    return Funnel([(step, dict(counts)) for step, counts in run.stage("filter")["funnel"]])
