"""The texts that a preview shows: each with debiasing and without it, from the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request, Task, task_key, task_prompts, uniforms
from dino_pipeline.decoding.next_token import choose
from dino_pipeline.decoding.rejection import expected_rounds
from dino_pipeline.decoding.tokenization import UNFINISHED_BYTES, Prompt
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
    """Proposals that the debiased text would take by rejection; None without counter-labels or debiasing."""


def preview_texts(
    decoder: Decoder, spec: TaskSpec, inputs: Sequence[str], settings: GenerateSettings, count: int
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
        prompts = decoder.encode(task_prompts(spec, settings.seed, task, decoder.render))
        requests.append(Request(tuple(prompts), task_key(spec, settings.seed, task)))
    stop_at_newline = not settings.keep_newlines

    def write(sampling: Sampling) -> list[Completion]:
        completions = decoder.sample(requests, sampling, stop=spec.stop, stop_at_newline=stop_at_newline)
        return sorted(completions, key=lambda completion: completion.number)

    debiased = write(settings.sampling)
    plain = write(settings.sampling.model_copy(update={"decay": 0.0}))
    decode = decoder.stop_rule(spec.stop, stop_at_newline).decode
    texts = []
    for task, request, with_debiasing, without in zip(tasks, requests, debiased, plain, strict=True):
        log_probs = [_log_probs(decoder, prompt, with_debiasing.tokens) for prompt in request.prompts]
        changed = _changed_tokens(log_probs[0], request, with_debiasing.tokens, settings.sampling)
        pieces = list(zip(token_pieces(decode, with_debiasing.tokens), changed, strict=True))
        rounds = None
        if len(log_probs) > 1 and settings.sampling.decay:
            rounds = expected_rounds(torch.stack(log_probs, dim=1).double().cpu().numpy(), settings.sampling)
        texts.append(PreviewText(task.label, task.text, pieces, with_debiasing, without, rounds))
    return texts


def token_pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to a text; a character of several tokens comes with its last one."""
    prefixes = [decode(tokens[:end]) for end in range(1, len(tokens) + 1)]
    whole = ["", *(text.rstrip(UNFINISHED_BYTES) for text in prefixes[:-1]), prefixes[-1]]
    return [text[len(before) :] for before, text in pairwise(whole)]


@torch.inference_mode()
def _log_probs(decoder: Decoder, prompt: Prompt, tokens: Sequence[int]) -> Tensor:
    """Return the log-probabilities of all tokens at each place of a text after a prompt, ``(tokens, vocab)``."""
    input_ids = torch.tensor([[*prompt, *tokens]], device=decoder.model.device)  # (1, prompt + tokens)
    # the logits at position i predict token i + 1
    logits = decoder.model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.index_fill_(-1, decoder.banned, -torch.inf).log_softmax(-1)


def _changed_tokens(log_probs: Tensor, request: Request, tokens: Sequence[int], sampling: Sampling) -> list[bool]:
    """Return, for each token, whether its random number chooses another one under the own prompt alone.

    ``log_probs`` are those of `_log_probs` after the own prompt.
    """
    draws = torch.tensor(uniforms(request.key, len(tokens)), device=log_probs.device)  # (tokens,)
    plain = choose(log_probs, draws, sampling.top_k, sampling.top_p).tolist()
    return [token != other for token, other in zip(tokens, plain, strict=True)]
