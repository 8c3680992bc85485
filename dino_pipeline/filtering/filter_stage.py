"""How a dataset is filtered: read the examples, run the rules, split and label what is left, and record it all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dino_pipeline.display import visible
from dino_pipeline.errors import DataError, OptionError, RunError, as_it_is, option_given
from dino_pipeline.files import combined_digest, digest_files, file_digest
from dino_pipeline.filter_options import FilterOptions, PostProcessing, rule_name
from dino_pipeline.filtering import file_pieces
from dino_pipeline.filtering.dataset_rules import DatasetRule, FilterRuntime, dataset_rules
from dino_pipeline.filtering.example_table import ExampleChecker, ExampleTable
from dino_pipeline.filtering.filter_source import FilterSource, run_source
from dino_pipeline.filtering.own_rules import rules_digest
from dino_pipeline.filtering.postprocessed import (
    BETWEEN_SIDES,
    RANDOM,
    RELATED,
    recognised_in,
    related_pairs,
    store_written,
)
from dino_pipeline.filtering.split import assign_labels, check_sides, draw_random_pairs, side_counts, split, write_files
from dino_pipeline.filtering.text_rules import PERSONAL_DATA, example_rules, text_rules
from dino_pipeline.funnel import Counts
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.record import now, versions
from dino_pipeline.rows import RowsRead
from dino_pipeline.run import Run, State
from dino_pipeline.stage_records import FilterInputs, FilterRecord, FunnelStep, StepKind

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)
"""Of margins and log-probabilities, recorded to choose thresholds by."""
LOWEST_SHARE = 0.05
"""Without a threshold of the log-probability, the funnel shows what dropping this share of each label would drop."""


def filter_run(
    run: Run, options: FilterOptions, runtime: FilterRuntime | None = None, source: FilterSource | None = None
) -> tuple[State, FilterRecord]:
    """Filter a run's shards, or a source, into the run's train, dev, dropped and flagged files.

    Killed at any moment, it leaves the files as they were before, or all of the new ones.
    Damaged ones are set aside before.

    Args:
        run: where to write, and to read unless there is a source.
        runtime: workers and models; nothing there changes the result.
        source: what to read instead of the run's shards.

    Returns:
        Whether it was done before, and the record.

    Raises:
        DataError: the data cannot be used.
        RunError: the run was filtered with other options, or its texts are not all written.
    """
    if source and run.record().generate:
        remedy = f"name another folder with {{run}} for {as_it_is(source.place)}"
        raise OptionError(f"{run.path}: has texts of its own", remedy)
    runtime, texts = runtime or FilterRuntime(), source or run_source(run)
    digests = {file: file_digest(file) for file in texts.files}
    if not source:
        run.check_shards(digests)
    record = FilterRecord(
        options=options,
        inputs=_inputs_of(options, texts, runtime),
        sources=combined_digest(digests),
        rows_read=(*filter(None, [texts.rows_read]), *runtime.rows_excluded),
        versions=versions(),
        started=now(),
    )
    _refuse_to_overwrite(run, texts.files, options.fresh)
    state = run.state_of(record, fresh=options.fresh)
    if state == "done" and (before := run.record().filter):
        return state, before
    with _open_pass(run, options, runtime, texts) as filter_pass:
        filter_pass.run()
        ready = filter_pass.table.file.with_name("ready")
        ready.mkdir()
        write_files(filter_pass.table, ready)
        if not options.fresh:
            run.set_aside_damaged("filter", runtime.reporter.note)
        done = run.replace(filter_pass.add_results(record), ready)
    assert isinstance(done, FilterRecord)
    return state, done


def look(
    run: Run, options: FilterOptions, runtime: FilterRuntime | None = None, source: FilterSource | None = None
) -> FilterRecord:
    """Return the record that `filter_run` would make, and write nothing.

    With the option ``ablate``, its funnel counts what each rule alone would drop.
    """
    runtime, texts = runtime or FilterRuntime(), source or run_source(run)
    record = FilterRecord(options=options, inputs=_inputs_of(options, texts, runtime))
    with _open_pass(run, options, runtime, texts) as filter_pass:
        if options.ablate:
            filter_pass.ablate()
        else:
            filter_pass.run()
        return filter_pass.add_results(record)


def available(run: Run, options: FilterOptions, runtime: FilterRuntime) -> Counts:
    """Return the number of a run's texts of each label that a filter would keep before label counts are evened out."""
    with _open_pass(run, options, runtime, run_source(run, strict=False)) as filter_pass:
        filter_pass.drop(strict=False)
        return filter_pass.available


def recorded_options(run: Run) -> FilterOptions:
    """Return the options that the run was last filtered with, the defaults if it never was."""
    record = run.record().filter
    return record.options if record else FilterOptions()


def _inputs_of(options: FilterOptions, source: FilterSource, runtime: FilterRuntime) -> FilterInputs:
    semantic = options.semantic
    return FilterInputs(
        source=source.name,
        numeric_labels=source.numeric_labels,
        stop=source.prompt.stop,
        fields=source.prompt.fields,
        excluded=digest_files(list(map(Path, runtime.excluded))),
        rule_digest=rules_digest(options.rule),
        semantic_fingerprint=model_fingerprint(semantic) if semantic else None,
    )


def _refuse_to_overwrite(run: Run, files: Sequence[Path], fresh: bool) -> None:
    """Raise an error if the run's files are read at the same time, or were not made by a filter."""
    existing = [path for path in run.outputs("filter") if path.exists()]
    for path in existing:
        if any(path.samefile(file) for file in files):
            raise OptionError(f"{path}: is what the filter would write, too", "name another folder with {run}")
    if existing and not fresh and run.record().filter is None:
        raise RunError(
            f"{existing[0]}: was not made by a recorded filter", "move it away, or replace it with {fresh=True}"
        )


@contextmanager
def _open_pass(run: Run, options: FilterOptions, runtime: FilterRuntime, source: FilterSource) -> Iterator[FilterPass]:
    """Give a pass whose examples are read. Its table lies in an empty folder of the run."""
    with run.scratch("filter") as folder:
        table = ExampleTable(folder / "filter.duckdb", source.place, runtime.workers, runtime.memory)
        with closing(table):
            filter_pass = FilterPass(table, options, runtime, source)
            filter_pass.read()
            yield filter_pass


@dataclass
class FilterPass:
    """A dataset in a table, empty at first, and everything that is done to it."""

    table: ExampleTable
    options: FilterOptions
    runtime: FilterRuntime
    source: FilterSource
    steps: list[FunnelStep] = field(default_factory=list)
    available: Counts = field(default_factory=dict)
    """Examples left before the rules that even out label counts."""
    processed: PostProcessing = field(default_factory=PostProcessing)
    """What post-processing had left in the examples before."""
    rule_names: list[str] = field(default_factory=list)
    """Names of the rules about single examples, by their number."""

    def read(self) -> None:
        """Read the examples and check each by itself.

        Raises:
            DataError: a line is not an example, labels are missing or of two kinds, or there are no examples.
        """
        table, options, prompt = self.table, self.options, self.source.prompt
        excluded = self.runtime.excluded
        self.rule_names = [rule.name for rule in example_rules(options, prompt, excluded)]
        found = file_pieces.pieces(self.source.files, shown_as=self.source.place if self.source.rows_read else "")
        make_checker = partial(ExampleChecker, options, prompt, excluded, self.source.numeric_labels, table.file.parent)
        # A function made in an interactive session cannot be sent to other processes.
        size = sum(piece.end - piece.start for piece in found)
        is_large = size > file_pieces.PIECE and not any(map(callable, options.rule))
        with self.runtime.spread(is_large)(make_checker) as check_pieces:
            parquet_files = list(check_pieces(iter(found)))
        if not parquet_files or not table.open(parquet_files):
            raise DataError(f"{table.source}: holds no examples")
        if not self.source.is_generated:
            self.processed, self.options = recognised_in(table, options)
        store_written(table, self.processed)

    def drop(self, *, strict: bool = True) -> None:
        """Drop what the rules find, and record each step.

        Raises:
            DataError: ``strict``, and a label has no examples left.
        """
        table = self.table
        self._record("read", table.counts("keys"))
        table.drop_by_example_rules()
        for reason, counts in table.drops_by_reason(self._rules_to_show()).items():
            self._record("dropped", counts, reason)
        if self.processed.random_pairs:
            self._record("dropped", table.drop(RELATED, related_pairs(table)), RELATED)
        if strict:
            self._check_labels_left()
        is_balanced = False
        for rule in self._dataset_rules():
            if rule.is_balancing and not is_balanced:
                is_balanced, self.available = True, table.counts("written")
            query = rule.find(table, self.runtime, "written" if rule.is_balancing else "remaining")
            self._record("dropped", table.drop(rule.name, query), rule.name)
            if strict:
                self._check_labels_left()
        if not is_balanced:
            self.available = table.counts("written")

    def run(self) -> None:
        """Drop, split what is left into train and dev, give it its labels, and add random pairs.

        Raises:
            OptionError: an option does not fit the data.
            DataError: nothing is left of a label, or there are too few examples for two sides.
        """
        table, options = self.table, self.options
        if options.labels == "posterior" and not table.has_scores:
            raise OptionError(
                "these labels are classes, which have no mean", "use {labels=hard}", option="labels", value="posterior"
            )
        self.drop()
        between = split(table, options.dev_share, options.seed, has_random_pairs=bool(self.processed.random_pairs))
        if between is not None:
            self._record("dropped", between, BETWEEN_SIDES)
            if self.processed.random_pairs:
                between.pop(RANDOM, None)
        check_sides(table, options.dev_share, sum((between or {}).values()), can_grow=self.source.is_generated)
        self._record("kept", table.counts("remaining"))
        self._record_hints()
        if options.labels == "posterior":
            self.runtime.score(table, "remaining")
        assign_labels(table, options)
        if table.has_scores and options.random_pairs and table.value("SELECT count(hash_b) FROM keys"):
            draw_random_pairs(table, options.random_pairs, options.seed)
            pairs = table.value("SELECT count(*) FROM random_pairs")
            self._record("added", {table.unrelated: pairs}, "random pairs")
        self._record("train", side_counts(table, is_dev=False))
        self._record("dev", side_counts(table, is_dev=True))

    def ablate(self) -> None:
        """Record what each rule alone would drop."""
        self._record("read", self.table.counts("keys"))
        for number, name in enumerate(self.rule_names):
            broken = f"SELECT id FROM keys WHERE broken_rules & {1 << number} <> 0"
            self._record("dropped", self.table.count(broken), name)
        for rule in self._dataset_rules():
            self._record("dropped", self.table.count(rule.find(self.table, self.runtime, "keys")), rule.name)

    def add_results(self, record: FilterRecord) -> FilterRecord:
        """Return the record with the results of this pass."""
        target = self.options.target_per_label
        missing = [(label, target - count) for label, count in self.available.items() if target and count < target]
        is_own_file = not self.source.is_generated and self.source.rows_read is None
        own = [RowsRead(source=self.source.name, rows=self.table.size)] if is_own_file else []
        return record.updated(
            rows_read=(*own, *record.rows_read),
            processed=self.processed,
            funnel=tuple(self.steps),
            available=tuple(self.available.items()),
            missing=tuple(missing),
            margin_quantiles=self._quantiles("margin"),
            logprob_quantiles=self._quantiles("logprob"),
        )

    def _record(self, kind: StepKind, counts: Counts, rule: str = "") -> None:
        self.steps.append(FunnelStep(kind=kind, rule=rule, counts=tuple(counts.items())))

    def _dataset_rules(self) -> list[DatasetRule]:
        """Return the rules about the dataset that are on; scores of many grades are not balanced."""
        rules = [rule for rule in dataset_rules(self.options) if rule.is_on]
        return [rule for rule in rules if rule.name != "balance" or not self.table.has_graded_scores]

    def _rules_to_show(self) -> list[str]:
        """Return the rules about single examples that the funnel shows even if they drop nothing.

        A user's own rule gives reasons of any name. Its own name is shown only if it dropped nothing.
        """
        masks = [mask for (mask,) in self.table.run("SELECT DISTINCT broken_rules FROM keys WHERE broken_rules <> 0")]
        own = [rule_name(rule) for rule in self.options.rule]
        shown = []
        for number, name in enumerate(self.rule_names):
            # An example is dropped by the first rule that it breaks: the lowest bit that is set in its mask.
            has_dropped = any(mask % (1 << number + 1) == 1 << number for mask in masks)
            if name not in own or not has_dropped:
                shown.append(name)
        return shown

    def _check_labels_left(self) -> None:
        """Raise `DataError` if a label has no examples left; it names the step that dropped the last one."""
        if self.table.has_graded_scores:
            return
        left = {label for (label,) in self.table.run("SELECT DISTINCT label FROM remaining")}
        lost = [value for number, value in enumerate(self.table.labels) if number not in left]
        if self.processed.random_pairs and RANDOM in lost:
            lost.remove(RANDOM)
        if not lost:
            return
        last_rule = ""
        for step in self.steps:
            if step.kind == "dropped" and any(label in lost for label, _ in step.counts):
                last_rule = step.rule
        remedy = "give other examples of that label, or leave the label out"
        if self.source.is_generated:
            remedy = "generate more, or read the instruction of that label in the spec"
        elif last_rule in [rule.name for rule in text_rules(self.options, self.source.prompt)]:
            remedy = f"give other examples of that label, or keep these with {option_given('without', last_rule)}"
        shown = ", ".join(f"{label:g}" if isinstance(label, float) else visible(label, 40) for label in lost)
        raise DataError(
            f'{self.table.source}: no example of label {shown} is left (the last was dropped as "{last_rule}")',
            remedy,
        )

    def _record_hints(self) -> None:
        """Record what thresholds that are off would drop, and what is flagged."""
        table, options = self.table, self.options
        known = table.run("""
            SELECT label, count(margin), count(*) FILTER (margin < 0), count(logprob) FROM remaining GROUP BY label
        """)
        if not options.min_margin and any(margins for _, margins, _, _ in known):
            negative = table.by_label((label, below_zero) for label, _, below_zero, _ in known)
            self._record("would_drop", negative, "min_margin=0")
        if not options.min_logprob and any(logprobs for *_, logprobs in known):
            lowest = table.by_label((label, int(LOWEST_SHARE * logprobs)) for label, _, _, logprobs in known)
            self._record("would_drop", lowest, f"min_logprob={LOWEST_SHARE:.0%}")
        if options.pii == "flag":
            flagged = (
                "SELECT id FROM remaining JOIN (SELECT line FROM rows WHERE personal_data IS NOT NULL) USING (line)"
            )
            self._record("flagged", table.count(flagged), PERSONAL_DATA.name)

    def _quantiles(self, column: str) -> tuple[tuple[float | str, dict[str, float]], ...]:
        """Return `QUANTILES` of a column for each label that has values."""
        rows = self.table.run(f"""
            SELECT value, quantile_disc({column}, {list(QUANTILES)}) FROM keys JOIN labels USING (label)
            WHERE {column} IS NOT NULL GROUP BY value ORDER BY value
        """)
        names = [str(quantile) for quantile in QUANTILES]
        return tuple((label, dict(zip(names, values, strict=True))) for label, values in rows)
