"""Which examples are dropped because of other examples: rules about the whole dataset, in their order, as SQL.

A rule's query reads a table of rows (``remaining``, or ``keys`` for all) and returns the rows to drop, with the columns
`example_table.DROPS`. Rules run in the order of `dataset_rules`, each on what the earlier ones left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dino_pipeline.errors import OptionError
from dino_pipeline.filter_options import FilterOptions, Threshold, parse_threshold
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.filtering.near_duplicates import (
    Embed,
    near_duplicate_inputs,
    near_duplicate_texts,
    same_meaning_inputs,
)
from dino_pipeline.processes import OpenPool, process_pool
from dino_pipeline.progress import Reporter, SilentReporter
from dino_pipeline.rows import RowsRead
from dino_pipeline.text import as_number

if TYPE_CHECKING:
    from dino_pipeline.filtering.label_scores import LabelScores


@dataclass(frozen=True)
class FilterRuntime:
    """Workers, memory limit, models and evaluation data of a filter: what rules work with."""

    workers: int = 1
    memory: str = "1400MB"
    """That DuckDB may take before it spills to disk."""
    scorer: LabelScores | None = None
    embed: Embed | None = None
    excluded: tuple[str, ...] = ()
    """Files of the evaluation data that ``exclude`` names."""
    rows_excluded: tuple[RowsRead, ...] = ()
    """What they hold."""
    cluster: OpenPool | None = None
    """Spreads work on texts over a cluster, instead of processes on this machine."""
    reporter: Reporter = field(default_factory=SilentReporter)

    def spread(self, is_large: bool) -> OpenPool:
        """Return what spreads work on texts: over the cluster, over processes if there is much, else over one."""
        return self.cluster or partial(process_pool, workers=self.workers if is_large else 1)

    def score(self, table: ExampleTable, rows: str) -> None:
        """Have the generator score rows under every label.

        Raises:
            OptionError: there is no generator.
        """
        if self.scorer is None:
            raise OptionError("needs the generator of a run", "filter a run", option="verify")
        self.scorer.fill(table, rows)


@dataclass(frozen=True)
class DatasetRule:
    """A rule about examples and their place in the dataset."""

    name: str
    find: Callable[[ExampleTable, FilterRuntime, str], str]
    """Returns a query of the rows to drop, given the dataset and the name of the table of rows to look at."""
    help: str
    option: str = ""
    """The option that sets it or turns it on, a reference of `errors.worded`."""
    is_on: bool = True
    is_duplicate_rule: bool = False
    """Drops examples that repeat an earlier one."""
    is_balancing: bool = False
    """Drops good examples to even out label counts."""


def dataset_rules(options: FilterOptions) -> list[DatasetRule]:
    """Return all rules about the dataset in the order in which they run, those that are off included."""
    return [*_duplicate_rules(options), *_likelihood_rules(options), *_count_rules(options)]


def _duplicate_rules(options: FilterOptions) -> list[DatasetRule]:
    threshold = options.near_duplicates
    return [
        DatasetRule(
            "duplicate",
            lambda table, runtime, rows: duplicates(rows),
            "texts and label of an earlier pair; similarities in either order",
            is_duplicate_rule=True,
        ),
        DatasetRule(
            "conflicting labels", lambda table, runtime, rows: conflicts(rows), "the pair has another label, too"
        ),
        DatasetRule(
            "near-duplicate input",
            lambda table, runtime, rows: near_duplicate_inputs(table, rows, threshold, runtime.spread(table.is_large)),
            f"text_a resembles an earlier one (Jaccard of character 5-grams, {threshold:g})",
            "{near_duplicates}",
            bool(threshold),
            is_duplicate_rule=True,
        ),
        DatasetRule(
            "near-duplicate text_b",
            lambda table, runtime, rows: near_duplicate_texts(table, rows, threshold, runtime.spread(table.is_large)),
            f"text_b resembles an earlier one of the same text_a and label ({threshold:g})",
            "{near_duplicates}",
            bool(threshold),
            is_duplicate_rule=True,
        ),
        DatasetRule(
            "input of the same meaning",
            lambda table, runtime, rows: _same_meaning(table, runtime, rows, options.semantic_threshold),
            f"text_a means what an earlier one means (cosine, {options.semantic_threshold:g})",
            "{semantic}",
            options.semantic is not None,
            is_duplicate_rule=True,
        ),
    ]


def _likelihood_rules(options: FilterOptions) -> list[DatasetRule]:
    return [
        DatasetRule(
            "low margin",
            lambda table, runtime, rows: _below_thresholds(table, rows, "margin", options.min_margin),
            "about as likely under a counter-label's instruction",
            "{min_margin}",
            bool(options.min_margin),
        ),
        DatasetRule(
            "low logprob",
            lambda table, runtime, rows: _below_thresholds(table, rows, "logprob", options.min_logprob),
            "unlikely under its own instruction",
            "{min_logprob}",
            bool(options.min_logprob),
        ),
        DatasetRule(
            "label not confirmed",
            lambda table, runtime, rows: _unconfirmed(table, runtime, rows, options.verify_margin),
            "the generator finds another label's instruction likelier",
            "{verify}",
            options.verify,
        ),
    ]


def _count_rules(options: FilterOptions) -> list[DatasetRule]:
    most = options.max_per_text
    return [
        DatasetRule(
            f"more than {most or 'N'} per text and label",
            lambda table, runtime, rows: beyond_cap(rows, most),
            "text_b beyond the first of the same text_a and label",
            "{max_per_text}",
            bool(most),
        ),
        DatasetRule(
            "beyond the target",
            lambda table, runtime, rows: surplus(rows, options.target_per_label),
            "more than the target of the label",
            "{target_per_label}",
            options.target_per_label is not None,
            is_balancing=True,
        ),
        DatasetRule(
            "balance",
            lambda table, runtime, rows: surplus(rows, None),
            "more than the rarest label has",
            "{balance=False}",
            options.balance,
            is_balancing=True,
        ),
    ]


def _same_meaning(table: ExampleTable, runtime: FilterRuntime, rows: str, threshold: float) -> str:
    if runtime.embed is None:
        raise OptionError("needs a sentence encoder", option="semantic")
    return same_meaning_inputs(table, rows, threshold, runtime.embed)


def _unconfirmed(table: ExampleTable, runtime: FilterRuntime, rows: str, least: float) -> str:
    """Find rows whose own label is not the likeliest by at least ``least`` nats a token.

    The evidence names the likeliest other label: ``own label -1.250, label 0.5 -1.100``.
    """
    runtime.score(table, rows)
    return f"""
        WITH scored_rows AS (
            SELECT id, k.label = s.label AS is_own, s.logprob, value
            FROM {rows} AS k JOIN scores AS s USING (id) JOIN labels ON labels.label = s.label
        ),
        compared AS (
            SELECT
                id,
                max(logprob) FILTER (is_own) AS own,
                max(logprob) FILTER (NOT is_own) AS other,
                arg_max(value::VARCHAR, logprob) FILTER (NOT is_own) AS best_other
            FROM scored_rows GROUP BY id
        )
        SELECT id, printf('own label %.3f, label %s %.3f', own, best_other, other) AS evidence, NULL AS duplicate_of
        FROM compared WHERE own - other < {least!r} OR own <= other
    """


def _below_thresholds(table: ExampleTable, rows: str, column: str, given: Sequence[str]) -> str:
    """Find rows below the thresholds of an option; a threshold for one label beats one for all.

    Raises:
        OptionError: no row has a value, or a threshold names an unknown label.
    """
    option = f"min_{column}"
    if not table.value(f"SELECT count({column}) FROM keys"):
        raise OptionError(
            f"{table.source} holds no {column}; only generated texts have one",
            "leave {" + option + "} out",
            option=option,
        )
    limits: dict[int, Threshold] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, threshold = parse_threshold(text)
        assert threshold is not None  # `FilterOptions` refuses others
        chosen = []
        for number, label in enumerate(table.labels):
            if name in ("", str(label)) or as_number(name) == label:
                chosen.append(number)
        if not chosen:
            known = ", ".join(map(str, table.labels))
            raise OptionError(f"there is no label {name}; choose from {known}", option=option, value=text)
        limits.update(dict.fromkeys(chosen, threshold))
    return below(rows, column, limits)


def duplicates(rows: str) -> str:
    """Find rows whose texts and label an earlier row has."""
    return f"""
        SELECT id, NULL AS evidence, first_id AS duplicate_of
        FROM {rows} JOIN (
            SELECT first_hash, second_hash, label, min(id) AS first_id
            FROM {rows} GROUP BY ALL HAVING count(*) > 1
        ) USING (first_hash, second_hash, label)
        WHERE id <> first_id
    """


def conflicts(rows: str) -> str:
    """Find rows whose texts have several labels: all of them, with the evidence ``under 0.0 and 1.0``."""
    return f"""
        WITH conflicting AS (
            SELECT first_hash, second_hash FROM {rows}
            GROUP BY first_hash, second_hash HAVING min(label) <> max(label)
        ),
        labelled_rows AS (
            SELECT id, value::VARCHAR AS value, first_hash, second_hash
            FROM {rows} SEMI JOIN conflicting USING (first_hash, second_hash) JOIN labels USING (label)
        )
        SELECT
            id,
            'under ' || string_agg(DISTINCT value, ' and ' ORDER BY value)
                OVER (PARTITION BY first_hash, second_hash) AS evidence,
            NULL AS duplicate_of
        FROM labelled_rows
    """


def beyond_cap(rows: str, most: int) -> str:
    """Find rows that come after ``most`` others of the same text_a and label."""
    # The semi-join keeps the window function to the few groups that are too large.
    return f"""
        SELECT id, NULL AS evidence, NULL AS duplicate_of
        FROM {rows} SEMI JOIN (
            SELECT hash_a, label FROM {rows} GROUP BY ALL HAVING count(*) > {most}
        ) USING (hash_a, label)
        QUALIFY row_number() OVER (PARTITION BY hash_a, label ORDER BY id) > {most}
    """


def surplus(rows: str, most: int | None) -> str:
    """Find rows beyond ``most`` of their label, drawn by the hash of their line; None: as many as the rarest has."""
    limit = str(most)
    if most is None:
        limit = f"SELECT min(count) FROM (SELECT count(*) AS count FROM {rows} GROUP BY label)"
    return f"""
        SELECT id, NULL AS evidence, NULL AS duplicate_of FROM {rows}
        QUALIFY row_number() OVER (PARTITION BY label ORDER BY random_rank, id) > ({limit})
    """


def below(rows: str, column: str, limits: Mapping[int, Threshold]) -> str:
    """Find rows below the threshold of their label, by number; rows without a value stay.

    A share of 0.1 finds the tenth of the label's rows with the lowest values.
    """
    queries = ["SELECT NULL::BIGINT AS id, NULL AS evidence, NULL AS duplicate_of WHERE false"]
    for label, limit in limits.items():
        if limit.is_share:
            condition = (
                f"QUALIFY row_number() OVER (ORDER BY {column}, random_rank, id) <= {limit.value!r} * count(*) OVER ()"
            )
        else:
            condition = f"AND {column} < {limit.value!r}"
        queries.append(f"""(
            SELECT id, '{column} ' || printf('%.3f', {column}) AS evidence, NULL AS duplicate_of
            FROM {rows} WHERE label = {label} AND {column} IS NOT NULL {condition}
        )""")
    return " UNION ALL ".join(queries)
