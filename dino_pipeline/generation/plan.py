"""What a run has to write: its inputs and settings, tasks in shards of fixed content, and the shards still missing."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dino_pipeline.decoding.engine import Task
from dino_pipeline.errors import DataError, OptionError, short
from dino_pipeline.examples import Dropped, Example, iter_examples
from dino_pipeline.files import Checksums
from dino_pipeline.generate_options import (
    SPEED_ARGUMENTS,
    WRITTEN_INPUTS,
    Debiasing,
    EngineOptions,
    GenerateOptions,
    InputOptions,
    ShardSettings,
    TextSettings,
)
from dino_pipeline.input_texts import InputTexts
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.progress import LabelCount, Progress, Reporter, SilentReporter
from dino_pipeline.readers import list_reader
from dino_pipeline.run import Run
from dino_pipeline.spec import SpecSampling, TaskSpec
from dino_pipeline.stage_records import ExtraSamples, GenerateSettings, InputsRef
from dino_pipeline.text import excess


def open_inputs(spec: TaskSpec, options: InputOptions) -> Iterable[str] | None:
    """Return the texts for ``<X1>`` that the user brings, None if there are none.

    Raises:
        OptionError: the spec needs inputs and there are none, or it needs none and there are some.
        DataError: an input is not a text.
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
        return InputTexts(options.inputs, options.input_format, options.column)
    return _stripped_texts(options.inputs, options.column)


def _stripped_texts(texts: Iterable[Any], columns: Mapping[str, str]) -> list[str]:
    """Return texts as they are read from a file: without space around them, and without empty ones."""
    if isinstance(texts, Mapping):
        names = ", ".join(map(str, texts)) or "none"
        raise DataError(f"the inputs are a dict of {names}", "give one of its values, as a list of texts")
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        return list(list_reader(texts, name="the inputs", columns=columns).texts())
    stripped_texts = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"input {number}: is {short(text)}", "give a file, or texts")
        if problem := excess(text):
            raise DataError(f"input {number}: {problem}", "cut it, or leave it out")
        if stripped := text.strip():
            stripped_texts.append(stripped)
    if not stripped_texts:
        raise DataError("the inputs hold no text", "give some, or leave {inputs} out")
    return stripped_texts


def resolve_settings(
    options: TextSettings,
    spec: TaskSpec,
    inputs: Iterable[str] | None,
    model: ModelRef,
    scorer: ModelRef | Literal["server"] | None = None,
    debias: Debiasing | None = None,
) -> GenerateSettings:
    """Return what decides the texts: options, with what they leave open filled in from the spec or the paper.

    Args:
        options: of the generate stage or of a preview.
        spec: the instructions.
        inputs: the user's; None if the spec's own inputs spec writes them.
        model: writes the texts.
        scorer: measures the margins of a server's texts.
        debias: how a server's texts are debiased.
    """
    fields: dict[str, Any] = {name: getattr(options, name) for name in TextSettings.model_fields}
    is_debiased = True
    if isinstance(options, GenerateOptions):
        fields |= {name: getattr(options, name) for name in ShardSettings.model_fields}
        is_debiased = options.engine != "openai" or debias is not None
    if isinstance(options, EngineOptions):
        deciding = {name: value for name, value in options.engine_arg.items() if name not in SPEED_ARGUMENTS}
        fields |= {"engine": options.engine, "engine_arg": deciding}
    fields |= {
        "num_inputs": num_inputs(options, spec, inputs),
        "keep_newlines": options.keep_newlines or spec.newlines,
        "sampling": _sampling(spec.sampling, options, debias=is_debiased),
        "spec": spec.digest,
        "labels": tuple(spec.labels),
        "model": model,
        "scorer": scorer,
        "debias": debias,
    }
    if inputs is not None:
        digest = hashlib.sha256()
        for text in inputs:
            digest.update(text.encode() + b"\0")
        fields["inputs"] = InputsRef(texts=digest.hexdigest()[:16])
    elif isinstance(spec.inputs, TaskSpec):
        fields["inputs"] = InputsRef(spec=spec.inputs.digest)
        fields["input_sampling"] = _sampling(spec.inputs.sampling)  # the options are about the texts, not the inputs
    return GenerateSettings(**fields)


def num_inputs(options: TextSettings, spec: TaskSpec, inputs: Iterable[str] | None) -> int | None:
    """Return how many inputs to use, or to write; None: all that the user brings, or none are needed."""
    if not spec.needs_inputs:
        return None
    return options.num_inputs or (WRITTEN_INPUTS if inputs is None else None)


def count_inputs(limit: int | None, inputs: Iterable[str] | None) -> int:
    """Return the number of inputs that a run uses: of the user's, or to be written."""
    return limit or 0 if inputs is None else sum(1 for _ in itertools.islice(inputs, limit))


def _sampling(in_spec: SpecSampling, options: TextSettings | None = None, *, debias: bool = True) -> Sampling:
    """Return how tokens are drawn: an option counts before the spec's value, and that before the paper's."""
    values = in_spec.model_dump(exclude_none=True)
    for name in Sampling.model_fields:
        if (value := getattr(options, name, None)) is not None:
            values[name] = value
    return Sampling(**values if debias else {**values, "decay": 0.0})


def needs_debiasing(options: GenerateOptions, spec: TaskSpec) -> bool:
    """Return whether a label of the texts, or of inputs to be written, has counter-labels, and a decay above 0."""
    debiases = _has_counters(spec) and _sampling(spec.sampling, options).decay > 0
    if options.inputs is None and isinstance(spec.inputs, TaskSpec):
        debiases |= _has_counters(spec.inputs) and _sampling(spec.inputs.sampling).decay > 0
    return debiases


def _has_counters(spec: TaskSpec) -> bool:
    return any(label.counter_labels for label in spec.labels.values())


@dataclass(frozen=True)
class GenerationJob:
    """The spec and the settings that many shards share."""

    spec: TaskSpec
    settings: GenerateSettings
    use_scorer: bool = False
    """Let a separate scorer, if there is one, compute log-probabilities and margins."""


@dataclass
class Shard:
    """The tasks of one file of accepted and one file of rejected texts, with their results so far."""

    path: Path
    rejected_path: Path
    tasks: list[Task]
    skipped: list[Dropped] = field(default_factory=list)
    """Inputs, or tasks without inputs, that the model cannot be asked about."""
    num_unfinished: int = 0
    """Texts that have not ended yet."""
    results: dict[int, Example | Dropped] = field(default_factory=dict)
    """The accepted or rejected text of each finished task, by the index of the task."""
    digests: dict[Path, str] = field(default_factory=dict)
    """SHA-256 of both files, once they are written."""

    @property
    def files(self) -> list[Path]:
        """Both files, in the order in which they are written."""
        return [self.rejected_path, self.path]

    @property
    def accepted(self) -> list[Example]:
        """The accepted texts, in the order of the tasks."""
        results = (self.results[index] for index in sorted(self.results))
        return [result for result in results if isinstance(result, Example)]

    @property
    def rejected(self) -> list[Dropped]:
        """The skipped inputs, then the rejected texts in the order of the tasks."""
        results = (self.results[index] for index in sorted(self.results))
        return [*self.skipped, *(result for result in results if isinstance(result, Dropped))]


OnStored = Callable[[Shard, Sequence[Example]], None]
"""Receives a shard whose files are stored, and its accepted texts."""


@dataclass
class Plan:
    """All shards that a finished run holds."""

    run: Run
    spec: TaskSpec
    settings: GenerateSettings
    extra_samples: tuple[ExtraSamples, ...] = ()
    num_inputs: int = 0
    """Number of stored inputs; 0 before they are counted."""

    @property
    def has_inputs(self) -> bool:
        """Return whether all inputs that the spec needs are stored."""
        return self.run.inputs.exists() or not self.spec.needs_inputs

    @property
    def num_texts(self) -> int:
        """Return the number of texts to write, once the inputs are counted."""
        samples = len(self.spec.labels) * self.settings.samples + sum(extra.samples for extra in self.extra_samples)
        return samples * (self.num_inputs if self.spec.needs_inputs else 1)

    def counts(self) -> dict[str, LabelCount]:
        """Return counts of texts by label, nothing written yet, once the inputs are counted."""
        counts = {}
        for label, rule in self.spec.labels.items():
            samples = self.settings.samples + sum(more.samples for more in self.extra_samples if more.label == label)
            total = samples * (self.num_inputs if self.spec.needs_inputs else 1)
            counts[label] = LabelCount(total=total, prompts=1 + len(rule.counter_labels))
        return counts

    def shards(self) -> Iterator[Shard]:
        """Yield the shards. Their tasks depend on nothing but inputs, labels, samples and the shard size."""
        yield from self._shards({label: range(self.settings.samples) for label in self.spec.labels}, "")
        for number, extra in enumerate(self.extra_samples, start=1):
            samples = range(extra.first, extra.first + extra.samples)
            yield from self._shards({extra.label: samples}, f"more{number:03d}-")

    def _shards(self, samples: dict[str, range], prefix: str) -> Iterator[Shard]:
        """Yield shards for some samples of some labels."""
        tasks_of = self._tasks_about_inputs if self.spec.needs_inputs else self._tasks_without_inputs
        for number, tasks in enumerate(tasks_of(samples)):
            name = f"{prefix}{number:05d}.jsonl"
            yield Shard(self.run.shards / name, self.run.rejected / name, tasks)

    def _tasks_without_inputs(self, samples: dict[str, range]) -> Iterator[list[Task]]:
        per_label = max(1, self.settings.shard_size // len(samples))
        most = max(map(len, samples.values()))
        for first in range(0, most, per_label):
            tasks = []
            for label, indices in samples.items():
                tasks += [Task(None, None, label, sample) for sample in indices[first : first + per_label]]
            yield tasks

    def _tasks_about_inputs(self, samples: dict[str, range]) -> Iterator[list[Task]]:
        per_input = sum(map(len, samples.values()))
        inputs_per_shard = max(1, self.settings.shard_size // per_input)
        inputs = enumerate(example.text_a for example in iter_examples(self.run.inputs))
        while chunk := list(itertools.islice(inputs, inputs_per_shard)):
            tasks = []
            for number, text in chunk:
                for label, indices in samples.items():
                    tasks += [Task(number, text, label, sample) for sample in indices]
            yield tasks

    def is_done(self) -> bool:
        """Return whether all shards are there, with the contents that were written."""
        checksums = self.run.checksums
        return self.has_inputs and all(is_intact(shard.files, checksums, SilentReporter()) for shard in self.shards())


def input_shards(run: Run, spec: TaskSpec, size: int) -> Iterator[Shard]:
    """Yield shards of about ``size`` texts of a spec that writes inputs, without end."""
    per_label = -(-size // len(spec.labels))  # rounded up
    for number in itertools.count():
        name, samples = f"{number:05d}.jsonl", range(number * per_label, (number + 1) * per_label)
        tasks = [Task(None, None, label, sample) for sample in samples for label in spec.labels]
        yield Shard(run.input_shards / name, run.input_rejected / name, tasks)


def is_intact(paths: Sequence[Path], checksums: Checksums, reporter: Reporter) -> bool:
    """Return whether files were finished and have not changed since; note the first one that has."""
    if not checksums.has(*paths):
        return False
    try:
        changed = checksums.first_changed(*paths)
    except DataError as error:
        reporter.note(f"{error.message}: it is written again")
        return False
    if changed:
        reporter.note(f"{changed}: is not what was written (its checksum differs): it is written again")
    return changed is None


def missing_shards(
    shards: Iterable[Shard], progress: Progress, spec: TaskSpec, checksums: Checksums, reporter: Reporter
) -> Iterator[Shard]:
    """Yield the shards that are not stored yet, until the user asks to stop; count the stored ones."""
    for shard in shards:
        if is_intact(shard.files, checksums, reporter):
            _count_stored(progress, spec, shard)
        elif reporter.should_stop():
            return
        else:
            yield shard


@dataclass
class ShardQueue:
    """The shards that several workers write: those still to begin, those begun, and those to begin again."""

    job: GenerationJob
    shards: Iterator[Shard]
    progress: Progress
    on_stored: OnStored
    is_exhausted: bool = False
    lost: deque[Shard] = field(default_factory=deque)
    begun: dict[Path, Shard] = field(default_factory=dict)
    copied: set[Path] = field(default_factory=set)
    """Begun shards that a second worker writes, too."""

    @property
    def is_done(self) -> bool:
        """Return whether no shard is left to begin or to end."""
        return self.is_exhausted and not self.lost and not self.begun

    def next_shard(self) -> Shard | None:
        """Begin a lost shard or the next one; None if there is none."""
        shard = self.lost.popleft() if self.lost else next(self.shards, None)
        if shard is None:
            self.is_exhausted = True
        else:
            self.begun[shard.path] = shard
        return shard

    def next_copy(self) -> Shard | None:
        """Return the shard begun last that only one worker writes, for a second one; None if there is none."""
        for path, shard in reversed(self.begun.items()):
            if path not in self.copied:
                self.copied.add(path)
                return shard
        return None

    def finish(self, shard: Shard) -> bool:
        """Take a shard out; return False if another worker has finished it before."""
        return self.begun.pop(shard.path, None) is not None

    def put_back(self, shards: Iterable[Shard]) -> None:
        """Have begun shards begun again."""
        for shard in shards:
            if self.finish(shard):
                self.lost.append(shard)
                self.copied.discard(shard.path)


def _count_stored(progress: Progress, spec: TaskSpec, shard: Shard) -> None:
    """Count the texts of a shard that an earlier call stored."""
    names = {spec.value(label): label for label in spec.labels}
    done, before = progress.done, {label: count.written for label, count in progress.labels.items()}
    for path, reason in ((shard.path, None), (shard.rejected_path, "rejected")):
        for example in iter_examples(path, numeric_labels=spec.is_scored):
            if example.label is not None:  # skipped inputs have none
                count_text(progress, names[example.label], example, reason)
        for count in progress.labels.values():
            count.rejected_in_a_row = 0  # the files do not hold the order in which texts were written
    for label, count in progress.labels.items():
        count.resumed += count.written - before[label]
    progress.done = done + len(shard.tasks)
    progress.resumed += len(shard.tasks)


def count_text(progress: Progress, label: str, example: Example, reason: str | None) -> None:
    """Add one text to its label's counts; ``reason`` is None if it is accepted."""
    count = progress.labels[label]
    progress.done += 1
    count.written += 1
    count.rejected_in_a_row = 0 if reason is None else count.rejected_in_a_row + 1
    if reason is None:
        count.accepted += 1
        if example.margin is not None:
            count.margin_sum += example.margin
            count.margins += 1
