"""From files of examples to tables: parse each line, judge it by the rules about single examples, piece by piece."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import xxhash
from pyarrow import parquet

from dino_pipeline.errors import DataError, OutputError
from dino_pipeline.examples import Example, parse_example, parse_examples
from dino_pipeline.filtering.contamination import Gate
from dino_pipeline.filtering.hygiene import is_sound, personal_data
from dino_pipeline.filtering.rules import FilterOptions, record_rules
from dino_pipeline.text import normalise

PIECE = 8 * 2**20
"""Bytes of a file that one process takes at a time."""
BLOCK = 2**20
"""Bytes read at a time where lines are only counted."""
LINES = 1000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SCHEMA = pa.schema(
    {
        "line": pa.int64(),  # piece and line in it
        "text_a": pa.string(),
        "text_b": pa.string(),
        "score": pa.float64(),
        "class": pa.string(),
        "logprob": pa.float64(),
        "margin": pa.float64(),
        "input": pa.int64(),
        "sample": pa.int64(),
        "a": pa.uint64(),  # hashes of the texts in normal form
        "b": pa.uint64(),
        "rank": pa.uint64(),  # hash of the line: a place in random order
        "hits": pa.int64(),  # which rules it breaks, bit by bit
        "reason": pa.string(),  # what the first of them said
        "flag": pa.string(),  # personal data
    }
)


@dataclass(frozen=True)
class Piece:
    """The lines of a file that begin in a range of bytes."""

    number: int
    file: Path
    start: int
    end: int

    def lines(self) -> list[bytes]:
        """Return the lines, those before the range's beginning left out.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open(self.file, "rb") as file:
                file.seek(max(0, self.start - 1))
                if self.start:
                    file.readline()
                content = file.read(max(0, self.end - file.tell()))
                if content and not content.endswith(b"\n"):
                    content += file.readline()
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read: {error.strerror}") from error
        return (content if self.start else content.removeprefix(BYTE_ORDER_MARK)).split(b"\n")

    def place(self, line: int) -> str:
        """Name a line by its number among the piece's own."""
        first, left, block = 0, self.start, b"\n"
        with open(self.file, "rb") as file:
            while left and (block := file.read(min(left, BLOCK))):
                first, left = first + block.count(b"\n"), left - len(block)
        first += not block.endswith(b"\n")
        return f"{self.file}, line {first + line + 1}"


def pieces(files: Sequence[Path]) -> list[Piece]:
    """Return the pieces of all files.

    Raises:
        DataError: a file cannot be read.
    """
    found: list[Piece] = []
    for file in files:
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        for start in range(0, size, PIECE):
            found.append(Piece(len(found), file, start, min(size, start + PIECE)))
    return found


class Judge:
    """Turns pieces into Parquet files of `SCHEMA`."""

    def __init__(self, options: FilterOptions, excluded: Sequence[str], numeric_labels: bool, folder: Path) -> None:
        """Make the rules, which are made anew in each process.

        Args:
            options: the rules' settings.
            excluded: files that hold evaluation data.
            numeric_labels: read labels that spell a number as numbers.
            folder: where to write.
        """
        self.options, self.numeric_labels, self.folder = options, numeric_labels, folder
        rules = record_rules(options, excluded)
        self.rules = list(enumerate(rules))
        self.strict = [(number, rule) for number, rule in self.rules if not rule.spares_sound]
        self.gates = [rule.check for rule in rules if isinstance(rule.check, Gate)]
        self.facts_of_input = lru_cache(maxsize=1024)(self._facts)  # inputs come many times in a row

    def _facts(self, text: str) -> tuple[bool, int]:
        """Return whether a text is sound, and the 64-bit hash of its normal form."""
        return is_sound(text, self.options.hygiene), xxhash.xxh3_64_intdigest(normalise(text).encode())

    def __call__(self, piece: Piece) -> Path:
        """Judge a piece's examples and write them to a file of its own.

        Raises:
            DataError: a line is no example, or has no label.
            OutputError: the file cannot be written.
        """
        lines = [(number, line) for number, line in enumerate(piece.lines()) if line and not line.isspace()]
        gc.disable()  # nothing here refers back to what holds it
        try:
            found = pa.concat_tables(
                [self._judged(lines[start : start + LINES], piece) for start in range(0, max(1, len(lines)), LINES)]
            )
        finally:
            gc.enable()
        path = self.folder / f"{piece.number:08d}.parquet"
        try:
            parquet.write_table(found, path, compression="none", use_dictionary=False)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}; make room and run again") from error
        return path

    def _judged(self, lines: Sequence[tuple[int, bytes]], piece: Piece) -> pa.Table:
        examples = parse_examples([line for _, line in lines], self.numeric_labels)
        if examples is None:  # somewhere a label is to be converted, or an error to be named
            examples = [
                parse_example(line, partial(piece.place, number), self.numeric_labels) for number, line in lines
            ]
        for gate in self.gates:
            gate.prepare(examples)
        facts_a = [self.facts_of_input(each.text_a) for each in examples]
        facts_b = [(True, None) if each.text_b is None else self._facts(each.text_b) for each in examples]
        sound = [of_a and of_b for (of_a, _), (of_b, _) in zip(facts_a, facts_b, strict=True)]
        hits: list[int] = []
        reasons: list[str | None] = []
        for (number, _), example, is_fine in zip(lines, examples, sound, strict=True):
            broken, reason = self._judge(example, is_fine, partial(piece.place, number))
            hits.append(broken)
            reasons.append(reason)
        labels = [each.label for each in examples]
        flags = self.options.pii == "flag"
        columns = {
            "line": [piece.number << 32 | number for number, _ in lines],
            "text_a": [each.text_a for each in examples],
            "text_b": [each.text_b for each in examples],
            "score": [None if isinstance(label, str) else label for label in labels],
            "class": [label if isinstance(label, str) else None for label in labels],
            "logprob": [each.logprob for each in examples],
            "margin": [each.margin for each in examples],
            "input": [each.input for each in examples],
            "sample": [each.sample for each in examples],
            "a": [of_a for _, of_a in facts_a],
            "b": [of_b for _, of_b in facts_b],
            "rank": [xxhash.xxh3_64_intdigest(line, self.options.seed) for _, line in lines],
            "hits": hits,
            "reason": reasons,
            "flag": [
                personal_data(each) if flags and not fine else None for each, fine in zip(examples, sound, strict=True)
            ],
        }
        return pa.table(columns, schema=SCHEMA)

    def _judge(self, example: Example, sound: bool, place: Callable[[], str]) -> tuple[int, str | None]:
        """Return which rules an example breaks, and what the first of them says."""
        if example.label is None:
            raise DataError(f'{place()}: has no label; add "label" to each line')
        hits, reason = 0, None
        try:
            for number, rule in self.strict if sound else self.rules:
                if (said := rule.check(example)) is not None:
                    if not isinstance(said, str):
                        raise TypeError(f"returned {said!r}; return None, or the reason why the text goes")
                    hits |= 1 << number
                    reason = reason or said
        except Exception as error:
            if rule.name not in self.options.custom:
                raise
            raise DataError(f"{place()}: --rule {rule.name} failed ({type(error).__name__}: {error})") from error
        return hits, reason
