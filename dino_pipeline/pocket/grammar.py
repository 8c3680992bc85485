"""A paraphrase grammar of everyday English: one frame becomes many sentences, and each sentence is read back.

A pattern is a row of words and slots. `slot_options` alone says which strings may fill a slot for a given frame: the
writer picks among them, the reader checks against them, so that the two cannot disagree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, product
from random import Random
from typing import Any

from dino_pipeline.pocket.frames import (
    CIRCUMSTANCES,
    ROLES,
    Frame,
    Thing,
    modes_of,
    roles_of,
    well_formed,
)
from dino_pipeline.pocket.lexicon import (
    DATA,
    MANNERS,
    MODES,
    NOUNS,
    PREDICATES,
    TIME_SURFACES,
    Predicate,
    plural,
    qualities_of,
    verb_forms,
    with_article,
)

Options = tuple[str, ...]

# A slot reads {kind} or {kind.subject}: the subject is the role with which the verb agrees. {rest} is what follows the
# object ("to a halt"); a surface that needs none fills it with nothing.
TRANSITIVE = (
    "{agent} {do.agent} {theme} {rest}",
    "{agent} {do.agent} {theme} {rest}",
    "{theme} {done.theme} by {agent}",
    "{theme} {done.theme} by {agent}",
    "it {was} {agent} {who.agent} {do.agent} {theme} {rest}",
    "it {was} {theme} that {agent} {do.agent} {rest}",
    "{one.agent} {who.agent} {do.agent} {theme} {rest} {was} {agent}",
    "what {agent} {do.agent} {rest} {was} {thing.theme}",
    "there {isnow.agent} {some.agent} {doing} {theme} {rest}",
    "{agent} {carry.agent} the {nominal} of {theme}",
    "the {nominal} of {theme} {carried} by {agent}",
    "{theme} {conv.theme} {agent}",
)
INTRANSITIVE = (
    "{agent} {do.agent}",
    "{agent} {do.agent}",
    "it {was} {agent} {who.agent} {do.agent}",
    "{one.agent} {who.agent} {do.agent} {was} {agent}",
    "there {isnow.agent} {some.agent} {doing}",
)
DATIVE = (
    "{agent} {do.agent} {theme} {rest} to {recipient}",
    "{agent} {give.agent} {recipient} {theme}",
    "{theme} {done.theme} to {recipient} by {agent}",
    "{recipient} {given.recipient} {theme} by {agent}",
    "{recipient} {conv.recipient} {theme} from {agent}",
    "it {was} {agent} {who.agent} {do.agent} {theme} {rest} to {recipient}",
    "it {was} {recipient} {who.recipient} {conv.recipient} {theme} from {agent}",
    "what {agent} {give.agent} {recipient} {was} {thing.theme}",
)
FEELING = (
    "{agent} {do.agent} {theme}",
    "{agent} {do.agent} {theme}",
    "{theme} {done.theme} by {agent}",
    "{theme} {conv.theme} {agent}",
    "{agent} {convd.agent} by {theme}",
    "it {was} {theme} that {agent} {do.agent}",
    "it {was} {agent} {who.agent} {do.agent} {theme}",
    "{one.agent} {who.agent} {do.agent} {theme} {was} {agent}",
)
COMPARE = (
    "{the.agent} {is.agent} {high} than {the.theme}",
    "{the.theme} {is.theme} {low} than {the.agent}",
    "{the.theme} {isnt.theme} as {base-high} as {the.agent}",
    "{the.agent} {isnt.agent} as {base-low} as {the.theme}",
    "compared with {the.theme} , {the.agent} {is.agent} {high}",
    "compared with {the.agent} , {the.theme} {is.theme} {low}",
)
STATE = (
    "{the.theme} {is.theme} {adjective}",
    "{the.theme} {isnot.theme} {opposite}",
    "it {was} {the.theme} that {is.theme} {adjective}",
    "it {was} {the.theme} that {isnot.theme} {opposite}",
)
EXIST = (
    "there {is.theme} {some.theme} {place}",
    "{theme} {is.theme} {place}",
    "{theme} {can} be found {place}",
    "{place} there {is.theme} {some.theme}",
    "{place} you {can} find {theme}",
    "{place} {is.theme} {some.theme}",
)
PATTERNS: dict[str, tuple[str, ...]] = {
    "transitive": TRANSITIVE,
    "intransitive": INTRANSITIVE,
    "dative": DATIVE,
    "feeling": FEELING,
    "compare": COMPARE,
    "state": STATE,
    "exist": EXIST,
}
VERB_SLOTS = ("do", "done", "give", "given", "doing", "conv", "convd")
CAN = {"past": ("could",), "fact": ("can",)}


# Phrases.


@cache
def thing_phrases(thing: Thing, determiners: Options) -> Options:
    noun = NOUNS[thing.noun]
    names = [plural(s) if thing.count > 1 else s for s in noun.surfaces]
    kinds = [f"{q} " for q in PREDICATES[thing.quality].surfaces] if thing.quality else [""]
    bare = [kind + name for kind in kinds for name in names]
    return tuple(with_article(b) if d == "a" else f"{d} {b}" for d in determiners for b in bare)


def role_phrases(thing: Thing, definite: bool | None = None) -> Options:
    """All phrases for a thing; `definite` keeps those with, or those without, "the"."""
    determiners = tuple(DATA["counts"][str(thing.count)])
    return thing_phrases(thing, tuple(d for d in determiners if definite is None or (d == "the") == definite))


def place_phrases(place: str) -> Options:
    noun = NOUNS[place]
    return tuple(f"{p} the {s}" for p, s in zip(noun.prepositions, noun.surfaces, strict=True))


def circumstance_phrases(name: str, value: str) -> Options:
    if not value:
        return ()
    return {"place": place_phrases, "time": TIME_SURFACES.__getitem__, "manner": MANNERS.__getitem__}[name](value)


def agree(template: str, many: bool) -> str:
    """ "was/were {pp}" -> "was {pp}" or "were {pp}"."""
    return " ".join(w.split("/")[-1 if many else 0] for w in template.split())


@dataclass(frozen=True)
class Verb:
    """One surface of a predicate, its marks taken apart."""

    head: str
    rest: str
    two_objects: bool
    passive: bool
    copula: bool  # "be afraid of"


@cache
def verb_of(surface: str) -> Verb:
    bare = surface.strip("*^")
    head, _, rest = bare.partition(" _ ")
    copula = head.startswith("be ")
    return Verb(head.removeprefix("be "), rest, "*" in surface, "^" not in surface and not copula, copula)


@cache
def verb_groups(surface: str, mode: str, voice: str, many: bool) -> Options:
    verb = verb_of(surface)
    if verb.copula:
        groups = MODES[mode]["passive"] if voice == "active" and mode != "now" else ()
        return tuple(agree(g, many).format(pp=verb.head) for g in groups)
    forms = verb_forms(verb.head)
    if voice == "passive":
        done = f"{forms['pp']} {verb.rest}".strip()
        return tuple(agree(g, many).format(pp=done) for g in MODES[mode]["passive"])
    if mode == "fact" and many and forms["past"] == forms["base"]:
        return ()  # "two men put up a hut" is read as past
    present = forms["base"] if many else forms["s"]
    return tuple(agree(g, many).format(pres=present, **forms) for g in MODES[mode]["active"])


def auxiliaries(mode: str, name: str, many: bool) -> Options:
    return tuple(agree(group, many) for group in MODES[mode][name])


# Slots: what may stand in each, for a frame told with one surface of its verb.


def verb_slot(slot: str, frame: Frame, surface: str, many: bool) -> Options:
    verb, predicate = verb_of(surface), PREDICATES[frame.predicate]
    if slot in ("give", "given") and not verb.two_objects:
        return ()
    if slot in ("done", "given", "convd"):
        allowed = verb.passive and predicate.passive
        return verb_groups(surface, frame.mode, "passive", many) if allowed else ()
    if slot == "doing":
        return (verb_forms(verb.head)["ing"],) if frame.mode == "now" and not verb.copula else ()
    return verb_groups(surface, frame.mode, "active", many)


def who_options(thing: Thing) -> Options:
    return ("who", "that") if NOUNS[thing.noun].kind == "person" else ("that",)


def one_options(thing: Thing) -> Options:
    person = NOUNS[thing.noun].kind == "person"
    return () if thing.count != 1 else ("the one", "the person") if person else ("the one", "the animal")


def thing_slot(slot: str, thing: Thing) -> Options:
    if slot == "who":
        return who_options(thing)
    if slot == "one":
        return one_options(thing)
    if slot == "thing":  # "what he saw was ..." does not fit people
        return () if NOUNS[thing.noun].kind in ("person", "animal") else role_phrases(thing)
    return role_phrases(thing, definite={"the": True, "some": False}.get(slot))


def adjective_slot(slot: str, predicate: Predicate) -> Options:
    if slot in ("high", "adjective"):
        return predicate.surfaces
    if slot in ("low", "opposite"):
        return predicate.converses
    side = "+" if slot == "base-high" else "-"
    return PREDICATES[predicate.scale + side].surfaces


def auxiliary_slot(slot: str, frame: Frame, many: bool) -> Options:
    if slot == "was":
        return tuple(MODES[frame.mode]["be"])
    if slot == "isnt":
        return tuple(
            g
            for g in auxiliaries(frame.mode, "isnot", many)
            if g.endswith(("not", "n't", "not be", "n't be", "not going to be"))
        )
    if slot == "isnow":
        return (("are" if many else "is"),) if frame.mode == "now" else ()
    if slot == "can":
        return CAN.get(frame.mode, ())
    return auxiliaries(frame.mode, slot, many)


def nominal_slot(slot: str, frame: Frame, many: bool) -> Options:
    """ "carried out the repair of": only where a plain tense keeps it idiomatic."""
    nominal = PREDICATES[frame.predicate].nominal
    if not nominal or frame.mode not in ("past", "future"):
        return ()
    if slot == "nominal":
        return (nominal,)
    voice = "active" if slot == "carry" else "passive"
    return verb_groups("carry out", frame.mode, voice, many)


@lru_cache(maxsize=1 << 14)
def slot_options(frame: Frame, slot: str, surface: str) -> Options:
    kind, _, role = slot.partition(".")
    thing: Thing | None = getattr(frame, role or kind, None) if (role or kind) in ROLES else None
    many = thing is not None and thing.count > 1
    if kind in CIRCUMSTANCES:
        return circumstance_phrases(kind, getattr(frame, kind))
    if kind == "rest":
        return (verb_of(surface).rest,)
    if kind in VERB_SLOTS:
        return verb_slot(kind, frame, surface, many)
    if kind in ("high", "low", "base-high", "base-low", "adjective", "opposite"):
        return adjective_slot(kind, PREDICATES[frame.predicate])
    if kind in ("nominal", "carry", "carried"):
        return nominal_slot(kind, frame, many)
    if kind in ("was", "is", "isnot", "isnt", "isnow", "can"):
        return auxiliary_slot(kind, frame, many)
    return thing_slot(kind, thing) if thing else ()


# Whole sentences: a pattern, and the places where circumstances may stand.


@cache
def layouts(present: tuple[str, ...]) -> tuple[str, ...]:
    """Ways to set the circumstances around a clause; at most one in front."""
    tail = " ".join(f"{{{name}}}" for name in present)
    found = [f"# {tail}".strip()]
    if present == ("place", "time"):
        found.append("# {time} {place}")
    for name in present:
        rest = " ".join(f"{{{other}}}" for other in present if other != name)
        found.append(f"{{{name}}} , # {rest}".strip())
        if name != "manner":
            found.append(f"it {{was}} {{{name}}} that # {rest}".strip())
    return tuple(found)


def fits_layout(pattern: str, layout: str) -> bool:
    """No cleft in a cleft, and nothing in front of what has its own opening."""
    if pattern.startswith(("what ", "{one")):
        return layout.endswith("#") and not layout.startswith("it ")
    opens = pattern.startswith(("it ", "compared ", "{place}"))
    return layout.startswith("#") or not (opens or (pattern.startswith("there ") and layout.startswith("it ")))


@cache
def full_patterns(kind: str, present: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Every pattern in every layout, as rows of words and slots; repeats make a pattern likelier."""
    outer = tuple(name for name in present if not (kind == "exist" and name == "place"))
    return tuple(
        tuple(layout.replace("#", pattern).split())
        for pattern in PATTERNS[kind]
        for layout in layouts(outer)
        if fits_layout(pattern, layout)
    )


def is_slot(item: str) -> bool:
    return item.startswith("{")


def surfaces_for(pattern: tuple[str, ...], predicate: Predicate) -> tuple[str, ...]:
    """The verb surfaces a pattern can be told with; patterns without a verb slot need just one pass."""
    slots = [item.strip("{}").partition(".")[0] for item in pattern if is_slot(item)]
    if any(slot in ("conv", "convd") for slot in slots):
        return predicate.converses
    return predicate.surfaces if any(slot in VERB_SLOTS for slot in slots) else predicate.surfaces[:1]


def fillings(frame: Frame, pattern: tuple[str, ...], surface: str) -> list[Options] | None:
    """Options item by item, or None where some slot has none."""
    rows: list[Options] = []
    for item in pattern:
        options = slot_options(frame, item[1:-1], surface) if is_slot(item) else (item,)
        if not options:
            return None
        rows.append(options)
    return rows


def present_circumstances(frame: Frame) -> tuple[str, ...]:
    return tuple(name for name in CIRCUMSTANCES if getattr(frame, name))


def finish(words: list[str]) -> str:
    text = " ".join(word for word in words if word).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."


@cache
def pattern_choices(kind: str, present: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], list[float]]:
    """Patterns and their running weights; plain clauses are what people mostly say, so that clefts come less often."""
    patterns = full_patterns(kind, present)
    weights = (0.3 if pattern[0] in ("it", "what", "{one.agent}") else 1.0 for pattern in patterns)
    return patterns, list(accumulate(weights))


def write(frame: Frame, rng: Random) -> str:
    """One sentence for a frame: a pattern and a surface that fit it, then the fillings."""
    predicate = PREDICATES[frame.predicate]
    patterns, weights = pattern_choices(predicate.kind, present_circumstances(frame))
    for _ in range(1000):
        pattern = rng.choices(patterns, cum_weights=weights)[0]
        surfaces = surfaces_for(pattern, predicate)
        rows = fillings(frame, pattern, rng.choice(surfaces)) if surfaces else None
        if rows:
            return finish([rng.choice(options) for options in rows])
    raise ValueError(f"no way to say {frame}")


def paraphrases(frame: Frame, rng: Random, count: int) -> list[str]:
    """Up to `count` different sentences for a frame, in the order written."""
    found: dict[str, None] = {}
    for _ in range(4 * count):
        found[write(frame, rng)] = None
        if len(found) == count:
            break
    return list(found)


# Reading back. Tables take a phrase to the values it may stand for; patterns share their beginnings in a tree.

Table = dict[str, list[Any]]
Tree = dict[str, Any]


def note(table: Table, key: str, value: object) -> None:
    values = table.setdefault(key, [])
    if value not in values:
        values.append(value)


def all_things() -> Iterator[Thing]:
    for noun in NOUNS.values():
        for count in (0,) if noun.mass else (1, 2, 3):
            for quality in ("", *qualities_of(noun.name)):
                yield Thing(noun.name, count, quality)


@cache
def thing_table() -> Table:
    table: Table = {}
    for thing in all_things():
        for phrase in role_phrases(thing):
            note(table, phrase, thing)
    return table


@cache
def circumstance_table(name: str) -> Table:
    table: Table = {}
    values = {"place": [n.name for n in NOUNS.values() if n.kind == "place"], "time": TIME_SURFACES, "manner": MANNERS}
    for value in values[name]:
        for phrase in circumstance_phrases(name, value):
            note(table, phrase, value)
    return table


def probes(predicate: Predicate) -> Iterator[Frame]:
    """Frames that between them show every verb group of a predicate: each mode, one or many in each role."""
    roles = roles_of(predicate)
    for mode in modes_of(predicate):
        for count in (1, 2):
            things: dict[str, Any] = {role: Thing(nouns[0], count) for role, nouns in roles.items()}
            yield Frame(predicate.name, mode, **things)


@cache
def word_table(kind: str) -> Table:
    """For slots that carry a verb, an adjective or an auxiliary: phrase -> (predicate or None, mode or None)."""
    table: Table = {}
    for predicate in PREDICATES.values():
        slots = [s for p in PATTERNS[predicate.kind] for s in p.split() if is_slot(s)]
        for slot in dict.fromkeys(s[1:-1] for s in slots if s[1:-1].partition(".")[0] == kind):
            for frame, surface in product(probes(predicate), predicate.surfaces + predicate.converses):
                for phrase in slot_options(frame, slot, surface):
                    note(table, phrase, hint(kind, frame))
    return table


def hint(kind: str, frame: Frame) -> tuple[str | None, str | None]:
    tense = frame.mode if kind in ("is", "isnot", "isnt", "can", "carry", "carried", *VERB_SLOTS) else None
    named = kind in (*VERB_SLOTS, "high", "low", "base-high", "base-low", "adjective", "opposite", "nominal")
    return frame.predicate if named else None, tense


@cache
def literal_table(kind: str) -> Table:
    words = {
        "was": ("was", "is", "will be"),
        "who": ("who", "that"),
        "one": ("the one", "the person", "the animal"),
        "isnow": ("is", "are"),
        "rest": ("", *dict.fromkeys(verb_of(s).rest for p in PREDICATES.values() for s in p.surfaces)),
    }
    return {word: [(None, None)] for word in words[kind]}


@cache
def table_for(slot: str) -> tuple[Table, int]:
    """The table of a slot and the number of words in its longest phrase."""
    kind = slot.partition(".")[0]
    if kind in CIRCUMSTANCES:
        table = circumstance_table(kind)
    elif kind in (*ROLES, "the", "some", "thing"):
        table = thing_table()
    elif kind in ("was", "who", "one", "isnow", "rest"):
        table = literal_table(kind)
    else:
        table = word_table(kind)
    return table, max(len(key.split()) for key in table)


@cache
def pattern_tree() -> Tree:
    tree: Tree = {}
    subsets = [
        tuple(c for c, keep in zip(CIRCUMSTANCES, bits, strict=True) if keep) for bits in product((0, 1), repeat=3)
    ]
    for kind, present in product(PATTERNS, subsets):
        for pattern in full_patterns(kind, present):
            node = tree
            for item in pattern:
                node = node.setdefault(item, {})
            node.setdefault("", []).append((kind, pattern))
    return tree


Found = tuple[str, str, list[Any]]  # slot, phrase, values


@dataclass
class Reader:
    words: list[str]

    def __post_init__(self) -> None:
        self.seen: dict[tuple[str, int], list[tuple[int, str, list[Any]]]] = {}

    def scan(self, slot: str, start: int) -> list[tuple[int, str, list[Any]]]:
        """Every (end, phrase, values) a slot can take from `start` on."""
        if (slot, start) not in self.seen:
            table, longest = table_for(slot)
            spans = (
                (end, " ".join(self.words[start:end]))
                for end in range(start, min(start + longest, len(self.words)) + 1)
            )
            self.seen[slot, start] = [(end, phrase, table[phrase]) for end, phrase in spans if phrase in table]
        return self.seen[slot, start]

    def walk(
        self, node: Tree, start: int, found: tuple[Found, ...]
    ) -> Iterator[tuple[str, tuple[str, ...], tuple[Found, ...]]]:
        for item, child in node.items():
            if not item:
                if start == len(self.words):
                    yield from ((kind, pattern, found) for kind, pattern in child)
            elif is_slot(item):
                for end, phrase, values in self.scan(item[1:-1], start):
                    yield from self.walk(child, end, (*found, (item[1:-1], phrase, values)))
            elif start < len(self.words) and self.words[start] == item:
                yield from self.walk(child, start + 1, found)


def role_values(found: tuple[Found, ...]) -> dict[str, list[Any]]:
    """Candidate values by field of the frame."""
    values: dict[str, list[Any]] = {}
    for slot, _, candidates in found:
        kind, _, role = slot.partition(".")
        field = kind if kind in (*ROLES, *CIRCUMSTANCES) else role if kind in ("the", "some", "thing") else ""
        if field:
            values[field] = candidates
    return values


def heads(found: tuple[Found, ...], kind: str) -> list[tuple[str, str]]:
    """(predicate, mode) pairs on which all slots agree."""
    pairs: list[tuple[str | None, str | None]] = [("there", None)] if kind == "exist" else [(None, None)]
    for slot, _, candidates in found:
        if slot.partition(".")[0] in (*ROLES, *CIRCUMSTANCES, "the", "some", "thing", "rest"):
            continue
        merged = (merge(pair, other) for pair, other in product(pairs, candidates))
        pairs = list(dict.fromkeys(pair for pair in merged if pair))
    return [pair for p, m in pairs for pair in ground(p, m, kind)]


def merge(a: tuple[str | None, str | None], b: tuple[str | None, str | None]) -> tuple[str | None, str | None] | None:
    clash = any(x and y and x != y for x, y in zip(a, b, strict=True))
    return None if clash else (a[0] or b[0], a[1] or b[1])


def ground(predicate: str | None, mode: str | None, kind: str) -> Iterator[tuple[str, str]]:
    """Fill in a mode that no word names; a predicate is always named."""
    if predicate and kind_matches(predicate, kind):
        yield from ((predicate, m) for m in ((mode,) if mode else modes_of(PREDICATES[predicate])))


def kind_matches(predicate: str, kind: str) -> bool:
    return PREDICATES[predicate].kind == kind


def tells(frame: Frame, pattern: tuple[str, ...], found: tuple[Found, ...]) -> bool:
    """Whether the writer could have written these very words for the frame."""
    for surface in surfaces_for(pattern, PREDICATES[frame.predicate]):
        if all(phrase in slot_options(frame, slot, surface) for slot, phrase, _ in found):
            return True
    return False


def candidates(found: tuple[Found, ...], kind: str) -> Iterator[Frame]:
    values = role_values(found)
    for (predicate, mode), *rest in product(heads(found, kind), *values.values()):
        yield Frame(predicate, mode, **dict(zip(values, rest, strict=True)))


def tokens(sentence: str) -> list[str]:
    return sentence[:-1].replace(",", " ,").split(" ")


def lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def readings(sentence: str) -> list[Frame]:
    """Every frame that the grammar would write as this very sentence."""
    if not sentence.endswith(".") or sentence != sentence[:1].upper() + sentence[1:]:
        return []
    text = lowered(sentence)
    found: dict[Frame, None] = {}
    for kind, pattern, slots in Reader(tokens(text)).walk(pattern_tree(), 0, ()):
        for frame in candidates(slots, kind):
            if frame not in found and well_formed(frame) and tells(frame, pattern, slots):
                found[frame] = None
    return list(found)


def parse(sentence: str) -> Frame | None:
    """The frame of a sentence the grammar writes; None for any other text."""
    found = readings(sentence)
    return found[0] if found else None
