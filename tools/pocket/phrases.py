"""The strings that fit each slot of a pattern. Writer and reader use the same ones, so they cannot disagree."""

from functools import cache, lru_cache

from tools.pocket.frames import CIRCUMSTANCES, ROLES, Frame, Thing
from tools.pocket.lexicon import (
    DATA,
    MODES,
    NOUNS,
    PREDICATES,
    SURFACES,
    Predicate,
    Surfaces,
    plural,
    verb_forms,
    verb_of,
    with_article,
)

VERB_SLOTS = ("do", "done", "give", "given", "doing", "conv", "convd")
ADJECTIVE_SLOTS = ("high", "low", "base-high", "base-low", "adjective", "opposite")
NOMINAL_SLOTS = ("nominal", "carry", "carried")
AUXILIARY_SLOTS = ("was", "is", "isnot", "isnt", "isnow", "can")
THING_SLOTS = (*ROLES, "the", "some", "thing")
CAN = {"past": ("could",), "fact": ("can",)}


@cache
def thing_phrases(thing: Thing, definite: bool | None = None) -> Surfaces:
    """Return all phrases for a thing; `definite` keeps those with "the" (True) or without it (False)."""
    names = [plural(s) if thing.count > 1 else s for s in NOUNS[thing.noun].surfaces]
    kinds = [f"{q} " for q in PREDICATES[thing.quality].surfaces] if thing.quality else [""]
    bare = [kind + name for kind in kinds for name in names]
    determiners = [d for d in DATA["counts"][str(thing.count)] if definite is None or (d == "the") == definite]
    return tuple(with_article(b) if d == "a" else f"{d} {b}" for d in determiners for b in bare)


def agree(template: str, many: bool) -> str:
    """Return a template in one number: "was/were {pp}" -> "was {pp}" or "were {pp}"."""
    return " ".join(w.split("/")[-1 if many else 0] for w in template.split())


@cache
def verb_groups(surface: str, mode: str, voice: str, many: bool) -> Surfaces:
    verb, groups = verb_of(surface), MODES[mode][voice]
    if verb.copula:
        fits = voice == "active" and mode != "now"
        return tuple(agree(g, many).format(pp=verb.head) for g in MODES[mode]["passive"]) if fits else ()
    forms = verb_forms(verb.head)
    if voice == "passive":
        done = f"{forms['pp']} {verb.rest}".strip()
        return tuple(agree(g, many).format(pp=done) for g in groups)
    if mode == "fact" and many and forms["past"] == forms["base"]:
        return ()  # "two men put up a hut" is read as past
    present = forms["base"] if many else forms["s"]
    return tuple(agree(g, many).format(pres=present, **forms) for g in groups)


def verb_slot(slot: str, frame: Frame, surface: str, many: bool) -> Surfaces:
    verb = verb_of(surface)
    if slot in ("give", "given") and not verb.two_objects:
        return ()
    if slot in ("done", "given", "convd"):
        allowed = verb.passive and PREDICATES[frame.predicate].passive
        return verb_groups(surface, frame.mode, "passive", many) if allowed else ()
    if slot == "doing":
        return (verb_forms(verb.head)["ing"],) if frame.mode == "now" and not verb.copula else ()
    return verb_groups(surface, frame.mode, "active", many)


def thing_slot(slot: str, thing: Thing) -> Surfaces:
    kind = NOUNS[thing.noun].kind
    if slot == "who":
        return ("who", "that") if kind == "person" else ("that",)
    if slot == "one":
        return ("the one", "the person" if kind == "person" else "the animal") if thing.count == 1 else ()
    if slot == "thing" and kind in ("person", "animal"):  # "what he saw was ..." does not fit people
        return ()
    return thing_phrases(thing, {"the": True, "some": False}.get(slot))


def adjective_slot(slot: str, predicate: Predicate) -> Surfaces:
    if slot in ("high", "adjective"):
        return predicate.surfaces
    if slot in ("low", "opposite"):
        return predicate.converses
    return PREDICATES[predicate.scale + ("+" if slot == "base-high" else "-")].surfaces


def auxiliary_slot(slot: str, mode: str, many: bool) -> Surfaces:
    if slot == "was":
        return tuple(MODES[mode]["be"])
    if slot == "isnow":
        return (("are" if many else "is"),) if mode == "now" else ()
    if slot == "can":
        return CAN.get(mode, ())
    groups = tuple(agree(group, many) for group in MODES[mode]["isnot" if slot == "isnt" else slot])
    if slot == "isnt":
        return tuple(g for g in groups if g.endswith(("not", "n't", "not be", "n't be", "not going to be")))
    return groups


def nominal_slot(slot: str, frame: Frame, many: bool) -> Surfaces:
    """Return the phrases of "carried out the repair of"; only plain tenses are idiomatic."""
    nominal = PREDICATES[frame.predicate].nominal
    if not nominal or frame.mode not in ("past", "future"):
        return ()
    voice = "active" if slot == "carry" else "passive"
    return (nominal,) if slot == "nominal" else verb_groups("carry out", frame.mode, voice, many)


@lru_cache(maxsize=1 << 14)
def slot_options(frame: Frame, slot: str, surface: str) -> Surfaces:
    """Return the strings that fit a slot for a frame written with one surface of its verb."""
    kind, _, role = slot.partition(".")
    thing: Thing | None = getattr(frame, role or kind, None) if (role or kind) in ROLES else None
    many = thing is not None and thing.count > 1
    if kind in CIRCUMSTANCES:
        return SURFACES[kind].get(getattr(frame, kind), ())
    if kind == "rest":
        return (verb_of(surface).rest,)
    if kind in VERB_SLOTS:
        return verb_slot(kind, frame, surface, many)
    if kind in ADJECTIVE_SLOTS:
        return adjective_slot(kind, PREDICATES[frame.predicate])
    if kind in NOMINAL_SLOTS:
        return nominal_slot(kind, frame, many)
    if kind in AUXILIARY_SLOTS:
        return auxiliary_slot(kind, frame.mode, many)
    return thing_slot(kind, thing) if thing else ()
