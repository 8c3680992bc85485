"""Whether scored pairs are what DINO's post-processing made of them: labels smoothed, random pairs of label 0 added.

The paper's authors publish such datasets, and so does this package. A random pair joins a text_a with a text_b that
stands in another pair, and each text_a has as many (Schick & Schuetze 2021, section 5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable

from dino_pipeline.filter_options import FilterOptions, PostProcessing
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.funnel import MAX_LABELS, Funnel
from dino_pipeline.progress import Reporter
from dino_pipeline.stage_records import FilterRecord

RANDOM = 0.0
"""The label of random pairs."""
OF_PAPER = frozenset((0.1, 0.5, 0.9))
MOST_SMOOTHED = 0.25
"""What smoothing makes of the lowest label, at most."""
DIGITS = 6
LEAST_SHARE = 0.8
"""Of random pairs whose text_b is known, and of their usual number for each text_a. A file may be a sample."""
MOST_ABOVE = 0.05
"""Of the text_a, those that have more than the usual number."""
RELATED, BETWEEN_SIDES = "random pair of related texts", "between train and dev"
"""The reasons by which pairs are dropped that do not fit: random ones, and those with a text on each side."""

Pair = tuple[Hashable, Hashable, bool]
"""Both texts in normal form, or their hashes, and whether the label is `RANDOM`."""


def recognised(labels: Iterable[float], pairs: Callable[[], Iterable[Pair]]) -> PostProcessing:
    """Return what post-processing left: no labels, if they do not look like it.

    Smoothed labels are those of the paper: 0.1 and 0.9, with or without 0.5. If there are pairs of label 0, too, they
    must have been drawn: where people gave that label, their texts stand in no other pair, or the texts have unlike
    numbers of them. The other labels may then be any whose ends are as far from 0 as from 1.

    Args:
        labels: the distinct ones.
        pairs: reads all pairs; called only if the labels look like it.
    """
    scores = {round(label, DIGITS) for label in labels}
    smoothed = sorted(scores - {RANDOM})
    if not 2 <= len(smoothed) <= MAX_LABELS or round(smoothed[0] + smoothed[-1], DIGITS) != 1:
        return PostProcessing()
    if RANDOM not in scores and OF_PAPER.issuperset(smoothed):
        return PostProcessing(labels=tuple(smoothed))
    if RANDOM not in scores or not RANDOM < smoothed[0] <= MOST_SMOOTHED:
        return PostProcessing()
    random_pairs: list[tuple[Hashable, Hashable]] = []
    inputs: set[Hashable] = set()
    second_texts: set[Hashable] = set()
    for text_a, text_b, is_random in pairs():
        if is_random:
            random_pairs.append((text_a, text_b))
        else:
            inputs.add(text_a)
            second_texts.add(text_b)
    known = sum(text_b in second_texts for _, text_b in random_pairs)
    counts = Counter(text_a for text_a, _ in random_pairs if text_a in inputs)
    usual = Counter(counts.values()).most_common(1)[0][0] if counts else 0
    above = sum(count > usual for count in counts.values())
    wanted = max(usual * len(inputs), len(random_pairs))
    if known < LEAST_SHARE * len(random_pairs) or counts.total() < LEAST_SHARE * wanted:
        return PostProcessing()
    if above > MOST_ABOVE * len(inputs):
        return PostProcessing()
    return PostProcessing(labels=tuple(smoothed), random_pairs=len(random_pairs))


def recognised_in(table: ExampleTable, options: FilterOptions) -> tuple[PostProcessing, FilterOptions]:
    """Return what post-processing left in a table of pairs, and the options without what would be done twice.

    A user who asks for other labels than hard ones says that the pairs were not post-processed.
    """
    given = options.given()
    is_denied = given.get("labels", "hard") != "hard" or "smoothing" in given
    if is_denied or not table.has_scores or not table.value("SELECT count(hash_b) FROM keys"):
        return PostProcessing(), options
    query = f"SELECT hash_a, hash_b, value = {RANDOM!r} FROM keys JOIN labels USING (label)"
    found = recognised(map(float, table.labels), lambda: table.stream_rows(query))
    done: dict[str, object] = {}
    if found.labels:
        done["labels"] = "hard"
    if found.random_pairs and "random_pairs" not in given:
        done["random_pairs"] = 0
    return found, options.model_copy(update=done)


def store_written(table: ExampleTable, found: PostProcessing) -> None:
    """Make the view ``written``: the remaining rows without the random pairs."""
    condition = ""
    if found.random_pairs:
        condition = f"WHERE label <> {table.labels.index(RANDOM)}"
    table.run(f"CREATE VIEW written AS SELECT * FROM remaining {condition}")


def related_pairs(table: ExampleTable) -> str:
    """Find random pairs of texts that another row joins, too: such as a text and its own paraphrase."""
    return f"""
        SELECT pair.id, 'under ' || string_agg(DISTINCT value::VARCHAR, ' and ' ORDER BY value::VARCHAR) AS evidence,
            NULL AS duplicate_of
        FROM remaining AS pair JOIN written USING (first_hash, second_hash) JOIN labels ON written.label = labels.label
        WHERE pair.label = {table.labels.index(RANDOM)} GROUP BY pair.id
    """


def note_processing(filtered: FilterRecord, reporter: Reporter) -> None:
    """Note what was recognised, and what the split cost."""
    if filtered.processed.labels:
        reporter.note(
            f"{described(filtered.processed)}: nothing is smoothed or added a second time",
            "if people gave these scores, say so with {labels=smoothed}",
        )
    between = Funnel.of(filtered).counts("dropped", BETWEEN_SIDES) or {}
    of_random = between.pop(RANDOM, 0) if filtered.processed.random_pairs else 0
    if of_random:
        reporter.note(
            f"{of_random} random pairs are left out, which join a text of train with one of dev",
            "{dev_share=0} keeps them, without a dev side",
        )
    if between:
        reporter.note(
            f"{sum(between.values())} pairs are left out, which join a text of train with one of dev: the two sides "
            "cannot be parted otherwise",
            "{dev_share=0} keeps them, without a dev side",
        )


def described(found: PostProcessing) -> str:
    """Return what was recognised, in words."""
    labels = ", ".join(f"{label:g}" for label in found.labels)
    random_pairs = f", and the {found.random_pairs} pairs of label 0 join texts at random" if found.random_pairs else ""
    return f"the labels {labels} are smoothed already{random_pairs}"
