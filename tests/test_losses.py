"""Why texts are lost, and what users are told about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import dino_pipeline as dino
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.filtering.losses import BREAK, COPY, REPEAT, SURPLUS, TO_LIMIT, Losses, losses_of
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import LabelTotals
from tests.pairs import Words, record_of
from tests.records import generate_record, write_record
from tests.test_spec import SPECS

SHOTS = [{"input": "A dog runs.", "text": "A dog is running."}]


@pytest.mark.parametrize(
    ("label", "changes", "reasons", "notes"),
    [
        ("1", {}, {"identical texts": 12, "near-copy": 9}, ["21% of its texts copy the input; try worked examples"]),
        ("1", {}, {"identical texts": 12, "near-copy": 8}, []),  # a fifth is not over a fifth
        ("1", {"examples": SHOTS}, {"near-copy": 50}, ["50% of its texts copy the input; try another wording"]),
        (
            "0",
            {"counter_labels": []},
            {"near-copy": 50},
            [', a contrast with label 1 ("counter_labels"), or'],
        ),
        ("0", {}, {"no stop string": 52}, ["run to the token limit; try", "or a larger max_new_tokens than 40"]),
        ("0", {"examples": SHOTS}, {"newline": 40, "empty": 40}, ['try "newlines": true in the spec']),
        ("0", {"examples": SHOTS}, {"copied instruction": 30}, ["repeat the prompt; try other worked examples"]),
        ("0", {}, {"too long": 30}, ["are too long; try a larger max_chars, or"]),
        ("0", {}, {"balance": 30, "duplicate": 30, "shouting": 30}, []),  # no remedy is known here
    ],
)
def test_a_note_names_label_share_cause_and_remedy(
    label: str, changes: dict[str, Any], reasons: dict[str, int], notes: list[str]
) -> None:
    fields = json.loads((SPECS / "sts-x2.json").read_text())
    fields["labels"][label] |= changes
    spec = load_spec({**fields, "inputs": None})
    found = Losses.of({"1": 100, "0.5": 100, "0": 100}, Counter({(reason, label): n for reason, n in reasons.items()}))
    told = [dino.errors.worded(f"{message}; {remedy}", dino.errors.PYTHON) for message, remedy in found.notes(spec, 40)]
    assert len(told) == bool(notes)
    assert all(text.startswith(f'label "{label}": ') for text in told)
    assert all(part in told[0] for part in notes)
    few = Losses.of(dict.fromkeys(spec.labels, 19), Counter({(reason, label): 19 for reason in reasons}))
    assert not list(few.notes(spec, 40)), "of so few texts no share is measured"


def test_the_filter_tells_of_losses_from_the_first_word_on(tmp_path: Path) -> None:
    run, good = Run(tmp_path / "run"), Words().pairs(30, samples=1)
    copies = [Example(f"{each.text_a} Again.", f"{each.text_a} again", 1.0) for each in good if each.label == 0.5]
    unended = [Example(each.text_a, "and so on", 0.0) for each in good[:25]]
    write_examples(run.shards / "00000.jsonl", [*good, *copies])
    run.rejected.mkdir()
    rows = [{"text_a": each.text_a, "label": 0.0, "reason": "no stop string"} for each in unended]
    rows += [{"text_a": "x", "label": 0.5, "reason": "newline"}, {"text_a": "too long an input", "reason": "left out"}]
    (run.rejected / "00000.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run.spec.write_text(json.dumps(load_spec("sts-x2").model_dump(mode="json", exclude_none=True)))
    counts = {name: LabelTotals(written=60, accepted=60 if name == "1" else 30) for name in ("1", "0.5", "0")}
    run.checksums.add(run.shards / "00000.jsonl")
    generated = generate_record({"labels": ("1", "0.5", "0")}, counts=counts)
    write_record(run.path, generated)

    told: list[object] = []
    dino.filter(run, progress=told.append)
    assert [note for note in told if isinstance(note, str)] == [
        'label "1": 50% of its texts copy the input; try worked examples in the spec ("examples"), or another wording '
        "of the instruction",
        'label "0": 42% of its texts run to the token limit; try worked examples in the spec ("examples"), or a larger '
        "max_new_tokens than 40",
    ]
    found = losses_of(run, generated, record_of(run))
    assert found.lost == {COPY: {"1": 30}, TO_LIMIT: {"0": 25}, BREAK: {"0.5": 1}}
    assert found.share(COPY, "1") == 0.5 and not found.share(REPEAT, "1") and not found.share(SURPLUS, "1")
