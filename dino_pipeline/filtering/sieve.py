"""One pass over a dataset: which rules in which order, what they leave, and how that is parted and labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.filtering.funnel import Funnel
from dino_pipeline.filtering.hygiene import Rule
from dino_pipeline.filtering.ingest import Judge, pieces
from dino_pipeline.filtering.near import Embed, near_inputs, near_texts, semantic_inputs
from dino_pipeline.filtering.parts import label, random_pairs, sides, split
from dino_pipeline.filtering.rules import FilterOptions, thresholds
from dino_pipeline.filtering.sets import Table, below, beyond_cap, conflicts, duplicates, smallest, surplus, unconfirmed
from dino_pipeline.processes import OpenPool, process_pool

WORTH_PROCESSES = 50_000
"""So many examples are worth several processes."""
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)
LOWEST = 0.05
"""What the funnel says of a log-probability threshold that is off: the lowest so much of each label."""


class Scores(Protocol):
    """Knows how likely the generator finds each text under each label's instruction."""

    def fill(self, table: Table, rows: str) -> None:
        """Put what is missing of these rows into ``scores (id, label, logprob, tokens)``."""


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
    cluster: OpenPool | None = None
    """Does what touches texts, in place of processes here."""

    def spread(self, worth: bool) -> OpenPool:
        """Return where to do work that is, or is not, worth several processes."""
        return self.cluster or partial(process_pool, workers=self.workers if worth else 1)


@dataclass(frozen=True)
class SetRule:
    """A rule about examples beside one another."""

    name: str
    find: Callable[[Sieve, str], str]
    """Returns a query of `sets.DROPS` for the rows that go from one of the sieve's tables."""
    help: str
    option: str = ""
    on: bool = True
    repeats: bool = False
    """Whether what it drops was there before."""
    levels: bool = False
    """Whether nothing is wrong with what it drops."""


def set_rules(options: FilterOptions) -> list[SetRule]:
    """Return the rules about examples beside one another, in order."""
    limit, most = options.near_duplicates, options.max_per_text
    return [
        SetRule(
            "duplicate",
            lambda _, rows: duplicates(rows),
            "texts and label stand before; similarities in either order",
            repeats=True,
        ),
        SetRule("conflicting labels", lambda _, rows: conflicts(rows), "the pair stands under another label, too"),
        SetRule(
            "near-duplicate input",
            lambda sieve, rows: near_inputs(sieve.table, rows, limit, sieve.spread),
            f"text_a resembles an earlier one (Jaccard of character 5-grams, {limit:g})",
            "--near-duplicates",
            bool(limit),
            repeats=True,
        ),
        SetRule(
            "near-duplicate text_b",
            lambda sieve, rows: near_texts(sieve.table, rows, limit, sieve.spread),
            f"text_b resembles an earlier one of the same text_a and label ({limit:g})",
            "--near-duplicates",
            bool(limit),
            repeats=True,
        ),
        SetRule(
            "input of the same meaning",
            lambda sieve, rows: sieve.same_meaning(rows),
            f"text_a means what an earlier one means (cosine, {options.semantic_threshold:g})",
            "--semantic",
            options.semantic is not None,
            repeats=True,
        ),
        _limit("margin", options.min_margin, "about as likely under a counter-label's instruction"),
        _limit("logprob", options.min_logprob, "unlikely under its own instruction"),
        SetRule(
            "label not confirmed",
            lambda sieve, rows: unconfirmed(sieve.scored(rows), options.verify_margin),
            "the generator finds another label's instruction likelier",
            "--verify",
            options.verify,
        ),
        SetRule(
            f"more than {most or 'N'} per text and label",
            lambda _, rows: beyond_cap(rows, most),
            "text_b beyond the first of the same text_a and label",
            "--max-per-text",
            bool(most),
        ),
        SetRule(
            "beyond the target",
            lambda _, rows: surplus(rows, str(options.target_per_label)),
            "more than were asked for of the label",
            "--target-per-label",
            options.target_per_label is not None,
            levels=True,
        ),
        SetRule(
            "balance",
            lambda _, rows: surplus(rows, smallest(rows)),
            "more than there are of the rarest label",
            "--no-balance",
            options.balance,
            levels=True,
        ),
    ]


def _limit(column: str, given: Sequence[str], help: str) -> SetRule:
    option = f"--min-{column}"

    def find(sieve: Sieve, rows: str) -> str:
        if not sieve.table.value(f"SELECT count({column}) FROM keys"):
            raise OptionError(f"{option}: {sieve.source} holds no {column}; only what dino generate wrote has one")
        return below(rows, column, thresholds(given, sieve.table.labels, option))

    return SetRule(f"low {column}", find, help, option, bool(given))


@dataclass(frozen=True)
class Sieve:
    """A dataset in a table, and all that is done to it."""

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
        judge = partial(Judge, self.options, self.means.excluded, numeric_labels, self.table.file.parent)
        with self.means.spread(len(every) > 1)(judge) as over:
            judged = list(over(iter(every)))
        if judged:
            self.table.load(judged)
        counts = 'count(*), count(score), count("class"), count(text_b)'
        count, scores, names, second = self.table.run(f"SELECT {counts} FROM rows")[0] if judged else (0, 0, 0, 0)
        if not count:
            raise DataError(f"{self.source}: holds no examples; give a file with one JSON object a line")
        self.table.size = count
        if scores and names:
            raise DataError(f"{self.source}: some labels are numbers and some are names; use one kind")
        if second not in (0, count):
            raise DataError(f'{self.source}: some examples have a "text_b" and some have none; split the file')
        self.table.index()

    @property
    def rules_of_sets(self) -> list[SetRule]:
        """Those that are on, in order; scores of many grades are not balanced."""
        on = [rule for rule in set_rules(self.options) if rule.on]
        return [rule for rule in on if rule.name != "balance" or not self.table.graded]

    @property
    def spread(self) -> OpenPool:
        """Where texts are compared."""
        return self.means.spread(self.table.size >= WORTH_PROCESSES)

    def same_meaning(self, rows: str) -> str:
        """Find rows whose text_a means what an earlier one means, by the sentence encoder."""
        assert self.means.embed
        return semantic_inputs(self.table, rows, self.options.semantic_threshold, self.means.embed)

    def scored(self, rows: str) -> str:
        """Return rows, having had the generator score them under every label."""
        assert self.means.scores
        self.means.scores.fill(self.table, rows)
        return rows

    def carry_out(self) -> Funnel:
        """Drop what the rules find, part the rest into train and dev, and count all along.

        Raises:
            DataError: nothing is left of a label, or of a side.
        """
        options, table = self.options, self.table
        if options.labels == "posterior" and not table.scored:
            raise OptionError("--labels posterior: these labels are classes, which have no mean; use --labels hard")
        funnel = self.thin()
        split(table, options.dev_share, options.seed)
        sizes = dict(table.run("SELECT dev, count(*) FROM parts GROUP BY dev"))
        if not sizes.get(False) or (options.dev_share and not sizes.get(True)):
            raise DataError(
                f"{self.source}: {sum(sizes.values())} examples are too few for a train and a dev side without a "
                "common text; generate more, or --dev-share 0"
            )
        if options.labels == "posterior":
            self.scored("alive")
        label(table, options)
        if table.scored and options.random_pairs and table.value("SELECT count(b) FROM keys"):
            random_pairs(table, options.random_pairs, options.seed)
            funnel.add("+ random pairs", {table.unrelated: table.value("SELECT count(*) FROM extra")})
        for side, counts in sides(table):
            funnel.add(side, counts)
        return funnel

    def thin(self, strict: bool = True) -> Funnel:
        """Drop what the rules find, and count all along.

        Args:
            strict: whether it is an error that nothing is left of a label.
        """
        table, funnel = self.table, Funnel()
        funnel.add("read", table.counts("keys"))
        table.run("""
            INSERT INTO drops SELECT id, head, nullif(substr(reason, length(head) + 3), ''), NULL, 0
            FROM (SELECT id, reason, split_part(reason, ': ', 1) AS head FROM plain WHERE reason IS NOT NULL)
        """)
        for reason, counts in table.drops_by_reason(self._shown_by_name()).items():
            funnel.add(f"- {reason}", counts)
        self._check_left(funnel, strict)
        for rule in self.rules_of_sets:
            if rule.levels and not funnel.available:
                funnel.available = table.counts("alive")
            funnel.add(f"- {rule.name}", table.drop(rule.name, rule.find(self, "alive")))
            self._check_left(funnel, strict)
        funnel.add("kept", table.counts("alive"))
        funnel.available = funnel.available or table.counts("alive")
        self._count_more(funnel)
        return funnel

    def _shown_by_name(self) -> list[str]:
        """Name the rules about single examples that the funnel shows even if they drop nothing.

        A user's own rule gives reasons as it likes: it stands there by its name only if it drops nothing.
        """
        dropping = self.table.run("SELECT DISTINCT hits & -hits FROM keys")  # by the first of the rules that are broken
        own = self.options.custom
        numbered = enumerate(self.rules)
        return [rule.name for number, rule in numbered if rule.name not in own or (1 << number,) not in dropping]

    def _check_left(self, funnel: Funnel, strict: bool) -> None:
        if self.table.graded or not strict:
            return
        left = self.table.run("SELECT DISTINCT label FROM alive")
        lost = [label for number, label in enumerate(self.table.labels) if (number,) not in left]
        if lost:
            took = (step[2:] for step, counts in reversed(funnel.steps) if step[0] == "-" and {*counts} & {*lost})
            names, last = ", ".join(map(str, lost)), next(took)
            raise DataError(
                f'{self.source}: no example of label {names} is left (the last went as "{last}"); '
                "generate more, or look at the spec's instruction for it with dino spec show"
            )

    def _count_more(self, funnel: Funnel) -> None:
        """Add to the funnel what thresholds that are off would drop, and what is flagged."""
        table, options = self.table, self.options
        known = table.run("""
            SELECT label, count(margin), count(*) FILTER (margin < 0), count(logprob) FROM alive GROUP BY label
        """)
        if not options.min_margin and any(margins for _, margins, _, _ in known):
            below_zero = table.by_label((label, negative) for label, _, negative, _ in known)
            funnel.add("(--min-margin 0 would drop)", below_zero)
        if not options.min_logprob and any(logprobs for *_, logprobs in known):
            lowest = table.by_label((label, int(LOWEST * logprobs)) for label, _, _, logprobs in known)
            funnel.add(f"(--min-logprob {LOWEST:.0%} would drop)", lowest)
        if options.pii == "flag":
            flagged = "SELECT id FROM alive JOIN (SELECT line FROM rows WHERE flag IS NOT NULL) USING (line)"
            funnel.add("(flagged: personal data)", table.count(flagged))

    def alone(self) -> Funnel:
        """Count what each rule would drop if it were the only one."""
        funnel = Funnel()
        funnel.add("read", self.table.counts("keys"))
        for number, rule in enumerate(self.rules):
            funnel.add(f"- {rule.name}", self.table.count(f"SELECT id FROM keys WHERE hits & {1 << number} <> 0"))
        for each in self.rules_of_sets:
            funnel.add(f"- {each.name}", self.table.count(each.find(self, "keys")))
        return funnel

    def results(self, funnel: Funnel) -> dict[str, Any]:
        """Return what the record holds beside the funnel: what is missing to the target, quantiles for thresholds."""
        found: dict[str, Any] = {"available": [list(item) for item in funnel.available.items()]}
        if target := self.options.target_per_label:
            found["missing"] = [[label, target - count] for label, count in funnel.available.items() if count < target]
        for column in ("margin", "logprob"):
            quantiles = self.table.run(f"""
                SELECT v, quantile_disc({column}, {list(QUANTILES)}) FROM keys JOIN labels USING (label)
                WHERE {column} IS NOT NULL GROUP BY v ORDER BY v
            """)
            if quantiles:
                of_label = [[label, dict(zip(map(str, QUANTILES), of, strict=True))] for label, of in quantiles]
                found[f"{column}_quantiles"] = of_label
        return found
