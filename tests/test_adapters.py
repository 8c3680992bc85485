from __future__ import annotations

from typing import Any

import pytest

from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.training.adapters import adapt, split_sentences
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.objectives import Columns, RowKind

SCORED = [
    Example("a", "a same", 0.9),
    Example("a", "a also", 0.9),
    Example("a", "a near", 0.5),
    Example("a", "far", 0.1),
    Example("b", "b same", 1.0),
    Example("b", "a near", 0.0),
    Example("c", "c near", 0.5),
]
DOCUMENTS = [Example("Mr. Smith has a dog. It barks. Cats run."), Example("Alone."), Example("It rains. It pours!")]


def made(examples: list[Example], needs: RowKind, **kwargs: Any) -> tuple[Columns, str]:
    rows = adapt(Corpus("data.jsonl", examples), needs, "it", **kwargs)
    return rows.columns, "; ".join(rows.remarks)


def test_scored_pairs_stay_what_they_are() -> None:
    columns, _ = made(SCORED[:2], "scored pairs")
    assert columns == {"sentence1": ["a", "a"], "sentence2": ["a same", "a also"], "score": [0.9, 0.9]}


def test_scores_become_classes_by_thirds() -> None:
    columns, said = made(SCORED, "classified pairs")
    assert columns["label"] == ["same", "same", "related", "different", "same", "different", "related"]
    assert "classes different, related, same (by thirds)" in said


def test_triplets_have_a_positive_and_a_hard_negative_of_the_same_text() -> None:
    columns, said = made(SCORED, "triplets")
    rows = list(zip(columns["anchor"], columns["positive"], columns["negative"], strict=True))
    assert rows == [("a", "a same", "a near"), ("a", "a also", "far"), ("b", "b same", "a near")]
    assert "2 of 3 first texts have both a positive and a negative; they make 3 triplets" in said


def test_classes_of_inference_make_triplets_too() -> None:
    classes = [Example("a", "b", "entailment"), Example("a", "c", "contradiction"), Example("a", "d", "odd")]
    assert made(classes, "triplets")[0] == {"anchor": ["a"], "positive": ["b"], "negative": ["c"]}
    with pytest.raises(
        DataError, match="no triplets can be made of its classified pairs; give texts that have a second one"
    ):
        made([Example("a", "b", "yes")], "triplets")


def test_sentences_are_all_texts_once() -> None:
    columns, said = made([*SCORED, Example("A!", "far.", 0.1)], "sentences")
    assert columns["sentence"] == ["a", "b", "c", "a same", "a also", "a near", "far", "b same", "c near"]
    assert said == "7 of 16 texts repeat others and are left out"
    whole, _ = made(DOCUMENTS, "sentences")
    assert whole["sentence"] == [example.text_a for example in DOCUMENTS]
    parted, _ = made(DOCUMENTS, "sentences", split=True)
    assert parted["sentence"][:4] == ["Mr. Smith has a dog.", "It barks.", "Cats run.", "Alone."]


def test_pairs_are_those_that_mean_the_same_or_stand_side_by_side() -> None:
    columns, said = made(SCORED, "pairs")
    assert columns == {"anchor": ["a", "a", "b"], "positive": ["a same", "a also", "b same"]}
    assert "3 of 7 with a score over 2/3" in said
    columns, said = made(DOCUMENTS, "pairs")
    assert columns["anchor"] == ["Mr. Smith has a dog.", "It barks.", "It rains."]
    assert columns["positive"] == ["It barks.", "Cats run.", "It pours!"]
    assert said == "pairs are 3 neighbouring sentences of 3 documents"
    given = [Example("f", "def f()"), Example("f", "def f()"), Example("x", "x")]
    columns, said = made(given, "pairs")
    assert columns == {"anchor": ["f"], "positive": ["def f()"]}
    assert said == "2 of 3 pairs repeat others, or a text twice, and are left out"
    assert made(DOCUMENTS, "pairs", split=True)[0] == made(DOCUMENTS, "pairs")[0]


def test_documents_have_several_sentences_or_are_what_was_written_for_one_text() -> None:
    columns, said = made(DOCUMENTS, "documents")
    assert columns["document"] == [DOCUMENTS[0].text_a, DOCUMENTS[2].text_a]
    assert said == "1 of 3 texts are of one sentence and are left out"
    columns, said = made(SCORED, "documents")
    assert columns["document"] == ["a a same a also a near", "b b same", "c c near"]
    assert "each with the second ones that score over 1/3" in said


@pytest.mark.parametrize(
    ("example", "needs", "said"),
    [
        (
            Example("a"),
            "scored pairs",
            "data.jsonl: holds texts, but it needs scored pairs; give pairs with a number as label",
        ),
        (Example("a", "b"), "documents", "holds pairs, but it needs documents; give a file with one document"),
        (Example("a", "b", "x"), "pairs", "holds classified pairs, but it needs pairs; give documents"),
        (
            Example("a", "b", 1.5),
            "scored pairs",
            "data.jsonl: the score of .* is 1.5; scores are between 0 and 1; .*label_type='class'",
        ),
        (Example("a", "b", 2.0), "triplets", "the score of .* is 2; scores are between 0 and 1"),
        (Example("One."), "documents", "no documents can be made of its texts; give a file with one document"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_the_way_to_get_it(example: Example, needs: RowKind, said: str) -> None:
    with pytest.raises(DataError, match=said):
        made([example], needs)


def test_sentences_end_as_their_language_has_it() -> None:
    assert split_sentences("今天天气很好。我们去公园吧!", "zh") == ["今天天气很好。", "我们去公园吧!"]
    with pytest.raises(OptionError, match="language='xx': sentences of this language cannot be told apart"):
        split_sentences("One. Two.", "xx")
