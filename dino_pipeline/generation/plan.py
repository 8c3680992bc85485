"""What is to be written: texts with their options, cut into shards of fixed content, and those still missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dino_pipeline.examples import Dropped, Example, iter_examples
from dino_pipeline.files import Checksums
from dino_pipeline.options import Sampling
from dino_pipeline.progress import Progress, Reporter, SilentReporter
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec

SHARD_SIZE = 1024


@dataclass(frozen=True)
class GenerateOptions:
    """All that decides what is written, beside spec, inputs and model. The defaults are the paper's."""

    samples: int = 5
    """Texts per input and label; in a task without inputs, texts per label."""
    num_inputs: int | None = None
    """How many inputs to take, or to write; None takes all."""
    seed: int = 42
    keep_unfinished: bool = False
    """Keep texts that reach ``max_new_tokens`` without the stop string."""
    keep_newlines: bool = False
    """Let texts hold newlines, instead of ending and rejecting them there."""
    min_words: int = 0
    min_tokens: int = 0
    best_of: int = 1
    """Texts written for one, where there are counter-labels; that of the best margin is kept."""
    shard_size: int = SHARD_SIZE
    """About so many texts make a shard: what a killed run loses at most, for each worker."""
    sampling: Sampling = field(default_factory=Sampling)
    input_sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class More:
    """Further samples of one label, beyond what `GenerateOptions` ask for."""

    label: str
    first: int
    """Their first number."""
    samples: int
    """Per input, or in all."""


@dataclass(frozen=True)
class Task:
    """One text to write."""

    input: int | None
    text: str | None
    label: str
    sample: int


@dataclass(frozen=True)
class Job:
    """What is asked alike of many shards."""

    spec: TaskSpec
    options: GenerateOptions
    scored: bool = False
    """Whether a scorer, if there is one, tells margins."""


@dataclass
class Shard:
    """The tasks that go into one file of accepted and one of rejected texts, and what has come of them so far."""

    path: Path
    rejected: Path
    tasks: list[Task]
    left_out: list[Dropped] = field(default_factory=list)
    """What cannot be asked about: inputs, or tasks that have none."""
    open: int = 0
    """Texts that have not ended yet."""
    ended: dict[int, tuple[Example, str | None]] = field(default_factory=dict)
    """The texts of tasks, by number, and why they are turned down, if they are."""

    @property
    def files(self) -> list[Path]:
        """Both files, in the order in which they are written."""
        return [self.rejected, self.path]

    @property
    def accepted(self) -> list[Example]:
        """What is accepted, in the order of the tasks."""
        return [example for _, (example, reason) in sorted(self.ended.items()) if reason is None]

    @property
    def dropped(self) -> list[Dropped]:
        """What is turned down, inputs first."""
        ended = (Dropped(example, reason) for _, (example, reason) in sorted(self.ended.items()) if reason is not None)
        return [*self.left_out, *ended]


@dataclass(frozen=True)
class Plan:
    """What a run is to hold."""

    run: Run
    spec: TaskSpec
    options: GenerateOptions
    more: Sequence[More] = ()
    """Samples beyond those that the options ask for."""

    @property
    def has_inputs(self) -> bool:
        """Whether all inputs that are needed are stored."""
        return self.run.inputs.exists() or not self.spec.needs_inputs

    @cached_property
    def num_inputs(self) -> int:
        """How many inputs are stored, once they are."""
        return sum(1 for _ in iter_examples(self.run.inputs))

    @property
    def texts(self) -> int:
        """How many texts that makes, once the inputs are stored."""
        samples = len(self.spec.labels) * self.options.samples + sum(each.samples for each in self.more)
        return samples * (self.num_inputs if self.spec.needs_inputs else 1)

    def shards(self) -> Iterator[Shard]:
        """Yield the shards; they depend on nothing but inputs, labels and samples."""
        yield from self._shards([(label, range(self.options.samples)) for label in self.spec.labels], "")
        for number, each in enumerate(self.more, start=1):
            yield from self._shards([(each.label, range(each.first, each.first + each.samples))], f"more{number:03d}-")

    def _shards(self, asked: Sequence[tuple[str, range]], prefix: str) -> Iterator[Shard]:
        size = self.options.shard_size
        lists = _about_inputs(self.run, asked, size) if self.spec.needs_inputs else _without_inputs(asked, size)
        for number, tasks in enumerate(lists):
            name = f"{prefix}{number:05d}.jsonl"
            yield Shard(self.run.shards / name, self.run.rejected / name, tasks)

    def is_done(self) -> bool:
        """Say whether all is there, and as it was written."""
        sums = self.run.checksums
        return self.has_inputs and all(are_whole(shard.files, sums, SilentReporter()) for shard in self.shards())


def _without_inputs(asked: Sequence[tuple[str, range]], texts: int) -> Iterator[list[Task]]:
    size = max(1, texts // len(asked))
    samples = asked[0][1]
    for first in range(0, len(samples), size):
        yield [Task(None, None, label, sample) for label, samples in asked for sample in samples[first : first + size]]


def _about_inputs(run: Run, asked: Sequence[tuple[str, range]], texts: int) -> Iterator[list[Task]]:
    size = max(1, texts // sum(len(samples) for _, samples in asked))
    inputs = enumerate(example.text_a for example in iter_examples(run.inputs))
    while some := list(itertools.islice(inputs, size)):
        yield [
            Task(number, text, label, sample) for number, text in some for label, samples in asked for sample in samples
        ]


def input_shards(run: Run, spec: TaskSpec, size: int) -> Iterator[Shard]:
    """Yield without end the shards of a spec that writes inputs, of about so many texts."""
    per_label = -(-size // len(spec.labels))
    for number in itertools.count():
        first, name = number * per_label, f"{number:05d}.jsonl"
        tasks = [Task(None, None, label, first + sample) for sample in range(per_label) for label in spec.labels]
        yield Shard(run.input_shards / name, run.input_rejected / name, tasks)


def are_whole(paths: Sequence[Path], sums: Checksums, reporter: Reporter) -> bool:
    """Whether files were finished and are as they were; one that is not is said."""
    if not sums.has(*paths):
        return False
    if spoilt := sums.first_changed(*paths):
        reporter.note(f"{spoilt}: is not what was written (another checksum): written anew")
    return spoilt is None


def unwritten(
    shards: Iterable[Shard], progress: Progress, spec: TaskSpec, sums: Checksums, reporter: Reporter
) -> Iterator[Shard]:
    """Yield the shards that are not there yet, until somebody wants to stop, and count the others."""
    for shard in shards:
        if are_whole(shard.files, sums, reporter):
            _count_stored(progress, spec, shard)
        elif reporter.should_stop():
            return
        else:
            yield shard


def _count_stored(progress: Progress, spec: TaskSpec, shard: Shard) -> None:
    """Count the texts of a shard that an earlier call finished."""
    names = {spec.value(label): label for label in spec.labels}
    before = progress.done
    for path, reason in ((shard.path, None), (shard.rejected, "rejected")):
        for example in iter_examples(path, numeric_labels=spec.is_scored):
            if example.label is not None:
                count_text(progress, names[example.label], example, reason)
        for count in progress.labels.values():
            count.rejected_in_a_row = 0  # the files do not hold the order in which texts were written
    progress.done = before + len(shard.tasks)
    progress.resumed += len(shard.tasks)


def count_text(progress: Progress, label: str, example: Example, reason: str | None) -> None:
    """Add one text to the label's counts."""
    count = progress.labels[label]
    progress.done += 1
    count.written += 1
    count.rejected_in_a_row = 0 if reason is None else count.rejected_in_a_row + 1
    if reason is None:
        count.accepted += 1
        if example.margin is not None:
            count.margin_sum += example.margin
            count.margins += 1
