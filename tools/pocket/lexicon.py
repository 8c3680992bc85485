"""The words of the pocket grammar: nouns, predicates, their surfaces and forms, read from lexicon.json."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Surfaces = tuple[str, ...]

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8"))
MODES: dict[str, dict[str, Any]] = DATA["modes"]


def entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(";") if entry.strip()]


@dataclass(frozen=True)
class Noun:
    """A concept with its synonyms (`surfaces`). A place also has the preposition of each surface."""

    name: str
    kind: str
    surfaces: Surfaces
    mass: bool
    prepositions: Surfaces = ()


def read_noun(entry: str, kind: str) -> Noun:
    surfaces = entry.replace("~", "").split("|")
    if kind != "place":
        return Noun(surfaces[0], kind, tuple(surfaces), entry.startswith("~"))
    pairs = [surface.split(":") for surface in surfaces]
    return Noun(pairs[0][1], kind, tuple(p[1] for p in pairs), False, tuple(p[0] for p in pairs))


NOUNS: dict[str, Noun] = {
    noun.name: noun for kind, row in DATA["nouns"].items() for noun in (read_noun(e, kind) for e in entries(row))
}
KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(name for name, noun in NOUNS.items() if noun.kind == kind) for kind in DATA["nouns"]
}
GROUPS: dict[str, tuple[str, ...]] = {name: tuple(entries(row)) for name, row in DATA["groups"].items()}
TIMES: dict[str, dict[str, Surfaces]] = {
    tense: {e.split("|")[0]: tuple(e.split("|")) for e in entries(row)} for tense, row in DATA["times"].items()
}
SURFACES: dict[str, dict[str, Surfaces]] = {
    "manner": {name: tuple(row.split("|")) for name, row in DATA["manners"].items()},
    "place": {
        name: tuple(f"{p} the {s}" for p, s in zip(NOUNS[name].prepositions, NOUNS[name].surfaces, strict=True))
        for name in KINDS["place"]
    },
    "time": {name: row for table in TIMES.values() for name, row in table.items()},
}
TOPIC_PEOPLE: dict[str, tuple[str, ...]] = {t: tuple(entries(row["people"])) for t, row in DATA["topics"].items()}
TOPIC_PLACES: dict[str, tuple[str, ...]] = {t: tuple(entries(row["places"])) for t, row in DATA["topics"].items()}


@dataclass(frozen=True)
class Predicate:
    """A verb, adjective or comparison with its roles.

    Marks on a verb's surfaces: `*` takes two objects, `^` has no passive, `_` is the object's place if words
    follow it.
    """

    name: str
    kind: str  # transitive, dative, intransitive, feeling, compare, state, exist
    topic: str
    surfaces: Surfaces
    converses: Surfaces = ()  # compare and state: the other side of the scale
    nominal: str = ""
    agents: tuple[str, ...] = ()
    themes: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    manners: Surfaces = ()
    passive: bool = True
    scale: str = ""


def members(classes: str) -> tuple[str, ...]:
    return tuple(name for part in classes.split() for name in (GROUPS[part] if part in GROUPS else KINDS[part]))


def agents_of(topic: str, classes: str) -> tuple[str, ...]:
    """Return the nouns that may do something: babies sleep and fear, but repair no cars."""
    passive = () if topic in ("rest", "feelings") else entries(DATA["helpless"])
    return tuple(name for name in members(classes) if name not in passive)


def verb_kind(row: dict[str, Any]) -> str:
    if row.get("s"):
        return "feeling"
    if "r" in row:
        return "dative"
    return "transitive" if "o" in row else "intransitive"


def read_verb(topic: str, row: dict[str, Any]) -> Predicate:
    surfaces = tuple(row["v"].split("|"))
    return Predicate(
        name=f"{topic}/{surfaces[0].strip('*^')}",
        kind=verb_kind(row),
        topic=topic,
        surfaces=surfaces,
        converses=tuple(row["conv"].split("|")) if "conv" in row else (),
        nominal=row.get("nom", ""),
        agents=agents_of(topic, row["a"]),
        themes=members(row.get("o", "")),
        recipients=members(row.get("r", "")),
        manners=tuple(row.get("m", "").split()),
        passive=not row.get("np"),
    )


def scale_predicates(scale: str, row: dict[str, str]) -> list[Predicate]:
    """Return the two states of a scale ("big", "small") and its comparison, whose agent is higher on the scale."""
    plain = {side: tuple(w.split(":")[0] for w in row[side].split("|")) for side in ("high", "low")}
    more = {side: tuple(w.split(":")[1] for w in row[side].split("|")) for side in ("high", "low")}
    things, topic = members(row["of"]), f"scale {scale}"

    def state(name: str, side: str, other: str) -> Predicate:
        return Predicate(name, "state", topic, plain[side], plain[other], themes=things, scale=scale)

    compare = Predicate(
        f"{scale}>", "compare", topic, more["high"], more["low"], agents=things, themes=things, scale=scale
    )
    return [state(f"{scale}+", "high", "low"), state(f"{scale}-", "low", "high"), compare]


def read_predicates() -> dict[str, Predicate]:
    verbs = [read_verb(topic, row) for topic, rows in DATA["verbs"].items() for row in rows]
    scales = [p for scale, row in DATA["scales"].items() for p in scale_predicates(scale, row)]
    movable = members("person animal vehicle furniture container instrument toy tool")
    exist = Predicate("there", "exist", "presence", ("be",), themes=movable)
    return {p.name: p for p in [*verbs, *scales, exist]}


PREDICATES: dict[str, Predicate] = read_predicates()
QUALITIES: tuple[str, ...] = tuple(DATA["qualities"].split())


@cache
def qualities_of(noun: str) -> tuple[str, ...]:
    return tuple(q for q in QUALITIES if noun in PREDICATES[q].themes)


def with_article(phrase: str) -> str:
    first = phrase.split()[0]
    if first in DATA["an"]:
        return f"an {phrase}"
    vowel = first[0].lower() in "aeiou" and first not in DATA["a"]
    return f"an {phrase}" if vowel else f"a {phrase}"


def plural(surface: str) -> str:
    if surface in DATA["plurals"]:
        return str(DATA["plurals"][surface])
    if surface.endswith("man"):
        return surface[:-3] + "men"
    if surface.endswith(("s", "x", "ch", "sh")):
        return surface + "es"
    if surface.endswith("y") and surface[-2] not in "aeiou":
        return surface[:-1] + "ies"
    return surface + "s"


def regular_forms(verb: str) -> Surfaces:
    """Return third person, past, participle and -ing form of a regular verb that doubles no consonant."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies", verb[:-1] + "ied", verb[:-1] + "ied", verb + "ing"
    third = verb + "es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else verb + "s"
    stem = verb[:-1] if verb.endswith("e") else verb
    return third, stem + "ed", stem + "ed", (verb if verb.endswith("ee") else stem) + "ing"


@cache
def verb_forms(head: str) -> dict[str, str]:
    """Return the forms of a verb by name; `head` may have more words after the verb: "look after"."""
    verb, _, rest = head.partition(" ")
    forms = DATA["forms"][verb].split() if verb in DATA["forms"] else regular_forms(verb)
    named = zip(("s", "past", "pp", "ing"), forms, strict=True)
    return {name: f"{form} {rest}".strip() for name, form in [("base", verb), *named]}


@dataclass(frozen=True)
class Verb:
    """One surface of a predicate, without its marks."""

    head: str
    rest: str
    two_objects: bool
    passive: bool
    copula: bool  # "be afraid of"


@cache
def verb_of(surface: str) -> Verb:
    head, _, rest = surface.strip("*^").partition(" _ ")
    copula = head.startswith("be ")
    return Verb(head.removeprefix("be "), rest, "*" in surface, "^" not in surface and not copula, copula)
