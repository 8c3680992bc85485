from __future__ import annotations

from typing import Any

from dino_pipeline.training.model_card import SHOWN, Lineage, model_card

FINETUNED: dict[str, Any] = {
    "options": dict.fromkeys(SHOWN, 1)
    | {"encoder": "e", "seed": 3, "data": "train.jsonl", "matryoshka": [], "bf16": False, "options": {"span": 5}},
    "train": 90,
    "dev": 10,
    "selection": {"measure": "Spearman", "best": 50.0, "on": "dev.jsonl", "human_labels": False},
    "made": [],
    "pooling": "cls",
    "collapsed": False,
    "versions": {"torch": "1"},
}


def card(finetuned: dict[str, Any] | None = None, prompts: bool = False, **filtered: Any) -> str:
    return model_card(
        Lineage("name", 8, 64, {**FINETUNED, **(finetuned or {})}, {}, filtered, "Who", prompts, None, None)
    )


def test_the_card_tells_how_the_model_was_made_and_chosen() -> None:
    text = card()
    for line in (
        "| span | 5 |",
        "| rows | 90 to train on, 10 held out |",
        "| best Spearman x 100, on dev.jsonl | 50.0 |",
    ):
        assert line in text
    assert "bf16" not in text
    assert "| seed | 0 |" in card({"options": {**FINETUNED["options"], "seed": 0}})
    assert "chosen on held-out texts (`dev.jsonl`)" in text
    human = {"measure": "Spearman", "best": 70.1, "on": "stsb.tsv", "human_labels": True}
    text = card({"selection": human, "collapsed": True, "mean_cosine": 0.999, "made": ["3 texts are left out"]})
    assert "chosen on human labels (`stsb.tsv`)" in text
    assert "held-out texts" not in text
    assert "embeddings have collapsed: cosines of different texts average 0.999" in text
    assert "Of the texts: 3 texts are left out." in text
    options = {**FINETUNED["options"], "matryoshka": [4, 2]}
    text = card({"options": options}, prompts=True)
    assert "The first 4, 2 of them work alone (`truncate_dim=4`)." in text
    assert "`encode_document`" in text


def test_the_card_tells_what_was_dropped_and_what_was_kept_out() -> None:
    funnel = [
        ["read", [[1.0, 60], [0.0, 60]]],
        ["- in evaluation data", [[1.0, 3]]],
        ["- empty", []],
        ["kept", [[1.0, 57]]],
    ]
    text = card(funnel=funnel, options={"exclude": ["stsb", "mine.tsv"], "labels": "posterior"})
    assert "Of 120 texts, 57 were kept, with posterior labels; dropped were 3 in evaluation data." in text
    assert "Evaluation data that was kept out: `stsb`, `mine.tsv` (3 pairs held a text of it)." in text
    text = card(funnel=funnel[:1] + funnel[3:], options={"exclude": [], "labels": "hard"})
    assert "dropped were none" in text
    assert "Nothing was compared with evaluation data" in text
