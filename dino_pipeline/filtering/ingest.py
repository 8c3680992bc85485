"""How files of examples become tables: each piece of a file is parsed, checked by the rules and written as Parquet."""

from __future__ import annotations

import gc
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import xxhash
from pyarrow import parquet

from dino_pipeline.errors import DataError, OptionError, OutputError
from dino_pipeline.examples import Example, parse_example, parse_examples
from dino_pipeline.filter_options import Check, FilterOptions, rule_name
from dino_pipeline.filtering.contamination import LEAKED, ContaminationFilter
from dino_pipeline.filtering.text_rules import (
    PERSONAL_DATA,
    ExampleRule,
    PromptParts,
    is_plain,
    personal_data,
    text_rules,
)
from dino_pipeline.text import normalise

PIECE = 8 * 2**20
"""Bytes of a file that a process reads at a time."""
BLOCK = 2**20
"""Bytes read at a time to count lines."""
LINES = 1000
"""Lines parsed at a time."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SCHEMA = pa.schema(
    {
        "line": pa.int64(),  # number of the piece, and of the line in it
        "text_a": pa.string(),
        "text_b": pa.string(),
        "score": pa.float64(),
        "class": pa.string(),
        "logprob": pa.float64(),
        "margin": pa.float64(),
        "input": pa.int64(),
        "sample": pa.int64(),
        "hash_a": pa.uint64(),  # hashes of the texts in normal form
        "hash_b": pa.uint64(),
        "random_rank": pa.uint64(),  # hash of the line: its place in a random order
        "broken_rules": pa.int64(),  # bit i is set if the example breaks rule i
        "reason": pa.string(),  # by the first of these rules
        "personal_data": pa.string(),
    }
)


@dataclass(frozen=True)
class FilePiece:
    """The lines of a file that begin in a range of bytes."""

    number: int
    file: Path
    start: int
    end: int

    def lines(self) -> list[bytes]:
        """Return the lines. A line that begins before the range belongs to the piece before.

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
        """Return the file and the line number in it of one of the piece's lines."""
        lines_before, bytes_left, block = 0, self.start, b"\n"
        with open(self.file, "rb") as file:
            while bytes_left and (block := file.read(min(bytes_left, BLOCK))):
                lines_before += block.count(b"\n")
                bytes_left -= len(block)
        lines_before += not block.endswith(b"\n")  # the line that begins before the piece
        return f"{self.file}, line {lines_before + line + 1}"


def pieces(files: Sequence[Path]) -> list[FilePiece]:
    """Return the pieces of all files.

    Raises:
        DataError: a file cannot be read.
    """
    all_pieces: list[FilePiece] = []
    for file in files:
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        for start in range(0, size, PIECE):
            all_pieces.append(FilePiece(len(all_pieces), file, start, min(size, start + PIECE)))
    return all_pieces


def example_rules(options: FilterOptions, prompt: PromptParts, excluded: Sequence[str]) -> list[ExampleRule]:
    """Return the rules about single examples that are on, in the order in which they are tried.

    Args:
        options: the options of the stage.
        prompt: parts of the spec's prompts.
        excluded: files of evaluation data.

    Raises:
        OptionError: a rule to switch off, or one of the user's own, does not exist.
    """
    built_in = text_rules(options, prompt)
    names = [rule.name for rule in built_in]
    if unknown := [name for name in options.without if name not in names]:
        known = ", ".join(map(repr, names))
        raise OptionError(f"no such rule; choose from {known}", option="without", value=unknown[0])
    rules: list[ExampleRule] = []
    if excluded:  # the first rule, so that evaluation data is always dropped for this reason
        contamination = ContaminationFilter(excluded, options.near_duplicates or 1.0)
        rules.append(ExampleRule(LEAKED, contamination, "a text of evaluation data"))
    rules += [rule for rule in built_in if rule.name not in options.without]
    if options.pii == "drop":
        rules.append(PERSONAL_DATA)
    return rules + [ExampleRule(rule_name(rule), resolve_rule(rule), "your own") for rule in options.rule]


def resolve_rule(rule: str | Check) -> Check:
    """Return the function of a user's own rule; modules are looked for in the current folder, too.

    Raises:
        OptionError: it cannot be imported, or is not a function.
    """
    if not isinstance(rule, str):
        return rule
    module, _, function = rule.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        check = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the user's code
        raise OptionError(
            f"cannot be imported ({type(error).__name__}: {error}); write module:function", option="rule", value=rule
        ) from error
    if not callable(check):
        raise OptionError("is not a function of an Example that returns None or a reason", option="rule", value=rule)
    return check  # type: ignore[no-any-return]


def rules_digest(rules: Iterable[str | Check]) -> str:
    """Return a hash of the source of the user's own rules: a changed rule counts as a changed option."""
    digest = hashlib.sha256()
    for rule in rules:
        resolve_rule(rule)
        digest.update(_source_of(rule))
    return digest.hexdigest()[:16]


def _source_of(rule: str | Check) -> bytes:
    """Return the content of the module that a rule is named in, or the source of a function itself."""
    if isinstance(rule, str):
        file = sys.modules[rule.partition(":")[0]].__file__
        return Path(file).read_bytes() if file else b""
    try:
        return inspect.getsource(rule).encode()
    except (OSError, TypeError):  # entered at a prompt, or not a plain function
        code = getattr(rule, "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names) if code else rule_name(rule)).encode()


class ExampleChecker:
    """Writes a piece's examples to a Parquet file of `SCHEMA`, with what the rules say of them.

    Each worker process makes its own.

    Args:
        options: the options of the stage.
        prompt: parts of the spec's prompts.
        excluded: files of evaluation data.
        numeric_labels: read labels that spell a number as numbers.
        folder: where to write.
    """

    def __init__(
        self, options: FilterOptions, prompt: PromptParts, excluded: Sequence[str], numeric_labels: bool, folder: Path
    ) -> None:
        self.options, self.numeric_labels, self.folder = options, numeric_labels, folder
        rules = example_rules(options, prompt, excluded)
        self.own_rules = [rule_name(rule) for rule in options.rule]
        self.rules = list(enumerate(rules))
        self.rules_if_plain = [(number, rule) for number, rule in self.rules if not rule.skip_if_plain]
        self.contamination = [rule.check for rule in rules if isinstance(rule.check, ContaminationFilter)]
        self.analyse_input = lru_cache(maxsize=1024)(self._analyse)  # the same input comes many times in a row

    def _analyse(self, text: str) -> tuple[bool, int]:
        """Return whether a text is plain, and the 64-bit hash of its normal form."""
        return is_plain(text, self.options), xxhash.xxh3_64_intdigest(normalise(text).encode())

    def __call__(self, piece: FilePiece) -> Path:
        """Check a piece's examples and write them to a file of their own.

        Raises:
            DataError: a line is not an example, or has no label.
            OutputError: the file cannot be written.
        """
        lines = [(number, line) for number, line in enumerate(piece.lines()) if line and not line.isspace()]
        tables: list[pa.Table] = []
        gc.disable()  # saves time: nothing here makes cycles of references
        try:
            for start in range(0, max(1, len(lines)), LINES):
                tables.append(self._check_lines(lines[start : start + LINES], piece))
        finally:
            gc.enable()
        path = self.folder / f"{piece.number:08d}.parquet"
        try:
            parquet.write_table(pa.concat_tables(tables), path, compression="none", use_dictionary=False)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}; make room and run again") from error
        return path

    def _check_lines(self, lines: Sequence[tuple[int, bytes]], piece: FilePiece) -> pa.Table:
        """Return the table of some lines, each with its number in the piece."""
        examples = parse_examples([line for _, line in lines], self.numeric_labels)
        if examples is None:  # a label must be converted, or an error reported with its line
            examples = [
                parse_example(line, partial(piece.place, number), self.numeric_labels) for number, line in lines
            ]
        for contamination in self.contamination:
            contamination.prepare(examples)
        rows = []
        for (number, line), example in zip(lines, examples, strict=True):
            is_plain_a, hash_a = self.analyse_input(example.text_a)
            is_plain_b, hash_b = (True, None) if example.text_b is None else self._analyse(example.text_b)
            all_plain = is_plain_a and is_plain_b
            broken_rules, reason = self._check(example, all_plain, partial(piece.place, number))
            is_flagged = self.options.pii == "flag" and not all_plain
            is_name = isinstance(example.label, str)
            rows.append(
                (  # in the order of SCHEMA
                    piece.number << 32 | number,
                    example.text_a,
                    example.text_b,
                    None if is_name else example.label,
                    example.label if is_name else None,
                    example.logprob,
                    example.margin,
                    example.input,
                    example.sample,
                    hash_a,
                    hash_b,
                    xxhash.xxh3_64_intdigest(line, self.options.seed),
                    broken_rules,
                    reason,
                    personal_data(example) if is_flagged else None,
                )
            )
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in SCHEMA]
        return pa.table(columns, schema=SCHEMA)

    def _check(self, example: Example, all_plain: bool, place: Callable[[], str]) -> tuple[int, str | None]:
        """Return the bit mask of the rules that an example breaks, and the reason given by the first of them.

        Raises:
            DataError: the example has no label, or one of the user's own rules failed on it.
        """
        if example.label is None:
            raise DataError(f'{place()}: has no label; add "label" to each line')
        broken_rules, first_reason = 0, None
        for number, rule in self.rules_if_plain if all_plain else self.rules:
            try:
                reason = rule.check(example)
                if not isinstance(reason, str | None):
                    raise TypeError(f"returned {reason!r}; return None, or the reason to drop the text")
            except Exception as error:
                if rule.name not in self.own_rules:
                    raise
                raise DataError(f"{place()}: the rule {rule.name} failed ({type(error).__name__}: {error})") from error
            if reason is not None:
                broken_rules |= 1 << number
                first_reason = first_reason or reason
        return broken_rules, first_reason
