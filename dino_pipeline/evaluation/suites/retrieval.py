"""Retrieval in BEIR's layout: the documents that are nearest to each query, by exact search."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np

from dino_pipeline.errors import DataError
from dino_pipeline.evaluation.suites.suite import TEXTS_PER_UPDATE, Embedder, Embeddings, Measures, percent, unit
from dino_pipeline.examples import CUT_IT
from dino_pipeline.files import digest_files
from dino_pipeline.json_files import read_json_lines
from dino_pipeline.measures import DEPTH, RANKING, average, ranking
from dino_pipeline.progress import Progress
from dino_pipeline.rows import RowsRead
from dino_pipeline.text import as_number, excess, has_lone_surrogate
from dino_pipeline.text_files import read_lines

LAYOUT = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
DOCUMENTS = 2**15
"""Documents that are searched at a time. Their embeddings take 100 MB at 768 dimensions."""
TIE_MARGIN = 20
"""Documents that are fetched beyond those needed, because the last of these may have equals."""


@dataclass(frozen=True)
class Retrieval:
    """Queries, documents, and which documents are relevant. The documents' texts stay in their file."""

    name: str
    corpus: Path
    """File of the documents."""
    queries: Mapping[str, str]
    """Texts of the queries that have judgements, by id."""
    judged: Mapping[str, Mapping[str, int]]
    """Relevance by query id and document id."""
    ids: tuple[str, ...]
    """Ids of all documents, in the order of the file."""
    digest: str
    rows_read: Sequence[RowsRead] = ()
    notes: Sequence[str] = ()
    """Warnings about the data."""
    suite: str = "retrieval"
    counted: str = "queries"
    protocol: Mapping[str, str] = field(default_factory=lambda: {"similarity": "cosine", "split": "test"})

    @classmethod
    def read(cls, name: str, folder: Path) -> Retrieval:
        """Read ``queries.jsonl`` and ``qrels/test.tsv``, and check ``corpus.jsonl``.

        Raises:
            DataError: a file is missing or malformed, or refers to an id that does not exist.
        """
        corpus, queries, judgements = (folder / file for file in LAYOUT)
        if missing_files := [path for path in (corpus, queries, judgements) if not path.is_file()]:
            raise DataError(f"{missing_files[0]}: does not exist; a folder in BEIR's layout holds {', '.join(LAYOUT)}")
        judged = _read_judgements(judgements)
        rows = list(_read_rows(queries))
        texts = dict(rows)
        if len(texts) < len(rows):
            raise DataError(f"{queries}: two queries have the same _id; each needs its own")
        if unknown := [query for query in judged if query not in texts]:
            raise DataError(f"{judgements}: query {unknown[0]!r} is not in queries.jsonl")
        ids = tuple(document for document, _ in _read_rows(corpus))
        if len(set(ids)) < len(ids):
            raise DataError(f"{corpus}: two documents have the same _id; each needs its own")
        judged_ids = set(chain.from_iterable(judged.values()))
        known_ids = judged_ids & set(ids)
        if not known_ids:
            raise DataError(f"{judgements}: none of its documents is in {corpus.name}; are the ids those of that file?")
        notes = []
        if known_ids < judged_ids:
            notes.append(f"{folder.name}: {len(judged_ids - known_ids)} judged documents are not in {corpus.name}")
        judged_queries = {query: texts[query] for query in judged}
        counts = {corpus: len(ids), queries: len(rows), judgements: sum(map(len, judged.values()))}
        rows_read = [RowsRead(source=f"{folder.name}/{path.name}", rows=count) for path, count in counts.items()]
        digest = digest_files([corpus, queries, judgements])
        return cls(name, corpus, judged_queries, judged, ids, digest, rows_read, notes)

    @property
    def size(self) -> int:
        return len(self.judged)

    def texts(self) -> Iterator[str]:
        """Yield nothing: documents are embedded in blocks, which do not stay in memory."""
        return iter(())

    def measure(self, embedder: Embedder) -> Measures:
        """Search, and return the mean over queries of each ranking measure."""
        results = self.search(embedder)
        values = np.array([ranking(results[query], judged) for query, judged in self.judged.items()])
        return percent({name: average(values[:, column]) for column, name in enumerate(RANKING)})

    def baseline(self) -> None:
        """Return None: retrieval has no baseline."""

    def search(self, embedder: Embedder) -> dict[str, list[str]]:
        """Return the ids of the `DEPTH` nearest documents of each query by cosine, the nearest first.

        Equally near documents are ordered by falling id, as in trec_eval. A document that has the query's own id is
        left out, as in BEIR.
        """
        names = list(self.queries)
        queries = unit(embedder.embed(list(self.queries.values()), role="query"))  # (queries, dimensions)
        best: list[list[tuple[float, str]]] = [[] for _ in names]  # of each query: (similarity, id), the best first
        ids = iter(self.ids)
        for documents in self._embed_documents(embedder):
            block_ids = list(islice(ids, len(documents)))
            # One more than is needed, as the query's own document may be among them.
            for at, hits in enumerate(nearest(queries, documents, DEPTH + 1)):
                candidates = [(similarity, block_ids[row]) for similarity, row in hits if block_ids[row] != names[at]]
                best[at] = heapq.nlargest(DEPTH, best[at] + candidates)
        return {name: [document for _, document in results] for name, results in zip(names, best, strict=True)}

    def _embed_documents(self, embedder: Embedder) -> Iterator[Embeddings]:
        """Yield the documents' embeddings of length one in blocks, ``(documents, dimensions)``."""
        progress = Progress(f"{embedder.name}: documents of {self.name}", total=len(self.ids))
        embedder.report(progress)
        rows = _read_rows(self.corpus)
        while block := [text for _, text in islice(rows, DOCUMENTS)]:
            # Equal texts are embedded once, so that they are equally near to each query.
            texts = list(dict.fromkeys(block))
            parts = []
            for first in range(0, len(texts), TEXTS_PER_UPDATE):
                parts.append(embedder.embed(texts[first : first + TEXTS_PER_UPDATE], role="document"))
                progress.done += len(parts[-1])
                embedder.report(progress)
            progress.done += len(block) - len(texts)
            embedder.report(progress)
            row_of = {text: row for row, text in enumerate(texts)}
            yield unit(np.concatenate(parts))[[row_of[text] for text in block]]


def nearest(queries: Embeddings, documents: Embeddings, count: int) -> list[list[tuple[float, int]]]:
    """Return at least ``count`` nearest documents of each query, and all that are as near as the last of these.

    The search keeps any of several equally near documents. So it fetches more of them, until the last one is farther
    away than number ``count``.

    Args:
        queries: embeddings of length one, ``(queries, dimensions)``.
        documents: embeddings of length one, ``(documents, dimensions)``.
        count: documents per query.

    Returns:
        For each query (similarity, row of the document), the nearest first.
    """
    from sentence_transformers.util import dot_score, semantic_search

    fetched = count + TIE_MARGIN
    while True:
        results = semantic_search(queries, documents, top_k=fetched, score_function=dot_score)
        if fetched >= len(documents) or all(hits[-1]["score"] < hits[count - 1]["score"] for hits in results):
            return [[(hit["score"], hit["corpus_id"]) for hit in hits] for hits in results]
        fetched *= 2


def _read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the ``_id`` and the text, title included, of each object in a JSONL file."""
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        identity = row.get("_id") if isinstance(row, dict) else None
        if isinstance(identity, bool) or not isinstance(identity, str | int) or not isinstance(row.get("text"), str):
            raise DataError(f'{where}: must be an object with "_id" and "text"')
        text = f"{row.get('title') or ''} {row['text']}".strip()
        if has_lone_surrogate(text):
            raise DataError(f"{where}: its text holds half a character (a lone surrogate); remove it")
        if problem := excess(text):
            raise DataError(f"{where}: its text {problem}", CUT_IT)
        yield str(identity), text


def _read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Read query id, document id and relevance, with or without a header; between them are tabs, or blanks.

    TREC's four columns are read, too: query id, iteration, document id, relevance.

    Raises:
        DataError: a line holds something else, or a pair is judged twice and differently.
    """
    judged: dict[str, dict[str, int]] = {}
    wanted, widths = "query id, document id and a whole number, with tabs or blanks between them", {3, 4}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        columns = line.strip("\r\n").split("\t") if "\t" in line else line.split()
        grade = as_number(columns[-1])
        if len(columns) in widths and grade is not None and grade.is_integer():
            query, document = columns[0], columns[-2]
            if judged.setdefault(query, {}).setdefault(document, int(grade)) != grade:
                raise DataError(f"{path}, line {number}: document {document!r} is judged twice for query {query!r}")
        elif number == 1 and grade is None:  # a header, which TREC's files of four columns have not
            widths = {3}
        else:
            raise DataError(f"{path}, line {number}: is {line.strip()!r:.60}", f"give {wanted}")
    if not judged:
        raise DataError(f"{path}: holds no judgements", f"give {wanted}")
    return judged
