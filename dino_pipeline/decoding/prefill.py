"""Keys and values of prompts: each distinct prompt goes through the model once, and a shared beginning only once."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dino_pipeline.decoding.hardware import to_device
from dino_pipeline.decoding.tokenization import Prompt

LEAST_SHARED = 0.25
"""A beginning is copied only if it is a larger part of the longest prompt than this."""


@dataclass(frozen=True, eq=False)
class PrefilledPrompts:
    """A batch of prompts whose keys and values are known."""

    prompts: tuple[Prompt, ...]
    layers: list[tuple[Tensor, Tensor]]
    """For each layer keys and values, ``(prompts, heads, length, dim)``. Empty if no prompt has two tokens."""


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

    Args:
        model: the causal language model.
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
        cache = DynamicCache()  # without a config: its sliding layers would drop early positions
        if shared:
            self._copy_known(cache, shared, sources)
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

    def _copy_known(self, cache: DynamicCache, shared: int, sources: Sequence[int]) -> None:
        """Put the first ``shared`` positions of known prompts into an empty cache, one source per new prompt."""
        assert self.known is not None
        rows = to_device(sources, self.model.device)
        for number, (keys, values) in enumerate(self.known.layers):
            at = rows.to(keys.device)  # layers can be spread over devices
            cache.update(keys[at, :, :shared], values[at, :, :shared], number)


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
