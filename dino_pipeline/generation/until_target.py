"""How many more samples of which labels to write, until the filter keeps enough of each label."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.filtering.filter import open_runtime
from dino_pipeline.filtering.filter_stage import available, filter_run, recorded_options
from dino_pipeline.progress import Reporter
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import ExtraSamples, GenerateRecord

MARGIN = 1.1
"""Write this factor more than the shares predict: the filter keeps further samples a little less often."""
LEAST_YIELD = 0.1
"""Stop writing a label once the filter keeps its new texts less often than the earlier ones by this factor."""


@dataclass(frozen=True)
class LabelYield:
    """Counts of one label after a round of generating and filtering."""

    written: int
    kept: int
    """Texts that the filter keeps, before balance and target."""
    samples: int
    """Samples written per input (in all without inputs); the index of the next one."""

    @property
    def share(self) -> float:
        """Kept / written texts; above 0, to be able to predict."""
        return max(self.kept, 1) / max(self.written, 1)


def generate_until_target(
    run: Run,
    spec: TaskSpec,
    target: int,
    budget: int,
    write: Callable[[Sequence[ExtraSamples]], GenerateRecord],
    reporter: Reporter,
) -> tuple[GenerateRecord, Mapping[str, LabelYield]]:
    """Generate and filter in turn until the filter keeps ``target`` texts of each label, then filter to that number.

    The filter has the options of the run's last filter, else its defaults.

    Args:
        run: folder of the run.
        spec: the run's.
        target: texts to keep of each label.
        budget: texts to write in all.
        write: writes the texts, and extra samples in addition.
        reporter: gets a note for each round.

    Returns:
        The record of the texts, and the final yield of each label.
    """
    options = recorded_options(run).model_copy(update={"target_per_label": target})
    with ExitStack() as stack:

        @functools.cache  # models are loaded once for all rounds, and only after the first texts are written
        def runtime() -> FilterRuntime:
            return stack.enter_context(open_runtime(run, options, reporter, has_spec=True))

        def write_and_filter(further: Sequence[ExtraSamples]) -> dict[str, LabelYield]:
            record = write(further)
            kept = available(run, options, runtime())
            samples = dict.fromkeys(spec.labels, record.options.samples)
            for extra in record.more:
                samples[extra.label] = extra.first + extra.samples
            yields = {}
            for label in spec.labels:
                written = record.counts[label].written
                yields[label] = LabelYield(written, kept.get(spec.value(label), 0), samples[label])
            return yields

        yields = write_until_target(target, budget, write_and_filter, reporter.note)
        filtered = run.record().filter
        is_same = filtered is not None and filtered.options.target_per_label == target
        filter_run(run, options.model_copy(update={"fresh": not is_same}), runtime())
        record = run.record().generate
        assert record is not None  # `write` has written it
        return record, yields


def write_until_target(
    target: int,
    budget: int,
    write_and_filter: Callable[[Sequence[ExtraSamples]], Mapping[str, LabelYield]],
    note: Callable[[str, str], None],
) -> Mapping[str, LabelYield]:
    """Write and filter, round after round, until each label has enough or the budget is spent.

    Args:
        target: texts to keep of each label.
        budget: texts to write in all.
        write_and_filter: writes further samples, filters, and returns the labels' yields.
        note: receives one note per round, and the reason for which the last one ends; see `Reporter.note`.

    Returns:
        The final yield of each label.
    """
    yields = write_and_filter([])
    exhausted: list[str] = []
    while short := [label for label, state in yields.items() if state.kept < target and label not in exhausted]:
        left = budget - sum(state.written for state in yields.values())
        further = _further_samples(yields, short, target, left)
        if not further:
            note(f"the budget of {budget} texts is spent", "")
            break
        missing = "; ".join(f"label {label}: {yields[label].kept} of {target} kept" for label in short)
        note(f"{missing}; writing more", "")
        before, yields = yields, write_and_filter(further)
        for label in (extra.label for extra in further):
            old, new = before[label], yields[label]
            if new.kept - old.kept < LEAST_YIELD * old.share * (new.written - old.written):
                exhausted.append(label)
                note(
                    f"label {label}: further samples of the same inputs are no longer kept, as duplicates or because "
                    "of the limit of texts per input",
                    "begin with more inputs, or with a larger {max_per_text}",
                )
    return yields


def _further_samples(
    yields: Mapping[str, LabelYield], short: Sequence[str], target: int, left: int
) -> list[ExtraSamples]:
    """Return what to write next: as much as each label's share of kept texts predicts to be enough.

    Args:
        yields: of all labels.
        short: labels that need more.
        target: texts to keep of each label.
        left: texts that the budget leaves for all of them.
    """
    further = []
    for label in short:
        state = yields[label]
        texts_per_sample = max(state.written / max(state.samples, 1), 1)  # the number of inputs
        wanted = math.ceil(MARGIN * (target - state.kept) / state.share / texts_per_sample)
        samples = min(wanted, int(left / len(short) / texts_per_sample))
        if samples:
            further.append(ExtraSamples(label=label, first=state.samples, samples=samples))
    return further
