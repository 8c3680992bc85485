"""How an engine writes shards: one file of accepted texts each, and one of rejected texts with their reasons."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dino_pipeline.decoding.engine import (
    Completion,
    Engine,
    EngineFacts,
    LocalEngine,
    Request,
    RequestKey,
    Scorer,
    Task,
    task_key,
    task_prompts,
)
from dino_pipeline.decoding.received_texts import ReceivedTexts
from dino_pipeline.examples import Dropped, Example, write_dropped, write_examples
from dino_pipeline.generation.plan import GenerationJob, OnStored, Shard, count_text
from dino_pipeline.progress import Progress, Reporter, SilentReporter
from dino_pipeline.stopping import Stopped
from dino_pipeline.text import LONGEST_TEXT, count_words

NO_TEXT: dict[str, str] = {
    "refused": "refused by the server",
    "malformed": "no text in the server's answer",
    "unanswered": "not answered by the server",
}
"""Reasons to reject what a server wrote no text for, by `Finish`."""
SCORING_BATCH = 128
"""Texts that a separate scorer scores at a time."""
PATIENCE = 4.0
"""Seconds from a request to stop in which shards under way may end."""


class ShardWriter(Protocol):
    """Writes shards, with an engine in this process or with workers on a cluster."""

    def write(
        self, job: GenerationJob, shards: Iterable[Shard], reporter: Reporter, progress: Progress, on_stored: OnStored
    ) -> None:
        """Write the texts of the shards into their files.

        Args:
            job: what the shards share.
            shards: taken one after another, as there is room for them.
            reporter: gets updates and notes.
            progress: counts the texts.
            on_stored: is called for each shard once its files are stored.
        """

    def facts(self) -> EngineFacts:
        """Return what run.json records about the writer besides the options, such as the model's commit."""

    def close(self) -> None:
        """Free the memory of the engine."""


class StopDelay:
    """Tells when a request to stop must be followed: after `PATIENCE`, in which shards under way may end."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.asked: float | None = None

    def is_over(self) -> bool:
        """Return whether the user asked to stop so long ago."""
        if self.asked is None and self.reporter.should_stop():
            self.asked = time.monotonic()
        return self.asked is not None and time.monotonic() - self.asked > PATIENCE

    def raise_if_over(self) -> None:
        if self.is_over():
            raise Stopped


@dataclass(frozen=True)
class EngineWriter:
    """Writes shards with one engine, in this process."""

    engine: Engine
    load_scorer: Callable[[], Scorer] | None = None
    """Loads the scorer of log-probabilities and margins, for engines that do not compute them."""
    received: ReceivedTexts | None = None
    """Where texts are kept until a shard holds them: a server's at once, those of other engines on a stop."""
    local: LocalEngine | None = None
    """The engine, if its model runs in this process: a stop gives up the texts under way, which are written again."""

    def write(
        self, job: GenerationJob, shards: Iterable[Shard], reporter: Reporter, progress: Progress, on_stored: OnStored
    ) -> None:
        def store(shard: Shard) -> None:
            accepted = shard.accepted
            rejected_digest = write_dropped(shard.rejected_path, shard.rejected)
            # the accepted texts come last: a shard that has them is complete
            shard.digests = {shard.rejected_path: rejected_digest, shard.path: write_examples(shard.path, accepted)}
            on_stored(shard, accepted)
            if self.received is not None:
                self.received.forget(_keys(job, shard))

        scorer = self.load_scorer() if self.load_scorer and job.use_scorer else None
        delay = StopDelay(reporter)
        if self.local is not None:
            self.local.on_step = delay.raise_if_over
        TextWriter(job, self.engine, reporter, progress, store, scorer, self.received, delay).write(shards)

    def facts(self) -> EngineFacts:
        return self.engine.facts()

    def close(self) -> None:
        self.engine.close()


@dataclass
class _PendingText:
    """A text that is being written, as one or several candidates."""

    shard: Shard
    index: int
    """Index of its task in the shard."""
    num_candidates: int
    candidates: dict[int, Completion] = field(default_factory=dict)
    """The candidates that have ended, by their number."""

    @property
    def task(self) -> Task:
        return self.shard.tasks[self.index]


@dataclass(frozen=True)
class TextWriter:
    """Writes the texts of shards with one engine, and hands each finished shard on."""

    job: GenerationJob
    engine: Engine
    reporter: Reporter
    progress: Progress
    store: Callable[[Shard], None]
    """Receives a shard once all its texts have ended."""
    scorer: Scorer | None = None
    """Computes log-probabilities and margins, if the engine does not."""
    received: ReceivedTexts | None = None
    """Texts that no shard holds yet: they are not written again, and more are added if a shard does not end."""
    delay: StopDelay = field(default_factory=lambda: StopDelay(SilentReporter()))
    ended: list[_PendingText] = field(default_factory=list)
    """Texts all of whose candidates have ended, and that no shard has yet."""
    unstored: dict[int, dict[RequestKey, Completion]] = field(default_factory=dict)
    """What has ended of shards under way, by the identity of the shard."""

    def write(self, shards: Iterable[Shard]) -> None:
        """Write all texts of the shards."""
        # Without refilling, each shard is a call of its own, so that its bytes depend on no other shard.
        for batch in [shards] if self.engine.refill_rows else ([shard] for shard in shards):
            self._write_batch(batch)

    def _write_batch(self, shards: Iterable[Shard]) -> None:
        settings, stop = self.job.settings, self.job.spec.stop
        pending: dict[int, tuple[_PendingText, int, RequestKey]] = {}  # by the number of the request
        requests = self._requests(shards, pending)
        completions = self.engine.sample(
            requests, settings.sampling, stop=stop, stop_at_newline=not settings.keep_newlines
        )
        try:
            for completion in completions:
                self._take(*pending.pop(completion.number), completion)
            self._finish_ended()
        finally:
            self._keep_unstored()

    def _requests(
        self, shards: Iterable[Shard], pending: dict[int, tuple[_PendingText, int, RequestKey]]
    ) -> Iterator[Request]:
        """Yield the requests of the shards' texts, and enter each into ``pending``; take what was received before."""
        numbers = itertools.count()
        for shard in shards:
            for index, request in self._open(shard).items():
                has_counters = self.job.spec.labels[shard.tasks[index].label].counter_labels
                text = _PendingText(shard, index, self.job.settings.best_of if has_counters else 1)
                for candidate in range(text.num_candidates):
                    key = _candidate_key(request.key, candidate)
                    if known := self.received and self.received.get(key):
                        self._take(text, candidate, key, known)
                    elif self.delay.is_over():
                        return
                    else:
                        pending[next(numbers)] = (text, candidate, key)
                        yield replace(request, key=key)

    def _open(self, shard: Shard) -> dict[int, Request]:
        """Return the requests of a shard's texts; note which of its inputs are left out."""
        kind = "inputs" if self.job.spec.needs_inputs else "prompts"
        requests, shard.skipped = shard_requests(self.job, self.engine, shard.tasks)
        shard.num_unfinished = len(requests)
        self.progress.done += len(shard.tasks) - len(requests)
        for reason, count in Counter(dropped.reason for dropped in shard.skipped).items():
            self.reporter.note(f"{count} {kind} left out: {reason}")
        if not requests:
            self.store(shard)
        return requests

    def _take(self, text: _PendingText, candidate: int, key: RequestKey, completion: Completion) -> None:
        """Take a candidate that has ended."""
        text.candidates[candidate] = completion
        self.unstored.setdefault(id(text.shard), {})[key] = completion
        if len(text.candidates) == text.num_candidates:
            self.ended.append(text)
        if len(self.ended) >= (SCORING_BATCH if self.scorer else 1):
            self._finish_ended()

    def _finish_ended(self) -> None:
        ended = [*self.ended]
        self.ended.clear()
        self._finish(ended)

    def _keep_unstored(self) -> None:
        """Keep what has ended of shards that have not, because the work was cut short."""
        if self.received is None:
            return
        for completions in self.unstored.values():
            for key, completion in completions.items():
                # a prompt that a server left without a text is asked again
                if completion.finish not in NO_TEXT and self.received.get(key) is None:
                    self.received.add(key, completion)
        self.unstored.clear()

    def _finish(self, ended: Sequence[_PendingText]) -> None:
        """Choose the best candidate of each text, and put it into its shard."""
        if self.scorer:
            self._score(self.scorer, ended)
        for text in ended:
            candidates = [text.candidates[number] for number in sorted(text.candidates)]
            best = max(candidates, key=lambda candidate: (self._defect(candidate) is None, _margin(candidate)))
            example, reason = self._example(text.task, best), self._defect(best)
            text.shard.results[text.index] = example if reason is None else Dropped(example, reason)
            text.shard.num_unfinished -= 1
            self.progress.labels[text.task.label].tokens += sum(candidate.length for candidate in candidates)
            self._count(text.task.label, example, reason)
            if not text.shard.num_unfinished:
                self.unstored.pop(id(text.shard), None)
                self.store(text.shard)

    def _score(self, scorer: Scorer, ended: Sequence[_PendingText]) -> None:
        """Replace log-probability and margin of all candidates without a defect by the scorer's."""
        spec, seed = self.job.spec, self.job.settings.seed
        scored: list[tuple[_PendingText, int, int]] = []  # text, number of the candidate, number of its prompts
        pairs: list[tuple[str, str]] = []  # rendered prompt, text
        for text in ended:
            prompts = task_prompts(spec, seed, text.task, scorer.render)
            for number, candidate in text.candidates.items():
                if self._defect(candidate) is None:
                    scored.append((text, number, len(prompts)))
                    pairs += [(prompt, candidate.text) for prompt in prompts]
        scores = iter(scorer.score(pairs, stop=spec.stop))
        for text, number, num_prompts in scored:
            own, *counters = [next(scores).logprob for _ in range(num_prompts)]
            margin = own - max(counters) if counters and math.isfinite(own - max(counters)) else None
            text.candidates[number] = replace(text.candidates[number], logprob=own, margin=margin)

    def _example(self, task: Task, completion: Completion) -> Example:
        text = completion.text.strip()
        return Example(
            text_a=text if task.text is None else task.text,
            text_b=None if task.text is None else text,
            label=self.job.spec.value(task.label),
            logprob=_rounded(completion.logprob),
            margin=_rounded(completion.margin),
            input=task.input,
            sample=task.sample,
        )

    def _defect(self, completion: Completion) -> str | None:
        """Return the reason to reject a text, None if there is none."""
        settings = self.job.settings
        if completion.finish in NO_TEXT:
            return NO_TEXT[completion.finish]
        if completion.logprob is not None and not math.isfinite(completion.logprob):
            return "not scored"
        if len(completion.text) > LONGEST_TEXT:
            return f"longer than {LONGEST_TEXT:,} characters"
        if completion.finish == "length" and not settings.keep_unfinished:
            return "no stop string"
        if completion.finish == "newline":
            return "newline"
        if not completion.text.strip():
            return "empty"
        if any(mark in completion.text for mark in self.engine.marks):
            return "a mark of the chat template"
        if count_words(completion.text) < settings.min_words:
            return f"fewer than {settings.min_words} words"
        # a server need not tell the number of tokens; then it is 0
        if completion.length and completion.length - (completion.finish == "stop") < settings.min_tokens:
            return f"fewer than {settings.min_tokens} tokens"
        return None

    def _count(self, label: str, example: Example, reason: str | None) -> None:
        """Count a text, and warn of a label whose texts are all rejected."""
        count_text(self.progress, label, example, reason)
        count = self.progress.labels[label]
        if count.rejected_in_a_row >= count.next_warning:
            count.next_warning *= 2
            self.reporter.note(
                f'label "{label}": the last {count.rejected_in_a_row} texts were all rejected (the latest: {reason}). '
                "The model may not follow this instruction",
                "try another wording, a larger {max_new_tokens}, or another model",
            )
        self.reporter.update(self.progress)


def _rounded(value: float | None) -> float | None:
    """Return a figure as files hold it, None if it is not finite, which JSON cannot say."""
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _candidate_key(key: RequestKey, candidate: int) -> RequestKey:
    """Return the key of one of several candidates. The first one's is the plain key, as it is the text of best_of 1."""
    return (*key, "candidate", candidate) if candidate else key


def _keys(job: GenerationJob, shard: Shard) -> Iterator[RequestKey]:
    """Yield the keys of all requests that a shard can have made."""
    for task in shard.tasks:
        key = task_key(job.spec, job.settings.seed, task)
        for candidate in range(job.settings.best_of):
            yield _candidate_key(key, candidate)


def _margin(completion: Completion) -> float:
    return -math.inf if completion.margin is None else completion.margin


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
    prompts = [task_prompts(spec, seed, task, engine.render) for task in tasks]
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
    if not engine.fits(request.prompts, max_new_tokens):
        return f"the prompt leaves less than {max_new_tokens} tokens of the model's context"
    return None
