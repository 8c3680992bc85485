"""What becomes of the examples that stay: the side of each, its label to train with, random pairs, and the files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dino_pipeline.filtering.funnel import Counts, by_tenths
from dino_pipeline.filtering.rules import FilterOptions
from dino_pipeline.filtering.sets import Table

TRIES = 20
"""Draws a random pair at most, before there are fewer of them."""


def split(table: Table, dev_share: float, seed: int) -> None:
    """Part living rows into ``parts (id, line, label, a, b, dev)`` so that no text, first or second, is on both sides.

    Groups of rows that share a text, directly or by way of other rows, go the same way; in an order drawn by hash,
    until dev has its share. A group larger than that share stays in train. ``extra`` is made, for `random_pairs`.
    """
    table.run("CREATE TABLE heads AS SELECT a, a AS head, count(*) AS size FROM alive GROUP BY a")
    links = table.columns("""
        WITH places AS (SELECT a AS text, a FROM heads UNION ALL SELECT b, a FROM alive WHERE b IS NOT NULL),
        shared AS (SELECT text, min(a) AS first FROM places GROUP BY text HAVING min(a) <> max(a))
        SELECT DISTINCT first, a FROM places JOIN shared USING (text) WHERE a <> first
    """)
    if len(links["a"]):
        members, heads = _components(np.stack([links["first"], links["a"]], axis=1).astype(np.uint64))
        table.store("linked", pa.table({"a": members, "head": heads}))
        table.run("UPDATE heads SET head = linked.head FROM linked WHERE heads.a = linked.a")
    table.run(
        f"""
        CREATE TABLE dev AS
        WITH kin AS (SELECT head, sum(size) AS size FROM heads GROUP BY head),
        wanted AS (SELECT {dev_share!r} * sum(size) AS wanted, min(size) AS least FROM kin),
        fit AS (
            SELECT
                head, wanted,
                sum(size) OVER (ORDER BY md5_number_lower(concat(?, ' ', head)), head) - size AS before
            FROM kin, wanted WHERE size <= greatest(wanted, least)
        )
        SELECT a FROM heads JOIN fit USING (head) WHERE before < wanted
        """,
        str(seed),
    )
    table.run("CREATE TABLE extra (id BIGINT, a UBIGINT, other BIGINT, b UBIGINT, dev BOOLEAN, draw INTEGER)")
    table.run("""
        CREATE TABLE parts AS
        SELECT id, line, label, alive.a, b, dev.a IS NOT NULL AS dev FROM alive LEFT JOIN dev USING (a)
    """)


def _components(links: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return all linked hashes, and for each the least one of those it hangs together with."""
    names, places = np.unique(links, return_inverse=True)
    places = places.reshape(links.shape)
    graph = coo_array((np.ones(len(links), dtype=np.int8), (places[:, 0], places[:, 1])), shape=(len(names),) * 2)
    _, component = connected_components(graph, directed=False)
    first = np.unique(component, return_index=True)[1]
    return names, names[first[component]]


def label(table: Table, options: FilterOptions) -> None:
    """Give every row that is kept the label it is trained with, in ``labelled (id, line, dev, label)``."""
    if options.labels == "posterior":
        _label_by_posterior(table, options.temperature)
        return
    label = "v"
    if table.scored and options.labels == "smoothed":
        label = f"round(v * {1 - options.smoothing!r} + {options.smoothing * sum(table.scale) / 2!r}, 6)"
    table.run(f"CREATE TABLE labelled AS SELECT id, line, dev, {label} AS label FROM parts JOIN labels USING (label)")


def _label_by_posterior(table: Table, temperature: float) -> None:
    table.run(f"""
        CREATE TABLE labelled AS
        WITH likely AS (
            SELECT scores.id, v, logprob * tokens / {temperature!r} AS x
            FROM scores SEMI JOIN parts USING (id) JOIN labels ON labels.label = scores.label
        ),
        weighed AS (SELECT id, v, exp(x - max(x) OVER (PARTITION BY id)) AS weight FROM likely)
        SELECT id, line, dev, round(sum(v * weight) / sum(weight), 6) AS label
        FROM weighed JOIN parts USING (id) GROUP BY ALL
    """)


def random_pairs(table: Table, count: int, seed: int) -> None:
    """Draw for every text_a of a side ``count`` text_b of other text_a into ``extra (id, a, other, b, dev, draw)``.

    Never one that any row, kept or not, joins with it. Where none can be found in a few draws, fewer pairs are made.
    """
    table.run("""
        CREATE TABLE pool AS
        SELECT id, b, dev, row_number() OVER (PARTITION BY dev ORDER BY id) - 1 AS place FROM parts
    """)
    table.run("CREATE TABLE firsts AS SELECT a, dev, min(id) AS id FROM parts GROUP BY a, dev")
    begin, step = 0, count
    while begin < TRIES * count and table.value(
        f"SELECT count(*) < {count} * (SELECT count(*) FROM firsts) FROM extra"
    ):
        _draw(table, count, {draw: _factor(seed, draw) for draw in range(begin, begin + step)})
        begin, step = begin + step, 2 * step


def _draw(table: Table, count: int, factors: Mapping[int, int]) -> None:
    """Draw for every text_a that wants some as often as there are factors, and keep what may be kept."""
    table.run(f"""
        CREATE OR REPLACE TEMP TABLE drawn AS
        WITH wanting AS (
            SELECT firsts.*, {count} - coalesce(had, 0) AS wants
            FROM firsts LEFT JOIN (SELECT a, count(*) AS had FROM extra GROUP BY a) USING (a) WHERE wants > 0
        ),
        sizes AS (SELECT dev, count(*) AS size FROM pool GROUP BY dev),
        places AS (
            SELECT wanting.*, draw, ((a::HUGEINT * factor >> 40) % size)::BIGINT AS place
            FROM wanting JOIN sizes USING (dev), (VALUES {", ".join(map(str, factors.items()))}) AS draws (draw, factor)
        )
        SELECT places.id, places.a, pool.id AS other, pool.b, dev, draw, wants
        FROM places JOIN pool USING (dev, place) WHERE pool.b <> places.a
    """)
    table.run("""
        INSERT INTO extra
        WITH related AS (
            SELECT a, b FROM keys SEMI JOIN drawn USING (a)
            UNION ALL SELECT b, a FROM keys SEMI JOIN drawn ON drawn.a = keys.b
            UNION ALL SELECT a, b FROM extra UNION ALL SELECT b, a FROM extra
        ),
        unrelated AS (SELECT * FROM drawn ANTI JOIN related USING (a, b)),
        distinct_texts AS (
            SELECT * FROM unrelated
            QUALIFY row_number() OVER (PARTITION BY least(a, b), greatest(a, b) ORDER BY draw, a) = 1
        )
        SELECT * EXCLUDE (wants) FROM distinct_texts
        QUALIFY row_number() OVER (PARTITION BY a ORDER BY draw) <= wants
    """)


def _factor(seed: int, draw: int) -> int:
    """Return an odd number of 62 bits: products with it, shifted, are hashes (Dietzfelbinger et al. 1997)."""
    digest = hashlib.blake2b(f"{seed} {draw}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2 | 1


def sides(table: Table) -> Iterator[tuple[str, Counts]]:
    """Yield each side's name, and how many of each label, random pairs too, it has."""
    for side, dev in (("train", False), ("dev", True)):
        rows = f"SELECT label, dev FROM labelled UNION ALL SELECT {table.unrelated!r}, dev FROM extra"
        counts = dict(table.run(f"SELECT label, count(*) FROM ({rows}) WHERE dev = ? GROUP BY label", dev))
        yield side, by_tenths(counts, table.scale)


def write(table: Table, folder: Path) -> None:
    """Write train, dev, dropped and flagged examples into a folder."""
    for side, dev in (("train", "false"), ("dev", "true")):
        query = f"""
            SELECT * FROM (
                SELECT text_a, text_b, label, logprob, margin, input, sample
                FROM rows JOIN labelled USING (line) WHERE dev = {dev} ORDER BY id
            )
            UNION ALL SELECT * FROM (
                SELECT one.text_a, two.text_b, {table.unrelated!r}, NULL, NULL, NULL, NULL
                FROM extra JOIN plain AS one USING (id) JOIN plain AS two ON two.id = other
                WHERE dev = {dev} ORDER BY extra.id, draw
            )
        """
        table.write_jsonl(query, folder / f"{side}.jsonl")
    other = ", ".join(f"'{name}': other.{name}" for name in ("text_a", "text_b", "label", "input", "sample"))
    dropped = f"""
        SELECT
            plain.* EXCLUDE (id, flag, reason), drops.reason, evidence,
            CASE WHEN duplicate_of IS NOT NULL THEN {{{other}}} END AS duplicate_of
        FROM drops JOIN plain USING (id) LEFT JOIN plain AS other ON other.id = duplicate_of ORDER BY id
    """
    table.write_jsonl(dropped, folder / "dropped.jsonl")
    flagged = """
        SELECT
            plain.* EXCLUDE (id, flag, reason),
            split_part(flag, ': ', 1) AS reason, split_part(flag, ': ', 2) AS evidence
        FROM plain SEMI JOIN parts USING (id) WHERE flag IS NOT NULL ORDER BY id
    """
    table.write_jsonl(flagged, folder / "flagged.jsonl")
