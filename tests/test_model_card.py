from __future__ import annotations

from typing import Any

from dino_pipeline.model_card import Lineage, model_card

FINETUNED: dict[str, Any] = {
    "options": dict.fromkeys(("objective", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup"), 1)
    | {"encoder": "e", "seed": 3, "data": "train.jsonl"},
    "train": 90,
    "dev": 10,
    "dev_spearman": 50.0,
    "versions": {"torch": "1"},
}


def card(**filtered: Any) -> str:
    return model_card(Lineage("name", 8, 64, FINETUNED, {}, filtered, "Who", None, None))


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
