"""The filter stage: which examples are fit to train on, and why the others are not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dino_pipeline.errors import DataError, RunError
from dino_pipeline.examples import Dropped, Example, iter_examples, read_examples, write_dropped, write_examples
from dino_pipeline.run import Run, State, digest_files, shard_files
from dino_pipeline.sampling import uniforms
from dino_pipeline.texts import normalise

Label = float | str | None
RANDOM_PAIR_TRIES = 20


@dataclass(frozen=True)
class FilterOptions:
    """The defaults are the paper's post-processing (section 5), but for balance, which it lacks."""

    max_per_text: int = 2
    """At most so many text_b per (text_a, label); 0 keeps all."""
    balance: bool = True
    """Cap every label at the smallest label's count."""
    smoothing: float = 0.2
    """Pull labels towards the middle of their scale: y becomes (1 - s) y + s / 2 for labels from 0 to 1."""
    random_pairs: int = 2
    """Add so many random text_b, with label 0, to every text_a of a similarity task."""
    dev_share: float = 0.1
    seed: int = 42


Counts = dict[Label, int]


@dataclass
class Funnel:
    """How many examples of each label were left after each step."""

    steps: list[tuple[str, Counts]] = field(default_factory=list)

    def add(self, step: str, examples: Iterable[Example]) -> None:
        """Count what is left, or dropped, in a step."""
        self.steps.append((step, dict(Counter(example.label for example in examples))))

    def labels(self) -> list[Label]:
        """Return all labels in a fixed order."""
        found = dict.fromkeys(label for _, counts in self.steps for label in counts)
        return sorted(found, key=lambda label: (isinstance(label, str), label))

    def rows(self) -> list[list[str]]:
        """Return the funnel as a table: a step a row, a label a column, and the total."""
        labels = self.labels()
        return [
            [step, *(str(counts.get(label, 0)) for label in labels), str(sum(counts.values()))]
            for step, counts in self.steps
        ]

    def header(self) -> list[str]:
        """Return the column titles of `rows`."""
        return ["step", *(f"{label:g}" if isinstance(label, float) else str(label) for label in self.labels()), "all"]


@dataclass
class Filtered:
    """What the filter stage made of a list of examples."""

    train: list[Example]
    dev: list[Example]
    dropped: list[Dropped]
    funnel: Funnel


def filter_examples(examples: Sequence[Example], options: FilterOptions, source: str = "the data") -> Filtered:
    """Clean, balance and split examples; deterministic in its arguments.

    Raises:
        DataError: labels are missing or of both kinds, or nothing is left of a label.
    """
    scored = _check(examples, source)
    kept, dropped, funnel = list(examples), [], Funnel()
    funnel.add("read", kept)
    for reason, rule in _rules(options):
        doomed = rule(kept)
        lost = [example for example, drop in zip(kept, doomed, strict=True) if drop]
        kept = [example for example, drop in zip(kept, doomed, strict=True) if not drop]
        dropped += [Dropped(example, reason) for example in lost]
        funnel.add(f"- {reason}", lost)
        _check_left(examples, kept, reason, source)
    funnel.add("kept", kept)
    train, dev = split(kept, options.dev_share, options.seed)
    if not train or (options.dev_share and not dev):
        raise DataError(
            f"{source}: {len(kept)} examples are too few for a train and a dev side without a common text_a; "
            "generate more, or --dev-share 0"
        )
    if scored and options.smoothing:
        middle = _middle(examples)
        train, dev = (smooth(part, options.smoothing, middle) for part in (train, dev))
    if scored and options.random_pairs and all(example.text_b is not None for example in kept):
        related = _texts_by_input(examples)
        extra = [random_pairs(part, related, options.random_pairs, options.seed) for part in (train, dev)]
        train, dev = train + extra[0], dev + extra[1]
        funnel.add("+ random pairs", extra[0] + extra[1])
    funnel.add("train", train)
    funnel.add("dev", dev)
    return Filtered(train, dev, dropped, funnel)


def _check(examples: Sequence[Example], source: str) -> bool:
    """Return whether labels are numbers."""
    kinds = dict.fromkeys(type(example.label) for example in examples)
    if type(None) in kinds:
        at = next(number for number, example in enumerate(examples, start=1) if example.label is None)
        raise DataError(f'{source}: example {at} has no label; add "label" to each line')
    if len(kinds) > 1:
        raise DataError(f"{source}: some labels are numbers and some are names; use one kind")
    if len(dict.fromkeys(example.text_b is None for example in examples)) > 1:
        raise DataError(f'{source}: some examples have a "text_b" and some have none; split the file')
    return float in kinds


def _check_left(before: Sequence[Example], kept: Sequence[Example], reason: str, source: str) -> None:
    left = dict.fromkeys(example.label for example in kept)
    lost = [str(label) for label in dict.fromkeys(example.label for example in before) if label not in left]
    if lost:
        raise DataError(
            f'{source}: no example of label {", ".join(lost)} is left (the last went as "{reason}"); '
            "generate more, or look at the spec's instruction for it with dino spec show"
        )


Rule = Callable[[Sequence[Example]], list[bool]]
"""Says for each example whether to drop it."""


def _rules(options: FilterOptions) -> list[tuple[str, Rule]]:
    """Return the rules in order, each with the reason it gives."""
    rules: list[tuple[str, Rule]] = [
        ("empty", lambda examples: [not _texts(example)[0] or _texts(example)[1] == "" for example in examples]),
        ("identical texts", lambda examples: [_texts(example)[0] == _texts(example)[1] for example in examples]),
        ("duplicate", lambda examples: repeats(examples, lambda example: (*_texts(example), example.label), most=1)),
        ("conflicting labels", conflicts),
    ]
    if options.max_per_text:
        most = options.max_per_text
        rules.append(
            (
                f"more than {most} per text and label",
                lambda examples: repeats(examples, lambda example: (_texts(example)[0], example.label), most=most),
            )
        )
    if options.balance:
        rules.append(("balance", lambda examples: surplus(examples, options.seed)))
    return rules


def _texts(example: Example) -> tuple[str, str | None]:
    return normalise(example.text_a), None if example.text_b is None else normalise(example.text_b)


def repeats(examples: Sequence[Example], key: Callable[[Example], Hashable], most: int) -> list[bool]:
    """Say which examples come after ``most`` others with the same key."""
    seen: Counter[Hashable] = Counter()
    found = []
    for example in examples:
        at = key(example)
        seen[at] += 1
        found.append(seen[at] > most)
    return found


def conflicts(examples: Sequence[Example]) -> list[bool]:
    """Say which examples' texts stand under another label as well."""
    labels: dict[tuple[str, str | None], Label] = {}
    torn: dict[tuple[str, str | None], None] = {}
    for example in examples:
        texts = _texts(example)
        if labels.setdefault(texts, example.label) != example.label:
            torn[texts] = None
    return [_texts(example) in torn for example in examples]


def surplus(examples: Sequence[Example], seed: int) -> list[bool]:
    """Say which examples exceed the smallest label's count; who goes is drawn by a hash of the example."""
    counts = Counter(example.label for example in examples)
    least = min(counts.values(), default=0)
    by_chance = sorted(range(len(examples)), key=lambda at: _rank(seed, examples[at]))
    taken: Counter[Label] = Counter()
    found = [False] * len(examples)
    for at in by_chance:
        taken[examples[at].label] += 1
        found[at] = taken[examples[at].label] > least
    return found


def _rank(seed: int, example: Example) -> bytes:
    parts = (str(seed), example.text_a, example.text_b or "", str(example.label), str(example.sample))
    return hashlib.sha256("\x1f".join(parts).encode()).digest()


def split(examples: Sequence[Example], dev_share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Part examples into train and dev; all examples of one text_a (in its normal form) go the same way."""
    groups = Counter(normalise(example.text_a) for example in examples)
    by_chance = sorted(groups, key=lambda text: hashlib.sha256(f"{seed}\x1fdev\x1f{text}".encode()).digest())
    wanted = dev_share * len(examples)
    dev: dict[str, None] = {}
    taken = 0
    for text in by_chance:
        if taken >= wanted:
            break
        dev[text] = None
        taken += groups[text]
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[normalise(example.text_a) in dev].append(example)
    return sides


def _middle(examples: Sequence[Example]) -> float:
    """Return the middle of the labels' scale, which is 0 to 1 unless a label lies outside."""
    values = [float(example.label or 0) for example in examples]
    return (min(0.0, *values) + max(1.0, *values)) / 2


def smooth(examples: Sequence[Example], smoothing: float, middle: float) -> list[Example]:
    """Pull numeric labels towards ``middle``."""
    return [
        replace(example, label=round(float(example.label or 0) * (1 - smoothing) + smoothing * middle, 6))
        for example in examples
    ]


def _texts_by_input(examples: Sequence[Example]) -> dict[str, dict[str | None, None]]:
    """Return for each text_a every text_b ever written for it, kept or not."""
    found: dict[str, dict[str | None, None]] = {}
    for example in examples:
        text_a, text_b = _texts(example)
        found.setdefault(text_a, {})[text_b] = None
    return found


def random_pairs(
    examples: Sequence[Example], related: dict[str, dict[str | None, None]], count: int, seed: int
) -> list[Example]:
    """Pair every text_a with ``count`` text_b of other text_a, label 0, never with one that is related to it.

    Where no unrelated text can be found in a few draws, fewer pairs are made.
    """
    pool = [(text, normalise(text)) for example in examples if (text := example.text_b) is not None]
    made = []
    for text_a in dict.fromkeys(example.text_a for example in examples):
        normal_a = normalise(text_a)
        taken: dict[str, None] = {}
        for draw in uniforms((seed, "random pair", text_a), RANDOM_PAIR_TRIES * count):
            text_b, normal_b = pool[int(draw * len(pool))]
            if len(taken) < count and normal_b not in (normal_a, *taken) and normal_b not in related[normal_a]:
                taken[normal_b] = None
                made.append(Example(text_a, text_b, 0.0))
    return made


def filter_run(
    run: Run,
    options: FilterOptions,
    *,
    source: Path | None = None,
    numeric_labels: bool = True,
    fresh: bool = False,
) -> tuple[State, Funnel]:
    """Filter a run's shards, or a JSONL file, into the run's train, dev and dropped files.

    Args:
        run: where to write, and to read unless ``source`` is given.
        options: the rules' settings.
        source: a JSONL file of examples to read instead of the run's shards.
        numeric_labels: read labels that spell a number as numbers.
        fresh: redo it with other options than before.

    Raises:
        DataError: the data cannot be used; see `filter_examples`.
        RunError: the run was filtered with other options.
    """
    if source is None and run.stage("generate").get("status") != "done":
        raise RunError(f"{run.path}: its texts are not all written; finish with dino generate, or name a JSONL file")
    files = [source] if source else shard_files(run.shards)
    state = run.begin(
        "filter",
        {**asdict(options), "numeric_labels": numeric_labels, "source": "shards" if source is None else source.name},
        outputs=[run.train, run.dev, run.dropped],
        sources=digest_files(files),
        fresh=fresh,
    )
    if state == "done":
        return state, load_funnel(run)
    read = read_examples if source else iter_examples  # a shard may be empty, a user's file not
    if source is None:
        _check_labels(run)
    examples = [example for file in files for example in read(file, numeric_labels=numeric_labels)]
    if not examples:
        raise DataError(f"{run.shards}: no text was accepted; {run.rejected} says why")
    found = filter_examples(examples, options, str(source or run.shards))
    write_examples(run.train, found.train)
    write_examples(run.dev, found.dev)
    write_dropped(run.dropped, found.dropped)
    run.finish(
        "filter", funnel=[[step, [list(item) for item in counts.items()]] for step, counts in found.funnel.steps]
    )
    return state, found.funnel


def _check_labels(run: Run) -> None:
    counts = run.stage("generate").get("counts", {})
    empty = [label for label, count in counts.items() if not count["accepted"]]
    if empty:
        raise DataError(f"{run.shards}: no text of label {', '.join(empty)} was accepted; {run.rejected} says why")


def load_funnel(run: Run) -> Funnel:
    """Return the funnel that run.json holds."""
    return Funnel([(step, dict(counts)) for step, counts in run.stage("filter")["funnel"]])
