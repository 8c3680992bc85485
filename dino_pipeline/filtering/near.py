"""Near-duplicates in a table: inputs that say the same, and texts that do so for one input and label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import combinations, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dino_pipeline.dedup import BANDS, Keys, band_keys, candidates, first_of_kind, grams, jaccard, near_duplicates
from dino_pipeline.filtering.sets import DROPS, Table
from dino_pipeline.processes import OpenPool
from dino_pipeline.text import normalise

BATCH = 1000
FEW = 64
"""So many texts of one input and label are compared each with each, more by bands."""
SIMILAR = pa.schema({"one": pa.int64(), "other": pa.int64(), "how": pa.float64()})
Near = tuple[int, int, float]
"""Two rows, and how similar they are."""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns ``(texts, dimensions)`` embeddings of length 1."""


def near_inputs(table: Table, rows: str, threshold: float, spread: OpenPool) -> str:
    """Find rows whose text_a nearly repeats an earlier one that stays; return a query of `sets.DROPS`.

    Args:
        table: the examples.
        rows: those of them that are looked at.
        threshold: least Jaccard similarity; see `dedup.near_duplicates`.
        spread: where texts are compared. Speed only.
    """
    files = [table.file.with_name(f"band-{band}") for band in range(BANDS)]
    ids = _store_band_keys(table, rows, spread, files)
    table.store("alike", SIMILAR.empty_table())
    if len(ids) > 1:
        bands = [np.memmap(file, dtype=np.uint64, mode="r") for file in files]
        with spread(partial(_Similar, threshold)) as over:
            for pairs in candidates(bands):
                _verify(table, ids[pairs], over)
    for file in files:
        file.unlink()
    return _rows_of_those_that_go(table, rows)


def _heads(table: Table, rows: str) -> str:
    """Return a query of each distinct text_a, as it first occurs, with its row."""
    table.run(f"CREATE OR REPLACE TEMP TABLE first_rows AS SELECT a, min(id) AS id FROM {rows} GROUP BY a")
    return "SELECT id, text_a FROM first_rows JOIN plain USING (id) ORDER BY id"


def _store_band_keys(table: Table, rows: str, spread: OpenPool, files: Sequence[Path]) -> NDArray[np.int64]:
    """Write each band's keys of all distinct text_a to a file, and return their rows."""
    ids: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]

    def jobs() -> Iterator[list[str]]:
        for batch in table.stream(_heads(table, rows)):
            ids.append(np.array(batch["id"], dtype=np.int64))
            yield batch["text_a"]

    with ExitStack() as stack:
        opened = [stack.enter_context(open(file, "wb")) for file in files]
        over = stack.enter_context(spread(_KeysOf))
        for keys in over(jobs()):
            for band, file in enumerate(opened):
                file.write(np.ascontiguousarray(keys[:, band]).tobytes())
    return np.concatenate(ids)


class _KeysOf:
    def __call__(self, texts: Sequence[str]) -> Keys:
        return band_keys(list(map(normalise, texts)))


def _verify(table: Table, pairs: NDArray[np.int64], over: Callable[[Iterator[Any]], Iterator[list[Near]]]) -> None:
    """Add to ``alike`` the pairs of rows whose text_a are as similar as they have to be."""
    table.store("candidates", pa.table({"one": pairs[:, 0], "other": pairs[:, 1]}))
    texts = table.stream("""
        SELECT one, other, first.text_a AS text, second.text_a AS other_text
        FROM candidates JOIN plain AS first ON first.id = one JOIN plain AS second ON second.id = other
    """)
    found = [near for some in over(list(zip(*batch.values(), strict=True)) for batch in texts) for near in some]
    _add_similar(table, found)


def _add_similar(table: Table, found: Sequence[Near]) -> None:
    table.insert("alike", pa.table(list(map(list, zip(*found, strict=True))) or [[], [], []], schema=SIMILAR))


class _Similar:
    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, pairs: list[tuple[int, int, str, str]]) -> list[Near]:
        found = (
            (one, other, jaccard(grams(normalise(text)), grams(normalise(other_text))))
            for one, other, text, other_text in pairs
        )
        return [near for near in found if near[2] >= self.threshold]


def _rows_of_those_that_go(table: Table, rows: str) -> str:
    """Return a query of all rows of the text_a that go, by the pairs in ``alike``."""
    batches = table.stream("SELECT one, other, how FROM alike ORDER BY other, one")
    pairs = (pair for batch in batches for pair in zip(batch["one"], batch["other"], batch["how"], strict=True))
    _store(table, "going", first_of_kind(pairs))
    return f"""
        SELECT every.id, evidence, duplicate_of
        FROM going JOIN first_rows ON first_rows.id = going.id JOIN {rows} AS every ON every.a = first_rows.a
    """


def _store(table: Table, name: str, gone: Iterable[Near]) -> None:
    rows = [{"id": goes, "evidence": f"similarity {how:.2f}", "duplicate_of": stays} for goes, stays, how in gone]
    table.store(name, pa.Table.from_pylist(rows, schema=DROPS))


def semantic_inputs(table: Table, rows: str, threshold: float, embed: Embed) -> str:
    """Find rows whose text_a means what an earlier one means; return a query of `sets.DROPS`.

    Args:
        table: the examples.
        rows: those of them that are looked at.
        threshold: least cosine of the embeddings.
        embed: a sentence encoder.
    """
    from sentence_transformers import util

    ids: list[int] = []
    found: list[NDArray[np.float32]] = []
    for batch in table.stream(_heads(table, rows)):
        ids += batch["id"]
        found.append(embed(batch["text_a"]))
    table.store("alike", SIMILAR.empty_table())
    if len(ids) > 1:
        import torch

        pairs = util.paraphrase_mining_embeddings(
            torch.from_numpy(np.concatenate(found)), max_pairs=100 * len(ids), top_k=100
        )
        both = [(*sorted((ids[one], ids[other])), float(how)) for how, one, other in pairs if how >= threshold]
        _add_similar(table, both)
    return _rows_of_those_that_go(table, rows)


def near_texts(table: Table, rows: str, threshold: float, spread: OpenPool) -> str:
    """Find rows whose text_b nearly repeats one before of the same text_a and label; return a query of `sets.DROPS`."""
    query = f"""
        WITH several AS (SELECT a, label FROM {rows} WHERE b IS NOT NULL GROUP BY ALL HAVING count(*) > 1),
        theirs AS (SELECT id, a, label FROM {rows} SEMI JOIN several USING (a, label))
        SELECT theirs.a, theirs.label, id, text_b FROM theirs JOIN plain USING (id) ORDER BY theirs.a, theirs.label, id
    """
    with spread(partial(_Repeats, threshold)) as over:
        found = [near for some in over(_groups(table.stream(query))) for near in some]
    _store(table, "near_texts", found)
    return "SELECT * FROM near_texts"


Group = list[tuple[int, str]]


def _groups(batches: Iterator[dict[str, list[Any]]]) -> Iterator[list[Group]]:
    """Yield the rows of some groups at a time."""
    rows = (
        row for batch in batches for row in zip(batch["a"], batch["label"], batch["id"], batch["text_b"], strict=True)
    )
    groups = ([(number, text) for _, _, number, text in group] for _, group in groupby(rows, key=itemgetter(0, 1)))
    while some := list(islice(groups, BATCH)):
        yield some


class _Repeats:
    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, groups: list[Group]) -> list[Near]:
        return [near for group in groups for near in self._of_group(group)]

    def _of_group(self, group: Group) -> Iterator[Near]:
        ids, texts = [number for number, _ in group], [text for _, text in group]
        alike = near_duplicates(texts, self.threshold) if len(texts) > FEW else self._each_with_each(texts)
        for goes, stays, how in first_of_kind(sorted(alike, key=itemgetter(1, 0))):
            yield ids[goes], ids[stays], how

    def _each_with_each(self, texts: Sequence[str]) -> Iterator[Near]:
        for (one, first), (other, second) in combinations(enumerate(grams(normalise(text)) for text in texts), 2):
            enough = min(len(first), len(second)) >= self.threshold * max(len(first), len(second))
            if enough and (how := jaccard(first, second)) >= self.threshold:
                yield one, other, how
