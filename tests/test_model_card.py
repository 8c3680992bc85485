from __future__ import annotations

from pathlib import Path
from typing import Any

from dino_pipeline.cards.card import ModelCard
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.models import ModelRef
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FunnelStep, SelectionRecord, TextsOrigin

RECORD = Run(Path(__file__).parent / "data" / "run-format-2").record()
SELECTION = SelectionRecord(measure="Spearman", best=50.0, on="dev.jsonl")


def card(
    prompts: bool = False, funnel: list[FunnelStep] | None = None, filter: dict[str, Any] | None = None, **finetune: Any
) -> str:
    """Return the card of a model that was made with these options and results."""
    assert RECORD.finetune and RECORD.filter
    names = {name: finetune.pop(name) for name in ("seed", "matryoshka") if name in finetune}
    options = RECORD.finetune.options.updated(encoder=ModelRef(name="e"), options={"span": 5}, **names)
    results = {"selection": SELECTION, "train": 90, "dev": 10, "made": (), "collapsed": False, **finetune}
    origin = TextsOrigin()
    if funnel is not None:
        filtered = RECORD.filter.updated(funnel=funnel, options=FilterOptions(**(filter or {})))
        origin = TextsOrigin(filter=filtered)
    finetuned = RECORD.finetune.updated(options=options, **results)
    shape: dict[str, Any] = {"dimension": 8, "max_length": 64, "citation": "Who", "prompts": prompts}
    return ModelCard("name", finetuned=finetuned, origin=origin, **shape).text()


def test_the_card_tells_how_the_model_was_made_and_chosen() -> None:
    text = card()
    for line in (
        "| span | 5 |",
        "| rows | 90 to train on, 10 held out |",
        "| best Spearman x 100, on dev.jsonl | 50.0 |",
    ):
        assert line in text
    assert "bf16" not in text
    assert "| seed | 0 |" in card(seed=0)
    assert "chosen on held-out texts (`dev.jsonl`)" in text
    human = SelectionRecord(measure="Spearman", best=70.1, on="stsb.tsv", human_labels=True)
    text = card(selection=human, collapsed=True, mean_cosine=0.999, made=("3 texts are left out",))
    assert "chosen on human labels (`stsb.tsv`)" in text
    assert "held-out texts" not in text
    assert "embeddings have collapsed: cosines of different texts average 0.999" in text
    assert "Of the texts: 3 texts are left out." in text
    text = card(matryoshka=(4, 2), prompts=True)
    assert "The first 4, 2 of them work alone (`truncate_dim=4`)." in text
    assert "`encode_document`" in text


def test_the_card_tells_what_was_dropped_and_what_was_kept_out() -> None:
    funnel = [
        FunnelStep(kind="read", counts=((1.0, 60), (0.0, 60))),
        FunnelStep(kind="dropped", rule="in evaluation data", counts=((1.0, 3),)),
        FunnelStep(kind="dropped", rule="empty"),
        FunnelStep(kind="kept", counts=((1.0, 57),)),
    ]
    text = card(funnel=funnel, filter={"exclude": ("stsb", "mine.tsv"), "labels": "posterior"})
    assert "Of 120 texts, 57 were kept, with posterior labels; dropped were 3 in evaluation data." in text
    assert "Evaluation data that was kept out: `stsb`, `mine.tsv` (3 pairs held a text of it)." in text
    text = card(funnel=[funnel[0], funnel[3]], filter={"exclude": (), "labels": "hard"})
    assert "dropped were none" in text
    assert "Nothing was compared with evaluation data" in text
