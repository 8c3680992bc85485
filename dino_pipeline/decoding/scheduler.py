"""Decides which text occupies which rows, and computes prompts shortly before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.decoding.cache import DecodingRows
from dino_pipeline.decoding.engine import Request, uniforms
from dino_pipeline.decoding.prefill import PrefilledPrompts
from dino_pipeline.decoding.tokenization import Prompt

LENGTH_UNIT = 32
"""Rows have room for a multiple of this many tokens."""


@dataclass
class ActiveText:
    """A text that is being written."""

    number: int
    """Index of its request."""
    request: Request
    rows: list[int]
    """One row per prompt: the own prompt's first."""
    draws: NDArray[np.float64]
    """A random number per token."""
    tokens: list[int] = field(default_factory=list)
    log_probs: list[list[float]] = field(default_factory=list)
    """For each token, its natural-log probability under each prompt."""


Location = tuple[PrefilledPrompts, int]
"""A batch of prefilled prompts, and the index of one in it."""


class Scheduler:
    """Starts requests in rows as rows come free, in their order.

    With four rows, text A under three prompts, B under two and C under one::

        A starts in rows 3, 2, 1    free: 0
        B needs two rows and waits, and C waits behind it
        A ends                      free: 0, 3, 2, 1
        B starts in rows 1, 2       free: 0, 3
        C starts in row 3           free: 0

    Args:
        make_rows: makes a number of rows of a given length.
        max_rows: prompts that may run at the same time. A text with more prompts runs alone.
        requests: the texts to write, each with its index. They are read ahead by up to ``max_rows`` requests.
        max_new_tokens: tokens of the longest text.
    """

    def __init__(
        self,
        make_rows: Callable[[int, int], DecodingRows],
        max_rows: int,
        requests: Iterable[tuple[int, Request]],
        max_new_tokens: int,
    ) -> None:
        self.make_rows, self.max_rows, self.max_new_tokens = make_rows, max_rows, max_new_tokens
        self.unread = iter(requests)
        self.queue: deque[tuple[int, Request]] = deque()
        """Requests that wait for rows, each with its index."""
        self.length = LENGTH_UNIT
        """Tokens of the longest row that requests read so far need."""
        self.prefilled: deque[dict[Prompt, Location]] = deque(maxlen=2)
        """The latest batch of prefilled prompts, from which texts start now, and the one before, whose prompts the
        next requests may still share."""
        self.texts: list[ActiveText] = []
        self.free: list[int] = []
        """Rows without a text."""
        self._fill_queue()
        self._make_rows()

    def admit(self) -> bool:
        """Start requests from the queue as long as the next fits. Return whether any text is being written."""
        self._fill_queue()
        if self.rows.length < self.length:
            self.rows.lengthen(self.length)
        if self.queue and not self.texts and self._next_width() > self.rows.count:
            self.close()
            self._make_rows()
        placements: dict[PrefilledPrompts, list[tuple[int, int]]] = {}  # row and index of the prompt that starts there
        while self.queue and self._next_width() <= len(self.free):
            number, request = self.queue[0]
            rows = [self.free.pop() for _ in request.prompts]
            for row, prompt in zip(rows, request.prompts, strict=True):
                batch, index = self._find(prompt) or self._prefill(prompt)
                placements.setdefault(batch, []).append((row, index))
            self.texts.append(ActiveText(number, request, rows, uniforms(request.key, self.max_new_tokens)))
            self.queue.popleft()
        for batch, started in placements.items():
            self.rows.start([row for row, _ in started], batch, [index for _, index in started])
        return bool(self.texts)

    def longest(self) -> int:
        """Return the length of the longest row, with the token that the next step feeds."""
        return max(len(text.tokens) + text.request.longest_prompt for text in self.texts)

    def release(self, text: ActiveText) -> None:
        """Free the rows of a text that has ended."""
        self.texts = [other for other in self.texts if other is not text]  # a new list: callers loop over the old one
        self.free += text.rows
        self.rows.stop(text.rows)

    def compact(self) -> None:
        """Drop free rows once the queue is empty and at least half of the rows are free."""
        self._fill_queue()
        used = [row for text in self.texts for row in text.rows]
        if self.queue or not used or 2 * len(used) > self.rows.count:
            return
        self.rows.keep_rows(used)
        new_number = {row: index for index, row in enumerate(used)}
        for text in self.texts:
            text.rows = [new_number[row] for row in text.rows]
        self.free = []

    def halve(self) -> bool:
        """Continue with half as many rows. Return False if no fewer rows are possible.

        Unfinished texts return to the queue and start again. They come out the same, as a text depends on its request
        alone.
        """
        unfinished = [(text.number, text.request) for text in self.texts]
        widest = max(len(request.prompts) for _, request in (*unfinished, *self.queue))
        if self.rows.count <= widest:
            return False
        self.max_rows = max(widest, self.rows.count // 2)
        self.queue.extendleft(reversed(unfinished))
        self.close()
        self._make_rows()
        return True

    def close(self) -> None:
        """Free the memory."""
        self.prefilled.clear()
        self.rows.close()

    def _fill_queue(self) -> None:
        """Read requests until ``max_rows`` are in the queue."""
        for number, request in islice(self.unread, max(0, self.max_rows - len(self.queue))):
            self.queue.append((number, request))
            units = -(-(request.longest_prompt + self.max_new_tokens) // LENGTH_UNIT)  # rounded up
            self.length = max(self.length, units * LENGTH_UNIT)

    def _make_rows(self) -> None:
        """Make rows for the queue: no more than it needs, and enough for its first request."""
        widths = [len(request.prompts) for _, request in self.queue] or [1]
        count = max(min(self.max_rows, sum(widths)), widths[0])
        self.rows = self.make_rows(count, self.length)
        self.free = list(range(count))
        self.texts = []

    def _next_width(self) -> int:
        """Return how many rows the next request's text needs."""
        return len(self.queue[0][1].prompts)

    def _find(self, prompt: Prompt) -> Location | None:
        """Return where a prompt's keys and values are, None if they are not held."""
        return next((batch[prompt] for batch in self.prefilled if prompt in batch), None)

    def _prefill(self, prompt: Prompt) -> Location:
        """Compute a prompt together with others that the queue needs soon. Return where the prompt is.

        A batch has at least 8 prompts and an eighth of the rows, if the queue needs that many that are not held.
        """
        enough = max(min(8, self.rows.count), self.rows.count // 8)
        batch = {prompt: None}  # a dict keeps the order
        for _, request in self.queue:
            batch.update({other: None for other in request.prompts if not self._find(other)})
            if len(batch) >= enough:
                break
        prefilled = self.rows.prefill(list(batch))
        self.prefilled.append({prompt: (prefilled, index) for index, prompt in enumerate(batch)})
        return prefilled, 0
