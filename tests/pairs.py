"""Made-up pairs for tests of the filter stage, and short ways to run it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.filtering.filter_source import file_source
from dino_pipeline.filtering.filter_stage import filter_run
from dino_pipeline.funnel import Counts, Funnel, step_title
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FilterRecord

RAW = FilterOptions(
    max_per_text=0,
    balance=False,
    labels="hard",
    random_pairs=0,
    dev_share=0,
    near_duplicates=0,
    without=("too short", "near-copy"),
)
"""Only what is always done."""


class Words:
    """Writes sentences of made-up words."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        letters = "abcdefghijklmnoprstuvw"
        self.words = ["".join(self.random.choices(letters, k=self.random.randint(2, 9))) for _ in range(5000)]

    def sentence(self, least: int = 6, most: int = 12) -> str:
        words = self.random.sample(self.words, self.random.randint(least, most))
        return " ".join(words).capitalize() + "."

    def pairs(self, inputs: int, samples: int = 2) -> list[Example]:
        """Return pairs that nothing is wrong with."""
        return [
            Example(text_a, self.sentence(), label, logprob=-1.5, margin=0.2, input=number, sample=sample)
            for number in range(inputs)
            for text_a in [self.sentence()]
            for label in (1.0, 0.5, 0.0)
            for sample in range(samples)
        ]


def filtered(
    folder: Path,
    examples: Sequence[Example],
    options: FilterOptions = RAW,
    runtime: FilterRuntime | None = None,
    numeric_labels: bool = True,
) -> Run:
    """Filter examples from a file into a new run and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / "data.jsonl", examples)
    run = Run(folder / "run")
    source = file_source(folder / "data.jsonl", numeric_labels)
    filter_run(run, options.model_copy(update={"fresh": True}), runtime, source)
    return run


def kept(run: Run) -> list[tuple[str, str | None, Any]]:
    """Return the training pairs, in a fixed order."""
    return sorted(
        ((each.text_a, each.text_b, each.label) for each in read_examples(run.train, numeric_labels=False)), key=str
    )


def dropped(run: Run) -> list[dict[str, Any]]:
    """Return the dropped pairs."""
    return [json.loads(line) for line in run.dropped.read_text().splitlines()]


def reasons(run: Run) -> dict[tuple[str, str | None, Any], str]:
    """Return why each pair was dropped."""
    return {(row["text_a"], row["text_b"], row["label"]): row["reason"] for row in dropped(run)}


def funnel(run: Run) -> Mapping[str, Counts]:
    """Return the recorded funnel by step, as it is shown."""
    return {step_title(step): dict(step.counts) for step in Funnel.of(record_of(run))}


def record_of(run: Run) -> FilterRecord:
    """Return the record of the run's filter."""
    record = run.record().filter
    assert record is not None
    return record


def outputs(run: Run) -> list[bytes]:
    """Return the bytes that the stage wrote."""
    return [path.read_bytes() for path in (run.train, run.dev, run.dropped, run.flagged)]


def raw(**options: Any) -> FilterOptions:
    """Return `RAW` with other options."""
    return FilterOptions.of({**RAW.given(), **options})
