"""Which examples hold evaluation data, which must not be trained on.

A text is evaluation data if it is one of its texts, nearly one of them, or holds 13 words in a row of one. Where words
are not separated by spaces, two ideographs or four other letters count as a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import xxhash

from dino_pipeline import pocket
from dino_pipeline.dataset_tables import evaluation_split, open_tables
from dino_pipeline.delimited_files import DelimitedFile
from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.examples import CUT_IT, Example
from dino_pipeline.files import write_json_lines
from dino_pipeline.minhash import band_keys, jaccard, ngrams
from dino_pipeline.model_files import is_hub_id
from dino_pipeline.readers import ExampleReader
from dino_pipeline.rows import RowsRead
from dino_pipeline.tables import open_file
from dino_pipeline.text import WORD_WEIGHT, excess, joined, normalise, units, weight

WORDS = 13
"""Words in a row that, if they occur in evaluation data, are a leak (as in GPT-3, Brown et al. 2020, appendix C)."""
MIN_WORDS = 2
"""Shorter texts are ignored: labels or genres in a table prove nothing."""
LEAKED = "in evaluation data"
"""The reason by which examples are dropped."""
HUB_SETS = {
    **{f"sts{year}": f"mteb/sts{year}-sts" for year in range(12, 17)},
    "stsb": "mteb/stsbenchmark-sts",
    "sick-r": "mteb/sickr-sts",
}


class ContaminationFilter:
    """A check of one example that drops it if one of its texts is evaluation data.

    Files are read when the first example is checked, because only the processes that check need their texts.

    Args:
        files: tables of any kind, or plain text.
        threshold: least Jaccard similarity of texts that are nearly the same; see `minhash`.
    """

    def __init__(self, files: Iterable[str], threshold: float) -> None:
        self.unread = list(files)
        self.threshold = threshold
        self.texts: list[str] = []
        """Distinct texts of the files, in normal form."""
        self.places: list[tuple[str, int]] = []
        """File and line of each."""
        self.by_text: dict[str, int] = {}
        self.by_words: dict[int, int] = {}
        """By the hash of `WORDS` words in a row: the first text that holds them."""
        self.by_band: dict[int, list[int]] = {}
        """By band key: the texts that have it."""
        self.nearly: dict[str, str | None] = {}
        """For texts that `prepare` compared: the reason to drop them, if they are nearly evaluation data."""

    def _read(self) -> None:
        """Read the files that are not read yet."""
        files, self.unread = self.unread, []
        for file in files:
            for line, text in texts_of(Path(file)):
                normal = normalise(text)
                if normal not in self.by_text and _is_telling(normal):
                    self.by_text[normal] = len(self.texts)
                    for words in word_hashes(normal):
                        self.by_words.setdefault(words, len(self.texts))
                    self.texts.append(normal)
                    self.places.append((file, line))
        for number, keys in enumerate(band_keys(self.texts).tolist()):
            for key in keys:
                self.by_band.setdefault(key, []).append(number)

    def prepare(self, examples: Sequence[Example]) -> None:
        """Look for near-duplicates of many examples' texts at once, which is faster than one by one."""
        if self.unread:
            self._read()
        texts: dict[str, None] = {}
        for example in examples:
            texts.update(dict.fromkeys(map(normalise, example.texts)))
        unknown = [text for text in texts if text not in self.by_text]
        keys = band_keys(unknown).tolist()
        self.nearly = {text: self._nearest(text, keys_of) for text, keys_of in zip(unknown, keys, strict=True)}

    def _nearest(self, text: str, keys: Sequence[int]) -> str | None:
        """Return the reason to drop a text that is nearly evaluation data; it names the most similar text."""
        candidates: set[int] = set()
        for key in keys:
            candidates.update(self.by_band.get(key, ()))
        own = ngrams(text)
        nearest, best = 0, 0.0
        for number in sorted(candidates):  # the first of equally similar texts is named
            similarity = jaccard(own, ngrams(self.texts[number]))
            if similarity > best:
                nearest, best = number, similarity
        return self._reason(f"similar ({best:.2f}) to", nearest) if best >= self.threshold else None

    def __call__(self, example: Example) -> str | None:
        """Drop an example of which a text is evaluation data."""
        if self.unread:
            self._read()
        for text in example.texts:
            normal = normalise(text)
            if (number := self.by_text.get(normal)) is not None:
                return self._reason("the same as", number)
            for words in word_hashes(normal):
                if words in self.by_words:
                    return self._reason(f"{WORDS} words of", self.by_words[words])
            if normal not in self.nearly:
                self.prepare([example])
            if reason := self.nearly.get(normal):
                return reason
        return None

    def _reason(self, relation: str, number: int) -> str:
        file, line = self.places[number]
        # The file's name without its folder: a run's files are the same on every machine.
        return f"{LEAKED}: {relation} {Path(file).name}, line {line}: {self.texts[number][:80]}"


def _is_telling(normal: str) -> bool:
    """Return whether a text is long enough to be more than a label, and holds a letter."""
    return sum(map(weight, units(normal))) >= MIN_WORDS * WORD_WEIGHT and any(map(str.isalpha, normal))


def word_hashes(normal: str) -> Iterator[int]:
    """Yield the hash of each run of `WORDS` words. A run begins at every unit that has enough units behind it."""
    parts = units(normal)
    if len(parts) < WORDS:
        return
    weights = list(map(weight, parts))
    end, total = 0, 0  # of the units from `start` to before `end`
    for start in range(len(parts)):
        while end < len(parts) and total < WORDS * WORD_WEIGHT:
            total += weights[end]
            end += 1
        if total < WORDS * WORD_WEIGHT:
            return
        yield xxhash.xxh3_64_intdigest(joined(parts[start:end]).encode())
        total -= weights[start]


def texts_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yield each text of a file with its line: every string of JSON, every cell of a table, every line.

    Raises:
        DataError: the file cannot be read, or holds no text.
    """
    empty = True
    table = open_file(file)
    header = table.header if isinstance(table, DelimitedFile) and table.has_names else 0
    for number, value in table.cells():
        if number == header:
            continue
        for text in _strings(value):
            if problem := excess(text):
                raise DataError(f"{file}, {table.unit} {number}: a text {problem}", CUT_IT)
            if text.strip():
                empty = False
                yield number, text
    if empty:
        raise DataError(f"{file}: holds no text to keep out")


def rows_excluded(file: str) -> RowsRead:
    """Return how many rows of a file hold texts to keep out; see `texts_of`."""
    rows = sum(1 for _ in groupby(texts_of(Path(file)), key=lambda found: found[0]))
    return RowsRead(source=Path(file).name, rows=rows)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def exclusion_files(names: Sequence[str], folder: Path, fetch_into: Path | None = None) -> list[str]:
    """Return the files of evaluation data to exclude.

    What is not a file is fetched into ``folder`` unless it is there, or into another folder.

    Args:
        names: files, folders and Hub ids of datasets, names of `HUB_SETS`, or ``pocket``.
        folder: of what was fetched before.
        fetch_into: where to fetch to, if not there.

    Raises:
        OptionError: there is no such file or set, or the Hub cannot be reached.
    """
    files = []
    for name in names:
        is_dataset = Path(name).is_dir() or ("/" in name and is_hub_id(name))
        if Path(name).is_file():
            files.append(name)
        elif name == "pocket":
            files.append(str(pocket.GOLD_TEST))
        elif name in HUB_SETS or is_dataset:
            path = folder / f"{name.strip('./').replace('/', '--')}.jsonl"
            if Path(name).is_dir() or not path.exists():
                path = (fetch_into or folder) / path.name
                _fetch(name, path)
            files.append(str(path))
        else:
            known = ", ".join(["pocket", *HUB_SETS])
            raise OptionError(
                f"no such file, and no evaluation set of this name; the sets are {known}", option="exclude", value=name
            )
    return files


def _fetch(name: str, path: Path) -> None:
    """Write the texts of a dataset to a file: of its first split of test, validation and train."""
    dataset = HUB_SETS.get(name, name)
    try:
        split = "test" if name in HUB_SETS else evaluation_split(dataset)
        tables = open_tables(dataset, split=split)
        rows: list[dict[str, object]]
        if name in HUB_SETS:
            rows = [{"sentence1": each.text_a, "sentence2": each.text_b} for each in ExampleReader(name, tables)]
        else:
            rows = [{"texts": list(_strings(cells))} for table in tables for _, cells in table.cells()]
    except Exception as error:  # the library raises whatever its transport raises
        cause = error.__cause__ if isinstance(error, DataError) else error
        raise OptionError(
            f"{dataset} cannot be read or fetched from the Hub ({type(cause or error).__name__})",
            "give the set as a file instead",
            option="exclude",
            value=name,
        ) from error
    write_json_lines(path, rows)
