"""Row slots: one step of a causal language model for many prompts of different lengths, on a preallocated cache.

A row holds one prompt and the tokens written so far. Rows start, stop and are refilled independently: a step feeds
every row its newest token at its own position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from dino_pipeline.decoding.attention import attention_masks, attention_windows
from dino_pipeline.decoding.devices import put
from dino_pipeline.decoding.prefill import Prefill, Prefilled, Prompt


def round_up(length: int, unit: int) -> int:
    """Return the next multiple of ``unit``."""
    return -(-length // unit) * unit


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, ``(rows, heads, length, dim)``, with a write position per row.

    The stock static layer has one length for all rows; the dynamic one copies everything at each step.
    """

    is_sliding = False
    keys: Any
    values: Any
    """None until there are some."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate room for all rows in the shapes of the first keys and values."""
        rows, length = self.slots.rows, self.slots.length
        self.keys = key_states.new_zeros(rows, key_states.shape[1], length, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], length, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store one new position per row; return views up to the longest row."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        every, at = self.slots.every_row.to(self.keys.device), self.slots.positions.to(self.keys.device)
        end = self.slots.reach
        self.keys[every, :, at] = key_states[:, :, 0]
        self.values[every, :, at] = value_states[:, :, 0]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def load(self, rows: Tensor, keys: Tensor, values: Tensor, prompts: Tensor) -> None:
        """Copy some prompts' keys and values, of ``(prompts, heads, length, dim)``, to the start of the given rows."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, prompts = rows.to(keys.device), prompts.to(keys.device)
        self.keys[rows, :, : keys.shape[2]] = keys[prompts]
        self.values[rows, :, : values.shape[2]] = values[prompts]

    def lengthen(self, length: int) -> None:
        """Make room for longer rows."""
        if self.is_initialized:
            more = (0, 0, 0, length - self.keys.shape[2])
            self.keys, self.values = pad(self.keys, more), pad(self.values, more)

    def close(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but the given ones."""
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys; unused, as every step brings its own mask."""
        return self.slots.reach, 0

    def get_seq_length(self) -> int:
        """Length of the longest row before this step."""
        return self.slots.reach - 1

    def get_max_length(self) -> int:
        return self.slots.length

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class Slots:
    """``rows`` rows of at most ``length`` tokens each, stepped together.

    Args:
        model: the causal language model.
        rows: how many prompts run side by side.
        length: tokens a row can hold, prompt and text together.
    """

    shrinks = True
    """Whether steps over fewer rows are worth a change of shapes."""

    def __init__(self, model: PreTrainedModel, rows: int, length: int) -> None:
        self.model = model
        self.rows, self.length = rows, length
        self.device = model.device
        self.every_row = torch.arange(rows, device=self.device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.reach = 1
        self.windows = attention_windows(model)
        self.prefill = Prefill(model)
        count = model.config.get_text_config().num_hidden_layers
        self.layers = [SlotLayer(self) for _ in range(count)]
        self.cache = Cache(layers=list(self.layers))

    def start(self, rows: Sequence[int], prefilled: Prefilled, numbers: Sequence[int]) -> None:
        """Start prompts in rows: the prompt ``numbers[i]`` of the prefilled ones in row ``rows[i]``."""
        at, source = put(rows, self.device), put(numbers, self.device)
        for layer, (keys, values) in zip(self.layers, prefilled.layers, strict=False):
            layer.load(at, keys, values, source)
        prompts = [prefilled.prompts[number] for number in numbers]
        self.tokens[at] = put([prompt[-1] for prompt in prompts], self.device)
        self.positions[at] = put([len(prompt) - 1 for prompt in prompts], self.device)

    def step(self, longest: int) -> Tensor:
        """Return ``(rows, vocab)`` logits after each row's newest token; ``longest`` is the longest row."""
        self.reach = longest
        keys = torch.arange(longest, device=self.device)
        output = self.model(
            input_ids=self.tokens[:, None],
            position_ids=self.positions[:, None],
            attention_mask=attention_masks(self.windows, self.positions[:, None], keys[None], self.model.dtype),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def feed(self, rows: Tensor, tokens: Tensor) -> None:
        """Give each group of rows, ``(groups, rows of a group)``, its next token; a group may name a row twice."""
        self.tokens[rows] = tokens[:, None]
        self.positions[rows] += 1

    def stop(self, rows: Sequence[int]) -> None:
        """The texts in these rows have ended; they are stepped on, unread, until others start there."""

    def close(self) -> None:
        """Give the memory back at once: layers and slots hold each other."""
        self.prefill.known = None
        for layer in self.layers:
            layer.close()

    def lengthen(self, length: int) -> None:
        """Let rows hold ``length`` tokens, more than before."""
        for layer in self.layers:
            layer.lengthen(length)
        self.length = length

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but the given ones, which become rows 0, 1, ..."""
        kept = put(rows, self.device)
        for layer in self.layers:
            layer.keep_rows(kept)
        self.rows = len(rows)
        self.every_row = torch.arange(self.rows, device=self.device)
        self.tokens, self.positions = self.tokens[kept], self.positions[kept]


class PlainRows:
    """The slots' interface without a cache of our own: each row's whole text goes through the model at each step.

    Slow, and right for every causal language model: what `Slots` cannot serve exactly runs here.
    """

    shrinks = True

    def __init__(self, model: PreTrainedModel, rows: int, length: int) -> None:
        self.model = model
        self.rows, self.length = rows, length
        self.texts: list[list[int]] = [[] for _ in range(rows)]

    def prefill(self, prompts: Sequence[Prompt]) -> Prefilled:
        """Remember the prompts; there is nothing to compute ahead."""
        return Prefilled(tuple(prompts), [])

    def start(self, rows: Sequence[int], prefilled: Prefilled, numbers: Sequence[int]) -> None:
        """Start prompts in rows: the prompt ``numbers[i]`` of the prefilled ones in row ``rows[i]``."""
        for row, number in zip(rows, numbers, strict=True):
            self.texts[row] = list(prefilled.prompts[number])

    def step(self, longest: int) -> Tensor:
        """Return ``(rows, vocab)`` logits after each row's newest token."""
        logits = [self._logits(text) if text else None for text in self.texts]
        empty = torch.zeros_like(next(row for row in logits if row is not None))
        return torch.stack([empty if row is None else row for row in logits])

    def _logits(self, text: list[int]) -> Tensor:
        tokens = torch.tensor([text], device=self.model.device)
        return self.model(input_ids=tokens, use_cache=False).logits[0, -1].float()

    def feed(self, rows: Tensor, tokens: Tensor) -> None:
        """Give each group of rows its next token; a group may name a row twice."""
        for group, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            for row in dict.fromkeys(group):
                self.texts[row].append(token)

    def stop(self, rows: Sequence[int]) -> None:
        """The texts in these rows have ended."""
        for row in rows:
            self.texts[row] = []

    def close(self) -> None:
        """There is nothing to give back."""

    def lengthen(self, length: int) -> None:
        """Let rows hold ``length`` tokens."""
        self.length = length

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but the given ones, which become rows 0, 1, ..."""
        self.texts = [self.texts[row] for row in rows]
        self.rows = len(rows)
