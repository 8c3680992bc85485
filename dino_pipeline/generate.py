"""The generate stage: inputs x labels x samples, written by a language model into shards of examples."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dino_pipeline.decoder import Completion, Decoder
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import Dropped, Example, iter_examples, write_dropped, write_examples, write_json
from dino_pipeline.lane import Request
from dino_pipeline.progress import LabelCount, Progress, Watch
from dino_pipeline.run import Run, State
from dino_pipeline.sampling import Sampling, uniforms
from dino_pipeline.spec import TaskSpec

SHARD_SAMPLES = 1024
"""About so many texts make a shard: what a killed run loses at most."""
LEAST_INPUT_SHARD = 64
"""Inputs are written so many at a time at least: fewer would not show whether a model still writes new ones."""
LEAST_NEW_INPUTS = 0.01
"""Writing inputs stops with an error when less of a shard than this is new."""


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
    sampling: Sampling = field(default_factory=Sampling)
    input_sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class _Task:
    """One text to write."""

    input: int | None
    text: str | None
    label: str
    sample: int


@dataclass
class _Shard:
    """The tasks that go into one file of accepted and one of rejected texts, and what has come of them so far."""

    path: Path
    rejected: Path
    tasks: list[_Task]
    open: int = 0
    """Texts not ended yet."""
    kept: dict[int, Example] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    turned_down: dict[int, Dropped] = field(default_factory=dict)

    def add(self, at: int, example: Example, reason: str | None) -> None:
        """Take in the text of task ``at``; the last one stores the shard."""
        if reason is None:
            self.kept[at] = example
        else:
            self.turned_down[at] = Dropped(example, reason)
        self.open -= 1
        if not self.open:
            self.store()

    def store(self) -> None:
        """Write both files; the accepted one comes last and marks the shard done."""
        write_dropped(self.rejected, [*self.dropped, *(self.turned_down[at] for at in sorted(self.turned_down))])
        write_examples(self.path, [self.kept[at] for at in sorted(self.kept)])


@dataclass(frozen=True)
class _Writer:
    """Writes tasks of one spec with one decoder."""

    spec: TaskSpec
    decoder: Decoder
    options: GenerateOptions
    sampling: Sampling
    watch: Watch
    progress: Progress

    def write(self, shards: Iterable[_Shard]) -> None:
        """Write the texts of the shards, each into its files once all its texts have ended.

        The decoder goes from one shard to the next without a pause, so that its rows stay full.
        """
        waiting: dict[int, tuple[_Shard, int]] = {}

        def requests() -> Iterator[Request]:
            numbers = itertools.count()
            for shard in shards:
                asked, shard.dropped = self._requests(shard.tasks)
                self._count_left_out(shard, len(asked))
                shard.open = len(asked)
                if not asked:
                    shard.store()
                for at, request in asked.items():
                    waiting[next(numbers)] = shard, at
                    yield request

        stop, stop_at_newline = self.spec.stop, not self.options.keep_newlines
        completions = self.decoder.sample(requests(), self.sampling, stop=stop, stop_at_newline=stop_at_newline)
        for completion in completions:
            shard, at = waiting.pop(completion.number)
            example, reason = self._example(shard.tasks[at], completion), self._defect(completion)
            self._count(shard.tasks[at].label, example, reason)
            shard.add(at, example, reason)

    def _count_left_out(self, shard: _Shard, asked: int) -> None:
        self.progress.done += len(shard.tasks) - asked
        for reason, prompts in Counter(drop.reason for drop in shard.dropped).items():
            self.watch.note(f"{prompts} prompts left out: {reason}")

    def _requests(self, tasks: Sequence[_Task]) -> tuple[dict[int, Request], list[Dropped]]:
        """Return the request of each task, shortest inputs first, and the inputs that cannot be asked about."""
        texts = list(dict.fromkeys(prompt for task in tasks for prompt in self._prompts(task)))
        encoded = dict(zip(texts, self.decoder.encode(texts), strict=True))
        requests: dict[int, Request] = {}
        reasons: dict[int | None, str | None] = {}
        for at, task in enumerate(tasks):
            prompts = tuple(encoded[prompt] for prompt in self._prompts(task))
            if task.input not in reasons or reasons[task.input] is None:
                reasons[task.input] = self._input_defect(task, prompts)
            requests[at] = Request(prompts, self._key(task))
        askable = (at for at in requests if reasons[tasks[at].input] is None)
        by_length = sorted(askable, key=lambda at: (len(tasks[at].text or ""), at))
        inputs = {task.input: task.text for task in tasks}
        dropped = [
            Dropped(Example(text_a=inputs[number] or "", input=number), reason)
            for number, reason in reasons.items()
            if reason is not None
        ]
        return {at: requests[at] for at in by_length}, dropped

    def _input_defect(self, task: _Task, prompts: Sequence[tuple[int, ...]]) -> str | None:
        if task.text is not None and not self.spec.can_show(task.text):
            return f"the input holds the stop string {self.spec.stop}"
        if not self.decoder.fits(prompts, self.sampling.max_new_tokens):
            return f"the prompt leaves less than {self.sampling.max_new_tokens} tokens of the model's context"
        return None

    def _prompts(self, task: _Task) -> list[str]:
        """Return the own prompt, then those of the counter-labels."""
        values = {
            name: choices[int(draw * len(choices))]
            for (name, choices), draw in zip(
                sorted(self.spec.variables.items()),
                uniforms((*self._key(task), "variables"), len(self.spec.variables)) if self.spec.variables else (),
                strict=True,
            )
        }
        labels = (task.label, *self.spec.labels[task.label].counter_labels)
        return [self.spec.prompt(label, task.text, values) for label in labels]

    def _key(self, task: _Task) -> tuple[str | int, ...]:
        """Return what the sample's random numbers depend on: the input by its text, so that order does not matter."""
        return (self.options.seed, self.spec.digest, task.text or "", task.label, task.sample)

    def _example(self, task: _Task, completion: Completion) -> Example:
        text = completion.text.strip()
        return Example(
            text_a=text if task.text is None else task.text,
            text_b=None if task.text is None else text,
            label=self.spec.value(task.label),
            logprob=round(completion.logprob, 4),
            margin=None if completion.margin is None else round(completion.margin, 4),
            input=task.input,
            sample=task.sample,
        )

    def _defect(self, completion: Completion) -> str | None:
        if completion.finish == "length" and not self.options.keep_unfinished:
            return "no stop string"
        if completion.finish == "newline":
            return "newline"
        if not completion.text.strip():
            return "empty"
        if len(completion.text.split()) < self.options.min_words:
            return f"fewer than {self.options.min_words} words"
        if len(completion.tokens) - (completion.finish == "stop") < self.options.min_tokens:
            return f"fewer than {self.options.min_tokens} tokens"
        return None

    def _count(self, label: str, example: Example, reason: str | None) -> None:
        count_text(self.progress, label, example, reason)
        count = self.progress.labels[label]
        if count.rejected_in_a_row >= count.next_warning:
            count.next_warning *= 2
            self.watch.note(
                f'label "{label}": the last {count.rejected_in_a_row} texts were all rejected (the latest: {reason}). '
                "The model may not follow this instruction; try another wording, a larger --max-new-tokens, "
                "or another model"
            )
        self.watch.progress(self.progress)


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


def generate(
    run: Run,
    spec: TaskSpec,
    load: Callable[[], Decoder],
    options: GenerateOptions,
    watch: Watch,
    *,
    model: dict[str, Any],
    inputs: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    fresh: bool = False,
) -> State:
    """Write the spec's texts into the run's shards, going on where an earlier call was stopped.

    Args:
        run: where to write.
        spec: what to ask.
        load: loads the decoder; called only if something is left to do.
        options: how much and how.
        watch: is told what happens.
        model: what identifies the model (name, revision, dtype ...); another model is another dataset.
        inputs: texts for ``<X1>``; None lets the spec's own inputs spec write them.
        settings: what only changes speed, for the record.
        fresh: start over.

    Returns:
        Whether the work was new, resumed, or done before.

    Raises:
        OptionError: the spec needs inputs and none are there, or has no place for those given.
        RunError: the run was begun with other options.
    """
    _check_inputs(spec, inputs)
    partial = [run.inputs, run.shards, run.rejected, run.input_shards, run.input_rejected]
    recorded = {"spec": spec.digest, "labels": list(spec.labels), **model, **_options_record(spec, inputs, options)}
    state = run.begin(
        "generate", recorded, outputs=[run.spec, run.shards], partial=partial, settings=settings, fresh=fresh
    )
    if state == "done" and all(shard.path.exists() for shard in _stored_plan(run, spec, options)):
        return state
    state = "new" if state == "new" else "resumed"
    decoder = load()
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    texts = None
    if spec.needs_inputs:
        texts = _stored_inputs(run) or _make_inputs(run, spec, inputs, decoder, options, watch)
    total = sum(len(shard.tasks) for shard in _plan(run, spec, texts, options))
    progress = Progress("texts", total, labels={label: LabelCount() for label in spec.labels})
    writer = _Writer(spec, decoder, options, options.sampling, watch, progress)
    writer.write(_unwritten(_plan(run, spec, texts, options), progress, spec))
    watch.progress(progress)
    if not any(count.accepted for count in progress.labels.values()):
        raise ModelError(f"{run.path}: no text was accepted; {run.rejected} holds each with its reason")
    counts = {label: {"written": count.written, "accepted": count.accepted} for label, count in progress.labels.items()}
    margins = {label: count.mean_margin for label, count in progress.labels.items()}
    run.finish(
        "generate",
        task=spec.task_name,
        label_type="score" if spec.is_scored else "class",
        model_commit=getattr(decoder.model.config, "_commit_hash", None),
        inputs=None if texts is None else len(texts),
        counts=counts,
        mean_margins=margins,
    )
    return state


def _check_inputs(spec: TaskSpec, inputs: Sequence[str] | None) -> None:
    if spec.needs_inputs and inputs is None and spec.inputs is None:
        raise OptionError(
            f"spec {spec.task_name}: its instructions hold <X1>, but there are no inputs; "
            'give --inputs FILE, or name a spec that writes them under "inputs"'
        )
    if not spec.needs_inputs and inputs is not None:
        raise OptionError(f"spec {spec.task_name}: its instructions lack <X1>, so --inputs has no place; leave it out")


def _options_record(spec: TaskSpec, inputs: Sequence[str] | None, options: GenerateOptions) -> dict[str, Any]:
    record = asdict(options)
    if not spec.needs_inputs:
        del record["num_inputs"]
    if isinstance(spec.inputs, TaskSpec) and inputs is None:
        record["inputs"] = {"spec": spec.inputs.digest}
    else:
        del record["input_sampling"]
        if inputs is not None:
            record["inputs"] = {"texts": _digest(inputs)}
    return record


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _plan(run: Run, spec: TaskSpec, texts: Sequence[str] | None, options: GenerateOptions) -> Iterator[_Shard]:
    """Yield the shards; the plan depends on nothing but inputs, labels and samples."""
    for number, tasks in enumerate(_task_lists(spec, texts, options.samples)):
        name = f"{number:05d}.jsonl"
        yield _Shard(run.shards / name, run.rejected / name, tasks)


def _unwritten(plan: Iterable[_Shard], progress: Progress, spec: TaskSpec) -> Iterator[_Shard]:
    """Yield the shards that are not there yet, and count the others."""
    for shard in plan:
        if shard.path.exists():
            _count_stored(progress, spec, shard)
        else:
            yield shard


def _task_lists(spec: TaskSpec, texts: Sequence[str] | None, samples: int) -> Iterator[list[_Task]]:
    if texts is None:
        size = max(1, SHARD_SAMPLES // len(spec.labels))
        for first in range(0, samples, size):
            numbers = range(first, min(samples, first + size))
            yield [_Task(None, None, label, sample) for label in spec.labels for sample in numbers]
        return
    size = max(1, SHARD_SAMPLES // (len(spec.labels) * samples))
    for first in range(0, len(texts), size):
        yield [
            _Task(number, texts[number], label, sample)
            for number in range(first, min(len(texts), first + size))
            for label in spec.labels
            for sample in range(samples)
        ]


def _stored_plan(run: Run, spec: TaskSpec, options: GenerateOptions) -> Iterator[_Shard]:
    return _plan(run, spec, _stored_inputs(run) if spec.needs_inputs else None, options)


def _stored_inputs(run: Run) -> list[str]:
    return [example.text_a for example in iter_examples(run.inputs)] if run.inputs.exists() else []


def _make_inputs(
    run: Run,
    spec: TaskSpec,
    inputs: Sequence[str] | None,
    decoder: Decoder,
    options: GenerateOptions,
    watch: Watch,
) -> list[str]:
    """Return the inputs, brought or written, after storing them in the run."""
    if inputs is None:
        assert isinstance(spec.inputs, TaskSpec)
        inputs = _write_inputs(run, spec.inputs, decoder, options, watch)
    texts = list(dict.fromkeys(inputs))[: options.num_inputs]
    if options.num_inputs and len(texts) < options.num_inputs:
        watch.note(f"{len(texts)} distinct inputs are there, {options.num_inputs} were asked for")
    write_examples(run.inputs, (Example(text_a=text, input=number) for number, text in enumerate(texts)))
    return texts


def _write_inputs(run: Run, spec: TaskSpec, decoder: Decoder, options: GenerateOptions, watch: Watch) -> list[str]:
    """Let the inputs spec write shard after shard until there are enough distinct texts."""
    if options.num_inputs is None:
        raise OptionError("how many inputs to write is not said; give --num-inputs")
    progress = Progress("inputs", total=0, labels={label: LabelCount() for label in spec.labels})
    writer = _Writer(spec, decoder, replace(options, keep_newlines=False), options.input_sampling, watch, progress)
    found: dict[str, None] = {}
    size = min(max(options.num_inputs, LEAST_INPUT_SHARD), SHARD_SAMPLES)
    per_label = -(-size // len(spec.labels))
    number = 0
    while len(found) < options.num_inputs:
        first, name = number * per_label, f"{number:05d}.jsonl"
        tasks = [_Task(None, None, label, first + sample) for sample in range(per_label) for label in spec.labels]
        progress.total = progress.done + len(tasks)
        shard = _Shard(run.input_shards / name, run.input_rejected / name, tasks)
        if shard.path.exists():
            progress.done = progress.total
            progress.resumed += len(tasks)
        else:
            writer.write([shard])
        before = len(found)
        found.update(dict.fromkeys(example.text_a for example in iter_examples(shard.path)))
        if len(found) - before < LEAST_NEW_INPUTS * len(tasks):
            raise ModelError(
                f"inputs spec {spec.task_name}: only {len(found) - before} of {len(tasks)} further texts were new, "
                f"{len(found)} of {options.num_inputs} inputs are there; sample more widely (top_k 0, top_p 0.95 in "
                "the inputs spec's sampling), ask for fewer, or bring your own with --inputs"
            )
        number += 1
    watch.progress(progress)
    return list(found)


def _count_stored(progress: Progress, spec: TaskSpec, shard: _Shard) -> None:
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
