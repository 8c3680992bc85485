"""What a user calls to write texts. It takes a task spec and options, and returns labelled texts."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dino_pipeline.cluster import connected
from dino_pipeline.errors import DataError, OptionError, RunError, short
from dino_pipeline.examples import Dropped, Example, iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.generate_options import WRITTEN_INPUTS, GenerateOptions, InputOptions, ShardSettings, TextSettings
from dino_pipeline.in_memory import ExampleList
from dino_pipeline.options import Sampling, accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.readers import input_file, read_json_lines
from dino_pipeline.run import Run, State
from dino_pipeline.spec import SpecSampling, TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import ExtraSamples, GenerateRecord, GenerateSettings, InputsRef

if TYPE_CHECKING:
    from dino_pipeline.generation.engines import EngineChoice
    from dino_pipeline.generation.shard_writer import ShardWriter
    from dino_pipeline.generation.storage import RemoteStorage
    from dino_pipeline.generation.until_target import LabelYield


class GeneratedTexts(ExampleList):
    """The accepted texts of a run, as a list of examples.

    Args:
        run: the run; its files are read when the texts are first looked at.
        spec: the instructions.
        record: what the texts were made with, and their counts.
        state: "new", "resumed", or "done" if nothing was left to do.
        target: how many texts of each label the filter should keep; None if that was not asked for.
        yields: how many it does keep, by label, if there is a target.
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
        self.run: Run | None = run
        self.spec, self.record, self.state = spec, record, state
        self.target, self.yields = target, yields
        self._shards, self._rejected = run.shards, run.rejected

    @cached_property
    def examples(self) -> list[Example]:  # type: ignore[override]
        """The accepted texts, in the order of the inputs."""
        files = shard_files(self._shards)
        return [example for path in files for example in iter_examples(path, numeric_labels=self.spec.is_scored)]

    @cached_property
    def rejected(self) -> list[Dropped]:
        """The rejected texts and the skipped inputs, each with its reason."""
        rows = (dict(row) for path in shard_files(self._rejected) for _, row in read_json_lines(path))
        # the reason is taken out first: the rest of the row is the example
        return [Dropped(reason=row.pop("reason"), example=Example(**row)) for row in rows]

    @property
    def summary(self) -> str:
        """Return the number of accepted texts, and the accepted share of each label, in a line."""
        counts = self.record.counts
        shares = [f"{label} {total.accepted / max(total.written, 1):.0%}" for label, total in counts.items()]
        accepted = sum(total.accepted for total in counts.values())
        return f"{accepted} texts for {self.spec.task_name}; accepted: {', '.join(shares)}"

    def load(self) -> Self:
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
    _check_budget(chosen, task, inputs)
    _check_labels(chosen, task)
    with ExitStack() as stack:
        reporter = stack.enter_context(reporter_for(progress))
        if chosen.ray is not None:
            stack.enter_context(connected(chosen.ray))
        folder = chosen.run or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dino-generate-")))
        run = Run(folder)
        stack.enter_context(run.locked())
        texts = _generate(run, task, inputs, chosen, reporter)
        return texts if chosen.run else texts.load()


def _generate(
    run: Run, spec: TaskSpec, inputs: Iterable[str] | None, options: GenerateOptions, reporter: Reporter
) -> GeneratedTexts:
    """Write the texts into the run's folder, which is locked."""
    from dino_pipeline.generation.engines import choose_engine
    from dino_pipeline.generation.generate_stage import forget_unwritten
    from dino_pipeline.generation.storage import RemoteStorage

    storage = RemoteStorage(options.storage) if options.storage else None
    if not options.fresh:
        forget_unwritten(run)
        if storage:
            storage.synchronise(run, reporter)  # the copy may be all that is left of the run
            if forget_unwritten(run):  # now of the record that came from the storage
                storage.clear(run)
    before = None if options.fresh else run.record().generate
    extra_samples = _missing_extra_samples(run, options, spec, before)
    engine = choose_engine(options, before, reporter)
    settings = resolve_settings(options, spec, inputs, engine)
    call = _GenerateCall(run, spec, inputs, settings, engine, storage, reporter)
    if options.until_target:
        from dino_pipeline.generation.until_target import generate_until_target

        budget = options.budget or 20 * options.until_target * len(spec.labels)
        rounds: list[State] = []

        def write(further: Sequence[ExtraSamples]) -> GenerateRecord:
            state, record = call.write(further, fresh=options.fresh and not rounds)
            rounds.append(state)
            return record

        record, yields = generate_until_target(run, spec, options.until_target, budget, write, reporter)
        state: State = next((state for state in rounds if state != "done"), "done")
        texts = GeneratedTexts(run, spec, record, state, target=options.until_target, yields=yields)
    else:
        state, record = call.write(extra_samples, fresh=options.fresh)
        texts = GeneratedTexts(run, spec, record, state)
    if storage:
        storage.store_record(run)
    return texts


@dataclass(frozen=True)
class _GenerateCall:
    """The arguments of one call, which all rounds of writing share."""

    run: Run
    spec: TaskSpec
    inputs: Iterable[str] | None
    settings: GenerateSettings
    engine: EngineChoice
    storage: RemoteStorage | None
    reporter: Reporter

    def write(self, extra_samples: Sequence[ExtraSamples], *, fresh: bool) -> tuple[State, GenerateRecord]:
        """Write the texts, and extra samples in addition; see `generate_stage.write_texts`."""
        from dino_pipeline.generation.estimate import SpeedMonitor, estimate_key
        from dino_pipeline.generation.generate_stage import write_texts
        from dino_pipeline.generation.storage import RemoteShardWriter

        def load_writer() -> ShardWriter:
            writer = self.engine.load_writer()
            if self.storage is None:
                return writer
            if fresh:
                self.storage.clear(self.run)  # only now: a model that cannot be loaded loses no texts
            return RemoteShardWriter(writer, self.storage, self.run)

        return write_texts(
            self.run,
            self.spec,
            load_writer,
            self.settings,
            SpeedMonitor(self.reporter, self.run, estimate_key(self.settings)),
            inputs=self.inputs,
            speed=self.engine.speed,
            fresh=fresh,
            extra_samples=extra_samples,
        )


def open_inputs(spec: TaskSpec, options: InputOptions) -> Iterable[str] | None:
    """Return the texts for ``<X1>`` that the user brings, None if there are none.

    Raises:
        OptionError: the spec needs inputs and there are none, or it needs none and there are some.
        DataError: an input is not a text, or all are empty.
    """
    if spec.needs_inputs and options.inputs is None and spec.inputs is None:
        raise OptionError(
            f"spec {spec.task_name}: its instructions hold <X1>, but there are no inputs",
            'give {inputs=FILE}, or name a spec that writes them under "inputs"',
        )
    if options.inputs is None:
        return None
    if not spec.needs_inputs:
        raise OptionError(
            f"spec {spec.task_name} takes no inputs: its instructions lack <X1>", "leave it out", option="inputs"
        )
    if isinstance(options.inputs, str | Path):
        return input_file(Path(options.inputs), options.input_format)
    return _stripped_texts(options.inputs)


def _stripped_texts(texts: Iterable[Any]) -> list[str]:
    """Return texts as they are read from a file: without space around them, and without empty ones."""
    stripped_texts = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"input {number}: is {short(text)}", "give a file, or texts")
        if stripped := text.strip():
            stripped_texts.append(stripped)
    if not stripped_texts:
        raise DataError("the inputs hold no text", "give some, or leave {inputs} out")
    return stripped_texts


def resolve_settings(
    options: TextSettings, spec: TaskSpec, inputs: Iterable[str] | None, engine: EngineChoice
) -> GenerateSettings:
    """Return what decides the texts: options, with what they leave open filled in from the spec or the paper.

    Args:
        options: of the generate stage or of a preview.
        spec: the instructions.
        inputs: the user's; None if the spec's own inputs spec writes them.
        engine: names the model and the scorer, and says whether it can debias.
    """
    fields = {name: getattr(options, name) for name in TextSettings.model_fields}
    if isinstance(options, ShardSettings):
        fields |= {name: getattr(options, name) for name in ShardSettings.model_fields}
    fields |= {
        "num_inputs": num_inputs(options, spec, inputs),
        "keep_newlines": options.keep_newlines or spec.newlines,
        "sampling": _sampling(spec.sampling, options, debias=engine.debiases),
        "spec": spec.digest,
        "labels": tuple(spec.labels),
        "engine": engine.engine,
        "model": engine.model,
        "scorer": engine.scorer,
    }
    if inputs is not None:
        fields["inputs"] = InputsRef(texts=_texts_digest(inputs))
    elif isinstance(spec.inputs, TaskSpec):
        fields["inputs"] = InputsRef(spec=spec.inputs.digest)
        fields["input_sampling"] = _sampling(spec.inputs.sampling)  # the options are about the texts, not the inputs
    return GenerateSettings(**fields)


def num_inputs(options: TextSettings, spec: TaskSpec, inputs: Iterable[str] | None) -> int | None:
    """Return how many inputs to use or to write. None means all that the user brings, or that the spec needs none."""
    if not spec.needs_inputs:
        return None
    return options.num_inputs or (WRITTEN_INPUTS if inputs is None else None)


def count_inputs(limit: int | None, inputs: Iterable[str] | None) -> int:
    """Return the number of inputs that a run uses: of the user's, or to be written."""
    return (limit or 0) if inputs is None else sum(1 for _ in itertools.islice(inputs, limit))


def _sampling(in_spec: SpecSampling, options: TextSettings | None = None, *, debias: bool = True) -> Sampling:
    """Return how tokens are drawn: by the option, else the spec, else the paper. Without ``debias``, the decay is 0."""
    values = in_spec.model_dump(exclude_none=True)
    for name in Sampling.model_fields:
        if (value := getattr(options, name, None)) is not None:
            values[name] = value
    return Sampling(**values if debias else {**values, "decay": 0.0})


def _texts_digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _check_budget(options: GenerateOptions, spec: TaskSpec, inputs: Iterable[str] | None) -> None:
    """Raise `OptionError` if the budget does not even suffice for the samples that are asked for."""
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


def _check_labels(options: GenerateOptions, spec: TaskSpec) -> None:
    """Raise `OptionError` if extra samples are of a label that the spec does not have."""
    for label, number in options.more:
        if label not in spec.labels:
            raise OptionError(
                "there is no such label",
                f"choose from {', '.join(spec.labels)}",
                option="more",
                value=f"{label}={number}",
            )


def _missing_extra_samples(
    run: Run, options: GenerateOptions, spec: TaskSpec, before: GenerateRecord | None
) -> list[ExtraSamples]:
    """Return the extra samples that are asked for (``more``) and that the run does not have yet.

    Raises:
        RunError: earlier calls asked for others: neither list begins with the other.
    """
    requested = list(options.more)
    recorded = [(extra.label, extra.samples) for extra in before.more] if before else []
    shared = min(len(requested), len(recorded))
    if requested[:shared] != recorded[:shared]:
        earlier = " ".join(f"{{more={label}={number}}}" for label, number in recorded)
        raise RunError(
            f"{run.path}: earlier calls asked for other extra samples",
            f"give {earlier} first, or start over with {{fresh=True}}",
        )
    next_sample = dict.fromkeys(spec.labels, options.samples)  # the number of each label's next sample
    extra_samples = []
    for label, number in requested:
        extra_samples.append(ExtraSamples(label=label, first=next_sample[label], samples=number))
        next_sample[label] += number
    return extra_samples[len(recorded) :]
