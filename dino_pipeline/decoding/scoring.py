"""How likely given texts are after given prompts: each prompt goes through the model once, its texts side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dino_pipeline.decoding.attention import attention_masks, attention_windows
from dino_pipeline.decoding.devices import is_out_of_memory
from dino_pipeline.decoding.prefill import Prefill, Prompt

ROWS = 256
"""Texts scored side by side at most."""
LOGITS = 2**25
"""Logits computed at once (128 MB in float32)."""


@dataclass(frozen=True)
class Continuation:
    """Tokens whose probability after a prompt is asked for."""

    prompt: Prompt
    tokens: tuple[int, ...]


def mean_log_probs(model: PreTrainedModel, asked: Sequence[Continuation], banned: Tensor, vocab: int) -> list[float]:
    """Return each continuation's mean natural-log probability per token.

    Args:
        model: a causal language model that runs in slots.
        asked: what to score.
        banned: tokens that cannot come, and take no probability.
        vocab: logits a position.
    """
    found = [0.0] * len(asked)
    prefill = Prefill(model)
    for numbers in _batches(asked, LOGITS // vocab):
        for number, mean in zip(numbers, _means(prefill, [asked[at] for at in numbers], banned), strict=True):
            found[number] = mean
    return found


def _means(prefill: Prefill, asked: Sequence[Continuation], banned: Tensor) -> list[float]:
    """Score a batch; where memory does not hold it, its halves."""
    try:
        return _score(prefill, asked, banned).tolist()
    except RuntimeError as error:
        if len(asked) == 1 or not is_out_of_memory(error):
            raise
    half = len(asked) // 2
    return _means(prefill, asked[:half], banned) + _means(prefill, asked[half:], banned)


def plain_mean_log_prob(model: PreTrainedModel, asked: Continuation, banned: Tensor) -> float:
    """Return the same for one continuation by a plain forward: right for every causal language model, and slow."""
    tokens = torch.tensor([*asked.prompt, *asked.tokens], device=model.device)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, len(asked.prompt) - 1 : -1]
    return float(_log_probs(logits, tokens[len(asked.prompt) :], banned).mean())


def _batches(asked: Sequence[Continuation], tokens: int) -> Iterator[list[int]]:
    """Yield numbers of continuations with like prompts side by side, of about so many tokens in all."""
    order = sorted(range(len(asked)), key=lambda at: (len(asked[at].prompt), asked[at].prompt, len(asked[at].tokens)))
    batch: list[int] = []
    longest = 0
    for number in order:
        longest = max(longest, len(asked[number].tokens))
        if len(batch) == ROWS or (batch and (len(batch) + 1) * longest > tokens):
            yield batch
            batch, longest = [], len(asked[number].tokens)
        batch.append(number)
    if batch:
        yield batch


def _score(prefill: Prefill, asked: Sequence[Continuation], banned: Tensor) -> Tensor:
    """Return ``(continuations,)`` means; the last prompt token is the first that is fed, as in `Slots`."""
    model, device = prefill.model, prefill.model.device
    prompts = list(dict.fromkeys(each.prompt for each in asked))
    prefilled = prefill(prompts)
    places = {prompt: place for place, prompt in enumerate(prompts)}
    which = torch.tensor([places[each.prompt] for each in asked], device=device)
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefilled.layers):
        rows = which.to(keys.device)
        cache.update(keys[rows], values[rows], number)
    width = max(len(each.tokens) for each in asked)
    padded = [each.tokens + each.tokens[-1:] * (width - len(each.tokens)) for each in asked]
    targets = torch.tensor(padded, device=device)
    lengths = torch.tensor([len(each.tokens) for each in asked], device=device)
    starts = torch.tensor([len(each.prompt) - 1 for each in asked], device=device)[:, None]
    last = torch.tensor([each.prompt[-1] for each in asked], device=device)
    steps = torch.arange(width, device=device)
    before = torch.arange(max(map(len, prompts)) - 1, device=device).expand(len(asked), -1)
    beyond = torch.iinfo(torch.long).max
    positions = torch.cat([before.masked_fill(before >= starts, beyond), starts + steps], dim=1)
    logits = model(
        input_ids=torch.cat([last[:, None], targets[:, :-1]], dim=1),
        position_ids=starts + steps,
        attention_mask=attention_masks(attention_windows(model), starts + steps, positions, model.dtype),
        past_key_values=cache,
        use_cache=True,
    ).logits
    log_probs = _log_probs(logits, targets, banned).masked_fill(steps >= lengths[:, None], 0.0)
    return log_probs.sum(dim=1) / lengths


def _log_probs(logits: Tensor, targets: Tensor, banned: Tensor) -> Tensor:
    """Return the float64 log-probability of each target under its logits, ``(..., vocab)``."""
    logits = logits.float().index_fill_(-1, banned, -torch.inf)
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return chosen.double() - torch.logsumexp(logits, dim=-1).double()
