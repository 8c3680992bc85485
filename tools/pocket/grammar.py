"""A paraphrase grammar of everyday English: one frame becomes many sentences, by patterns of words and slots."""

from functools import cache
from itertools import accumulate
from random import Random

from tools.pocket.frames import CIRCUMSTANCES, Frame
from tools.pocket.lexicon import PREDICATES, Predicate, Surfaces
from tools.pocket.phrases import VERB_SLOTS, slot_options

Pattern = tuple[str, ...]

# A slot reads {kind} or {kind.subject}: the subject is the role with which the verb agrees. {rest} is what follows the
# object ("to a halt"); a surface that needs none fills it with nothing.
PATTERNS: dict[str, tuple[str, ...]] = {
    "transitive": (
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
    ),
    "intransitive": (
        "{agent} {do.agent}",
        "{agent} {do.agent}",
        "it {was} {agent} {who.agent} {do.agent}",
        "{one.agent} {who.agent} {do.agent} {was} {agent}",
        "there {isnow.agent} {some.agent} {doing}",
    ),
    "dative": (
        "{agent} {do.agent} {theme} {rest} to {recipient}",
        "{agent} {give.agent} {recipient} {theme}",
        "{theme} {done.theme} to {recipient} by {agent}",
        "{recipient} {given.recipient} {theme} by {agent}",
        "{recipient} {conv.recipient} {theme} from {agent}",
        "it {was} {agent} {who.agent} {do.agent} {theme} {rest} to {recipient}",
        "it {was} {recipient} {who.recipient} {conv.recipient} {theme} from {agent}",
        "what {agent} {give.agent} {recipient} {was} {thing.theme}",
    ),
    "feeling": (
        "{agent} {do.agent} {theme}",
        "{agent} {do.agent} {theme}",
        "{theme} {done.theme} by {agent}",
        "{theme} {conv.theme} {agent}",
        "{agent} {convd.agent} by {theme}",
        "it {was} {theme} that {agent} {do.agent}",
        "it {was} {agent} {who.agent} {do.agent} {theme}",
        "{one.agent} {who.agent} {do.agent} {theme} {was} {agent}",
    ),
    "compare": (
        "{the.agent} {is.agent} {high} than {the.theme}",
        "{the.theme} {is.theme} {low} than {the.agent}",
        "{the.theme} {isnt.theme} as {base-high} as {the.agent}",
        "{the.agent} {isnt.agent} as {base-low} as {the.theme}",
        "compared with {the.theme} , {the.agent} {is.agent} {high}",
        "compared with {the.agent} , {the.theme} {is.theme} {low}",
    ),
    "state": (
        "{the.theme} {is.theme} {adjective}",
        "{the.theme} {isnot.theme} {opposite}",
        "it {was} {the.theme} that {is.theme} {adjective}",
        "it {was} {the.theme} that {isnot.theme} {opposite}",
    ),
    "exist": (
        "there {is.theme} {some.theme} {place}",
        "{theme} {is.theme} {place}",
        "{theme} {can} be found {place}",
        "{place} there {is.theme} {some.theme}",
        "{place} you {can} find {theme}",
        "{place} {is.theme} {some.theme}",
    ),
}


@cache
def layouts(present: tuple[str, ...]) -> tuple[str, ...]:
    """Return the orders of the circumstances around a clause (#), with at most one in front of it."""
    tail = " ".join(f"{{{name}}}" for name in present)
    orders = [f"# {tail}".strip()]
    if present == ("place", "time"):
        orders.append("# {time} {place}")
    for name in present:
        rest = " ".join(f"{{{other}}}" for other in present if other != name)
        orders.append(f"{{{name}}} , # {rest}".strip())
        if name != "manner":
            orders.append(f"it {{was}} {{{name}}} that # {rest}".strip())
    return tuple(orders)


def fits_layout(pattern: str, layout: str) -> bool:
    """Return whether a pattern fits a layout: no cleft in a cleft, and only one opening."""
    if pattern.startswith(("what ", "{one")):
        return layout.endswith("#") and not layout.startswith("it ")
    opens = pattern.startswith(("it ", "compared ", "{place}"))
    return layout.startswith("#") or not (opens or (pattern.startswith("there ") and layout.startswith("it ")))


@cache
def full_patterns(kind: str, present: tuple[str, ...]) -> tuple[Pattern, ...]:
    """Return each pattern in each layout that it fits, as words and slots. Repeated patterns are likelier."""
    outer = tuple(name for name in present if not (kind == "exist" and name == "place"))
    return tuple(
        tuple(layout.replace("#", pattern).split())
        for pattern in PATTERNS[kind]
        for layout in layouts(outer)
        if fits_layout(pattern, layout)
    )


def is_slot(item: str) -> bool:
    return item.startswith("{")


def surfaces_for(pattern: Pattern, predicate: Predicate) -> Surfaces:
    """Return the verb surfaces that fit a pattern; one is enough for a pattern without a verb slot."""
    slots = [item.strip("{}").partition(".")[0] for item in pattern if is_slot(item)]
    if any(slot in ("conv", "convd") for slot in slots):
        return predicate.converses
    return predicate.surfaces if any(slot in VERB_SLOTS for slot in slots) else predicate.surfaces[:1]


def fillings(frame: Frame, pattern: Pattern, surface: str) -> list[Surfaces] | None:
    """Return the options of each item of a pattern. None if a slot has no option."""
    rows: list[Surfaces] = []
    for item in pattern:
        options = slot_options(frame, item[1:-1], surface) if is_slot(item) else (item,)
        if not options:
            return None
        rows.append(options)
    return rows


def finish(words: list[str]) -> str:
    text = " ".join(word for word in words if word).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."


@cache
def pattern_choices(kind: str, present: tuple[str, ...]) -> tuple[tuple[Pattern, ...], list[float]]:
    """Return patterns and their cumulative weights. Clefts are rarer than plain clauses, as in what people say."""
    patterns = full_patterns(kind, present)
    weights = (0.3 if pattern[0] in ("it", "what", "{one.agent}") else 1.0 for pattern in patterns)
    return patterns, list(accumulate(weights))


def write(frame: Frame, rng: Random) -> str:
    """Return a sentence for a frame: a random pattern and surface that fit it, with random fillings."""
    predicate = PREDICATES[frame.predicate]
    present = tuple(name for name in CIRCUMSTANCES if getattr(frame, name))
    patterns, weights = pattern_choices(predicate.kind, present)
    for _ in range(1000):
        pattern = rng.choices(patterns, cum_weights=weights)[0]
        surfaces = surfaces_for(pattern, predicate)
        rows = fillings(frame, pattern, rng.choice(surfaces)) if surfaces else None
        if rows:
            return finish([rng.choice(options) for options in rows])
    raise ValueError(f"no sentence for {frame}")


def paraphrases(frame: Frame, rng: Random, count: int) -> list[str]:
    """Return up to `count` different sentences for a frame, in the order in which they were written."""
    sentences: dict[str, None] = {}
    for _ in range(4 * count):
        sentences[write(frame, rng)] = None
        if len(sentences) == count:
            break
    return list(sentences)
