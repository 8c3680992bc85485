"""Writing texts with an engine into shards: one file of accepted texts, one of rejected ones with their reasons."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from dino_pipeline.decoding.engine import Completion, Engine, Request, Scorer
from dino_pipeline.examples import Example, write_dropped, write_examples
from dino_pipeline.generation.plan import Job, Shard, Task, count_text
from dino_pipeline.generation.prompts import prompts, requests
from dino_pipeline.progress import Progress, Reporter

SCORED = 128
"""So many texts are scored at once, where a scorer tells margins."""

Stored = Callable[[Shard, Sequence[Example]], None]
"""Is told of a shard whose files are there, and what was accepted."""


class Hands(Protocol):
    """Who writes shards: an engine here, or many on a cluster."""

    def write(self, job: Job, shards: Iterable[Shard], reporter: Reporter, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files; count them, and tell of each shard that is there."""

    def facts(self) -> Mapping[str, Any]:
        """Return what run.json is to hold of who writes, beside the options."""


@dataclass(frozen=True)
class OneEngine:
    """Shards written by one engine, in this process."""

    engine: Engine
    scorer: Callable[[], Scorer] | None = None
    """Loads what tells margins, where the engine does not."""

    def write(self, job: Job, shards: Iterable[Shard], reporter: Reporter, progress: Progress, stored: Stored) -> None:
        """Write the texts of the shards into their files."""

        def store(shard: Shard) -> None:
            write_dropped(shard.rejected, shard.dropped)
            write_examples(shard.path, shard.accepted)
            stored(shard, shard.accepted)

        scorer = self.scorer() if self.scorer and job.scored else None
        Writer(job, self.engine, reporter, progress, store, scorer).write(shards)

    def facts(self) -> Mapping[str, Any]:
        return self.engine.facts()


@dataclass
class _Text:
    """A text to be chosen among candidates."""

    shard: Shard
    at: int
    """The number of its task."""
    wanted: int
    """Candidates."""
    candidates: dict[int, Completion] = field(default_factory=dict)
    """Those that have ended, by the number of their request."""

    @property
    def task(self) -> Task:
        return self.shard.tasks[self.at]


@dataclass(frozen=True)
class Writer:
    """Writes the tasks of one job with one engine."""

    job: Job
    engine: Engine
    reporter: Reporter
    progress: Progress
    store: Callable[[Shard], None]
    """Called when all texts of a shard have ended."""
    scorer: Scorer | None = None
    """What tells margins, where the engine does not."""

    def write(self, shards: Iterable[Shard]) -> None:
        """Write the texts of the shards."""
        for some in [shards] if self.engine.refill_rows else ([shard] for shard in shards):
            self._write(some)

    def _write(self, shards: Iterable[Shard]) -> None:
        waiting: dict[int, _Text] = {}
        ready: list[_Text] = []
        options, stop = self.job.options, self.job.spec.stop
        asked = self._requests(shards, waiting)
        for done in self.engine.sample(asked, options.sampling, stop=stop, stop_at_newline=not options.keep_newlines):
            text = waiting.pop(done.number)
            text.candidates[done.number] = done
            if len(text.candidates) == text.wanted:
                ready.append(text)
            if len(ready) >= (SCORED if self.scorer else 1):
                self._take(ready)
                ready = []
        self._take(ready)

    def _requests(self, shards: Iterable[Shard], waiting: dict[int, _Text]) -> Iterator[Request]:
        """Yield what is to be asked, and put down what it is asked for."""
        numbers = itertools.count()
        for shard in shards:
            asked, shard.left_out = requests(self.job, self.engine, shard.tasks)
            shard.open = len(asked)
            self._count_left_out(shard)
            if not asked:
                self.store(shard)
            for at, request in asked.items():
                contrasted = self.job.spec.labels[shard.tasks[at].label].counter_labels
                text = _Text(shard, at, self.job.options.best_of if contrasted else 1)
                for candidate in range(text.wanted):
                    waiting[next(numbers)] = text
                    yield replace(request, key=(*request.key, "candidate", candidate)) if candidate else request

    def _take(self, ready: Sequence[_Text]) -> None:
        """Choose each text among its candidates, and put it into its shard."""
        if self.scorer:
            self._score(self.scorer, ready)
        for text in ready:
            in_order = (text.candidates[number] for number in sorted(text.candidates))
            chosen = max(in_order, key=lambda each: (self._defect(each) is None, _margin(each)))
            example, reason = self._example(text.task, chosen), self._defect(chosen)
            text.shard.ended[text.at] = example, reason
            text.shard.open -= 1
            self._count(text.task.label, example, reason)
            if not text.shard.open:
                self.store(text.shard)

    def _score(self, scorer: Scorer, ready: Sequence[_Text]) -> None:
        """Give candidates log-probability and margin as the scorer finds them; those with a defect keep theirs."""
        spec, seed = self.job.spec, self.job.options.seed
        asked = [
            (text, number, [(prompt, each.text) for prompt in prompts(spec, seed, text.task, scorer.render)])
            for text in ready
            for number, each in text.candidates.items()
            if self._defect(each) is None
        ]
        answers = iter(scorer.score([pair for _, _, pairs in asked for pair in pairs], stop=spec.stop))
        for text, number, pairs in asked:
            own, *others = [next(answers).logprob for _ in pairs]
            margin = own - max(others) if others else None
            text.candidates[number] = replace(text.candidates[number], logprob=own, margin=margin)

    def _count_left_out(self, shard: Shard) -> None:
        self.progress.done += len(shard.tasks) - shard.open
        for reason, count in Counter(drop.reason for drop in shard.left_out).items():
            self.reporter.note(f"{count} {'inputs' if self.job.spec.needs_inputs else 'prompts'} left out: {reason}")

    def _example(self, task: Task, completion: Completion) -> Example:
        text = completion.text.strip()
        return Example(
            text_a=text if task.text is None else task.text,
            text_b=None if task.text is None else text,
            label=self.job.spec.value(task.label),
            logprob=None if completion.logprob is None else round(completion.logprob, 3),
            margin=None if completion.margin is None else round(completion.margin, 3),
            input=task.input,
            sample=task.sample,
        )

    def _defect(self, completion: Completion) -> str | None:
        if completion.finish == "refused":
            return "refused by the server"
        if completion.finish == "length" and not self.job.options.keep_unfinished:
            return "no stop string"
        if completion.finish == "newline":
            return "newline"
        if not completion.text.strip():
            return "empty"
        if any(mark in completion.text for mark in self.engine.marks):
            return "a mark of the chat template"
        if len(completion.text.split()) < self.job.options.min_words:
            return f"fewer than {self.job.options.min_words} words"
        if completion.length - (completion.finish == "stop") < self.job.options.min_tokens:
            return f"fewer than {self.job.options.min_tokens} tokens"
        return None

    def _count(self, label: str, example: Example, reason: str | None) -> None:
        count_text(self.progress, label, example, reason)
        count = self.progress.labels[label]
        if count.rejected_in_a_row >= count.next_warning:
            count.next_warning *= 2
            self.reporter.note(
                f'label "{label}": the last {count.rejected_in_a_row} texts were all rejected (the latest: {reason}). '
                "The model may not follow this instruction; try another wording, a larger --max-new-tokens, "
                "or another model"
            )
        self.reporter.update(self.progress)


def _margin(completion: Completion) -> float:
    return -math.inf if completion.margin is None else completion.margin
