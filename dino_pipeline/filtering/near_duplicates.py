"""Which rows nearly repeat an earlier one: three searches for similar texts, and one choice of the rows to drop.

The searches find inputs by their n-grams (`near_duplicate_inputs`), inputs by their embeddings (`same_meaning_inputs`),
and second texts of one input and label by their n-grams (`near_duplicate_texts`). `_store_drops` then goes through the
similar pairs in order and drops later rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dino_pipeline.filtering.example_table import DROPS, ExampleTable
from dino_pipeline.minhash import (
    BANDS,
    BandKeys,
    SimilarPair,
    band_keys,
    candidate_pairs,
    jaccard,
    later_duplicates,
    ngrams,
    similar_pairs,
)
from dino_pipeline.processes import OpenPool
from dino_pipeline.text import normalise

GROUPS_AT_ONCE = 1000
"""Groups of texts that a process compares in one job."""
MAX_NEIGHBOURS = 100
"""Nearest inputs by embedding that are considered for each input."""
SIMILAR = pa.schema({"earlier": pa.int64(), "later": pa.int64(), "similarity": pa.float64()})
BY_LATER_ROW = itemgetter(1, 0)
"""Sorts similar pairs by their second row, then by their first."""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns ``(texts, dimensions)`` embeddings of length 1."""
TextGroup = list[tuple[int, str]]
"""Rows and their texts."""


def near_duplicate_inputs(table: ExampleTable, rows: str, threshold: float, spread: OpenPool) -> str:
    """Find rows whose text_a nearly repeats an earlier one that stays; return a query of `DROPS`.

    Band keys of all inputs go to one file a band, which are mapped into memory to find candidates.

    Args:
        table: the examples.
        rows: the name of the table of those to look at.
        threshold: least Jaccard similarity of n-grams.
    """
    files = [table.file.with_name(f"band-{band}") for band in range(BANDS)]
    ids = _store_band_keys(table, rows, spread, files)
    table.store("similar_rows", SIMILAR.empty_table())
    if len(ids) > 1:
        bands = [np.memmap(file, dtype=np.uint64, mode="r") for file in files]  # BANDS times (inputs,)
        with spread(partial(_pair_verifier, threshold)) as verify:
            for pairs in candidate_pairs(bands):
                _add_verified(table, ids[pairs], verify)
    for file in files:
        file.unlink()
    # DuckDB sorts the pairs, which may be more than fit into memory.
    _store_drops(table, table.stream_rows("SELECT * FROM similar_rows ORDER BY later, earlier"))
    return _rows_of_later_inputs(rows)


def same_meaning_inputs(table: ExampleTable, rows: str, threshold: float, embed: Embed) -> str:
    """Find rows whose text_a means the same as an earlier one; return a query of `DROPS`.

    The threshold is the least cosine of the embeddings.
    """
    import torch
    from sentence_transformers import util

    ids: list[int] = []
    embeddings: list[NDArray[np.float32]] = []
    for batch in table.stream(_inputs(table, rows)):
        ids += batch["id"]
        embeddings.append(embed(batch["text_a"]))
    pairs: list[SimilarPair] = []
    if len(ids) > 1:
        vectors = torch.from_numpy(np.concatenate(embeddings))  # (inputs, dimensions)
        neighbours = util.paraphrase_mining_embeddings(
            vectors, max_pairs=MAX_NEIGHBOURS * len(ids), top_k=MAX_NEIGHBOURS
        )
        for cosine, one, other in neighbours:
            if cosine >= threshold:
                earlier, later = sorted((ids[one], ids[other]))
                pairs.append((earlier, later, float(cosine)))
    _store_drops(table, sorted(pairs, key=BY_LATER_ROW))
    return _rows_of_later_inputs(rows)


def near_duplicate_texts(table: ExampleTable, rows: str, threshold: float, spread: OpenPool) -> str:
    """Find rows whose text_b nearly repeats an earlier one of the same text_a and label; return a query of `DROPS`."""
    query = f"""
        WITH shared AS (
            SELECT hash_a, label FROM {rows} WHERE hash_b IS NOT NULL GROUP BY ALL HAVING count(*) > 1
        ),
        grouped AS (SELECT id, hash_a, label FROM {rows} SEMI JOIN shared USING (hash_a, label))
        SELECT grouped.hash_a, grouped.label, id, text_b
        FROM grouped JOIN examples USING (id) ORDER BY grouped.hash_a, grouped.label, id
    """
    pairs: list[SimilarPair] = []
    with spread(partial(_group_comparer, threshold)) as compare:
        for similar in compare(_groups(table.stream_rows(query))):
            pairs += similar
    _store_drops(table, sorted(pairs, key=BY_LATER_ROW))
    return "SELECT * FROM near_drops"


def _store_drops(table: ExampleTable, pairs: Iterable[SimilarPair]) -> None:
    """Store the rows to drop in the table ``near_drops`` of `DROPS`, given similar rows sorted by `BY_LATER_ROW`."""
    drops = []
    for dropped, kept, similarity in later_duplicates(pairs):
        drops.append({"id": dropped, "evidence": f"similarity {similarity:.2f}", "duplicate_of": kept})
    table.store("near_drops", pa.Table.from_pylist(drops, schema=DROPS))


def _rows_of_later_inputs(rows: str) -> str:
    """Return a query of all rows that have the text_a of one in ``near_drops``."""
    return f"""
        SELECT same_input.id, evidence, duplicate_of
        FROM near_drops
        JOIN inputs ON inputs.id = near_drops.id
        JOIN {rows} AS same_input ON same_input.hash_a = inputs.hash_a
    """


def _inputs(table: ExampleTable, rows: str) -> str:
    """Store the first row of each distinct text_a in ``inputs (hash_a, id)``; return a query of ids and texts."""
    table.run(f"CREATE OR REPLACE TEMP TABLE inputs AS SELECT hash_a, min(id) AS id FROM {rows} GROUP BY hash_a")
    return "SELECT id, text_a FROM inputs JOIN examples USING (id) ORDER BY id"


def _store_band_keys(table: ExampleTable, rows: str, spread: OpenPool, files: Sequence[Path]) -> NDArray[np.int64]:
    """Write the band keys of all distinct text_a, a file for each band; return the ids of their first rows."""
    ids: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]

    def texts() -> Iterator[list[str]]:
        for batch in table.stream(_inputs(table, rows)):
            ids.append(np.array(batch["id"], dtype=np.int64))
            yield batch["text_a"]

    with ExitStack() as stack:
        band_files = [stack.enter_context(open(file, "wb")) for file in files]
        hash_texts = stack.enter_context(spread(_text_hasher))
        for keys in hash_texts(texts()):  # (texts, BANDS)
            for band, file in enumerate(band_files):
                file.write(np.ascontiguousarray(keys[:, band]).tobytes())
    return np.concatenate(ids)


def _text_hasher() -> Callable[[Sequence[str]], BandKeys]:
    """Make, in a worker process, the function that returns the band keys of texts."""
    return lambda texts: band_keys(list(map(normalise, texts)))


def _add_verified(
    table: ExampleTable, candidates: NDArray[np.int64], verify: Callable[[Iterator[Any]], Iterator[list[SimilarPair]]]
) -> None:
    """Add those candidates, ``(pairs, 2)`` ids, to ``similar_rows`` whose text_a are similar enough."""
    table.store("candidates", pa.table({"earlier": candidates[:, 0], "later": candidates[:, 1]}))
    batches = table.stream("""
        SELECT earlier, later, earlier_example.text_a AS earlier_text, later_example.text_a AS later_text
        FROM candidates
        JOIN examples AS earlier_example ON earlier_example.id = earlier
        JOIN examples AS later_example ON later_example.id = later
    """)
    jobs = (list(zip(*batch.values(), strict=True)) for batch in batches)
    verified: list[SimilarPair] = []
    for similar in verify(jobs):
        verified += similar
    columns = list(map(list, zip(*verified, strict=True))) or [[], [], []]
    table.insert("similar_rows", pa.table(columns, schema=SIMILAR))


def _pair_verifier(threshold: float) -> Callable[[list[tuple[int, int, str, str]]], list[SimilarPair]]:
    """Make, in a worker process, the function that returns the pairs of texts that are similar enough."""

    def verify(pairs: list[tuple[int, int, str, str]]) -> list[SimilarPair]:
        similar: list[SimilarPair] = []
        for earlier, later, earlier_text, later_text in pairs:
            similarity = jaccard(ngrams(normalise(earlier_text)), ngrams(normalise(later_text)))
            if similarity >= threshold:
                similar.append((earlier, later, similarity))
        return similar

    return verify


def _groups(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[TextGroup]]:
    """Yield the groups of `GROUPS_AT_ONCE` inputs and labels at a time, from sorted ``(input, label, id, text)``."""
    chunk: list[TextGroup] = []
    for _, group in groupby(rows, key=itemgetter(0, 1)):
        chunk.append([(id, text) for _, _, id, text in group])
        if len(chunk) == GROUPS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _group_comparer(threshold: float) -> Callable[[list[TextGroup]], list[SimilarPair]]:
    """Make, in a worker process, the function that returns the similar pairs within each group of texts."""

    def compare(groups: list[TextGroup]) -> list[SimilarPair]:
        pairs: list[SimilarPair] = []
        for group in groups:
            for earlier, later, similarity in similar_pairs([text for _, text in group], threshold):
                pairs.append((group[earlier][0], group[later][0], similarity))
        return pairs

    return compare
