"""Writing texts with an engine into shards: one file of accepted texts, one of rejected ones with their reasons."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from dino_pipeline.decoding.engine import Completion, Engine, Request, Scorer
from dino_pipeline.decoding.sampling import Sampling, uniforms
from dino_pipeline.examples import Dropped, Example, write_dropped, write_examples
from dino_pipeline.progress import Progress, Watch
from dino_pipeline.spec import TaskSpec

SHARD_SIZE = 1024
LONGEST_INPUT = 1_000_000
"""In characters: what is longer is not even cut into tokens."""
SCORED = 128
"""So many texts are scored at once, where a scorer tells margins."""


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


def _asked(task: Task) -> tuple[Any, ...]:
    """Return what a task shares with those that cannot be asked about if it cannot: its input, if it has one."""
    return (task.label, task.sample) if task.text is None else (task.input,)


@dataclass
class Shard:
    """The tasks that go into one file of accepted and one of rejected texts, and what has come of them so far."""

    path: Path
    rejected: Path
    tasks: list[Task]
    open: int = 0
    """Texts not ended yet."""
    candidates: dict[int, dict[int, Completion]] = field(default_factory=dict)
    """What was written for each task so far, by number."""
    kept: dict[int, Example] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    turned_down: dict[int, Dropped] = field(default_factory=dict)

    def add(self, at: int, example: Example, reason: str | None) -> None:
        """Take in the text of task ``at``."""
        if reason is None:
            self.kept[at] = example
        else:
            self.turned_down[at] = Dropped(example, reason)
        self.open -= 1

    def store(self) -> list[Example]:
        """Write both files, and return what was accepted."""
        write_dropped(self.rejected, self.all_dropped)
        write_examples(self.path, self.all_kept)
        return self.all_kept

    @property
    def all_kept(self) -> list[Example]:
        """What was accepted, in the order of the tasks."""
        return [self.kept[at] for at in sorted(self.kept)]

    @property
    def all_dropped(self) -> list[Dropped]:
        """What was turned down, inputs first."""
        return [*self.dropped, *(self.turned_down[at] for at in sorted(self.turned_down))]


Stored = Callable[[Shard, Sequence[Example]], None]
"""Is told of a shard whose files are there, and what was accepted."""


@dataclass(frozen=True)
class Job:
    """What is asked alike of many shards."""

    spec: TaskSpec
    options: GenerateOptions
    sampling: Sampling
    scored: bool = False
    """Whether a scorer, if there is one, tells margins."""


class Hands(Protocol):
    """Who writes shards: an engine here, or many on a cluster."""

    def write(self, job: Job, shards: Iterable[Shard], watch: Watch, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files; count them, and tell of each shard that is there."""

    def facts(self) -> Mapping[str, Any]:
        """Return what run.json is to hold of who writes, beside the options."""


@dataclass(frozen=True)
class OneEngine:
    """Shards written by one engine, in this process."""

    engine: Engine
    scorer: Callable[[], Scorer] | None = None
    """Loads what tells margins, where the engine does not."""

    def write(self, job: Job, shards: Iterable[Shard], watch: Watch, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files."""
        scorer = self.scorer() if self.scorer and job.scored else None
        Writer(job.spec, self.engine, job.options, job.sampling, watch, progress, scorer, stored).write(shards)

    def facts(self) -> Mapping[str, Any]:
        """Return what the engine has to tell."""
        return self.engine.facts()


@dataclass(frozen=True)
class Writer:
    """Writes tasks of one spec with one engine."""

    spec: TaskSpec
    engine: Engine
    options: GenerateOptions
    sampling: Sampling
    watch: Watch
    progress: Progress
    scorer: Scorer | None = None
    """What tells margins, where the engine does not."""
    stored: Stored = lambda shard, accepted: None
    """Called when a shard's files are there."""

    def write(self, shards: Iterable[Shard]) -> None:
        """Write the texts of the shards, each into its files once all its texts have ended."""
        for some in [shards] if self.engine.streams else ([shard] for shard in shards):
            self._write(some)

    def _write(self, shards: Iterable[Shard]) -> None:
        waiting: dict[int, tuple[Shard, int, int]] = {}

        def requests() -> Iterator[Request]:
            numbers = itertools.count()
            for shard in shards:
                asked, shard.dropped = self._requests(shard.tasks)
                self._count_left_out(shard, len(asked))
                shard.open = len(asked)
                if not asked:
                    self._store(shard)
                for at, request in asked.items():
                    for candidate in range(self._candidates(shard.tasks[at])):
                        waiting[next(numbers)] = shard, at, candidate
                        key = (*request.key, "candidate", candidate) if candidate else request.key
                        yield replace(request, key=key)

        stop, stop_at_newline = self.spec.stop, not self.options.keep_newlines
        completions = self.engine.sample(requests(), self.sampling, stop=stop, stop_at_newline=stop_at_newline)
        ready: list[tuple[Shard, int]] = []
        for completion in completions:
            shard, at, candidate = waiting.pop(completion.number)
            shard.candidates.setdefault(at, {})[candidate] = completion
            if len(shard.candidates[at]) == self._candidates(shard.tasks[at]):
                ready.append((shard, at))
            if len(ready) >= (SCORED if self.scorer else 1):
                self._take(ready)
                ready = []
        self._take(ready)

    def _candidates(self, task: Task) -> int:
        return self.options.best_of if self.spec.labels[task.label].counter_labels else 1

    def _take(self, ready: Sequence[tuple[Shard, int]]) -> None:
        """Choose the text of each task among its candidates, and put it into its shard."""
        found = [list(dict(sorted(shard.candidates.pop(at).items())).values()) for shard, at in ready]
        if self.scorer:
            found = self._scored(self.scorer, ready, found)
        for (shard, at), candidates in zip(ready, found, strict=True):
            completion = max(candidates, key=lambda each: (self._defect(each) is None, _margin(each)))
            example, reason = self._example(shard.tasks[at], completion), self._defect(completion)
            shard.add(at, example, reason)
            self._count(shard.tasks[at].label, example, reason)
            if not shard.open:
                self._store(shard)

    def _scored(
        self, scorer: Scorer, ready: Sequence[tuple[Shard, int]], found: Sequence[Sequence[Completion]]
    ) -> list[list[Completion]]:
        """Return candidates with log-probability and margin as the scorer finds them; those with a defect have none."""
        asked = {
            (place, number): [(prompt, each.text) for prompt in self.prompts(shard.tasks[at], scorer)]
            for place, ((shard, at), candidates) in enumerate(zip(ready, found, strict=True))
            for number, each in enumerate(candidates)
            if self._defect(each) is None
        }
        answers = iter(scorer.score([pair for pairs in asked.values() for pair in pairs], stop=self.spec.stop))
        told: dict[tuple[int, int], tuple[float, float | None]] = {}
        for key, pairs in asked.items():
            own, *others = [next(answers).logprob for _ in pairs]
            told[key] = own, own - max(others) if others else None
        return [
            [
                replace(each, logprob=told[place, number][0], margin=told[place, number][1])
                if (place, number) in told
                else each
                for number, each in enumerate(candidates)
            ]
            for place, candidates in enumerate(found)
        ]

    def _store(self, shard: Shard) -> None:
        self.stored(shard, shard.store())

    def _count_left_out(self, shard: Shard, asked: int) -> None:
        self.progress.done += len(shard.tasks) - asked
        for reason, prompts in Counter(drop.reason for drop in shard.dropped).items():
            self.watch.note(f"{prompts} {'inputs' if self.spec.needs_inputs else 'prompts'} left out: {reason}")

    def _requests(self, tasks: Sequence[Task]) -> tuple[dict[int, Request], list[Dropped]]:
        """Return the request of each task, shortest inputs first, and the inputs that cannot be asked about."""
        of_tasks = [self.prompts(task) if len(task.text or "") <= LONGEST_INPUT else [""] for task in tasks]
        texts = list(dict.fromkeys(itertools.chain.from_iterable(of_tasks)))
        encoded = dict(zip(texts, self.engine.encode(texts), strict=True))
        requests: dict[int, Request] = {}
        reasons: dict[tuple[Any, ...], str | None] = {}
        for at, task in enumerate(tasks):
            prompts = tuple(encoded[prompt] for prompt in of_tasks[at])
            if reasons.get(_asked(task)) is None:
                reasons[_asked(task)] = self._input_defect(task, prompts)
            requests[at] = Request(prompts, self.key(task))
        askable = (at for at in requests if reasons[_asked(tasks[at])] is None)
        by_length = sorted(askable, key=lambda at: (len(tasks[at].text or ""), at))
        about = {_asked(task): task for task in reversed(tasks)}
        left_out = [(about[asked], reason) for asked, reason in reasons.items() if reason is not None]
        dropped = [
            Dropped(
                Example(task.text or "", input=task.input, sample=task.sample if task.text is None else None), reason
            )
            for task, reason in left_out
        ]
        return {at: requests[at] for at in by_length}, dropped

    def _input_defect(self, task: Task, prompts: Sequence[tuple[int, ...]]) -> str | None:
        if task.text is not None and not self.spec.can_show(task.text):
            return f"the input holds the stop string {self.spec.stop}"
        if mark := next((mark for mark in self.engine.marks if mark in (task.text or "")), None):
            return f"the input holds {mark} of the model's chat template"
        if len(task.text or "") > LONGEST_INPUT:
            return f"the input is longer than {LONGEST_INPUT:,} characters"
        if not self.engine.fits(prompts, self.sampling.max_new_tokens):
            return f"the prompt leaves less than {self.sampling.max_new_tokens} tokens of the model's context"
        return None

    def prompts(self, task: Task, reader: Scorer | None = None) -> list[str]:
        """Return the own prompt, then those of the counter-labels, as a reader reads them: the engine, or a scorer."""
        values, render = drawn_values(self.spec, self.key(task)), (reader or self.engine).render
        labels = (task.label, *self.spec.labels[task.label].counter_labels)
        return [render(self.spec.prompt(label, task.text, values), self.spec.opening(label)) for label in labels]

    def key(self, task: Task) -> tuple[str | int, ...]:
        """Return what the sample's random numbers depend on: the input by its text, so that order does not matter."""
        return sample_key(self.spec, self.options.seed, task.text, task.label, task.sample)

    def _example(self, task: Task, completion: Completion) -> Example:
        text = completion.text.strip()
        return Example(
            text_a=text if task.text is None else task.text,
            text_b=None if task.text is None else text,
            label=self.spec.value(task.label),
            logprob=None if completion.logprob is None else round(completion.logprob, 3),
            margin=None if completion.margin is None else round(completion.margin, 3),
            input=task.input,
            sample=task.sample,
        )

    def _defect(self, completion: Completion) -> str | None:
        if completion.finish == "refused":
            return "refused by the server"
        if completion.finish == "length" and not self.options.keep_unfinished:
            return "no stop string"
        if completion.finish == "newline":
            return "newline"
        if not completion.text.strip():
            return "empty"
        if any(mark in completion.text for mark in self.engine.marks):
            return "a mark of the chat template"
        if len(completion.text.split()) < self.options.min_words:
            return f"fewer than {self.options.min_words} words"
        if completion.length - (completion.finish == "stop") < self.options.min_tokens:
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


def _margin(completion: Completion) -> float:
    return -math.inf if completion.margin is None else completion.margin


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


def sample_key(spec: TaskSpec, seed: int, text: str | None, label: str, sample: int) -> tuple[str | int, ...]:
    """Return what a sample's random numbers depend on."""
    return (seed, spec.digest, text or "", label, sample)


def drawn_values(spec: TaskSpec, key: tuple[str | int, ...]) -> dict[str, str]:
    """Return a value for each of the spec's variables, drawn by the sample's key."""
    choices = sorted(spec.variables.items())
    draws = uniforms((*key, "variables"), len(choices))
    return {name: of[int(draw * len(of))] for (name, of), draw in zip(choices, draws, strict=True)}
