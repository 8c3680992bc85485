"""One decoding step for many rows, which start and stop independently in a preallocated cache of keys and values.

A row holds one prompt and the tokens written after it. Rows have different lengths: each step feeds every row its
newest token at the row's own position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from dino_pipeline.decoding.plain_forward import PlainForward
from dino_pipeline.decoding.prefill import (
    PrefilledPrompts,
    Prefiller,
    attention_masks,
    attention_windows,
    to_device,
)
from dino_pipeline.decoding.tokenization import Prompt


class RowCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, ``(rows, heads, length, dim)``, with a write position per row.

    In `transformers`, the static layer has one length for all rows, and the dynamic one copies everything at each step.
    """

    is_sliding = False
    keys: Any
    values: Any
    """None until the first keys and values come."""

    def __init__(self, rows: CachedRows) -> None:
        super().__init__()
        self.rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate room for all rows, with heads and dimensions of the first keys and values."""
        count, length = self.rows.count, self.rows.length
        self.keys = key_states.new_zeros(count, key_states.shape[1], length, key_states.shape[3])
        self.values = value_states.new_zeros(count, value_states.shape[1], length, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store one new position per row, ``(rows, heads, 1, dim)``. Return views that end at the longest row."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        every_row = self.rows.every_row.to(self.keys.device)  # layers can be spread over devices
        positions = self.rows.positions.to(self.keys.device)
        self.keys[every_row, :, positions] = key_states[:, :, 0]
        self.values[every_row, :, positions] = value_states[:, :, 0]
        return self.keys[:, :, : self.rows.reach], self.values[:, :, : self.rows.reach]

    def load(self, rows: Tensor, keys: Tensor, values: Tensor, prompts: Tensor) -> None:
        """Copy prompts' keys and values to the start of rows: those of prompt ``prompts[i]`` to row ``rows[i]``.

        Args:
            rows: ``(n,)``.
            keys: ``(prompts, heads, length, dim)``, like ``values``.
            prompts: ``(n,)``.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, prompts = rows.to(keys.device), prompts.to(keys.device)
        self.keys[rows, :, : keys.shape[2]] = keys[prompts]
        self.values[rows, :, : values.shape[2]] = values[prompts]

    def lengthen(self, length: int) -> None:
        """Make room for rows of ``length`` tokens."""
        if self.is_initialized:
            more = (0, 0, 0, length - self.keys.shape[2])  # padding before and after: of dim, then of length
            self.keys, self.values = pad(self.keys, more), pad(self.values, more)

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but the given ones."""
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            self.keys, self.values = self.keys[rows], self.values[rows]

    def close(self) -> None:
        """Free the memory."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys. `transformers` does not use them: every step brings its own mask."""
        return self.rows.reach, 0

    def get_seq_length(self) -> int:
        """Return the length of the longest row before this step."""
        return self.rows.reach - 1

    def get_max_length(self) -> int:
        """Return how many tokens a row can hold."""
        return self.rows.length

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class CachedRows:
    """Rows that step together on a preallocated cache.

    Args:
        model: the causal language model.
        count: number of rows, each with one prompt.
        length: tokens that a row can hold, prompt and text together.
    """

    def __init__(self, model: PreTrainedModel, count: int, length: int) -> None:
        self.model = model
        self.count, self.length = count, length
        self.device = model.device
        self.every_row = torch.arange(count, device=self.device)
        self.tokens = torch.zeros(count, dtype=torch.long, device=self.device)
        """``(rows,)`` each row's newest token, which the next step feeds."""
        self.positions = torch.zeros(count, dtype=torch.long, device=self.device)
        """``(rows,)`` the position of that token."""
        self.reach = 1
        """Positions that the current step looks at."""
        self.windows = attention_windows(model)
        self.prefiller = Prefiller(model)
        self.layers = [RowCacheLayer(self) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self.cache = Cache(layers=list(self.layers))

    def prefill(self, prompts: Sequence[Prompt]) -> PrefilledPrompts:
        """Compute the keys and values of prompts, to be started in rows later."""
        return self.prefiller.compute(prompts)

    def start(self, rows: Sequence[int], prefilled: PrefilledPrompts, numbers: Sequence[int]) -> None:
        """Start prompts in rows: ``prefilled.prompts[numbers[i]]`` in row ``rows[i]``."""
        at, sources = to_device(rows, self.device), to_device(numbers, self.device)
        for layer, (keys, values) in zip(self.layers, prefilled.layers, strict=False):  # no keys: prompts of one token
            layer.load(at, keys, values, sources)
        prompts = [prefilled.prompts[number] for number in numbers]
        self.tokens[at] = to_device([prompt[-1] for prompt in prompts], self.device)
        self.positions[at] = to_device([len(prompt) - 1 for prompt in prompts], self.device)

    def step(self, longest: int) -> Tensor:
        """Return ``(rows, vocab)`` logits after each row's newest token. The longest row has ``longest`` tokens."""
        self.reach = longest
        queries = self.positions[:, None]  # (rows, 1)
        keys = torch.arange(longest, device=self.device)[None]  # (1, longest)
        output = self.model(
            input_ids=self.tokens[:, None],
            position_ids=queries,
            attention_mask=attention_masks(self.windows, queries, keys, self.model.dtype),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def feed(self, rows: Tensor, tokens: Tensor) -> None:
        """Append a token to all rows of a text.

        Args:
            rows: ``(texts, rows per text)``. A text with fewer prompts than others names a row twice.
            tokens: ``(texts,)``.
        """
        self.tokens[rows] = tokens[:, None]
        self.positions[rows] += 1  # once for a row that is named twice

    def stop(self, rows: Sequence[int]) -> None:
        """Do nothing for rows whose text has ended. They step on, unread, until another prompt starts in them."""

    def lengthen(self, length: int) -> None:
        """Make room for rows of ``length`` tokens, more than before."""
        for layer in self.layers:
            layer.lengthen(length)
        self.length = length

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but the given ones, which become rows 0, 1, ..."""
        kept = to_device(rows, self.device)
        for layer in self.layers:
            layer.keep_rows(kept)
        self.count = len(rows)
        self.every_row = torch.arange(self.count, device=self.device)
        self.tokens, self.positions = self.tokens[kept], self.positions[kept]

    def close(self) -> None:
        """Free the memory now. Rows and layers refer to each other, so Python would free it only later."""
        self.prefiller.known = None
        for layer in self.layers:
            layer.close()


class UncachedRows:
    """The same interface without a cache: each step runs the whole text of each row through the model.

    Slow, and exact for every causal language model. Models, or lengths, that `CachedRows` cannot serve exactly run
    here.
    """

    def __init__(self, plain: PlainForward, count: int, length: int) -> None:
        self.plain = plain
        self.count, self.length = count, length
        self.texts: list[list[int]] = [[] for _ in range(count)]
        """Each row's prompt and text. Empty if the row is free."""

    def prefill(self, prompts: Sequence[Prompt]) -> PrefilledPrompts:
        return PrefilledPrompts(tuple(prompts), [])

    def start(self, rows: Sequence[int], prefilled: PrefilledPrompts, numbers: Sequence[int]) -> None:
        for row, number in zip(rows, numbers, strict=True):
            self.texts[row] = list(prefilled.prompts[number])

    def step(self, longest: int) -> Tensor:
        """Return ``(rows, vocab)`` logits after each row's newest token, 0 for free rows."""
        logits = [self.plain.logits(text, last=1)[0] if text else None for text in self.texts]
        zeros = torch.zeros_like(next(row for row in logits if row is not None))
        return torch.stack([zeros if row is None else row for row in logits])

    def feed(self, rows: Tensor, tokens: Tensor) -> None:
        for rows_of_text, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            for row in dict.fromkeys(rows_of_text):
                self.texts[row].append(token)

    def stop(self, rows: Sequence[int]) -> None:
        """Free the rows of a text that has ended."""
        for row in rows:
            self.texts[row] = []

    def lengthen(self, length: int) -> None:
        self.length = length

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[row] for row in rows]
        self.count = len(rows)

    def close(self) -> None:
        """Do nothing: there is no cache to free."""


DecodingRows = CachedRows | UncachedRows
