"""Turns a corpus into the rows that an objective needs, and says what it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random

import pysbd

from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.texts import normalise
from dino_pipeline.training.corpus import Corpus, distinct_texts
from dino_pipeline.training.objectives import Columns, Kind

SAME, RELATED = 2 / 3, 1 / 3
"""Scores above these say that two texts mean the same, or at least have to do with one another."""
CLASSES = ("different", "related", "same")
NLI = {"entailment": 1.0, "neutral": 0.5, "contradiction": 0.0}
"""Scores of the classes of natural language inference."""
CONTRASTS = 4
"""So many pairs with texts of its own class, and of other classes, for each text with a class."""
HOW = {
    "scored pairs": "write them with dino generate and a spec whose labels are numbers, then dino filter; of pairs "
    "with classes, --objective sbert learns from both texts, and --column text_a=text_b takes the second alone",
    "classified pairs": "give pairs with class names or scores as labels",
    "pairs": "give documents (several sentences a line), pairs without a label, or scored pairs",
    "triplets": "write scored pairs with dino generate, then dino filter",
    "sentences": "give a file with one sentence a line",
    "documents": "give a file with one document (several sentences) a line, or scored pairs",
}


@dataclass(frozen=True)
class Rows:
    """What an objective trains on."""

    columns: Columns
    said: tuple[str, ...]
    """How it was made from the corpus, for the user."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


Made = tuple[Columns, list[str]]


def adapt(corpus: Corpus, needs: Kind, objective: str, language: str = "en", *, split: bool = False) -> Rows:
    """Return a corpus as rows of a kind.

    Args:
        corpus: the texts.
        needs: the kind.
        objective: whose name errors tell.
        language: whose sentences end where; two letters.
        split: take texts for several sentences each, where sentences are needed.

    Raises:
        DataError: the corpus does not hold what is needed, and it cannot be made from it.
    """
    make = _ADAPTERS.get((corpus.content, needs))
    if make is None:
        raise DataError(f"{corpus.name}: holds {corpus.content}, but {objective} needs {needs}; {HOW[needs]}")
    if corpus.content == "scored pairs":
        _check_scores(corpus)
    examples: Sequence[Example] = corpus.examples
    if split and needs == "sentences" and corpus.content in ("texts", "classified texts"):
        examples = [Example(part) for each in examples for part in sentences(each.text_a, language)]
    columns, said = make(examples, language)
    if not next(iter(columns.values())):
        raise DataError(f"{corpus.name}: no {needs} can be made of its {corpus.content}; {HOW[needs]}")
    return Rows(columns, tuple(said))


@lru_cache(maxsize=4)
def _segmenter(language: str) -> pysbd.Segmenter:
    try:
        return pysbd.Segmenter(language=language, clean=False)
    except ValueError as error:
        raise OptionError(f"--language {language}: sentences of this language cannot be told apart; {error}") from error


def sentences(text: str, language: str) -> list[str]:
    """Return the sentences of a text."""
    return [stripped for each in _segmenter(language).segment(text) if (stripped := each.strip())]


def _check_scores(corpus: Corpus) -> None:
    for number, each in enumerate(corpus.examples, start=1):
        if not 0 <= _score(each) <= 1:
            raise DataError(
                f"{corpus.name}, example {number}: its score is {each.label}; scores are between 0 and 1 "
                "(numbers that are classes: --label-type class)"
            )


def _scored(examples: Sequence[Example], language: str) -> Made:
    return _pair_columns(examples, "score", [_score(each) for each in examples]), []


def _classified(examples: Sequence[Example], language: str) -> Made:
    return _pair_columns(examples, "label", [str(each.label) for each in examples]), []


def _classes_of_scores(examples: Sequence[Example], language: str) -> Made:
    columns, _ = _scored(examples, language)
    found = [CLASSES[(score > RELATED) + (score > SAME)] for score in columns.pop("score")]
    return {**columns, "label": found}, [f"scores are taken for the classes {', '.join(CLASSES)} (by thirds)"]


def _pair_columns(examples: Sequence[Example], name: str, labels: Sequence[object]) -> Columns:
    return {
        "sentence1": [each.text_a for each in examples],
        "sentence2": [each.text_b for each in examples],
        name: list(labels),
    }


def _score(example: Example) -> float:
    assert isinstance(example.label, float)
    return example.label


def _sentences(examples: Sequence[Example], language: str) -> Made:
    texts = distinct_texts(examples)
    given = sum(1 + (each.text_b is not None) for each in examples)
    repeated = given - len(texts)
    return {"sentence": texts}, [f"{repeated} of {given} texts repeat others and are left out"] if repeated else []


def _pairs(examples: Sequence[Example], language: str) -> Made:
    distinct = {(normalise(each.text_a), normalise(each.text_b or "")): each for each in reversed(examples)}
    kept = [each for pair, each in reversed(distinct.items()) if pair[0] != pair[1]]
    gone = len(examples) - len(kept)
    said = [f"{gone} of {len(examples)} pairs repeat others, or a text twice, and are left out"] if gone else []
    return {"anchor": [each.text_a for each in kept], "positive": [each.text_b for each in kept]}, said


def _pairs_of_scores(examples: Sequence[Example], language: str) -> Made:
    same = [each for each in examples if _score(each) > SAME]
    columns, said = _pairs(same, language)
    return columns, [f"pairs are those {len(same)} of {len(examples)} with a score over 2/3", *said]


def _neighbours(examples: Sequence[Example], language: str) -> Made:
    parted = [sentences(each.text_a, language) for each in examples]
    found = [Example(first, second) for each in parted for first, second in pairwise(each)]
    columns, said = _pairs(found, language)
    return columns, [f"pairs are {len(found)} neighbouring sentences of {len(examples)} documents", *said]


def _documents(examples: Sequence[Example], language: str) -> Made:
    whole = [each.text_a for each in examples if len(sentences(each.text_a, language)) > 1]
    left_out = len(examples) - len(whole)
    said = [f"{left_out} of {len(examples)} texts are of one sentence and are left out"] if left_out else []
    return {"document": whole}, said


def _documents_of_scores(examples: Sequence[Example], language: str) -> Made:
    written: dict[str, dict[str, None]] = {}
    for each in examples:
        if _score(each) > RELATED:
            written.setdefault(each.text_a, {each.text_a: None})[each.text_b or ""] = None
    documents = [" ".join(texts) for texts in written.values()]
    said = f"documents are {len(documents)} first texts, each with the second ones that score over 1/3"
    return {"document": documents}, [said]


def contrasted(examples: Sequence[Example]) -> list[Example]:
    """Return pairs made of texts with classes: score 1 within a class, 0 between classes (as in SetFit, Tunstall et al.
    2022, section 3)."""
    by_class: dict[str, list[str]] = {}
    for each in examples:
        by_class.setdefault(str(each.label), []).append(each.text_a)
    others = {name: [text for other in by_class if other != name for text in by_class[other]] for name in by_class}
    draw = Random(0)
    found = []
    for each in examples:
        name = str(each.label)
        for choices, score in ((by_class[name], 1.0), (others[name], 0.0)):
            drawn = [draw.choice(choices) for _ in range(CONTRASTS if len(by_class) > 1 else 0)]
            found += [Example(each.text_a, text, score) for text in dict.fromkeys(drawn) if text != each.text_a]
    return found


def _contrasts(examples: Sequence[Example], language: str) -> Made:
    columns, _ = _scored(pairs := contrasted(examples), language)
    return columns, [f"{len(pairs)} pairs within and between classes are made of {len(examples)} texts"]


def _triplets_of_contrasts(examples: Sequence[Example], language: str) -> Made:
    return _triplets(contrasted(examples), language)


def _triplets(examples: Sequence[Example], language: str, score: Callable[[Example], float | None] = _score) -> Made:
    of_text: dict[str, tuple[list[str], list[str]]] = {}
    for each in examples:
        value = score(each)
        if value is not None and each.text_b is not None:
            positives, negatives = of_text.setdefault(each.text_a, ([], []))
            (positives if value > SAME else negatives).append(each.text_b)
    rows = [
        (text_a, positives[at % len(positives)], negatives[at % len(negatives)])
        for text_a, (positives, negatives) in of_text.items()
        if positives and negatives
        for at in range(max(len(positives), len(negatives)))
    ]
    whole = len(dict.fromkeys(anchor for anchor, _, _ in rows))
    said = f"{whole} of {len(of_text)} first texts have both a positive and a negative; they make {len(rows)} triplets"
    names = ("anchor", "positive", "negative")
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}, [said]


def _triplets_of_classes(examples: Sequence[Example], language: str) -> Made:
    return _triplets(examples, language, lambda example: NLI.get(str(example.label)))


_ADAPTERS: dict[tuple[str, str], Callable[[Sequence[Example], str], Made]] = {
    ("scored pairs", "scored pairs"): _scored,
    ("scored pairs", "classified pairs"): _classes_of_scores,
    ("scored pairs", "triplets"): _triplets,
    ("scored pairs", "pairs"): _pairs_of_scores,
    ("scored pairs", "sentences"): _sentences,
    ("scored pairs", "documents"): _documents_of_scores,
    ("classified pairs", "classified pairs"): _classified,
    ("classified pairs", "triplets"): _triplets_of_classes,
    ("classified pairs", "sentences"): _sentences,
    ("pairs", "pairs"): _pairs,
    ("pairs", "sentences"): _sentences,
    ("classified texts", "scored pairs"): _contrasts,
    ("classified texts", "triplets"): _triplets_of_contrasts,
    ("classified texts", "sentences"): _sentences,
    ("classified texts", "pairs"): _neighbours,
    ("classified texts", "documents"): _documents,
    ("texts", "sentences"): _sentences,
    ("texts", "pairs"): _neighbours,
    ("texts", "documents"): _documents,
}
