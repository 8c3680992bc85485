"""What a run has to write: tasks in shards of fixed content, their requests, and the shards that are still missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_pipeline.decoding.engine import Engine, Request, Task, task_key, task_prompts
from dino_pipeline.examples import Dropped, Example, iter_examples
from dino_pipeline.files import Checksums
from dino_pipeline.progress import Progress, Reporter, SilentReporter
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import ExtraSamples, GenerateSettings

LONGEST_INPUT = 1_000_000
"""In characters. Longer inputs are not even tokenised."""


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
    if changed := checksums.first_changed(*paths):
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


def _count_stored(progress: Progress, spec: TaskSpec, shard: Shard) -> None:
    """Count the texts of a shard that an earlier call stored."""
    names = {spec.value(label): label for label in spec.labels}
    done = progress.done
    for path, reason in ((shard.path, None), (shard.rejected_path, "rejected")):
        for example in iter_examples(path, numeric_labels=spec.is_scored):
            if example.label is not None:  # skipped inputs have none
                count_text(progress, names[example.label], example, reason)
        for count in progress.labels.values():
            count.rejected_in_a_row = 0  # the files do not hold the order in which texts were written
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


def shard_requests(
    job: GenerationJob, engine: Engine, tasks: Sequence[Task]
) -> tuple[dict[int, Request], list[Dropped]]:
    """Return the requests of a shard's tasks, and the inputs that the model cannot be asked about.

    One defect excludes an input with all its tasks. Without inputs it excludes the one task.

    Returns:
        Requests by the index of the task, shortest inputs first, so that rows of similar length run together; and what
        is excluded, with the reason.
    """
    spec, seed = job.spec, job.settings.seed
    prompts = [
        task_prompts(spec, seed, task, engine.render) if len(task.text or "") <= LONGEST_INPUT else [""]
        for task in tasks
    ]
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(prompts)))
    encoded = dict(zip(distinct, engine.encode(distinct), strict=True))
    requests: dict[int, Request] = {}
    excluded: dict[int | Task | None, Dropped] = {}
    for index, task in enumerate(tasks):
        request = Request(tuple(encoded[prompt] for prompt in prompts[index]), task_key(spec, seed, task))
        requests[index] = request
        if reason := _input_defect(job, engine, task, request):
            sample = task.sample if task.text is None else None
            dropped = Dropped(Example(task.text or "", input=task.input, sample=sample), reason)
            excluded.setdefault(_subject(task), dropped)
    remaining = [index for index in requests if _subject(tasks[index]) not in excluded]
    remaining.sort(key=lambda index: (len(tasks[index].text or ""), index))
    return {index: requests[index] for index in remaining}, list(excluded.values())


def _subject(task: Task) -> int | Task | None:
    """Return what a defect of a task's prompt excludes: its input or, without inputs, the task alone."""
    return task if task.text is None else task.input


def _input_defect(job: GenerationJob, engine: Engine, task: Task, request: Request) -> str | None:
    """Return why the model cannot be asked about a task's input, None if it can."""
    text, max_new_tokens = task.text or "", job.settings.sampling.max_new_tokens
    if task.text is not None and not job.spec.can_show(task.text):
        return f"the input holds the stop string {job.spec.stop}"
    if mark := next((mark for mark in engine.marks if mark in text), None):
        return f"the input holds {mark} of the model's chat template"
    if len(text) > LONGEST_INPUT:
        return f"the input is longer than {LONGEST_INPUT:,} characters"
    if not engine.fits(request.prompts, max_new_tokens):
        return f"the prompt leaves less than {max_new_tokens} tokens of the model's context"
    return None
