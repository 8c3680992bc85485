"""A look at a job before it is done: a few texts with and without debiasing, and what the whole will take."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Engine, Request
from dino_pipeline.decoding.sampling import choose, uniforms
from dino_pipeline.decoding.tokenization import UNFINISHED_BYTES
from dino_pipeline.errors import ModelError
from dino_pipeline.examples import iter_examples
from dino_pipeline.files import shard_files
from dino_pipeline.generation.estimate import LONG_ENOUGH, Estimate
from dino_pipeline.generation.generate import generate, num_inputs
from dino_pipeline.generation.plan import GenerateOptions, Task
from dino_pipeline.generation.prompts import prompts, task_key
from dino_pipeline.generation.writer import OneEngine
from dino_pipeline.options import Sampling
from dino_pipeline.processes import peak_memory
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.readers import InputFile, read_json_lines
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec

FIRST = 128
"""Texts of each label that are written to measure with, at first."""
SHORT = 0.05
"""Seconds that tell nothing."""
MOST_ROUNDS = 3


@dataclass(frozen=True)
class Drawn:
    """A text with debiasing, and the one without from the same random numbers."""

    label: str
    input: str | None
    pieces: Sequence[tuple[str, bool]]
    """What each token adds to the debiased text, and whether it would have been another without debiasing."""
    debiased: Completion
    plain: Completion


def draw(decoder: Decoder, spec: TaskSpec, inputs: Sequence[str], options: GenerateOptions, count: int) -> list[Drawn]:
    """Write ``count`` texts of each label, with debiasing and without.

    Args:
        decoder: writes them.
        spec: what to ask.
        inputs: texts for ``<X1>``, taken in turn; empty if the spec needs none.
        options: how.
        count: texts of each label.
    """
    tasks = [
        Task(at if inputs else None, inputs[at % len(inputs)] if inputs else None, label, at // max(len(inputs), 1))
        for label in spec.labels
        for at in range(count)
    ]
    asked = (decoder.encode(prompts(spec, options.seed, task, decoder.render)) for task in tasks)
    keys = (task_key(spec, options.seed, task) for task in tasks)
    requests = [Request(tuple(own_and_counters), key) for own_and_counters, key in zip(asked, keys, strict=True)]
    stop, stop_at_newline = spec.stop, not options.keep_newlines
    both = []
    for sampling in (options.sampling, options.sampling.model_copy(update={"decay": 0.0})):
        done = decoder.sample(requests, sampling, stop=stop, stop_at_newline=stop_at_newline)
        both.append(sorted(done, key=lambda each: each.number))
    decode = decoder.stop_rule(stop, stop_at_newline).decode
    found = []
    for task, request, debiased, plain in zip(tasks, requests, *both, strict=True):
        changed = _changed(decoder, request, debiased.tokens, options.sampling)
        parts = list(zip(pieces(decode, debiased.tokens), changed, strict=True))
        found.append(Drawn(task.label, task.text, parts, debiased, plain))
    return found


def pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to a text; a character of several tokens comes with the last of them."""
    texts = [decode(tokens[:end]) for end in range(1, len(tokens) + 1)]
    whole = ["", *(text.rstrip(UNFINISHED_BYTES) for text in texts[:-1]), texts[-1]]
    return [text[len(before) :] for before, text in pairwise(whole)]


@torch.inference_mode()
def _changed(decoder: Decoder, request: Request, tokens: Sequence[int], sampling: Sampling) -> list[bool]:
    """Return of each token whether the same random number chose another under the own prompt alone."""
    prompt = request.prompts[0]
    whole = torch.tensor([[*prompt, *tokens]], device=decoder.model.device)
    logits = decoder.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    log_probs = logits.index_fill_(-1, decoder.banned, -torch.inf).log_softmax(-1)
    draws = torch.tensor(uniforms(request.key, len(tokens)), device=logits.device)
    plain = choose(log_probs, draws, sampling.top_k, sampling.top_p).tolist()
    return [token != other for token, other in zip(tokens, plain, strict=True)]


class _Stopwatch:
    """Notes when how much was done."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.should_stop = reporter, reporter.should_stop
        self.begun = time.monotonic()
        self.seen: dict[str, list[tuple[float, int]]] = {}

    def update(self, progress: Progress) -> None:
        self.seen.setdefault(progress.title, []).append((time.monotonic(), progress.done))
        self.reporter.update(replace(progress, title=f"measuring: {progress.title}"))

    def note(self, message: str, remedy: str = "") -> None:
        """Say nothing: what is small now need not be small then."""

    def seconds(self, title: str) -> float:
        """Return the time from the first to the last thing done."""
        seen = self.seen.get(title)
        return seen[-1][0] - seen[0][0] if seen else 0.0

    def per_second(self, title: str, under_way: int) -> float:
        """Return the rate between the first and the last texts, of which fewer were under way side by side."""
        seen = self.seen[title]
        total = seen[-1][1]
        edge = min(under_way, total // 4)
        middle = [(at, done) for at, done in seen if edge <= done <= total - edge]
        (begun, first), (ended, last) = (middle or seen)[0], (middle or seen)[-1]
        if last == first or ended - begun < SHORT:
            (begun, first), (ended, last) = (self.begun, 0), seen[-1]
        return (last - first) / max(ended - begun, SHORT)


def measure(
    decoder: Decoder,
    spec: TaskSpec,
    inputs: InputFile | None,
    options: GenerateOptions,
    reporter: Reporter,
    *,
    loading: float,
) -> tuple[Estimate, list[str]]:
    """Do a small part of a job, and reckon what the whole will take.

    Args:
        decoder: writes the texts.
        spec: what to ask.
        inputs: texts for ``<X1>``, or None.
        options: of the whole job.
        reporter: is told how far it is.
        loading: seconds that loading the model took.

    Returns:
        The estimate, and some inputs.
    """
    counted = _Counting(decoder)
    whole = replace(options, num_inputs=num_inputs(inputs, options) if spec.needs_inputs else None)
    with tempfile.TemporaryDirectory(prefix="dino-preview-") as folder:
        run, part, stopwatch = _trial(Path(folder), counted, spec, inputs, whole, reporter)
        record = run.stage("generate")
        written_for = (example.text_a for path in shard_files(run.shards) for example in iter_examples(path))
        some = list(dict.fromkeys(written_for))[:8] if spec.needs_inputs else []
    counts = record["counts"]
    written = sum(count["written"] for count in counts.values())
    prompts = [1 + len(of_label.counter_labels) for of_label in spec.labels.values()]
    rate = stopwatch.per_second("texts", round(decoder.rows / (sum(prompts) / len(prompts))))
    texts = (whole.num_inputs or 1) * whole.samples * len(spec.labels)
    ends = max(0.0, stopwatch.seconds("texts") - written / rate)  # rows fill at first, and run empty at last
    for_inputs = stopwatch.seconds("inputs") * (whole.num_inputs or 0) / (part.num_inputs or 1)
    found = Estimate(
        texts,
        rate,
        loading + for_inputs + texts / rate + ends,
        round(counted.row_tokens / max(written, 1) * texts),
        _memory(),
        {label: count["accepted"] / max(count["written"], 1) for label, count in counts.items()},
        record["mean_margins"],
        counted.tokens / max(counted.texts, 1),
    )
    return found, some


def _trial(
    folder: Path,
    counted: _Counting,
    spec: TaskSpec,
    inputs: InputFile | None,
    whole: GenerateOptions,
    reporter: Reporter,
) -> tuple[Run, GenerateOptions, _Stopwatch]:
    """Do a part of a job that takes long enough to be measured, or all of it; return where, how much and how long."""
    hands = OneEngine(cast(Engine, counted))
    part = _part(whole, max(8, FIRST // whole.samples) if spec.needs_inputs else FIRST)
    for number in itertools.count(1):
        run, stopwatch = Run(folder / str(number)), _Stopwatch(reporter)
        counted.reset()
        try:
            generate(run, spec, lambda: hands, part, stopwatch, model={"model": "preview"}, inputs=inputs)
        except ModelError as error:
            raise ModelError(_rejected(run) or str(error)) from error
        seconds = stopwatch.seconds("texts")
        if seconds >= LONG_ENOUGH or part == whole or number == MOST_ROUNDS:
            break
        factor = 1.2 * LONG_ENOUGH / max(seconds, 0.1)
        part = _part(whole, math.ceil(factor * (part.num_inputs or part.samples)))
    return run, part, stopwatch


def _part(whole: GenerateOptions, size: int) -> GenerateOptions:
    """Return a part of a job, of so many inputs or, where there are none, samples."""
    if whole.num_inputs is None:
        return replace(whole, samples=min(whole.samples, size))
    return replace(whole, num_inputs=min(whole.num_inputs, size))


def _rejected(run: Run) -> str:
    """Return why texts were rejected, with one for each reason."""
    rows = [row for path in shard_files(run.rejected) for _, row in read_json_lines(path)]
    reasons = Counter(row["reason"] for row in rows)
    shown = {row["reason"]: str(row.get("text_b") or row["text_a"])[:80] for row in reversed(rows)}
    said = "; ".join(f"{count} {reason}, such as {shown[reason]!r}" for reason, count in reasons.most_common(3))
    remedy = "try another wording, another stop string, a larger --max-new-tokens, or another model"
    return f"none of the trial's texts was accepted: {said}; {remedy}" if rows else ""


class _Counting:
    """A decoder that counts the tokens it is asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.reset()

    def reset(self) -> None:
        self.texts = self.tokens = self.row_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def sample(self, requests: Iterable[Request], sampling: Sampling, **how: Any) -> Iterator[Completion]:
        prompts: list[int] = []

        def noted() -> Iterator[Request]:
            for request in requests:
                prompts.append(len(request.prompts))
                yield request

        for done in self.decoder.sample(noted(), sampling, **how):
            self.texts += 1
            self.tokens += done.length
            self.row_tokens += done.length * prompts[done.number]
            yield done


def _memory() -> int:
    """Return the most bytes that this process has held, the device's among them."""
    return peak_memory() + (torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0)
