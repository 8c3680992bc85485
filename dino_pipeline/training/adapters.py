"""How a corpus becomes the rows that an objective needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random

import pysbd

from dino_pipeline.errors import DataError, OptionError, short
from dino_pipeline.examples import Example
from dino_pipeline.text import normalise
from dino_pipeline.training.corpus import Corpus, distinct_texts
from dino_pipeline.training.objectives import Columns, RowKind

SAME, RELATED = 2 / 3, 1 / 3
"""Texts with a score above SAME mean the same, with a score above RELATED they are about the same thing."""
SCORE_CLASSES = ("different", "related", "same")
"""Classes by thirds of the score."""
NLI_SCORES = {"entailment": 1.0, "neutral": 0.5, "contradiction": 0.0}
"""Scores of the classes of natural language inference."""
PAIRS_PER_TEXT = 4
"""Pairs made for each text with a class: as many within its class as with other classes."""
REMEDIES = {
    "scored pairs": "give pairs with a number as label, such as {generate()} and {filter()} write; of pairs with "
    "classes, {objective=sbert} learns from both texts, and {column=text_a=text_b} takes the second alone",
    "classified pairs": "give pairs with class names or scores as labels",
    "pairs": "give documents (several sentences a line), pairs without a label, or scored pairs",
    "triplets": "give texts that have a second one with a high score and one with a low score",
    "sentences": "give a file with one sentence a line",
    "documents": "give a file with one document (several sentences) a line, or scored pairs",
}
"""What to do if rows of a kind cannot be made."""


SUITED = {
    "scored pairs": "dino",
    "classified texts": "mirror-bert",
    "classified pairs": "sbert",
    "pairs": "cpt",
    "texts": "mirror-bert",
}
"""The objective that suits a corpus that makes no triplets, by its content."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows that an objective trains on."""

    columns: Columns
    remarks: tuple[str, ...]
    """How they were made from the corpus, for the user."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def suited_objective(corpus: Corpus, *, faithful: bool) -> str:
    """Return the objective that suits a corpus: triplets, if at least half of the first texts make some.

    With ``faithful``, that is what a paper did with such texts: ``dino`` with scored pairs (Schick & Schuetze 2021),
    ``simcse-sup`` with classes (Gao et al. 2021).
    """
    make = _ADAPTERS.get((corpus.content, "triplets"))
    if make and corpus.content != "classified pairs":
        anchors = set(make(corpus.examples, "")[0]["anchor"])
        first_texts = {example.text_a for example in corpus.examples}
        if len(anchors) >= max(len(first_texts) / 2, 2):
            of_paper = "dino" if corpus.content == "scored pairs" else "simcse-sup"
            return of_paper if faithful else "triplets"
    return SUITED[corpus.content]


def adapt(corpus: Corpus, needs: RowKind, objective: str, language: str = "en", *, split: bool = False) -> TrainingRows:
    """Return a corpus as rows of the kind that an objective needs.

    The rules of a language, by its two-letter code, say where sentences end. With ``split``, texts are split into them.

    Raises:
        DataError: the corpus does not hold such rows, and they cannot be made from it.
    """
    make = _ADAPTERS.get((corpus.content, needs))
    if make is None:
        raise DataError(f"{corpus.name}: holds {corpus.content}, but {objective} needs {needs}", REMEDIES[needs])
    if corpus.content == "scored pairs":
        _check_scores(corpus)
    examples = corpus.examples
    if split and needs == "sentences":
        examples = sentences_of(corpus, language)
    columns, remarks = make(examples, language)
    if not next(iter(columns.values())):
        raise DataError(f"{corpus.name}: no {needs} can be made of its {corpus.content}", REMEDIES[needs])
    return TrainingRows(columns, tuple(remarks))


def sentences_of(corpus: Corpus, language: str) -> list[Example]:
    """Return the examples of a corpus, texts split into their sentences. Pairs stay as they are."""
    if corpus.content not in ("texts", "classified texts"):
        return corpus.examples
    sentences = []
    for example in corpus.examples:
        sentences += [Example(sentence) for sentence in split_sentences(example.text_a, language)]
    return sentences


def split_sentences(text: str, language: str) -> list[str]:
    """Return the sentences of a text.

    Raises:
        OptionError: no rules are known for the language.
    """
    stripped = (segment.strip() for segment in _segmenter(language).segment(text))
    return [sentence for sentence in stripped if sentence]


@lru_cache(maxsize=4)
def _segmenter(language: str) -> pysbd.Segmenter:
    try:
        return pysbd.Segmenter(language=language, clean=False)
    except ValueError as error:
        raise OptionError(
            f"sentences of this language cannot be told apart; {error}", option="language", value=language
        ) from error


def _check_scores(corpus: Corpus) -> None:
    highest = max((_score(example) for example in corpus.examples), default=0.0)
    for example in corpus.examples:
        if not 0 <= _score(example) <= 1:
            raise DataError(
                f"{corpus.name}: the score of {short(example.text_a)} is {example.label:g}; scores are between 0 and 1",
                f"divide them by {math.ceil(highest)}, say; if the numbers are classes, give {{label_type=class}}",
            )


def _score(example: Example) -> float:
    assert isinstance(example.label, float)
    return example.label


# Adapters: functions of examples and their language that return columns, and remarks for the user.

Adapted = tuple[Columns, list[str]]
Adapter = Callable[[Sequence[Example], str], Adapted]


def _scored_pairs(examples: Sequence[Example], language: str) -> Adapted:
    return _pair_columns(examples, "score", [_score(example) for example in examples]), []


def _classified_pairs(examples: Sequence[Example], language: str) -> Adapted:
    return _pair_columns(examples, "label", [str(example.label) for example in examples]), []


def _classified_from_scored(examples: Sequence[Example], language: str) -> Adapted:
    classes = []
    for example in examples:
        score = _score(example)
        classes.append(SCORE_CLASSES[(score > RELATED) + (score > SAME)])
    remark = f"scores are taken for the classes {', '.join(SCORE_CLASSES)} (by thirds)"
    return _pair_columns(examples, "label", classes), [remark]


def _pair_columns(examples: Sequence[Example], label_column: str, labels: Sequence[object]) -> Columns:
    return {
        "sentence1": [example.text_a for example in examples],
        "sentence2": [example.text_b for example in examples],
        label_column: list(labels),
    }


def _sentences(examples: Sequence[Example], language: str) -> Adapted:
    texts = distinct_texts(examples)
    given = sum(len(example.texts) for example in examples)
    repeated = given - len(texts)
    return {"sentence": texts}, [f"{repeated} of {given} texts repeat others and are left out"] if repeated else []


def _pairs(examples: Sequence[Example], language: str) -> Adapted:
    """Return pairs of different texts, each once; equal in normal form counts as the same."""
    distinct: dict[tuple[str, str], Example] = {}
    for example in examples:
        pair = (normalise(example.text_a), normalise(example.text_b or ""))
        if pair[0] != pair[1]:
            first = distinct.pop(pair, example)
            distinct[pair] = first  # the first spelling, in the place of the last occurrence
    kept = list(distinct.values())
    left_out = len(examples) - len(kept)
    remarks = []
    if left_out:
        remarks = [f"{left_out} of {len(examples)} pairs repeat others, or a text twice, and are left out"]
    return {"anchor": [pair.text_a for pair in kept], "positive": [pair.text_b for pair in kept]}, remarks


def _pairs_from_scored(examples: Sequence[Example], language: str) -> Adapted:
    same = [example for example in examples if _score(example) > SAME]
    columns, remarks = _pairs(same, language)
    return columns, [f"pairs are those {len(same)} of {len(examples)} with a score over 2/3", *remarks]


def _pairs_from_documents(examples: Sequence[Example], language: str) -> Adapted:
    neighbours = []
    for example in examples:
        for first, second in pairwise(split_sentences(example.text_a, language)):
            neighbours.append(Example(first, second))
    columns, remarks = _pairs(neighbours, language)
    return columns, [f"pairs are {len(neighbours)} neighbouring sentences of {len(examples)} documents", *remarks]


def _documents(examples: Sequence[Example], language: str) -> Adapted:
    documents = [example.text_a for example in examples if len(split_sentences(example.text_a, language)) > 1]
    left_out = len(examples) - len(documents)
    remarks = [f"{left_out} of {len(examples)} texts are of one sentence and are left out"] if left_out else []
    return {"document": documents}, remarks


def _documents_from_scored(examples: Sequence[Example], language: str) -> Adapted:
    """Return, for each first text, a document of it and the second texts that are related to it."""
    texts_of: dict[str, list[str]] = {}
    for example in examples:
        if _score(example) > RELATED:
            texts_of.setdefault(example.text_a, [example.text_a]).append(example.text_b or "")
    documents = [" ".join(dict.fromkeys(texts)) for texts in texts_of.values()]
    remark = f"documents are {len(documents)} first texts, each with the second ones that score over 1/3"
    return {"document": documents}, [remark]


def contrast_classes(examples: Sequence[Example]) -> list[Example]:
    """Return scored pairs of texts with classes: 1 within a class, 0 between classes.

    As in SetFit (Tunstall et al. 2022, section 3). With a single class there are none.
    """
    texts_of: dict[str, list[str]] = {}
    for example in examples:
        texts_of.setdefault(str(example.label), []).append(example.text_a)
    if len(texts_of) < 2:
        return []
    others_of: dict[str, list[str]] = {}
    for name in texts_of:
        others_of[name] = []
        for other, texts in texts_of.items():
            others_of[name] += texts if other != name else []
    random = Random(0)
    pairs = []
    for example in examples:
        name = str(example.label)
        for choices, score in ((texts_of[name], 1.0), (others_of[name], 0.0)):
            drawn = [random.choice(choices) for _ in range(PAIRS_PER_TEXT)]
            pairs += [Example(example.text_a, text, score) for text in dict.fromkeys(drawn) if text != example.text_a]
    return pairs


def _scored_from_classes(examples: Sequence[Example], language: str) -> Adapted:
    pairs = contrast_classes(examples)
    columns, _ = _scored_pairs(pairs, language)
    return columns, [f"{len(pairs)} pairs within and between classes are made of {len(examples)} texts"]


def _triplets(examples: Sequence[Example], language: str) -> Adapted:
    return _triplets_by(_score, examples)


def _triplets_from_classes(examples: Sequence[Example], language: str) -> Adapted:
    return _triplets_by(_score, contrast_classes(examples))


def _triplets_from_inference(examples: Sequence[Example], language: str) -> Adapted:
    return _triplets_by(lambda example: NLI_SCORES.get(str(example.label)), examples)


def _triplets_by(score_of: Callable[[Example], float | None], examples: Sequence[Example]) -> Adapted:
    """Return triplets of the first texts that have both positives and negatives among their second texts.

    With 3 positives and 2 negatives, a first text makes 3 triplets: the shorter list is used in a circle. Examples
    without a score are passed over.
    """
    second_texts: dict[str, tuple[list[str], list[str]]] = {}
    for example in examples:
        score = score_of(example)
        if score is not None and example.text_b is not None:
            positives, negatives = second_texts.setdefault(example.text_a, ([], []))
            (positives if score > SAME else negatives).append(example.text_b)
    columns: Columns = {"anchor": [], "positive": [], "negative": []}
    complete = 0
    contradictory = 0
    for anchor, (positives, given) in second_texts.items():
        of_positives = set(map(normalise, positives))
        negatives = [text for text in given if normalise(text) not in of_positives]
        contradictory += len(given) - len(negatives)
        if positives and negatives:
            complete += 1
            for number in range(max(len(positives), len(negatives))):
                columns["anchor"].append(anchor)
                columns["positive"].append(positives[number % len(positives)])
                columns["negative"].append(negatives[number % len(negatives)])
    remarks = [
        f"{complete} of {len(second_texts)} first texts have both a positive and a negative; "
        f"they make {len(columns['anchor'])} triplets"
    ]
    if contradictory:
        remarks.append(f"{contradictory} negatives are positives of the same first text, too, and are left out")
    return columns, remarks


_ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("scored pairs", "scored pairs"): _scored_pairs,
    ("scored pairs", "classified pairs"): _classified_from_scored,
    ("scored pairs", "triplets"): _triplets,
    ("scored pairs", "pairs"): _pairs_from_scored,
    ("scored pairs", "sentences"): _sentences,
    ("scored pairs", "documents"): _documents_from_scored,
    ("classified pairs", "classified pairs"): _classified_pairs,
    ("classified pairs", "triplets"): _triplets_from_inference,
    ("classified pairs", "sentences"): _sentences,
    ("pairs", "pairs"): _pairs,
    ("pairs", "sentences"): _sentences,
    ("classified texts", "scored pairs"): _scored_from_classes,
    ("classified texts", "triplets"): _triplets_from_classes,
    ("classified texts", "sentences"): _sentences,
    ("classified texts", "pairs"): _pairs_from_documents,
    ("classified texts", "documents"): _documents,
    ("texts", "sentences"): _sentences,
    ("texts", "pairs"): _pairs_from_documents,
    ("texts", "documents"): _documents,
}
"""By the content of a corpus and the kind of rows."""
