"""Frames: the meaning of a sentence, apart from its wording; their neighbours, and the similarity of two frames."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from tools.pocket.lexicon import (
    KINDS,
    MODES,
    NOUNS,
    PREDICATES,
    TIMES,
    TOPIC_PEOPLE,
    TOPIC_PLACES,
    Predicate,
    qualities_of,
)


@dataclass(frozen=True)
class Thing:
    noun: str
    count: int = 1  # 0: a mass, 1, 2, 3: several
    quality: str = ""


@dataclass(frozen=True)
class Frame:
    predicate: str
    mode: str = "past"
    agent: Thing | None = None
    theme: Thing | None = None
    recipient: Thing | None = None
    place: str = ""
    time: str = ""
    manner: str = ""


ROLES = ("agent", "theme", "recipient")
CIRCUMSTANCES = ("manner", "place", "time")
EVENT_MODES: tuple[str, ...] = ("past",) * 8 + ("now",) * 3 + ("future", "fact", "not") * 2
EVENT_MODES += ("want", "must", "can", "try", "start", "forget", "refuse", "plan", "never")
EVENTS = ("transitive", "dative", "intransitive")
KIND_WEIGHTS = {"event": 70, "feeling": 11, "compare": 7, "state": 7, "exist": 5}
STRANGE = 0.08  # frames less similar than this have nothing to do with each other
SPLITS = 20  # of this many propositions, one is held out for the gold test set and one for its dev set


def roles_of(predicate: Predicate) -> dict[str, tuple[str, ...]]:
    return {
        role: nouns
        for role, nouns in zip(ROLES, (predicate.agents, predicate.themes, predicate.recipients), strict=True)
        if nouns
    }


def modes_of(predicate: Predicate) -> tuple[str, ...]:
    if predicate.kind in EVENTS:
        return tuple(dict.fromkeys(EVENT_MODES))
    return ("fact", "past", "never", "not") if predicate.kind == "feeling" else ("fact", "past")


@cache
def times_of(predicate: Predicate, mode: str) -> tuple[str, ...]:
    tense = MODES[mode]["time"]
    if predicate.kind in ("feeling", "compare") or (predicate.kind in ("state", "exist") and mode == "fact"):
        return ()
    event = predicate.kind not in ("state", "exist")
    anytime = tuple(TIMES["any"]) if event and tense in ("past", "future", "habit") else ()
    return (*TIMES.get(tense, {}), *anytime)


def thing_fits(thing: Thing, nouns: tuple[str, ...], plain: bool) -> bool:
    counts = (0,) if NOUNS[thing.noun].mass else (1,) if plain else (1, 2, 3)
    quality = not thing.quality or (not plain and thing.quality in qualities_of(thing.noun))
    return thing.noun in nouns and thing.count in counts and quality


def valid(frame: Frame) -> bool:
    """Return whether the grammar writes a frame: well-formed, no noun in two roles ("a girl helped a girl")."""
    nouns = [thing.noun for thing in (frame.agent, frame.theme, frame.recipient) if thing]
    return well_formed(frame) and len(dict.fromkeys(nouns)) == len(nouns)


def well_formed(frame: Frame) -> bool:
    """Return whether the grammar can read a frame: selection, number, tense and circumstances fit."""
    predicate = PREDICATES[frame.predicate]
    plain, roles = predicate.kind in ("compare", "state"), roles_of(predicate)
    things = {role: getattr(frame, role) for role in ROLES}
    if any((thing is not None) != (role in roles) for role, thing in things.items()):
        return False
    if not all(thing_fits(things[role], nouns, plain) for role, nouns in roles.items()):
        return False
    if predicate.kind == "compare" and not comparable(frame.agent, frame.theme):
        return False
    return frame.mode in modes_of(predicate) and circumstances_fit(frame, predicate)


def comparable(a: Thing | None, b: Thing | None) -> bool:
    return a is not None and b is not None and a.noun != b.noun and NOUNS[a.noun].kind == NOUNS[b.noun].kind


def circumstances_fit(frame: Frame, predicate: Predicate) -> bool:
    if frame.time and frame.time not in times_of(predicate, frame.mode):
        return False
    if frame.manner and frame.manner not in predicate.manners:
        return False
    if predicate.kind == "exist":
        return bool(frame.place)
    has_place = bool(TOPIC_PLACES.get(predicate.topic))
    extra = [c for c in (frame.manner, frame.place, frame.time) if c]
    return (has_place or not frame.place) and len(extra) <= 2


def random_thing(rng: Random, nouns: tuple[str, ...], plain: bool = False) -> Thing:
    noun = rng.choice(nouns)
    count = 0 if NOUNS[noun].mass else 1 if plain else rng.choice((1,) * 10 + (2, 3))
    qualities = qualities_of(noun)
    quality = rng.choice(qualities) if qualities and not plain and rng.random() < 0.12 else ""
    return Thing(noun, count, quality)


def random_agent(rng: Random, predicate: Predicate) -> Thing:
    people = tuple(name for name in TOPIC_PEOPLE.get(predicate.topic, ()) if name in predicate.agents)
    return random_thing(rng, people if people and rng.random() < 0.4 else predicate.agents)


def random_things(rng: Random, predicate: Predicate) -> dict[str, Any]:
    if predicate.kind == "compare":
        first = random_thing(rng, predicate.agents, plain=True)
        return {"agent": first, "theme": random_thing(rng, KINDS[NOUNS[first.noun].kind], plain=True)}
    plain = predicate.kind == "state"
    return {
        role: random_agent(rng, predicate) if role == "agent" else random_thing(rng, nouns, plain)
        for role, nouns in roles_of(predicate).items()
    }


def random_circumstances(rng: Random, predicate: Predicate, mode: str) -> dict[str, Any]:
    if predicate.kind == "exist":
        return {"place": rng.choice(KINDS["place"])}
    choices = {
        "manner": predicate.manners if mode != "can" else (),
        "place": TOPIC_PLACES.get(predicate.topic, ()),
        "time": times_of(predicate, mode),
    }
    names = [name for name in CIRCUMSTANCES if choices[name] and rng.random() < 0.4]
    return {name: rng.choice(choices[name]) for name in names[:2]}


@cache
def predicates_by(kind: str) -> dict[str, tuple[Predicate, ...]]:
    """Return the predicates of a kind by topic. Every verb except feelings is an event."""
    chosen = [p for p in PREDICATES.values() if p.kind in (EVENTS if kind == "event" else (kind,))]
    return {t: tuple(p for p in chosen if p.topic == t) for t in dict.fromkeys(p.topic for p in chosen)}


def random_predicate(rng: Random) -> Predicate:
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    topics = predicates_by(kind)
    return rng.choice(topics[rng.choice(list(topics))])


def frame_of(rng: Random, predicate: Predicate) -> Frame:
    choices = EVENT_MODES if predicate.kind in EVENTS else modes_of(predicate)
    while True:
        mode = rng.choice(choices)
        things, extra = random_things(rng, predicate), random_circumstances(rng, predicate, mode)
        frame = Frame(predicate.name, mode, **things, **extra)
        if valid(frame):
            return frame


def random_frame(rng: Random, split: str = "train") -> Frame:
    while True:
        frame = frame_of(rng, random_predicate(rng))
        if split_of(frame) == split:
            return frame


def proposition(frame: Frame) -> str:
    """Return who does what to whom: the part of a frame that decides its split."""
    nouns = (thing.noun if thing else "" for thing in (frame.agent, frame.theme, frame.recipient))
    return " | ".join((frame.predicate, *nouns))


def split_of(frame: Frame) -> str:
    bucket = zlib.crc32(proposition(frame).encode()) % SPLITS
    return {0: "test", 1: "dev"}.get(bucket, "train")


# Neighbours: frames that share some of what they say.


def change_thing(rng: Random, frame: Frame) -> Frame:
    nouns = roles_of(PREDICATES[frame.predicate])
    role = rng.choice(list(nouns))
    thing: Thing = getattr(frame, role)
    alike = tuple(n for n in nouns[role] if NOUNS[n].kind == NOUNS[thing.noun].kind and n != thing.noun)
    change: dict[str, Any] = {role: random_thing(rng, alike or nouns[role], plain=thing.count < 2)}
    return replace(frame, **change)


def change_detail(rng: Random, frame: Frame) -> Frame:
    role = rng.choice(list(roles_of(PREDICATES[frame.predicate])))
    thing: Thing = getattr(frame, role)
    count = thing.count and rng.choice((1, 2, 3))
    quality = rng.choice(("", *qualities_of(thing.noun)))
    change: dict[str, Any] = {role: Thing(thing.noun, count, quality)}
    return replace(frame, **change)


def change_predicate(rng: Random, frame: Frame) -> Frame:
    """Return the frame with another predicate of its topic; roles are dropped and added to fit that predicate."""
    old = PREDICATES[frame.predicate]
    new = rng.choice(predicates_by(old.kind if old.kind in KIND_WEIGHTS else "event")[old.topic])
    things = random_things(rng, new)
    for role, nouns in roles_of(new).items():
        thing = getattr(frame, role)
        things[role] = thing if thing and thing.noun in nouns else things[role]
    return Frame(new.name, frame.mode, **things, place=frame.place, time=frame.time)


def change_circumstances(rng: Random, frame: Frame) -> Frame:
    extra: dict[str, Any] = {"manner": "", "place": "", "time": ""}
    return replace(frame, **extra | random_circumstances(rng, PREDICATES[frame.predicate], frame.mode))


def change_mode(rng: Random, frame: Frame) -> Frame:
    return replace(frame, mode=rng.choice(modes_of(PREDICATES[frame.predicate])), time="")


def swap_roles(rng: Random, frame: Frame) -> Frame:
    other = rng.choice(("theme", "recipient"))
    return replace(frame, **{"agent": getattr(frame, other), other: frame.agent})


CHANGES: tuple[Callable[[Random, Frame], Frame], ...] = (
    *(change_thing, change_thing, change_predicate, change_predicate),
    *(change_circumstances, change_mode, change_detail, swap_roles, swap_roles),
)


def altered(rng: Random, frame: Frame) -> Frame:
    """Return the frame after one to four random changes; changes to an invalid frame are skipped."""
    other = frame
    for _ in range(rng.randint(1, 4)):
        changed = rng.choice(CHANGES)(rng, other)
        other = changed if valid(changed) else other
    return other


def neighbour(rng: Random, frame: Frame, band: tuple[float, float], split: str = "train") -> Frame:
    """Return another frame whose similarity to `frame` is in a band, or nearest to it in 400 attempts."""
    (low, high), nearest, distance = band, frame, 2.0
    for _ in range(400):
        other = altered(rng, frame)
        if split_of(other) != split or other == frame:
            continue
        likeness = similarity(frame, other)
        if low <= likeness <= high:
            return other
        miss = max(low - likeness, likeness - high)
        if miss < distance:
            nearest, distance = other, miss
    return nearest


def stranger(rng: Random, frame: Frame, split: str = "train") -> Frame:
    """Return a frame on another topic. It may share time and place."""
    while True:
        other = random_frame(rng, split)
        if other.predicate != frame.predicate and similarity(frame, other) < STRANGE:
            return other


# Similarity.


def noun_similarity(a: str, b: str) -> float:
    if a == b:
        return 1.0
    kind = NOUNS[a].kind
    return 0.0 if kind != NOUNS[b].kind else 0.1 if kind == "person" else 0.25


def thing_similarity(a: Thing | None, b: Thing | None) -> float:
    if a is None or b is None:
        return 0.0
    count = 1.0 if a.count == b.count else 0.8
    quality = 1.0 if a.quality == b.quality else 0.85
    return noun_similarity(a.noun, b.noun) * count * quality


def predicate_similarity(a: Predicate, b: Predicate) -> float:
    if a.name == b.name:
        return 1.0
    if a.topic != b.topic:
        return 0.0
    return 0.1 if a.kind == b.kind == "state" else 0.25


def mode_factor(a: str, b: str) -> float:
    if a == b:
        return 1.0
    if ("not" in (a, b) or "never" in (a, b)) and not (a in ("not", "never") and b in ("not", "never")):
        return 0.45
    tenses = ("past", "now", "future", "fact")
    return 0.85 if a in tenses and b in tenses else 0.75


def crossed(a: Frame, b: Frame, role: str, shared: list[str]) -> float:
    """Return the similarity of a's thing in a role to the most similar thing of b in another role."""
    others = (getattr(b, other) for other in shared if other != role)
    return max((thing_similarity(getattr(a, role), other) for other in others), default=0.0)


def role_similarity(a: Frame, b: Frame) -> float:
    """Return the mean similarity over the roles of both frames. A thing in another role counts a little."""
    shared = [role for role in ROLES if getattr(a, role) or getattr(b, role)]
    total = 0.0
    for role in shared:
        swapped = 0.15 * (crossed(a, b, role, shared) + crossed(b, a, role, shared))
        total += max(thing_similarity(getattr(a, role), getattr(b, role)), swapped)
    return total / len(shared)


def circumstance_similarity(a: Frame, b: Frame) -> float:
    pairs = [(getattr(a, name), getattr(b, name)) for name in CIRCUMSTANCES]
    scores = [1.0 if x == y else 0.0 if x and y else 0.5 for x, y in pairs if x or y]
    return sum(scores) / len(scores) if scores else 1.0


def similarity(a: Frame, b: Frame) -> float:
    """Return the similarity of two frames in [0, 1]. Circumstances count only as far as the core agrees."""
    if a == b:
        return 1.0
    predicate = predicate_similarity(PREDICATES[a.predicate], PREDICATES[b.predicate])
    core = 0.4 * predicate + 0.6 * role_similarity(a, b)
    core *= core**0.25  # a single shared participant is not much
    return round(core * mode_factor(a.mode, b.mode) * (0.75 + 0.25 * circumstance_similarity(a, b)), 4)
