"""A look at a job before it is done: a few texts with and without debiasing, and what the whole will take."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Engine, Request
from dino_pipeline.decoding.sampling import Sampling, choose, uniforms
from dino_pipeline.digests import shard_files
from dino_pipeline.errors import ModelError
from dino_pipeline.examples import iter_examples, write_json
from dino_pipeline.generation.expected import LONG_ENOUGH
from dino_pipeline.generation.generate import generate, num_inputs
from dino_pipeline.generation.writer import GenerateOptions, OneEngine, Task, Writer
from dino_pipeline.inputs import InputFile
from dino_pipeline.progress import Progress, Watch
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


def draw(
    decoder: Decoder, spec: TaskSpec, inputs: Sequence[str], options: GenerateOptions, watch: Watch, count: int
) -> list[Drawn]:
    """Write ``count`` texts of each label, with debiasing and without.

    Args:
        decoder: writes them.
        spec: what to ask.
        inputs: texts for ``<X1>``, taken in turn; empty if the spec needs none.
        options: how.
        watch: of no use here, but writers have one.
        count: texts of each label.
    """
    writer = Writer(spec, decoder, options, options.sampling, watch, Progress("", 0))
    tasks = [
        Task(at if inputs else None, inputs[at % len(inputs)] if inputs else None, label, at // max(len(inputs), 1))
        for label in spec.labels
        for at in range(count)
    ]
    requests = [Request(tuple(decoder.encode(writer.prompts(task))), writer.key(task)) for task in tasks]
    both = []
    for sampling in (options.sampling, replace(options.sampling, decay=0.0)):
        done = decoder.sample(requests, sampling, stop=spec.stop, stop_at_newline=not options.keep_newlines)
        both.append(sorted(done, key=lambda each: each.number))
    return [
        Drawn(task.label, task.text, _pieces(decoder, request, debiased, options.sampling), debiased, plain)
        for task, request, debiased, plain in zip(tasks, requests, *both, strict=True)
    ]


@torch.inference_mode()
def _pieces(decoder: Decoder, request: Request, done: Completion, sampling: Sampling) -> list[tuple[str, bool]]:
    """Ask at each token what the same random number would have chosen under the own prompt alone."""
    prompt = request.prompts[0]
    whole = torch.tensor([[*prompt, *done.tokens]], device=decoder.model.device)
    logits = decoder.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    log_probs = logits.index_fill_(-1, decoder.banned, -torch.inf).log_softmax(-1)
    draws = torch.tensor(uniforms(request.key, len(done.tokens)), device=logits.device)
    plain = choose(log_probs, draws, sampling.top_k, sampling.top_p).tolist()
    texts = ["", *(str(decoder.tokenizer.decode(done.tokens[:end])) for end in range(1, len(done.tokens) + 1))]
    return [
        (texts[at + 1][len(texts[at]) :], token != other)
        for at, (token, other) in enumerate(zip(done.tokens, plain, strict=True))
    ]


@dataclass(frozen=True)
class Estimate:
    """What a job will take, measured on a small part of it."""

    texts: int
    """To write in all."""
    per_second: float
    seconds: float
    """Of the whole job, inputs and loading included."""
    row_tokens: int
    """Tokens to compute: those of each text, once for every prompt it is written under."""
    memory: int
    """Bytes that the process took while it was measured, the device's among them."""
    accepted: Mapping[str, float]
    """Share of each label's texts."""
    margins: Mapping[str, float | None]
    tokens: float
    """Of a text, on average."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What it is an estimate of."""

    def write(self, run: Run) -> None:
        """Store it in a run's folder, for `Expected`."""
        write_json(
            run.estimate, {"asked": self.asked, "seconds": round(self.seconds, 1), "per_second": self.per_second}
        )


class _Stopwatch:
    """Notes when how much was done."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.begun = time.monotonic()
        self.seen: dict[str, list[tuple[float, int]]] = {}

    def progress(self, progress: Progress) -> None:
        self.seen.setdefault(progress.title, []).append((time.monotonic(), progress.done))
        self.watch.progress(replace(progress, title=f"measuring: {progress.title}"))

    def note(self, message: str) -> None:
        """Say nothing: what is small now need not be small then."""

    def stopping(self) -> bool:
        """Pass it on."""
        return self.watch.stopping()

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
    watch: Watch,
    *,
    loading: float,
    asked: Mapping[str, Any],
) -> tuple[Estimate, list[str]]:
    """Do a small part of a job, and reckon what the whole will take.

    Args:
        decoder: writes the texts.
        spec: what to ask.
        inputs: texts for ``<X1>``, or None.
        options: of the whole job.
        watch: is told how far it is.
        loading: seconds that loading the model took.
        asked: what identifies the job.

    Returns:
        The estimate, and some inputs.
    """
    counted = _Counting(decoder)
    hands, model = OneEngine(cast(Engine, counted)), {"model": "preview"}
    whole = _Size.of(spec, inputs, options)
    part = replace(whole, inputs=min(whole.inputs, max(8, FIRST // options.samples)))
    if not spec.needs_inputs:
        part = _Size(0, min(options.samples, FIRST))
    with tempfile.TemporaryDirectory(prefix="dino-preview-") as folder:
        for number in range(MOST_ROUNDS):
            run, stopwatch = Run(Path(folder) / str(number)), _Stopwatch(watch)
            counted.reset()
            chosen = replace(options, samples=part.samples, num_inputs=part.inputs or None)
            try:
                generate(run, spec, lambda _: hands, chosen, stopwatch, model=model, inputs=inputs)
            except ModelError as error:
                raise ModelError(_rejected(run) or str(error)) from error
            if stopwatch.seconds("texts") >= LONG_ENOUGH or part == whole:
                break
            part = part.grown(whole, 1.2 * LONG_ENOUGH / max(stopwatch.seconds("texts"), 0.1))
        record = run.stage("generate")
        written_for = (example.text_a for path in shard_files(run.shards) for example in iter_examples(path))
        some = list(dict.fromkeys(written_for))[:8] if spec.needs_inputs else []
    counts = record["counts"]
    written = sum(count["written"] for count in counts.values())
    prompts = {label: 1 + len(of.counter_labels) for label, of in spec.labels.items()}
    under_way = round(decoder.rows / (sum(prompts.values()) / len(prompts)))
    rate = stopwatch.per_second("texts", under_way)
    texts = whole.texts(spec)
    share = whole.inputs / max(part.inputs, 1)
    ends = max(0.0, stopwatch.seconds("texts") - written / rate)  # rows fill at first, and run empty at last
    seconds = loading + share * stopwatch.seconds("inputs") + texts / rate + ends
    return (
        Estimate(
            texts,
            rate,
            seconds,
            round(counted.row_tokens / max(written, 1) * texts),
            _memory(),
            {label: count["accepted"] / max(count["written"], 1) for label, count in counts.items()},
            record["mean_margins"],
            counted.tokens / max(counted.texts, 1),
            asked,
        ),
        some,
    )


def _rejected(run: Run) -> str:
    """Return why texts were rejected, with one for each reason."""
    rows = [json.loads(line) for path in shard_files(run.rejected) for line in path.read_text("utf-8").splitlines()]
    reasons = Counter(row["reason"] for row in rows)
    shown = {row["reason"]: str(row.get("text_b") or row["text_a"])[:80] for row in reversed(rows)}
    said = "; ".join(f"{count} {reason}, such as {shown[reason]!r}" for reason, count in reasons.most_common(3))
    remedy = "try another wording, another stop string, a larger --max-new-tokens, or another model"
    return f"none of the trial's texts was accepted: {said}; {remedy}" if rows else ""


@dataclass(frozen=True)
class _Size:
    """How large a job is."""

    inputs: int
    """0 where there are none."""
    samples: int
    """Of each label, for each input."""

    @staticmethod
    def of(spec: TaskSpec, inputs: InputFile | None, options: GenerateOptions) -> _Size:
        if not spec.needs_inputs:
            return _Size(0, options.samples)
        return _Size(num_inputs(inputs, options), options.samples)

    def texts(self, spec: TaskSpec) -> int:
        return max(self.inputs, 1) * self.samples * len(spec.labels)

    def grown(self, whole: _Size, factor: float) -> _Size:
        if self.inputs:
            return replace(self, inputs=min(whole.inputs, math.ceil(factor * self.inputs)))
        return replace(self, samples=min(whole.samples, math.ceil(factor * self.samples)))


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
    host = psutil.Process().memory_info().rss
    return int(host + (torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0))
