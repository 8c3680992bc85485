"""Evaluation data that must not be trained on: which texts occur there, exactly, nearly, or by 13 words in a row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from dino_pipeline import pocket
from dino_pipeline.dedup import band_keys, grams, jaccard
from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.files import write_json_lines
from dino_pipeline.readers import load_table, parse_json, read_lines
from dino_pipeline.text import has_spaced_words, normalise

WORDS = 13
"""So many words in a row that occur in evaluation data are a leak (as in GPT-3, Brown et al. 2020, appendix C)."""
CHARACTERS = 26
"""The same in a script without spaces."""
FEWEST_CHARACTERS = 4
"""A single word of evaluation data, such as a label or a genre in a table, proves nothing; so many of Chinese do."""
REASON = "in evaluation data"
HUB_SETS = {
    **{f"sts{year}": f"mteb/sts{year}-sts" for year in range(12, 17)},
    "stsb": "mteb/stsbenchmark-sts",
    "sick-r": "mteb/sickr-sts",
}


class Gate:
    """Knows the texts of evaluation data."""

    def __init__(self, files: Iterable[str], threshold: float) -> None:
        """Remember which files to read when the first example comes: only processes that judge need their texts.

        Args:
            files: JSONL (every string of every object), TSV (every cell) or plain text (every line).
            threshold: least similarity of near-duplicates; see `dedup`.
        """
        self.unread = list(files)
        self.threshold = threshold
        self.places: list[tuple[str, int]] = []
        self.texts: list[str] = []
        self.exact: dict[str, int] = {}
        self.runs: dict[int, int] = {}
        self.bands: dict[int, list[int]] = {}
        self.similar: dict[str, str | None] = {}

    def _read(self) -> None:
        """Take in the files that are not read yet.

        Raises:
            DataError: a file cannot be read.
        """
        files, self.unread = self.unread, []
        for file in files:
            for line, text in texts_of(Path(file)):
                self._add(normalise(text), (file, line))
        for at, keys in enumerate(band_keys(self.texts).tolist()):
            for key in keys:
                self.bands.setdefault(key, []).append(at)

    def _add(self, normal: str, place: tuple[str, int]) -> None:
        several = " " in normal or (normal[:1] > "\u2e80" and len(normal) >= FEWEST_CHARACTERS)
        if normal in self.exact or not several or not any(map(str.isalpha, normal)):
            return
        self.exact[normal] = len(self.texts)
        for run in word_runs(normal):
            self.runs.setdefault(run, len(self.texts))
        self.texts.append(normal)
        self.places.append(place)

    def prepare(self, examples: Sequence[Example]) -> None:
        """Look for near-duplicates of many examples at once, which is faster than one by one."""
        if self.unread:
            self._read()
        texts = dict.fromkeys(normalise(text) for each in examples for text in each.texts)
        unknown = [text for text in texts if text not in self.exact]
        keys = band_keys(unknown).tolist()
        self.similar = {text: self._nearest(text, of_text) for text, of_text in zip(unknown, keys, strict=True)}

    def _nearest(self, text: str, keys: Sequence[int]) -> str | None:
        found = dict.fromkeys(at for key in keys for at in self.bands.get(key, ()))
        mine = grams(text)
        best = max(((jaccard(mine, grams(self.texts[at])), -at) for at in found), default=(0.0, 0))
        return self._say(f"similar ({best[0]:.2f}) to", -best[1]) if best[0] >= self.threshold else None

    def __call__(self, example: Example) -> str | None:
        """Turn down an example of which a text is evaluation data."""
        if self.unread:
            self._read()
        for text in example.texts:
            normal = normalise(text)
            if (at := self.exact.get(normal)) is not None:
                return self._say("the same as", at)
            if (run := next((run for run in word_runs(normal) if run in self.runs), None)) is not None:
                return self._say(f"{WORDS} words of", self.runs[run])
            if normal not in self.similar:
                self.prepare([example])
            if said := self.similar.get(normal):
                return said
        return None

    def _say(self, how: str, at: int) -> str:
        file, line = self.places[at]
        # a record is the same on every machine: no path
        return f"{REASON}: {how} {Path(file).name}, line {line}: {self.texts[at][:80]}"


def word_runs(normal: str) -> Iterator[int]:
    """Yield a hash of every `WORDS` words in a row; of `CHARACTERS` in a row, where words are not parted."""
    words = normal.split()
    parts, length, between = words, WORDS, " "
    if not has_spaced_words(normal):
        parts, length, between = list(normal.replace(" ", "")), CHARACTERS, ""
    for at in range(len(parts) - length + 1):
        yield xxhash.xxh3_64_intdigest(between.join(parts[at : at + length]).encode())


def texts_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yield each text of a file with its line.

    Raises:
        DataError: the file cannot be read, is not UTF-8, holds no text, or what ends in .json or .jsonl is no JSON.
    """
    kind = file.suffix.lower()
    lines: Iterable[tuple[int, str]] = enumerate(read_lines(file), start=1)
    if kind == ".json":
        lines = [(1, "".join(line for _, line in lines))]
    empty = True
    for number, line in lines:
        for text in _texts_of_line(line, kind, f"{file}, line {number}"):
            if text.strip():
                empty = False
                yield number, text
    if empty:
        raise DataError(f"{file}: holds no text to keep out")


def _texts_of_line(line: str, kind: str, where: str) -> Sequence[str]:
    if kind in {".tsv", ".csv"}:
        return line.split("\t") if "\t" in line or kind == ".tsv" else next(csv.reader([line]), [])
    if kind not in {".json", ".jsonl"}:
        return [line]
    return list(_strings(parse_json(line, where))) if line.strip() else []


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def exclusion_files(names: Sequence[str], folder: Path) -> list[str]:
    """Return the files that stand for what ``--exclude`` names; sets of the Hub are fetched into ``folder``.

    Raises:
        OptionError: there is no such file or set, or the Hub cannot be reached.
    """
    found = []
    for name in names:
        if Path(name).is_file():
            found.append(name)
        elif name == "pocket":
            found.append(str(pocket.GOLD_TEST))
        elif name in HUB_SETS:
            found.append(str(_fetch(name, folder)))
        else:
            raise OptionError(
                f"--exclude {name}: no such file, and no evaluation set of this name; the sets are pocket, "
                + ", ".join(HUB_SETS)
            )
    return found


def _fetch(name: str, folder: Path) -> Path:
    path = folder / f"{name}.jsonl"
    if path.exists():
        return path
    try:
        rows = load_table(HUB_SETS[name], split="test")
    except Exception as error:  # the library raises whatever its transport raises
        cause = error.__cause__ if isinstance(error, DataError) else error
        raise OptionError(
            f"--exclude {name}: {HUB_SETS[name]} cannot be fetched from the Hub ({type(cause).__name__}); "
            "give the set as a file instead"
        ) from error
    write_json_lines(path, ({key: row[key] for key in ("sentence1", "sentence2")} for row in rows))
    return path
