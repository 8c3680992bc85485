"""How likely given texts are after given prompts. Each prompt goes through the model once, its texts in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dino_pipeline.decoding.cache import attention_masks, attention_windows
from dino_pipeline.decoding.hardware import is_out_of_memory
from dino_pipeline.decoding.prefill import PrefilledPrompts, Prefiller, shared_start
from dino_pipeline.decoding.tokenization import Prompt

MAX_BATCH = 256
"""Texts scored in one batch at most."""
LOGITS = 2**25
"""Logits computed in one batch at most (128 MB in float32)."""


@dataclass(frozen=True)
class Continuation:
    """Tokens to score after a prompt."""

    prompt: Prompt
    tokens: tuple[int, ...]


def continuation(prompt: Prompt, whole: Prompt) -> Continuation:
    """Split the tokens of prompt and text together into both parts.

    A token that holds the end of the prompt and the beginning of the text counts as text. Each part has a token at
    least.
    """
    same = max(1, min(shared_start(prompt, whole), len(whole) - 1))
    return Continuation(whole[:same], whole[same:])


def mean_log_probs(model: PreTrainedModel, wanted: Sequence[Continuation], banned: Tensor, vocab: int) -> list[float]:
    """Return each continuation's mean natural-log probability per token.

    Args:
        model: a causal language model that passes the self-check for cached rows.
        wanted: the continuations to score.
        banned: tokens that are never written and so get no probability.
        vocab: logits per position.
    """
    means = [0.0] * len(wanted)
    prefiller = Prefiller(model)
    for numbers in _batches(wanted, LOGITS // vocab):
        of_batch = _score_or_halve(prefiller, [wanted[number] for number in numbers], banned)
        for number, mean in zip(numbers, of_batch, strict=True):
            means[number] = mean
    return means


def plain_mean_log_prob(model: PreTrainedModel, wanted: Continuation, banned: Tensor) -> float:
    """Return one continuation's mean by a plain forward: slow, and right for every causal language model."""
    tokens = torch.tensor([*wanted.prompt, *wanted.tokens], device=model.device)
    start = len(wanted.prompt)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, start - 1 : -1]  # (text, vocab)
    return float(_log_probs(logits, tokens[start:], banned).mean())


def _batches(wanted: Sequence[Continuation], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices, similar prompts together.

    A batch has `MAX_BATCH` rows at most, and its texts, padded, ``max_tokens`` tokens in all.
    """

    def similarity(number: int) -> tuple[int, Prompt, int]:
        return len(wanted[number].prompt), wanted[number].prompt, len(wanted[number].tokens)

    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(wanted)), key=similarity):
        longest = max(longest, len(wanted[number].tokens))
        if len(batch) == MAX_BATCH or (batch and (len(batch) + 1) * longest > max_tokens):
            yield batch
            batch, longest = [], len(wanted[number].tokens)
        batch.append(number)
    if batch:
        yield batch


def _score_or_halve(prefiller: Prefiller, wanted: Sequence[Continuation], banned: Tensor) -> list[float]:
    """Score a batch. If memory runs out, score its halves."""
    try:
        return _score(prefiller, wanted, banned).tolist()
    except RuntimeError as error:
        if len(wanted) == 1 or not is_out_of_memory(error):
            raise
    half = len(wanted) // 2
    return _score_or_halve(prefiller, wanted[:half], banned) + _score_or_halve(prefiller, wanted[half:], banned)


def _score(prefiller: Prefiller, wanted: Sequence[Continuation], banned: Tensor) -> Tensor:
    """Return ``(texts,)`` means of a batch.

    For the text "c d" after the prompt "a b", the cache holds "a", the inputs are "b c" and the targets "c d": as in
    decoding, the last token of a prompt is the first that is fed. Shorter texts are padded with their last token.
    """
    model, device = prefiller.model, prefiller.model.device
    prompts = list(dict.fromkeys(one.prompt for one in wanted))
    index = {prompt: number for number, prompt in enumerate(prompts)}
    prompt_of_text = torch.tensor([index[one.prompt] for one in wanted], device=device)  # (texts,)
    cache = _cache_per_text(prefiller.compute(prompts), prompt_of_text)

    width = max(len(one.tokens) for one in wanted)
    padded = [one.tokens + one.tokens[-1:] * (width - len(one.tokens)) for one in wanted]
    targets = torch.tensor(padded, device=device)  # (texts, width)
    lengths = torch.tensor([len(one.tokens) for one in wanted], device=device)  # (texts,)
    last = torch.tensor([one.prompt[-1] for one in wanted], device=device)  # (texts,)
    starts = torch.tensor([len(one.prompt) - 1 for one in wanted], device=device)[:, None]  # (texts, 1)
    steps = torch.arange(width, device=device)
    queries = starts + steps  # (texts, width) positions

    # Positions of all keys. Padding behind a shorter prompt gets one that no query reaches, so that masks hide it.
    unreachable = torch.iinfo(torch.long).max
    cached = torch.arange(max(map(len, prompts)) - 1, device=device).expand(len(wanted), -1)
    keys = torch.cat([cached.masked_fill(cached >= starts, unreachable), queries], dim=1)

    logits = model(
        input_ids=torch.cat([last[:, None], targets[:, :-1]], dim=1),
        position_ids=queries,
        attention_mask=attention_masks(attention_windows(model), queries, keys, model.dtype),
        past_key_values=cache,
        use_cache=True,
    ).logits  # (texts, width, vocab)
    log_probs = _log_probs(logits, targets, banned).masked_fill(steps >= lengths[:, None], 0.0)
    return log_probs.sum(dim=1) / lengths


def _cache_per_text(prefilled: PrefilledPrompts, prompt_of_text: Tensor) -> DynamicCache:
    """Return a cache with the keys and values of each text's prompt."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefilled.layers):
        rows = prompt_of_text.to(keys.device)  # layers can be spread over devices
        cache.update(keys[rows], values[rows], number)
    return cache


def _log_probs(logits: Tensor, targets: Tensor, banned: Tensor) -> Tensor:
    """Return the float64 log-probability of each target, ``(...)``, under its logits, ``(..., vocab)``."""
    logits = logits.float().index_fill_(-1, banned, -torch.inf)
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return chosen.double() - torch.logsumexp(logits, dim=-1).double()
