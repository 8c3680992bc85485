"""What a user calls to write texts, once or until the filter keeps enough: a task spec in, labelled texts out."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dino_pipeline.cluster import connected
from dino_pipeline.errors import OptionError, RunError, as_it_is, option_given
from dino_pipeline.examples import Dropped, Example, ExampleList, iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.generation.plan import count_inputs, num_inputs, open_inputs, resolve_settings
from dino_pipeline.json_files import read_json_lines
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, doing, reporter_for
from dino_pipeline.run import Run, State
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import ExtraSamples, GenerateRecord

if TYPE_CHECKING:
    from dino_pipeline.filtering.dataset_rules import FilterRuntime

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


class GeneratedTexts(ExampleList):
    """The accepted texts of a run, as a list of examples.

    Args:
        run: the run; its files are read when the texts are first looked at, wherever the process works by then.
        spec: the instructions.
        record: what the texts were made with, and their counts.
        state: "new", "resumed", or "done" if nothing was left to do.
        target: texts of each label that the filter was to keep, if texts were written until there are enough.
        yields: for each label what the filter keeps, if there is a target.
    """

    def __init__(
        self,
        run: Run,
        spec: TaskSpec,
        record: GenerateRecord,
        state: State,
        *,
        target: int | None = None,
        yields: Mapping[str, LabelYield] | None = None,
    ) -> None:
        self.run: Run | None = Run(run.path.resolve())
        """The run on disk; None if everything is in memory."""
        self.spec, self.record, self.state = spec, record, state
        self.target, self.yields = target, yields

    @cached_property
    def examples(self) -> list[Example]:  # type: ignore[override]
        """The accepted texts, in the order of the inputs.

        Raises:
            RunError: the run is gone, lacks files, or holds other texts by now.
        """
        run = self._unchanged_run()
        examples: list[Example] = []
        for path in shard_files(run.shards):
            examples += iter_examples(path, numeric_labels=self.spec.is_scored)
        return examples

    @cached_property
    def rejected(self) -> list[Dropped]:
        """The rejected texts and the skipped inputs, each with its reason; see `examples`."""
        rows = (dict(row) for path in shard_files(self._unchanged_run().rejected) for _, row in read_json_lines(path))
        return [Dropped(reason=row.pop("reason"), example=Example(**row)) for row in rows]

    def _unchanged_run(self) -> Run:
        """Return the run, which still holds these texts."""
        assert self.run is not None  # `in_memory` has read everything before it was set to None
        self.run.require(self.record)
        return self.run

    @property
    def summary(self) -> str:
        """Return the number of accepted texts, and the accepted share of each label, in a line."""
        counts = self.record.counts
        shares = [f"{label} {total.accepted / max(total.written, 1):.0%}" for label, total in counts.items()]
        accepted = sum(total.accepted for total in counts.values())
        return f"{accepted} texts for {self.spec.task_name}; accepted: {', '.join(shares)}"

    def in_memory(self) -> Self:
        """Read all texts now, because the run's folder is about to be deleted."""
        _ = self.examples, self.rejected
        self.run = None
        return self


@accepts(GenerateOptions)
def generate(
    spec: TaskSpec | str | Path | Mapping[str, object],
    *,
    progress: bool | Callable[[Progress | str], object] | Reporter = True,
    **options: Any,
) -> GeneratedTexts:
    """Write texts for every input and label of a task spec; continue where an earlier call stopped.

    Without ``run``, the texts are kept in memory only.

    Args:
        spec: a spec, its file, its fields, or the name of a spec that comes with the package.
        progress: True shows progress, False shows nothing; or a function that takes each progress and note.

    Returns:
        The accepted texts, with ``.rejected``, ``.record`` and ``.state``.

    Raises:
        OptionError: an option is wrong, or does not fit the spec.
        SpecError: the spec is wrong.
        DataError: the inputs cannot be read.
        ModelError: the model cannot be loaded, or no text was accepted.
        RunError: the run was begun with other options.
    """
    chosen = GenerateOptions.of(options)
    task = load_spec(spec)
    inputs = open_inputs(task, chosen)
    _check_options(chosen, task, inputs)
    with ExitStack() as stack:
        reporter = stack.enter_context(reporter_for(progress))
        if chosen.ray is not None:
            stack.enter_context(connected(chosen.ray))
        folder = chosen.run or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dino-generate-")))
        run = Run(folder)
        stack.enter_context(run.locked())
        texts = _generate(run, task, inputs, chosen, reporter)
        return texts if chosen.run else texts.in_memory()


def _generate(
    run: Run, spec: TaskSpec, inputs: Iterable[str] | None, options: GenerateOptions, reporter: Reporter
) -> GeneratedTexts:
    """Write the texts into the run's folder, which is locked."""
    from dino_pipeline.generation.engines import choose_engine
    from dino_pipeline.generation.generate_stage import forget_unwritten, write_texts
    from dino_pipeline.generation.preview import SpeedMonitor, estimate_key
    from dino_pipeline.generation.storage import RemoteStorage

    storage = RemoteStorage(options.storage) if options.storage else None
    if not options.fresh:
        forget_unwritten(run)
        if storage:
            storage.synchronise(run, reporter)  # the copy may be all that is left of the run
            if forget_unwritten(run):
                storage.clear(run)
    before = None if options.fresh else run.record().generate
    requested = _requested_samples(run, options, spec, before)
    engine = choose_engine(options, spec, before, reporter, run.received)
    settings = resolve_settings(options, spec, inputs, engine.model, engine.scorer, engine.debias)

    def write(extra_samples: Sequence[ExtraSamples], fresh: bool) -> tuple[State, GenerateRecord]:
        return write_texts(
            run,
            spec,
            engine.load_writer,
            settings,
            SpeedMonitor(reporter, run, estimate_key(settings)),
            inputs=inputs,
            speed=engine.speed,
            fresh=fresh,
            extra_samples=extra_samples,
            storage=storage,
        )

    with closing(engine.load_writer):
        if options.until_target:
            texts = _generate_until_target(run, spec, options, options.until_target, write, reporter)
        else:
            state, record = write(requested, options.fresh)
            texts = GeneratedTexts(run, spec, record, state)
    if storage:
        storage.store_record(run)
    return texts


def _check_options(options: GenerateOptions, spec: TaskSpec, inputs: Iterable[str] | None) -> None:
    """Raise `OptionError` if extra samples are of an unknown label, or the budget is less than the first round."""
    for label, number in options.more:
        if label not in spec.labels:
            remedy = f"choose from {as_it_is(', '.join(spec.labels))}"
            raise OptionError("there is no such label", remedy, option="more", value=f"{label}={number}")
    if options.budget is None:
        return
    limit = num_inputs(options, spec, inputs)
    first_round = (count_inputs(limit, inputs) if spec.needs_inputs else 1) * len(spec.labels) * options.samples
    if options.budget < first_round:
        raise OptionError(
            f"the first round alone writes {first_round} texts",
            "raise it, or lower {num_inputs} or {samples}",
            option="budget",
            value=options.budget,
        )


def _requested_samples(
    run: Run, options: GenerateOptions, spec: TaskSpec, before: GenerateRecord | None
) -> list[ExtraSamples]:
    """Return the extra samples that the run does not have yet.

    Raises:
        RunError: earlier calls asked for others.
    """
    requested = list(options.more)
    recorded = [(extra.label, extra.samples) for extra in before.more] if before else []
    shared = min(len(requested), len(recorded))
    if requested[:shared] != recorded[:shared]:
        earlier = " ".join(option_given("more", f"{label}={number}") for label, number in recorded)
        raise RunError(
            f"{run.path}: earlier calls asked for other extra samples",
            f"give {earlier} first, or start over with {{fresh=True}}",
        )
    samples = dict.fromkeys(spec.labels, options.samples)
    further = []
    for label, number in requested:
        further.append(ExtraSamples(label=label, first=samples[label], samples=number))
        samples[label] += number
    return further[len(recorded) :]


def _generate_until_target(
    run: Run,
    spec: TaskSpec,
    options: GenerateOptions,
    target: int,
    write: Callable[[Sequence[ExtraSamples], bool], tuple[State, GenerateRecord]],
    reporter: Reporter,
) -> GeneratedTexts:
    """Generate and filter in turn until the filter keeps ``target`` texts of each label, then filter to that number.

    The filter has the options of the run's last filter, else its defaults. ``write`` writes extra samples in addition
    to what is there, or starts over.
    """
    from dino_pipeline.filtering.filter import open_runtime
    from dino_pipeline.filtering.filter_stage import available, filter_run, recorded_options

    filter_options = recorded_options(run).model_copy(update={"target_per_label": target})
    states: list[State] = []  # of each round
    with ExitStack() as stack:

        @functools.cache  # models are loaded once for all rounds, and only after the first texts are written
        def runtime() -> FilterRuntime:
            return stack.enter_context(open_runtime(run, filter_options, reporter, has_spec=True))

        def write_and_filter(extra_samples: Sequence[ExtraSamples]) -> dict[str, LabelYield]:
            state, record = write(extra_samples, options.fresh and not states)
            states.append(state)
            with doing(reporter, "counting what a filter keeps"):
                kept = available(run, filter_options, runtime())
            samples = dict.fromkeys(spec.labels, options.samples)
            for extra in record.more:
                samples[extra.label] = extra.first + extra.samples
            yields = {}
            for label in spec.labels:
                written = record.counts[label].written
                yields[label] = LabelYield(written, kept.get(spec.value(label), 0), samples[label])
            return yields

        budget = options.budget or 20 * target * len(spec.labels)
        yields = write_until_target(target, budget, write_and_filter, reporter.note)
        filtered = run.record().filter
        is_same = filtered is not None and filtered.options.target_per_label == target
        filter_run(run, filter_options.model_copy(update={"fresh": not is_same}), runtime())
    record = run.record().generate
    assert record is not None  # `write` has written it
    state: State = next((state for state in states if state != "done"), "done")
    return GeneratedTexts(run, spec, record, state, target=target, yields=yields)


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
        note: receives a note for each round, and the reason for which the last one ends; see `Reporter.note`.
    """
    yields = write_and_filter([])
    exhausted: list[str] = []
    while short := [label for label, count in yields.items() if count.kept < target and label not in exhausted]:
        left = budget - sum(count.written for count in yields.values())
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
    """Return extra samples for the labels in ``short``, as many as each one's share of kept texts predicts to suffice.

    The budget leaves ``left`` texts for all of them.
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
