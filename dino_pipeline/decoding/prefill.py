"""Prompts' keys and values: each distinct prompt goes through the model once, and what prompts share not again."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from dino_pipeline.decoding.devices import put

Prompt = tuple[int, ...]
LEAST_SHARED = 0.25
"""A smaller part of the longest prompt is not worth copying."""


def shared_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from the first."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (first, second) in pairs if first != second), min(len(one), len(other)))


@dataclass(frozen=True)
class Prefilled:
    """Prompts and, for each layer, their keys and values, ``(prompts, heads, length, dim)``."""

    prompts: tuple[Prompt, ...]
    layers: list[tuple[Any, Any]]


class Prefill:
    """Computes prompts' keys and values.

    Prompts of one instruction begin alike. What all prompts of a call share with the beginnings of prompts of an
    earlier call is taken from there.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.known: Prefilled | None = None
        """The latest prompts that were computed from their first token."""

    def __call__(self, prompts: Sequence[Prompt]) -> Prefilled:
        """Run all but the last token of each prompt through the model, without logits.

        The last token comes in the first step after it, so that the first new token comes out of the same step as all
        others. Prompts are padded on the right: causal attention never looks there.
        """
        longest = max(len(prompt) for prompt in prompts) - 1
        shared, sources = self._shared(prompts)
        cache = DynamicCache()  # without a config: its sliding layers would throw early positions away
        if shared and self.known:
            at = put(sources, self.model.device)
            for number, (keys, values) in enumerate(self.known.layers):
                rows = at.to(keys.device)
                cache.update(keys[rows, :, :shared], values[rows, :, :shared], number)
        if longest > shared:
            padded = [(*prompt[:-1], *(prompt[-1:] * (longest + 1 - len(prompt))))[shared:] for prompt in prompts]
            self.model.get_decoder()(
                input_ids=put(padded, self.model.device),
                position_ids=torch.arange(shared, longest, device=self.model.device).expand(len(prompts), -1),
                past_key_values=cache,
                use_cache=True,
            )
        found = Prefilled(tuple(prompts), [(layer.keys, layer.values) for layer in cache.layers])
        if not shared:
            self.known = found
        return found

    def _shared(self, prompts: Sequence[Prompt]) -> tuple[int, list[int]]:
        """Return how many tokens all prompts share with known ones, and which those are.

        A prompt that is known whole does not limit the others.
        """
        if self.known is None:
            return 0, []
        order = sorted(range(len(self.known.prompts)), key=self.known.prompts.__getitem__)
        ordered = [self.known.prompts[number] for number in order]
        shared = longest = max(len(prompt) for prompt in prompts) - 1
        sources = []
        for prompt in prompts:
            at = bisect(ordered, prompt)
            near = range(max(0, at - 1), min(len(ordered), at + 1))
            length, best = max((shared_start(prompt[:-1], ordered[place][:-1]), place) for place in near)
            sources.append(order[best])
            if length < len(prompt) - 1:
                shared = min(shared, length)
        return (shared, sources) if shared > LEAST_SHARED * longest else (0, [])
