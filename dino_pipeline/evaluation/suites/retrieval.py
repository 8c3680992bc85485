"""Retrieval in BEIR's layout: which documents an encoder finds for a query, by exact search in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.base import Embedder, Embeddings, Measured, percent, unit
from dino_pipeline.files import digest_files
from dino_pipeline.measures import DEPTH, RANKING, average, ranking
from dino_pipeline.progress import Progress
from dino_pipeline.readers import read_json_lines, read_tab_separated
from dino_pipeline.text import as_number, has_lone_surrogate

LAYOUT = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
DOCUMENTS = 4096
QUERIES = 512
"""So many documents and queries are compared at once, which takes some 60 MB."""
NOTHING = torch.iinfo(torch.int64).min
PLACES = 2**32 - 1


@dataclass(frozen=True)
class Retrieval:
    """Queries, the documents to find, and which are relevant; documents stay in their file."""

    name: str
    corpus: Path
    queries: Mapping[str, str]
    """Those with a judgement."""
    judged: Mapping[str, Mapping[str, int]]
    """Relevance by query and document."""
    ids: tuple[str, ...]
    """Of all documents, in the file's order."""
    digest: str
    notes: Sequence[str] = ()
    """What should be known of it."""
    suite: str = "retrieval"
    counted: str = "queries"
    protocol: Mapping[str, str] = field(default_factory=lambda: {"similarity": "cosine", "split": "test"})

    @classmethod
    def read(cls, name: str, folder: Path) -> Retrieval:
        """Read ``queries.jsonl`` and ``qrels/test.tsv``, and look through ``corpus.jsonl``.

        Raises:
            DataError: a file is missing or not in its format, or names what is not there.
        """
        corpus, queries, judgements = (folder / name for name in LAYOUT)
        if absent := [path for path in (corpus, queries, judgements) if not path.is_file()]:
            raise DataError(f"{absent[0]}: is not there; a folder in BEIR's layout holds {', '.join(LAYOUT)}")
        judged = _judgements(judgements)
        asked = [(row["_id"], row["text"]) for row in _rows(queries)]
        texts = dict(asked)
        if len(texts) < len(asked):
            raise DataError(f"{queries}: two queries have the same _id; each needs its own")
        if missing := [query for query in judged if query not in texts]:
            raise DataError(f"{judgements}: query {missing[0]!r} is not in queries.jsonl")
        ids = tuple(row["_id"] for row in _rows(corpus))
        if len(set(ids)) < len(ids):
            raise DataError(f"{corpus}: two documents have the same _id; each needs its own")
        named = {document for grades in judged.values() for document in grades}
        if not (found := named & set(ids)):
            raise DataError(f"{judgements}: none of its documents is in {corpus.name}; are the ids those of that file?")
        notes = [f"{folder.name}: {len(named - found)} judged documents are not in {corpus.name}"] * (found < named)
        of_judged = {query: texts[query] for query in judged}
        return cls(name, corpus, of_judged, judged, ids, digest_files([corpus, queries, judgements]), notes)

    @property
    def size(self) -> int:
        return len(self.judged)

    def texts(self) -> Iterator[str]:
        """Yield nothing: documents are embedded block by block and forgotten."""
        return iter(())

    def measure(self, embedder: Embedder) -> Measured:
        """Search, and average over queries what their results are worth."""
        found = self.search(embedder)
        values = np.array([ranking(found[query], judged) for query, judged in self.judged.items()])
        return percent({name: average(values[:, at]) for at, name in enumerate(RANKING)})

    def baseline(self) -> None:
        """There is none."""

    def search(self, embedder: Embedder) -> dict[str, list[str]]:
        """Return for each query the ids of the nearest documents by cosine, the nearest first.

        Equally near ones stand by falling id, as trec_eval has them, and a query's own id is left out, as BEIR does.
        """
        names = list(self.queries)
        queries = torch.from_numpy(unit(embedder.embed(list(self.queries.values()), role="query")))
        by_place = sorted(self.ids)
        place = {name: at for at, name in enumerate(by_place)}
        places = torch.tensor([place[name] for name in self.ids])
        own = torch.tensor([place.get(name, -1) for name in names])
        best = torch.full((len(names), DEPTH), NOTHING)
        done = 0
        for documents in self._documents(embedder):
            block = places[done : done + len(documents)]
            done += len(documents)
            for first in range(0, len(names), QUERIES):
                some = slice(first, first + QUERIES)
                keys = _keys(queries[some] @ torch.from_numpy(documents).T, block)
                keys[block[None] == own[some, None]] = NOTHING
                best[some] = torch.cat([best[some], keys], dim=1).topk(DEPTH).values
        return {
            name: [by_place[key & PLACES] for key in keys if key != NOTHING]
            for name, keys in zip(names, best.tolist(), strict=True)
        }

    def _documents(self, embedder: Embedder) -> Iterator[Embeddings]:
        """Yield the documents' embeddings in blocks, ``(documents, dimensions)``."""
        progress = Progress(f"{embedder.name}: documents of {self.name}", total=len(self.ids))
        embedder.reporter.update(progress)
        rows = _rows(self.corpus)
        while block := [row["text"] for row in islice(rows, DOCUMENTS)]:
            texts = list(dict.fromkeys(block))
            at = {text: number for number, text in enumerate(texts)}
            yield unit(embedder.embed(texts, role="document"))[[at[text] for text in block]]
            progress.done += len(block)
            embedder.reporter.update(progress)


def _keys(similarities: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return whole numbers that are ordered as (similarity, place), so that no two are equal.

    Args:
        similarities: float32, ``(queries, documents)``.
        places: each document's among all ids in rising order, below 2**32, ``(documents,)``.
    """
    bits = (similarities + 0.0).view(torch.int32).long()  # adding zero makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    return (ordered << 32) | places


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the ``_id`` and the ``text``, title included, of a JSONL file's objects."""
    for number, row in read_json_lines(path):
        yield _row(row, f"{path}, line {number}")


def _row(row: Any, where: str) -> dict[str, str]:
    identity = row.get("_id") if isinstance(row, dict) else None
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not isinstance(row.get("text"), str):
        raise DataError(f'{where}: must be an object with "_id" and "text"')
    text = f"{row.get('title') or ''} {row['text']}".strip()
    if has_lone_surrogate(text):
        raise DataError(f"{where}: its text holds half a character (a lone surrogate); take it out")
    return {"_id": str(identity), "text": text}


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    """Read query, document and relevance, tab-separated, below a header; TREC's four columns will do, too."""
    found: dict[str, dict[str, int]] = {}
    for number, columns in read_tab_separated(path):
        if not any(map(str.strip, columns)):
            continue
        grade = as_number(columns[-1])
        if len(columns) in {3, 4} and grade is not None and grade.is_integer():
            found.setdefault(columns[0], {})[columns[-2]] = int(grade)
        elif number > 1 or grade is not None:  # the first line may be a header
            raise DataError(f"{path}, line {number}: give query id, document id and a whole number, with tabs")
    if not found:
        raise DataError(f"{path}: holds no judgements; give query id, document id and relevance, with tabs")
    return found
