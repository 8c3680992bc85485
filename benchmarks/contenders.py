"""The decoder's contenders: the paper's procedure, and `transformers` generate() with a logits processor.

All do the same work: for each input, three labels with no, one and two counter-prompts, and `SAMPLES` texts per label.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Request
from dino_pipeline.decoding.next_token import debias
from dino_pipeline.decoding.scheduler import ActiveText, Scheduler
from dino_pipeline.decoding.tokenization import Ending, Prompt, StopRule
from dino_pipeline.options import Sampling

VOCAB = 50257
SAMPLING = Sampling()
SAMPLES = 5
LABELS = 3
"""Label k has the k labels before it as counter-labels, as in the STS spec."""
Work = list[list[Prompt]]
"""For each input the prompt of each label."""


def random_work(inputs: int) -> Work:
    """Return prompts of random tokens, as long as the STS spec's are in GPT-2's vocabulary.

    Each label's prompts begin with 16 to 18 tokens of instruction; inputs of 12 to 35 follow; all end with the same 6.
    """
    draw = np.random.default_rng(0)

    def tokens(count: int) -> Prompt:
        return tuple(draw.integers(0, VOCAB - 1, count).tolist())

    instructions, ending = [tokens(16 + label) for label in range(LABELS)], tokens(6)
    texts = [tokens(length) for length in np.sort(draw.integers(12, 36, inputs)).tolist()]
    return [[instruction + text + ending for instruction in instructions] for text in texts]


def group(prompts: Sequence[Prompt], label: int) -> tuple[Prompt, ...]:
    """Return a label's own prompt and its counter-prompts."""
    return (prompts[label], *prompts[:label])


def planned_lengths(inputs: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return ``(inputs, labels, samples)`` text lengths, as texts of a language model have them.

    A model with random weights does not write quotation marks, so each text ends at a length drawn in advance.
    """
    draw = np.random.default_rng(1).normal(15, 6, (inputs, LABELS, SAMPLES))
    return draw.round().clip(2, SAMPLING.max_new_tokens).astype(np.int64)


# The paper's procedure: one (input, label) at a time, all its rows as one batch, always 40 steps.


@torch.inference_mode()
def run_reference(model: PreTrainedModel, work: Work) -> None:
    """Write all texts at their longest length, as the paper's code does before it looks for the end."""
    for prompts in work:
        for label in range(LABELS):
            reference_group(model, group(prompts, label))


def left_padded(model: PreTrainedModel, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Return tokens and mask."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = [(0,) * pad + prompt for prompt, pad in zip(prompts, padding, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    return torch.tensor(tokens, device=model.device), torch.tensor(mask, device=model.device)


def reference_group(model: PreTrainedModel, prompts: Sequence[Prompt]) -> Tensor:
    """Write the samples of one (input, label); rows are prompt-major."""
    tokens, mask = left_padded(model, [prompt for prompt in prompts for _ in range(SAMPLES)])
    start, cache, written = tokens.shape[1], None, tokens
    for _ in range(SAMPLING.max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        tokens = reference_choice(output.logits[:, -1].float()).repeat(len(prompts))[:, None]
        written = torch.cat([written, tokens], dim=-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    return written[:SAMPLES, start:]


def reference_choice(logits: Tensor) -> Tensor:
    """Debias sample by sample, then draw."""
    probs = logits.softmax(-1)
    for sample in range(SAMPLES):
        counters = probs[sample + SAMPLES :: SAMPLES]
        if len(counters):
            excess = (counters.amax(0) - probs[sample]).clamp(min=0)
            probs[sample] *= (-SAMPLING.decay * excess).exp().clamp(min=SAMPLING.floor)
    return draw(probs[:SAMPLES].log())


def draw(scores: Tensor) -> Tensor:
    """Take the top k, of these the top p, and draw.

    The paper's code and generate() use two classes for this. One of them sorts the whole vocabulary and makes them more
    than twice as slow. Here neither contender pays for that.
    """
    top, tokens = scores.topk(SAMPLING.top_k)
    probs = top.softmax(-1)
    probs[probs.cumsum(-1) - probs > SAMPLING.top_p] = 0
    return tokens.gather(-1, torch.multinomial(probs, 1)).squeeze(-1)


# generate() with a logits processor, as many inputs side by side as there are rows.


class Debias(LogitsProcessor):
    """Draws one token per text and gives it to all rows of the text, for which generate() would draw separately."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(scores), device=scores.device).view(self.prompts, -1).T
        log_probs = scores.float().log_softmax(-1)
        tokens = draw(debias(log_probs, rows, SAMPLING.decay, SAMPLING.floor))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.repeat(self.prompts)[:, None], 0.0)


class Planned(StoppingCriteria):
    """Ends each row at its planned length."""

    def __init__(self, start: int, lengths: Tensor) -> None:
        self.start, self.lengths = start, lengths

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids.shape[1] - self.start >= self.lengths


@torch.inference_mode()
def run_generate(model: PreTrainedModel, work: Work, rows: int) -> None:
    """Write all texts, a label at a time."""
    planned = planned_lengths(len(work))
    for label in range(LABELS):
        size = max(1, rows // (SAMPLES * (1 + label)))
        for first in range(0, len(work), size):
            inputs = [group(prompts, label) for prompts in work[first : first + size]]
            generate_batch(model, inputs, planned[first : first + size, label].reshape(-1).tolist())


def generate_batch(model: Any, inputs: Sequence[Sequence[Prompt]], lengths: list[int]) -> Tensor:
    """Write the samples of one label and several inputs; rows are prompt-major."""
    prompts = len(inputs[0])
    rows = [each[place] for place in range(prompts) for each in inputs for _ in range(SAMPLES)]
    tokens, mask = left_padded(model, rows)
    planned = torch.tensor(lengths * prompts, device=model.device)
    return model.generate(
        input_ids=tokens,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=SAMPLING.max_new_tokens,
        pad_token_id=0,
        eos_token_id=None,
        logits_processor=LogitsProcessorList([Debias(prompts)]),
        stopping_criteria=StoppingCriteriaList([Planned(tokens.shape[1], planned)]),
    )


# The decoder.


class PlannedDecoder(Decoder):
    """Ends each text at its planned length."""

    planned: Sequence[int] = ()
    step_seconds: list[float]

    def _step(self, scheduler: Scheduler, sampling: Sampling) -> None:
        start = time.perf_counter()
        super()._step(scheduler, sampling)
        if scheduler.rows.count == self.rows:
            self.step_seconds.append(time.perf_counter() - start)

    def _ending(self, text: ActiveText, rule: StopRule, max_new_tokens: int) -> Ending | None:
        return Ending("", "stop") if len(text.tokens) == self.planned[text.number] else None


def run_decoder(decoder: PlannedDecoder, work: Work) -> float | None:
    """Write all texts. Return the median seconds of a step of all rows, None if there was none."""
    requests = [
        Request(group(prompts, label), (number, label, sample))
        for number, prompts in enumerate(work)
        for label in range(LABELS)
        for sample in range(SAMPLES)
    ]
    decoder.planned = planned_lengths(len(work)).reshape(-1).tolist()
    decoder.step_seconds = []
    written = sum(1 for _ in decoder.sample(requests, SAMPLING))
    assert written == len(requests)
    return statistics.median(decoder.step_seconds) if decoder.step_seconds else None
