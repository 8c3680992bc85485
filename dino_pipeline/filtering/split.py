"""Which side, train or dev, each kept example goes to, with which label, and which random pairs join them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from dino_pipeline.errors import DataError
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.filtering.postprocessed import BETWEEN_SIDES
from dino_pipeline.funnel import Counts, by_tenths

Links = NDArray[np.uint64]
MAX_COST = 2
"""Rows between the sides that may be dropped for each row of dev."""
MAX_DRAWS = 20
"""Most draws for each random pair; inputs that found none by then get fewer pairs."""


def split(table: ExampleTable, dev_share: float, seed: int, *, has_random_pairs: bool = False) -> Counts | None:
    """Store the side of each remaining row in ``sides (id, line, label, hash_a, hash_b, is_dev)``.

    No text is on both sides, neither as first nor as second text. Rows that share a text, directly or through other
    rows, form a group that goes to one side. Groups go to dev in an order drawn by hash until dev has its share; a
    group larger than that share stays in train. Only the rows in ``written`` form groups, which are no random pairs.

    If groups are so large that dev gets less than half of its share, the largest one is cut.

    Example: the rows (a, b), (b, c) and (d, e) form two groups, as b is second text of the first row and first text of
    the second.

    Returns:
        The number of rows by label that are dropped because they would have a text on each side; None if none can.
    """
    links = _store_groups(table)
    # Groups are named by the hash of one of their texts. `rows_before` counts the rows of groups that come earlier in
    # the drawn order. At least one group always fits: the smallest.
    table.run(
        f"""
        CREATE TABLE dev_texts AS
        WITH group_sizes AS (SELECT group_hash, sum(size) AS size FROM groups GROUP BY group_hash),
        wanted AS (SELECT {dev_share!r} * sum(size) AS wanted, min(size) AS smallest FROM group_sizes),
        fitting AS (
            SELECT
                group_hash, wanted,
                sum(size) OVER (ORDER BY md5_number_lower(concat(?, ' ', group_hash)), group_hash) - size AS rows_before
            FROM group_sizes, wanted WHERE size <= greatest(wanted, smallest)
        )
        SELECT hash_a FROM groups JOIN fitting USING (group_hash) WHERE rows_before < wanted
        """,
        str(seed),
    )
    between = None
    if dev_share and (_cut_largest_group(table, links, dev_share, seed) or has_random_pairs):
        between = _drop_between_sides(table)
    table.run("""
        CREATE TABLE sides AS
        SELECT id, line, label, remaining.hash_a, hash_b, dev_texts.hash_a IS NOT NULL AS is_dev
        FROM remaining LEFT JOIN dev_texts USING (hash_a)
    """)
    table.run("""
        CREATE TABLE random_pairs (
            id BIGINT, hash_a UBIGINT, other_id BIGINT, hash_b UBIGINT, is_dev BOOLEAN, draw INTEGER
        )
    """)
    return between


def check_sides(table: ExampleTable, dev_share: float, cost: int, *, can_grow: bool) -> None:
    """Raise an error if a side is empty, or costs too much.

    Args:
        cost: rows that were dropped because they had a text on each side.
        can_grow: more rows can be generated.
    """
    sizes = dict(table.run("SELECT is_dev, count(*) FROM sides GROUP BY is_dev"))
    train, dev = sizes.get(False, 0), sizes.get(True, 0)
    more = "generate more" if can_grow else "give more"
    if not train or (dev_share and not dev and not cost):
        raise DataError(
            f"{table.source}: {train + dev} examples are too few for a train and a dev side without a common text",
            f"{more}, or {{dev_share=0}}",
        )
    if dev_share and cost >= MAX_COST * dev:
        raise DataError(
            f"{table.source}: its examples have so many texts in common that a dev side of {dev} costs {cost} others",
            f"{more} with texts of their own, or {{dev_share=0}}",
        )


def _store_groups(table: ExampleTable) -> Links:
    """Store the group of each distinct text_a, and its number of rows, in ``groups (hash_a, group_hash, size)``.

    Returns:
        ``(links, 2)`` hashes of text_a that share a text.
    """
    table.run("CREATE TABLE groups AS SELECT hash_a, hash_a AS group_hash, count(*) AS size FROM written GROUP BY 1")
    # A text links the inputs whose rows hold it, as first or as second text. Linking each to the least of them is
    # enough to make one component.
    found = table.db.sql("""
        WITH occurrences AS (
            SELECT hash_a AS text, hash_a FROM groups
            UNION ALL SELECT hash_b, hash_a FROM written WHERE hash_b IS NOT NULL
        ),
        shared AS (
            SELECT text, min(hash_a) AS first_input FROM occurrences GROUP BY text HAVING min(hash_a) <> max(hash_a)
        )
        SELECT DISTINCT first_input, hash_a FROM occurrences JOIN shared USING (text) WHERE hash_a <> first_input
    """).fetchnumpy()
    links = np.stack([found["first_input"], found["hash_a"]], axis=1).astype(np.uint64)  # (links, 2)
    if len(links):
        inputs, group_hashes = _components(links)
        table.store("linked", pa.table({"hash_a": inputs, "group_hash": group_hashes}))
        table.run("UPDATE groups SET group_hash = linked.group_hash FROM linked WHERE groups.hash_a = linked.hash_a")
    return links


def _cut_largest_group(table: ExampleTable, links: Links, dev_share: float, seed: int) -> bool:
    """Add inputs of the largest group to ``dev_texts`` if these hold less than half of dev's share.

    They are neighbours, so that few rows link them to the others: the first ones of a breadth-first search.
    """
    rows = table.value("SELECT sum(size) FROM groups") or 0
    rows_of_dev = table.value("SELECT sum(size) FROM groups SEMI JOIN dev_texts USING (hash_a)") or 0
    if rows_of_dev == rows:  # there is one group only
        table.run("DELETE FROM dev_texts")
        rows_of_dev = 0
    missing = dev_share * rows - rows_of_dev
    if missing <= dev_share * rows / 2:
        return False
    members = table.db.sql("""
        SELECT hash_a, size FROM groups WHERE group_hash = (
            SELECT group_hash FROM groups GROUP BY group_hash ORDER BY sum(size) DESC, group_hash LIMIT 1
        ) ORDER BY hash_a
    """).fetchnumpy()
    hashes, sizes = members["hash_a"], members["size"]
    if len(hashes) < 2:
        return False
    inside = links[np.isin(links[:, 0], hashes)]
    start = int(np.argmin(hashes * np.uint64(_hash_factor(seed, 0))))
    graph = _graph(np.searchsorted(hashes, inside), len(hashes))
    order = breadth_first_order(graph, start, directed=False, return_predecessors=False)
    rows_before = np.cumsum(sizes[order]) - sizes[order]
    table.insert("dev_texts", pa.table({"hash_a": hashes[order][rows_before < missing]}))
    return True


def _drop_between_sides(table: ExampleTable) -> Counts:
    """Add the other texts of dev to ``dev_texts``, and drop the rows with a text on each side; return their number.

    A text that is no input belongs to the side of most of its rows.
    """
    table.run("""
        INSERT INTO dev_texts
        SELECT hash_b FROM written LEFT JOIN dev_texts USING (hash_a) ANTI JOIN groups ON groups.hash_a = hash_b
        WHERE hash_b IS NOT NULL GROUP BY hash_b HAVING 2 * count(dev_texts.hash_a) >= count(*)
    """)
    return table.drop(
        BETWEEN_SIDES,
        """
        SELECT id, NULL AS evidence, NULL AS duplicate_of FROM remaining
        WHERE (hash_a IN (FROM dev_texts)) <> (hash_b IN (FROM dev_texts))
        """,
    )


def _components(links: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return all linked hashes in order, and for each the least hash of its connected component.

    Args:
        links: ``(links, 2)`` pairs of hashes. ``[[5, 9], [9, 7], [1, 3]]`` gives ``[1, 3, 5, 7, 9]`` and
            ``[1, 1, 5, 5, 5]``.
    """
    hashes, numbers = np.unique(links, return_inverse=True)
    numbers = numbers.reshape(links.shape)  # (links, 2) places in `hashes`
    _, component = connected_components(_graph(numbers, len(hashes)), directed=False)  # (hashes,)
    # `hashes` is sorted, so that the first member of a component is the least.
    _, first_member = np.unique(component, return_index=True)
    return hashes, hashes[first_member[component]]


def _graph(edges: NDArray[np.int64], nodes: int) -> csr_array:
    """Return the graph of ``(edges, 2)`` numbers of nodes."""
    ones = np.ones(len(edges), dtype=np.int8)
    return csr_array((ones, (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))


def assign_labels(table: ExampleTable, options: FilterOptions) -> None:
    """Store the training label of every kept row in ``labelled (id, line, is_dev, label)``."""
    if options.labels == "posterior":
        _assign_posterior_labels(table, options.temperature)
        return
    label = "value"
    if table.has_scores and options.labels == "smoothed":
        middle = sum(table.scale) / 2
        label = f"round(value * {1 - options.smoothing!r} + {options.smoothing * middle!r}, 6)"
    table.run(
        f"CREATE TABLE labelled AS SELECT id, line, is_dev, {label} AS label FROM sides JOIN labels USING (label)"
    )


def _assign_posterior_labels(table: ExampleTable, temperature: float) -> None:
    """Assign the expected label under p(label | texts), from ``scores`` and a uniform prior.

    The weight of a label is exp(log-likelihood / temperature); the largest is scaled to 1 to avoid underflow.
    """
    table.run(f"""
        CREATE TABLE labelled AS
        WITH likelihoods AS (
            SELECT scores.id, value, logprob * tokens / {temperature!r} AS x
            FROM scores SEMI JOIN sides USING (id) JOIN labels ON labels.label = scores.label
        ),
        weights AS (SELECT id, value, exp(x - max(x) OVER (PARTITION BY id)) AS weight FROM likelihoods)
        SELECT id, line, is_dev, round(sum(value * weight) / sum(weight), 6) AS label
        FROM weights JOIN sides USING (id) GROUP BY ALL
    """)


def draw_random_pairs(table: ExampleTable, count: int, seed: int) -> None:
    """Store ``count`` random text_b of the same side for each text_a in ``random_pairs``.

    A text_a never gets a text_b that any row, dropped ones included, joins with it. Where none is found in a few draws,
    there are fewer pairs.
    """
    table.run("""
        CREATE TABLE pool AS
        SELECT id, hash_b, is_dev, row_number() OVER (PARTITION BY is_dev ORDER BY id) - 1 AS place FROM sides
    """)
    table.run("CREATE TABLE side_inputs AS SELECT hash_a, is_dev, min(id) AS id FROM sides GROUP BY hash_a, is_dev")
    wanted = f"{count} * (SELECT count(*) FROM side_inputs)"
    first_draw, draws = 0, count
    while first_draw < MAX_DRAWS * count and table.value(f"SELECT count(*) < {wanted} FROM random_pairs"):
        factors = {draw: _hash_factor(seed, draw) for draw in range(first_draw, first_draw + draws)}
        _draw(table, count, factors)
        first_draw, draws = first_draw + draws, 2 * draws  # few texts are left that want pairs: draw more for each


def _draw(table: ExampleTable, count: int, factors: Mapping[int, int]) -> None:
    """Draw a text_b by each factor for every text_a that has too few, and keep those that are allowed."""
    values = ", ".join(map(str, factors.items()))
    # Multiplicative hashing: the upper bits of hash_a * factor, modulo the size of the pool, are a random place in it.
    table.run(f"""
        CREATE OR REPLACE TEMP TABLE drawn AS
        WITH wanting AS (
            SELECT side_inputs.*, {count} - coalesce(pairs, 0) AS wanted
            FROM side_inputs LEFT JOIN (SELECT hash_a, count(*) AS pairs FROM random_pairs GROUP BY hash_a)
            USING (hash_a) WHERE wanted > 0
        ),
        sizes AS (SELECT is_dev, count(*) AS size FROM pool GROUP BY is_dev),
        places AS (
            SELECT wanting.*, draw, ((hash_a::HUGEINT * factor >> 40) % size)::BIGINT AS place
            FROM wanting JOIN sizes USING (is_dev), (VALUES {values}) AS draws (draw, factor)
        )
        SELECT places.id, places.hash_a, pool.id AS other_id, pool.hash_b, is_dev, draw, wanted
        FROM places JOIN pool USING (is_dev, place) WHERE pool.hash_b <> places.hash_a
    """)
    # Left out: pairs of texts that a row or an earlier draw joins, in either direction; repeats within this draw; and
    # more pairs than a text_a wants.
    table.run("""
        INSERT INTO random_pairs
        WITH related AS (
            SELECT hash_a, hash_b FROM keys SEMI JOIN drawn USING (hash_a)
            UNION ALL SELECT hash_b, hash_a FROM keys SEMI JOIN drawn ON drawn.hash_a = keys.hash_b
            UNION ALL SELECT hash_a, hash_b FROM random_pairs
            UNION ALL SELECT hash_b, hash_a FROM random_pairs
        ),
        unrelated AS (SELECT * FROM drawn ANTI JOIN related USING (hash_a, hash_b)),
        distinct_pairs AS (
            SELECT * FROM unrelated
            QUALIFY row_number() OVER (
                PARTITION BY least(hash_a, hash_b), greatest(hash_a, hash_b) ORDER BY draw, hash_a
            ) = 1
        )
        SELECT * EXCLUDE (wanted) FROM distinct_pairs
        QUALIFY row_number() OVER (PARTITION BY hash_a ORDER BY draw) <= wanted
    """)


def _hash_factor(seed: int, draw: int) -> int:
    """Return an odd number of 62 bits: products with it, shifted, are hashes (Dietzfelbinger et al. 1997)."""
    digest = hashlib.blake2b(f"{seed} {draw}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2 | 1


def side_counts(table: ExampleTable, *, is_dev: bool) -> Counts:
    """Return the number of examples by label of one side, random pairs included."""
    rows = f"SELECT label, is_dev FROM labelled UNION ALL SELECT {table.unrelated!r}, is_dev FROM random_pairs"
    counts = dict(table.run(f"SELECT label, count(*) FROM ({rows}) WHERE is_dev = ? GROUP BY label", is_dev))
    return by_tenths(counts, table.scale)


def write_files(table: ExampleTable, folder: Path) -> None:
    """Write the files of train, dev, dropped and flagged examples into a folder."""
    for side, is_dev in (("train", "false"), ("dev", "true")):
        # First the examples in the order of their ids, then the random pairs.
        query = f"""
            SELECT * FROM (
                SELECT text_a, text_b, label, logprob, margin, input, sample
                FROM rows JOIN labelled USING (line) WHERE is_dev = {is_dev} ORDER BY id
            )
            UNION ALL SELECT * FROM (
                SELECT one.text_a, two.text_b, {table.unrelated!r}, NULL, NULL, NULL, NULL
                FROM random_pairs JOIN examples AS one USING (id) JOIN examples AS two ON two.id = other_id
                WHERE is_dev = {is_dev} ORDER BY random_pairs.id, draw
            )
        """
        table.write_jsonl(query, folder / f"{side}.jsonl")
    other = ", ".join(f"'{name}': other.{name}" for name in ("text_a", "text_b", "label", "input", "sample"))
    dropped = f"""
        SELECT
            examples.* EXCLUDE (id, personal_data, reason), drops.reason, evidence,
            CASE WHEN duplicate_of IS NOT NULL THEN {{{other}}} END AS duplicate_of
        FROM drops JOIN examples USING (id) LEFT JOIN examples AS other ON other.id = duplicate_of ORDER BY id
    """
    table.write_jsonl(dropped, folder / "dropped.jsonl")
    flagged = """
        SELECT
            examples.* EXCLUDE (id, personal_data, reason),
            split_part(personal_data, ': ', 1) AS reason, split_part(personal_data, ': ', 2) AS evidence
        FROM examples SEMI JOIN sides USING (id) WHERE personal_data IS NOT NULL ORDER BY id
    """
    table.write_jsonl(flagged, folder / "flagged.jsonl")
