"""Prompts through the model: keys and values of each, computed once, and how likely given texts are after them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dino_pipeline.decoding.plain_forward import PlainForward
from dino_pipeline.decoding.tokenization import Prompt
from dino_pipeline.errors import ModelError

LEAST_SHARED = 0.25
"""A beginning is copied only if it is a larger part of the longest prompt than this."""
MAX_BATCH = 256
"""Texts scored in one batch at most."""
LOGITS = 2**25
"""Logits computed in one batch at most (128 MB in float32)."""
OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)
"""Messages of errors other than `torch.OutOfMemoryError` that say that memory is full."""


@dataclass(frozen=True, eq=False)
class PrefilledPrompts:
    """A batch of prompts whose keys and values are known."""

    prompts: tuple[Prompt, ...]
    layers: list[tuple[Tensor, Tensor]]
    """For each layer keys and values, ``(prompts, heads, length, dim)``. Empty if no prompt has two tokens."""

    def cache_of(self, numbers: Tensor, length: int | None = None) -> DynamicCache:
        """Return a cache with a row for each of some prompts, given ``(rows,)`` indices.

        It holds the first ``length`` positions, or all of them.
        """
        cache = DynamicCache()  # without a config: its sliding layers would drop early positions
        for layer, (keys, values) in enumerate(self.layers):
            rows = numbers.to(keys.device)  # layers can be spread over devices
            cache.update(keys[rows, :, :length], values[rows, :, :length], layer)
        return cache


class Prefiller:
    """Computes keys and values of prompts.

    Prompts of one instruction begin alike. If all prompts of a call begin like prompts of an earlier call, the keys and
    values of that beginning are copied. An example with words as tokens::

        known 0   Same meaning : a bird
        known 1   Same meaning : the dog runs
        new       Same meaning : a cat          begins like known 0
        new       Same meaning : the old dog    begins like known 1

    Both new prompts have 4 tokens in common with a known one. These are copied, and a batch of 2 x 1 tokens goes
    through the model: padding for the first prompt, "old" for the second. The last tokens, "cat" and "dog", are fed in
    the first decoding step.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.known: PrefilledPrompts | None = None
        """The latest prompts that were computed from their first token."""

    def compute(self, prompts: Sequence[Prompt]) -> PrefilledPrompts:
        """Run all but the last token of each prompt through the model, without logits.

        The last token is fed in the first decoding step, so that the first new token comes out of the same step as all
        others. Prompts are padded on the right, where causal attention never looks.
        """
        longest = max(len(prompt) for prompt in prompts) - 1
        shared, sources = self._shared_with_known(prompts)
        if self.known is not None and shared:
            cache = self.known.cache_of(to_device(sources, self.model.device), shared)
        else:
            cache = DynamicCache()
        if longest > shared:
            padded = [_padded(prompt, longest)[shared:] for prompt in prompts]  # (prompts, longest - shared)
            self.model.get_decoder()(
                input_ids=to_device(padded, self.model.device),
                position_ids=torch.arange(shared, longest, device=self.model.device).expand(len(prompts), -1),
                past_key_values=cache,
                use_cache=True,
            )
        prefilled = PrefilledPrompts(tuple(prompts), [(layer.keys, layer.values) for layer in cache.layers])
        if not shared:
            self.known = prefilled
        return prefilled

    def _shared_with_known(self, prompts: Sequence[Prompt]) -> tuple[int, list[int]]:
        """Return how many first tokens can be copied for all prompts, and each prompt's known prompt to copy from."""
        if self.known is None:
            return 0, []
        order = sorted(range(len(self.known.prompts)), key=self.known.prompts.__getitem__)
        ordered = [self.known.prompts[number] for number in order]
        shared = longest = max(len(prompt) for prompt in prompts) - 1
        sources = []
        for prompt in prompts:
            length, place = _closest(prompt, ordered)
            sources.append(order[place])
            if length < len(prompt) - 1:  # a prompt that is known to its end sets no limit: masks hide what follows it
                shared = min(shared, length)
        return (shared, sources) if shared > LEAST_SHARED * longest else (0, [])


def shared_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from the first."""
    for at, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return at
    return min(len(one), len(other))


def _closest(prompt: Prompt, ordered: Sequence[Prompt]) -> tuple[int, int]:
    """Return the longest beginning that a prompt shares with one of the ordered prompts, and the place of that one.

    Last tokens do not count, because they are never prefilled. In lexical order, the prompt that shares most is next to
    where the prompt itself belongs.
    """
    at = bisect(ordered, prompt)
    neighbours = range(max(0, at - 1), min(len(ordered), at + 1))
    return max((shared_start(prompt[:-1], ordered[place][:-1]), place) for place in neighbours)


def _padded(prompt: Prompt, length: int) -> Prompt:
    """Return all but the last token of a prompt, padded with that token to ``length`` tokens."""
    return prompt[:-1] + prompt[-1:] * (length + 1 - len(prompt))


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


def continuations(
    encode: Callable[[Sequence[str]], list[Prompt]], pairs: Sequence[tuple[str, str]]
) -> list[Continuation]:
    """Return the tokens of texts after their prompts. Both are tokenised together, as they are in running text.

    Args:
        encode: returns the token ids of texts.
        pairs: prompts and texts.
    """
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    encoded = dict(zip(prompts, encode(prompts), strict=True))
    whole = encode([prompt + text for prompt, text in pairs])
    return [continuation(encoded[prompt], tokens) for (prompt, _), tokens in zip(pairs, whole, strict=True)]


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


def plain_mean_log_prob(plain: PlainForward, wanted: Continuation, banned: Tensor) -> float:
    """Return one continuation's mean by a plain forward: slow, and right for every causal language model."""
    logits = plain.logits([*wanted.prompt, *wanted.tokens], last=len(wanted.tokens) + 1)[:-1]  # (text, vocab)
    return float(_log_probs(logits, torch.tensor(wanted.tokens, device=logits.device), banned).mean())


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
    cache = prefiller.compute(prompts).cache_of(prompt_of_text)

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


def _log_probs(logits: Tensor, targets: Tensor, banned: Tensor) -> Tensor:
    """Return the float64 log-probability of each target, ``(...)``, under its logits, ``(..., vocab)``."""
    logits = logits.float().index_fill_(-1, banned, -torch.inf)
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return chosen.double() - torch.logsumexp(logits, dim=-1).double()


def attention_masks(
    windows: dict[str, int | None], queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Return the additive mask, ``(rows, 1, queries, keys)``, or one per kind of layer if kinds need different masks.

    Args:
        windows: for each kind of attention layer, how many positions it looks back, None for all.
        queries: ``(rows, queries)`` positions.
        keys: ``(rows, keys)`` or ``(1, keys)`` positions. A query does not see keys after its own position.
        dtype: the model's dtype.
    """
    reach = keys.shape[1]
    binding = {kind: None if window is None or window >= reach else window for kind, window in windows.items()}
    if len(set(binding.values())) == 1:
        return _mask(next(iter(binding.values())), queries, keys, dtype)
    return {kind: _mask(window, queries, keys, dtype) for kind, window in binding.items()}


def _mask(window: int | None, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = keys[:, None] > queries[:, :, None]  # (rows, queries, keys)
    if window is not None:
        hidden |= keys[:, None] <= queries[:, :, None] - window
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def attention_windows(model: PreTrainedModel) -> dict[str, int | None]:
    """Return for each kind of attention layer how many positions it looks back, None for all.

    Raises:
        ModelError: the model has layers that a cache of rows cannot serve (linear, chunked, recurrent ...).
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"full_attention": None} if window is None else {"sliding_attention": window}
    known: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    if unknown := [kind for kind in dict.fromkeys(kinds) if kind not in known]:
        raise ModelError(f"layers of type {', '.join(unknown)}")
    return {kind: known[kind] for kind in dict.fromkeys(kinds)}


def to_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Return values as a tensor on a device. A GPU works on while they are copied."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, says that a device's memory is full."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in OUT_OF_MEMORY):
        return True
    return is_out_of_memory(error.__context__)
