"""The texts that a preview shows: each with debiasing and without it, from the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, LocalEngine, Request, Task, task_key, task_prompts
from dino_pipeline.decoding.rejection import expected_rounds
from dino_pipeline.decoding.tokenization import UNFINISHED_BYTES
from dino_pipeline.options import Sampling
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateSettings


@dataclass(frozen=True)
class PreviewText:
    """A text with debiasing, and the text without it from the same random numbers."""

    label: str
    input: str | None
    pieces: Sequence[tuple[str, bool]]
    """For each token of the debiased text: what it adds to the text, and whether debiasing changed it."""
    debiased: Completion
    plain: Completion
    rounds: float | None
    """Proposals that the debiased text would take by rejection; worked out for the first text of a label. None without
    counter-labels or debiasing, and of vLLM, which shows no distributions."""


def preview_texts(
    engine: LocalEngine, spec: TaskSpec, inputs: Sequence[str], settings: GenerateSettings, count: int
) -> list[PreviewText]:
    """Write ``count`` texts of each label, with debiasing and without.

    The inputs are texts for ``<X1>``, taken in turn; there are none if the spec needs none.
    """
    tasks = []
    for label in spec.labels:
        for number in range(count):
            sample, index = divmod(number, len(inputs)) if inputs else (number, 0)
            tasks.append(Task(number, inputs[index], label, sample) if inputs else Task(None, None, label, sample))
    requests = []
    for task in tasks:
        prompts = engine.encode(task_prompts(spec, settings.seed, task, engine.render))
        requests.append(Request(tuple(prompts), task_key(spec, settings.seed, task)))
    stop_at_newline = not settings.keep_newlines

    def write(sampling: Sampling) -> list[Completion]:
        completions = engine.sample(requests, sampling, stop=spec.stop, stop_at_newline=stop_at_newline)
        return sorted(completions, key=lambda completion: completion.number)

    debiased = write(settings.sampling)
    plain = write(settings.sampling.model_copy(update={"decay": 0.0}))
    texts: list[PreviewText] = []
    for task, request, with_debiasing, without in zip(tasks, requests, debiased, plain, strict=True):
        tokens = with_debiasing.tokens
        others = engine.undebiased(request, tokens, settings.sampling)
        changed = [token != other for token, other in zip(tokens, others, strict=True)]
        pieces = list(zip(token_pieces(engine.decode, tokens), changed, strict=True))
        is_first = task.label not in {text.label for text in texts}  # of its label: rounds take a while to work out
        rounds = None
        if is_first and isinstance(engine, Decoder):
            rounds = _rounds(engine, request, tokens, settings.sampling)
        texts.append(PreviewText(task.label, task.text, pieces, with_debiasing, without, rounds))
    return texts


def token_pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to a text; a character of several tokens comes with its last one."""
    prefixes = [decode(tokens[:end]) for end in range(1, len(tokens) + 1)]
    whole = ["", *(text.rstrip(UNFINISHED_BYTES) for text in prefixes[:-1]), prefixes[-1]]
    return [text[len(before) :] for before, text in pairwise(whole)]


def _rounds(decoder: Decoder, request: Request, tokens: Sequence[int], sampling: Sampling) -> float | None:
    """Return `PreviewText.rounds`."""
    if len(request.prompts) == 1 or not sampling.decay:
        return None
    log_probs = [decoder.log_probs(prompt, tokens) for prompt in request.prompts]
    return expected_rounds(torch.stack(log_probs, dim=1).double().cpu().numpy(), sampling)
