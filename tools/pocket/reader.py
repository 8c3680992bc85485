"""Reads a sentence of the grammar back into its frame: tables take a phrase to the values it may stand for, and
patterns share their beginnings in a tree."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import compress, product
from typing import Any

from tools.pocket.frames import CIRCUMSTANCES, Frame, Thing, modes_of, roles_of, well_formed
from tools.pocket.grammar import PATTERNS, Pattern, full_patterns, is_slot, surfaces_for
from tools.pocket.lexicon import NOUNS, PREDICATES, SURFACES, Predicate, qualities_of, verb_of
from tools.pocket.phrases import ADJECTIVE_SLOTS, THING_SLOTS, VERB_SLOTS, slot_options, thing_phrases

Values = dict[Any, None]  # in the order found
Table = dict[str, Values]
Tree = dict[str, Any]
Found = tuple[tuple[str, str, Values], ...]  # slot, phrase, values
Head = tuple[str | None, str | None]  # predicate and mode, as far as a word names them


@cache
def thing_table() -> Table:
    table: Table = {}
    for noun in NOUNS.values():
        for count, quality in product((0,) if noun.mass else (1, 2, 3), ("", *qualities_of(noun.name))):
            thing = Thing(noun.name, count, quality)
            for phrase in thing_phrases(thing):
                table.setdefault(phrase, {})[thing] = None
    return table


@cache
def circumstance_table(name: str) -> Table:
    table: Table = {}
    for value, phrases in SURFACES[name].items():
        for phrase in phrases:
            table.setdefault(phrase, {})[value] = None
    return table


def probes(predicate: Predicate) -> Iterator[Frame]:
    """Frames that between them show every verb group of a predicate: each mode, one or many in each role."""
    for mode, count in product(modes_of(predicate), (1, 2)):
        things: dict[str, Any] = {role: Thing(nouns[0], count) for role, nouns in roles_of(predicate).items()}
        yield Frame(predicate.name, mode, **things)


@cache
def word_table(kind: str) -> Table:
    """For slots that carry a verb, an adjective or an auxiliary."""
    table: Table = {}
    for predicate in PREDICATES.values():
        slots = [s[1:-1] for p in PATTERNS[predicate.kind] for s in p.split() if is_slot(s)]
        for slot in dict.fromkeys(s for s in slots if s.partition(".")[0] == kind):
            for frame, surface in product(probes(predicate), predicate.surfaces + predicate.converses):
                for phrase in slot_options(frame, slot, surface):
                    table.setdefault(phrase, {})[head_of(kind, frame)] = None
    return table


def head_of(kind: str, frame: Frame) -> Head:
    """What the words in such a slot name of a frame."""
    named = kind in (*VERB_SLOTS, *ADJECTIVE_SLOTS, "nominal")
    tense = kind in (*VERB_SLOTS, "is", "isnot", "isnt", "can", "carry", "carried")
    return frame.predicate if named else None, frame.mode if tense else None


@cache
def literal_tables() -> dict[str, Table]:
    """For slots whose words name neither."""
    words = {
        "was": ("was", "is", "will be"),
        "who": ("who", "that"),
        "one": ("the one", "the person", "the animal"),
        "isnow": ("is", "are"),
        "rest": ("", *(verb_of(s).rest for p in PREDICATES.values() for s in p.surfaces)),
    }
    return {kind: {word: {(None, None): None} for word in row} for kind, row in words.items()}


@cache
def table_for(slot: str) -> tuple[Table, int]:
    """The table of a slot and the number of words in its longest phrase."""
    kind = slot.partition(".")[0]
    if kind in CIRCUMSTANCES:
        table = circumstance_table(kind)
    elif kind in THING_SLOTS:
        table = thing_table()
    else:
        table = literal_tables().get(kind) or word_table(kind)
    return table, max(len(key.split()) for key in table)


@cache
def pattern_tree() -> Tree:
    tree: Tree = {}
    for kind, kept in product(PATTERNS, product((0, 1), repeat=len(CIRCUMSTANCES))):
        for pattern in full_patterns(kind, tuple(compress(CIRCUMSTANCES, kept))):
            node = tree
            for item in pattern:
                node = node.setdefault(item, {})
            node.setdefault("", []).append((kind, pattern))
    return tree


@dataclass
class Reader:
    words: list[str]
    seen: dict[tuple[str, int], list[tuple[int, str, Values]]] = field(default_factory=dict)

    def scan(self, slot: str, start: int) -> list[tuple[int, str, Values]]:
        """Every (end, phrase, values) a slot can take from `start` on."""
        if (slot, start) not in self.seen:
            table, longest = table_for(slot)
            ends = range(start, min(start + longest, len(self.words)) + 1)
            spans = ((end, " ".join(self.words[start:end])) for end in ends)
            self.seen[slot, start] = [(end, phrase, table[phrase]) for end, phrase in spans if phrase in table]
        return self.seen[slot, start]

    def walk(self, node: Tree, start: int = 0, found: Found = ()) -> Iterator[tuple[str, Pattern, Found]]:
        """Every kind of predicate and pattern that the words from `start` on fit, with what fills its slots."""
        for item, child in node.items():
            if not item:
                if start == len(self.words):
                    yield from ((kind, pattern, found) for kind, pattern in child)
            elif is_slot(item):
                for end, phrase, values in self.scan(item[1:-1], start):
                    yield from self.walk(child, end, (*found, (item[1:-1], phrase, values)))
            elif start < len(self.words) and self.words[start] == item:
                yield from self.walk(child, start + 1, found)


def heads(found: Found, kind: str) -> list[tuple[str, str]]:
    """(predicate, mode) pairs on which all slots agree; every mode where no word names one."""
    pairs: list[Head] = [("there" if kind == "exist" else None, None)]
    for slot, _, values in found:
        if slot.partition(".")[0] not in (*THING_SLOTS, *CIRCUMSTANCES):
            merged = (merge(pair, other) for pair, other in product(pairs, values))
            pairs = list(dict.fromkeys(pair for pair in merged if pair))
    return [
        (predicate, mode)
        for predicate, named in pairs
        if predicate and PREDICATES[predicate].kind == kind
        for mode in ((named,) if named else modes_of(PREDICATES[predicate]))
    ]


def merge(a: Head, b: Head) -> Head | None:
    clash = any(x and y and x != y for x, y in zip(a, b, strict=True))
    return None if clash else (a[0] or b[0], a[1] or b[1])


def candidates(found: Found, kind: str) -> Iterator[Frame]:
    """Every frame that its words may tell, each slot taken by itself."""
    values: Table = {}
    for slot, _, of_slot in found:
        name, _, role = slot.partition(".")
        if name in (*THING_SLOTS, *CIRCUMSTANCES):
            values[role or name] = of_slot
    for (predicate, mode), *rest in product(heads(found, kind), *values.values()):
        yield Frame(predicate, mode, **dict(zip(values, rest, strict=True)))


def tells(frame: Frame, pattern: Pattern, found: Found) -> bool:
    """Whether the writer could have written these very words for the frame."""
    return any(
        all(phrase in slot_options(frame, slot, surface) for slot, phrase, _ in found)
        for surface in surfaces_for(pattern, PREDICATES[frame.predicate])
    )


def readings(sentence: str) -> Iterator[Frame]:
    """Every frame that the grammar would write as this very sentence."""
    if not sentence.endswith(".") or sentence != sentence[:1].upper() + sentence[1:]:
        return
    words = (sentence[:1].lower() + sentence[1:-1]).replace(",", " ,").split(" ")
    for kind, pattern, found in Reader(words).walk(pattern_tree()):
        for frame in candidates(found, kind):
            if well_formed(frame) and tells(frame, pattern, found):
                yield frame


def parse(sentence: str) -> Frame | None:
    """The frame of a sentence the grammar writes; None for any other text."""
    return next(readings(sentence), None)
