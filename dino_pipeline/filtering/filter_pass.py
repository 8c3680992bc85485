"""What happens in one pass over a dataset: read the examples, run the rules, split and label what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.filter_options import FilterOptions, rule_name
from dino_pipeline.filtering.dataset_rules import DatasetRule, LabelScorer, RuleContext, dataset_rules
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.filtering.ingest import ExampleChecker, example_rules, pieces
from dino_pipeline.filtering.near_duplicates import Embed
from dino_pipeline.filtering.split import assign_labels, draw_random_pairs, side_counts, split
from dino_pipeline.filtering.text_rules import PERSONAL_DATA, PromptParts
from dino_pipeline.funnel import Counts, Funnel, funnel_step, label_counts
from dino_pipeline.processes import OpenPool, process_pool
from dino_pipeline.stage_records import FilterRecord, FunnelStep, StepKind

PARALLEL_FROM = 50_000
"""Examples from which on several processes are faster than one."""
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)
"""Of margins and log-probabilities, recorded to choose thresholds by."""
LOWEST_SHARE = 0.05
"""Without a threshold of the log-probability, the funnel shows what dropping this share of each label would drop."""


@dataclass(frozen=True)
class FilterRuntime:
    """Workers, memory limit and loaded models of a filter. Nothing here changes the result."""

    workers: int = 1
    memory: str = "1400MB"
    """That DuckDB may take before it spills to disk."""
    scorer: LabelScorer | None = None
    embed: Embed | None = None
    excluded: tuple[str, ...] = ()
    """Files of the evaluation data that ``exclude`` names."""
    cluster: OpenPool | None = None
    """Spreads work on texts over a cluster, instead of processes on this machine."""

    def spread(self, is_large: bool) -> OpenPool:
        """Return what spreads work on texts: over the cluster, over processes if there is much, else over one."""
        return self.cluster or partial(process_pool, workers=self.workers if is_large else 1)


@dataclass
class FilterPass:
    """A dataset in a table, and everything that is done to it.

    Args:
        table: an empty table.
        options: the options of the stage.
        runtime: workers and models.
        source: the name of the data, for errors.
        prompt: parts of the prompts that wrote the texts.
    """

    table: ExampleTable
    options: FilterOptions
    runtime: FilterRuntime
    source: str
    prompt: PromptParts
    steps: list[FunnelStep] = field(default_factory=list)
    available: Counts | None = None
    """Examples left before the rules that even out label counts; None until they run."""
    rule_names: list[str] = field(default_factory=list)
    """Names of the rules about single examples, by their number."""

    def read(self, files: Sequence[Path], numeric_labels: bool) -> None:
        """Read the examples of JSONL files and check each by itself.

        Raises:
            DataError: a line is not an example, labels are missing or of two kinds, or there are no examples.
        """
        rules = example_rules(self.options, self.prompt, self.runtime.excluded)
        self.rule_names = [rule.name for rule in rules]
        file_pieces = pieces(files)
        checker = partial(
            ExampleChecker, self.options, self.prompt, self.runtime.excluded, numeric_labels, self.table.file.parent
        )
        # A function made in an interactive session cannot be sent to other processes.
        is_large = len(file_pieces) > 1 and not self.options.has_callable_rules
        with self.runtime.spread(is_large)(checker) as check_pieces:
            parquet_files = list(check_pieces(iter(file_pieces)))
        if parquet_files:
            self.table.open_rows(parquet_files)
            count, scores, names, second_texts = self.table.run(
                'SELECT count(*), count(score), count("class"), count(text_b) FROM rows'
            )[0]
        if not parquet_files or not count:
            raise DataError(f"{self.source}: holds no examples; give a file with one JSON object a line")
        if scores and names:
            raise DataError(f"{self.source}: some labels are numbers and some are names; use one kind")
        if second_texts not in (0, count):
            raise DataError(f'{self.source}: some examples have a "text_b" and some have none; split the file')
        self.table.size = count
        self.table.index()

    def drop(self, *, strict: bool = True) -> None:
        """Drop what the rules find, and record each step.

        Args:
            strict: raise an error if a label has no examples left.

        Raises:
            DataError: a label has no examples left.
        """
        table = self.table
        self._record("read", table.counts("keys"))
        table.drop_by_example_rules()
        for reason, counts in table.drops_by_reason(self._rules_to_show()).items():
            self._record("dropped", counts, reason)
        self._check_labels_left(strict)
        context = self._context()
        for rule in self._dataset_rules():
            if rule.is_balancing and self.available is None:
                self.available = table.counts("remaining")
            self._record("dropped", table.drop(rule.name, rule.find(context, "remaining")), rule.name)
            self._check_labels_left(strict)
        kept = table.counts("remaining")
        self._record("kept", kept)
        if self.available is None:
            self.available = kept
        self._record_hints()

    def split_and_label(self) -> None:
        """Split what is left into train and dev, give it its labels, and add random pairs.

        Raises:
            DataError: there are too few examples for two sides.
        """
        table, options = self.table, self.options
        split(table, options.dev_share, options.seed)
        sizes = dict(table.run("SELECT is_dev, count(*) FROM sides GROUP BY is_dev"))
        if not sizes.get(False) or (options.dev_share and not sizes.get(True)):
            raise DataError(
                f"{self.source}: {sum(sizes.values())} examples are too few for a train and a dev side without a "
                "common text",
                "generate more, or {dev_share=0}",
            )
        if options.labels == "posterior":
            self._context().score("remaining")
        assign_labels(table, options)
        if table.has_scores and options.random_pairs and table.value("SELECT count(hash_b) FROM keys"):
            draw_random_pairs(table, options.random_pairs, options.seed)
            pairs = table.value("SELECT count(*) FROM random_pairs")
            self._record("added", {table.unrelated: pairs}, "random pairs")
        self._record("train", side_counts(table, is_dev=False))
        self._record("dev", side_counts(table, is_dev=True))

    def run(self) -> None:
        """Drop, split and label.

        Raises:
            OptionError: an option does not fit the data.
            DataError: nothing is left of a label, or of a side.
        """
        if self.options.labels == "posterior" and not self.table.has_scores:
            raise OptionError(
                "these labels are classes, which have no mean", "use {labels=hard}", option="labels", value="posterior"
            )
        self.drop()
        self.split_and_label()

    def ablate(self) -> None:
        """Record what each rule alone would drop."""
        self._record("read", self.table.counts("keys"))
        for number, name in enumerate(self.rule_names):
            broken = f"SELECT id FROM keys WHERE broken_rules & {1 << number} <> 0"
            self._record("dropped", self.table.count(broken), name)
        context = self._context()
        for rule in self._dataset_rules():
            self._record("dropped", self.table.count(rule.find(context, "keys")), rule.name)

    @property
    def funnel(self) -> Funnel:
        """The steps so far."""
        return Funnel(tuple(self.steps))

    def add_results(self, record: FilterRecord) -> FilterRecord:
        """Return the record with what came of the filter."""
        available = self.available or {}
        target = self.options.target_per_label
        missing = {label: target - count for label, count in available.items() if target and count < target}
        return record.updated(
            funnel=tuple(self.steps),
            available=label_counts(available),
            missing=label_counts(missing),
            margin_quantiles=self._quantiles("margin"),
            logprob_quantiles=self._quantiles("logprob"),
        )

    def _record(self, kind: StepKind, counts: Counts, rule: str = "") -> None:
        self.steps.append(funnel_step(kind, counts, rule))

    def _context(self) -> RuleContext:
        spread = self.runtime.spread(self.table.size >= PARALLEL_FROM)
        return RuleContext(self.table, self.source, spread, self.runtime.embed, self.runtime.scorer)

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

    def _check_labels_left(self, strict: bool) -> None:
        """Raise `DataError` if a label has no examples left; it names the step that dropped the last one."""
        if self.table.has_graded_scores or not strict:
            return
        left = {label for (label,) in self.table.run("SELECT DISTINCT label FROM remaining")}
        lost = [value for number, value in enumerate(self.table.labels) if number not in left]
        if not lost:
            return
        last_rule = ""
        for step in self.steps:
            if step.kind == "dropped" and any(label in lost for label, _ in step.counts):
                last_rule = step.rule
        raise DataError(
            f"{self.source}: no example of label {', '.join(map(str, lost))} is left "
            f'(the last was dropped as "{last_rule}")',
            "generate more, or read the instruction of that label in the spec",
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
