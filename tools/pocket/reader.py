"""Read a sentence of the grammar back into its frame.

Tables map each phrase to the values that it may have, and a tree holds the patterns by their common beginnings.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import compress, product
from typing import Any

from tools.pocket.frames import CIRCUMSTANCES, Frame, Thing, modes_of, roles_of, well_formed
from tools.pocket.grammar import PATTERNS, Pattern, full_patterns, is_slot, surfaces_for
from tools.pocket.lexicon import NOUNS, PREDICATES, SURFACES, Predicate, qualities_of, verb_of
from tools.pocket.phrases import ADJECTIVE_SLOTS, THING_SLOTS, VERB_SLOTS, slot_options, thing_phrases

Values = dict[Any, None]  # an ordered set
Table = dict[str, Values]
Tree = dict[str, Any]
Fillings = tuple[tuple[str, str, Values], ...]  # slot, phrase, values
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
    """Yield frames that together use each verb group of a predicate: each mode, one or many things in each role."""
    for mode, count in product(modes_of(predicate), (1, 2)):
        things: dict[str, Any] = {role: Thing(nouns[0], count) for role, nouns in roles_of(predicate).items()}
        yield Frame(predicate.name, mode, **things)


@cache
def word_table(kind: str) -> Table:
    """Return the table of a slot with a verb, an adjective or an auxiliary."""
    table: Table = {}
    for predicate in PREDICATES.values():
        slots = [s[1:-1] for p in PATTERNS[predicate.kind] for s in p.split() if is_slot(s)]
        for slot in dict.fromkeys(s for s in slots if s.partition(".")[0] == kind):
            for frame, surface in product(probes(predicate), predicate.surfaces + predicate.converses):
                for phrase in slot_options(frame, slot, surface):
                    table.setdefault(phrase, {})[head_of(kind, frame)] = None
    return table


def head_of(kind: str, frame: Frame) -> Head:
    """Return predicate and mode of a frame, as far as the words in a slot name them."""
    named = kind in (*VERB_SLOTS, *ADJECTIVE_SLOTS, "nominal")
    tense = kind in (*VERB_SLOTS, "is", "isnot", "isnt", "can", "carry", "carried")
    return frame.predicate if named else None, frame.mode if tense else None


@cache
def literal_tables() -> dict[str, Table]:
    """Return the tables of slots whose words name neither predicate nor mode."""
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
    """Return the table of a slot, and the number of words in its longest phrase."""
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
        """Return each (end, phrase, values) that fits a slot from word number `start` on."""
        if (slot, start) not in self.seen:
            table, longest = table_for(slot)
            ends = range(start, min(start + longest, len(self.words)) + 1)
            spans = ((end, " ".join(self.words[start:end])) for end in ends)
            self.seen[slot, start] = [(end, phrase, table[phrase]) for end, phrase in spans if phrase in table]
        return self.seen[slot, start]

    def walk(self, node: Tree, start: int = 0, fillings: Fillings = ()) -> Iterator[tuple[str, Pattern, Fillings]]:
        """Yield kind of predicate, pattern and fillings of each pattern that fits the words from `start` on."""
        for item, child in node.items():
            if not item:
                if start == len(self.words):
                    yield from ((kind, pattern, fillings) for kind, pattern in child)
            elif is_slot(item):
                for end, phrase, values in self.scan(item[1:-1], start):
                    yield from self.walk(child, end, (*fillings, (item[1:-1], phrase, values)))
            elif start < len(self.words) and self.words[start] == item:
                yield from self.walk(child, start + 1, fillings)


def heads(fillings: Fillings, kind: str) -> list[tuple[str, str]]:
    """Return the (predicate, mode) pairs on which all slots agree; all modes if no word names one."""
    pairs: list[Head] = [("there" if kind == "exist" else None, None)]
    for slot, _, values in fillings:
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


def candidates(fillings: Fillings, kind: str) -> Iterator[Frame]:
    """Yield each frame that the fillings allow, each slot on its own."""
    values: Table = {}
    for slot, _, of_slot in fillings:
        name, _, role = slot.partition(".")
        if name in (*THING_SLOTS, *CIRCUMSTANCES):
            values[role or name] = of_slot
    for (predicate, mode), *rest in product(heads(fillings, kind), *values.values()):
        yield Frame(predicate, mode, **dict(zip(values, rest, strict=True)))


def is_written_as(frame: Frame, pattern: Pattern, fillings: Fillings) -> bool:
    """Return whether the writer can write a frame with exactly these fillings."""
    return any(
        all(phrase in slot_options(frame, slot, surface) for slot, phrase, _ in fillings)
        for surface in surfaces_for(pattern, PREDICATES[frame.predicate])
    )


def readings(sentence: str) -> Iterator[Frame]:
    """Yield each frame that the grammar can write as this sentence."""
    if not sentence.endswith(".") or sentence != sentence[:1].upper() + sentence[1:]:
        return
    words = (sentence[:1].lower() + sentence[1:-1]).replace(",", " ,").split(" ")
    for kind, pattern, fillings in Reader(words).walk(pattern_tree()):
        for frame in candidates(fillings, kind):
            if well_formed(frame) and is_written_as(frame, pattern, fillings):
                yield frame


def parse(sentence: str) -> Frame | None:
    """Return the frame of a sentence of the grammar. None for any other text."""
    return next(readings(sentence), None)
