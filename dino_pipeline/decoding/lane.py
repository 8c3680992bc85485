"""Which text sits in which rows: requests come in as rows fall free, prompts are computed shortly before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.decoding.engine import Request
from dino_pipeline.decoding.prefill import Prefilled, Prompt
from dino_pipeline.decoding.sampling import uniforms
from dino_pipeline.decoding.slots import PlainRows, Slots, round_up

LENGTHS = 32
"""Rows are laid out in multiples of so many tokens."""


@dataclass
class Text:
    """A text being written."""

    number: int
    request: Request
    rows: list[int]
    draws: NDArray[np.float64]
    asked: int = 0
    """Tokens that the model was asked for; the latest may not be read yet."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    """For each token, its log-probability under each prompt."""
    ended: bool = False


class Lane:
    """Takes requests in as rows come free, and looks ahead at as many as it has rows.

    Args:
        make_rows: makes so many rows of such a length.
        most_rows: prompts that may run side by side.
        requests: what to write.
        max_new_tokens: longest text.
    """

    def __init__(
        self,
        make_rows: Callable[[int, int], Slots | PlainRows],
        most_rows: int,
        requests: Iterable[Request],
        max_new_tokens: int,
    ) -> None:
        self.coming = enumerate(requests)
        self.waiting: deque[tuple[int, Request]] = deque()
        self.length = LENGTHS
        self.make_rows, self.most_rows, self.max_new_tokens = make_rows, most_rows, max_new_tokens
        self.prefilled: deque[dict[Prompt, tuple[Prefilled, int]]] = deque(maxlen=2)
        self._look_ahead()
        self._begin()

    def _begin(self) -> None:
        """Make rows for what waits: no more than needed, enough for the first."""
        widths = [len(request.prompts) for _, request in self.waiting] or [1]
        self.slots = self.make_rows(max(min(self.most_rows, sum(widths)), widths[0]), self.length)
        self.free = list(range(self.slots.rows))
        self.texts: list[Text] = []

    def _begin_anew(self) -> None:
        self.close()
        self._begin()

    def close(self) -> None:
        """Give the memory back."""
        self.prefilled.clear()
        self.slots.close()

    def _look_ahead(self) -> None:
        for number, request in islice(self.coming, max(0, self.most_rows - len(self.waiting))):
            self.waiting.append((number, request))
            self.length = max(self.length, round_up(request.longest_prompt + self.max_new_tokens, LENGTHS))

    def admit(self) -> bool:
        """Start waiting requests in free rows; return whether any text is being written."""
        self._look_ahead()
        if self.slots.length < self.length:
            self.slots.lengthen(self.length)
        starts: dict[int, tuple[Prefilled, list[int], list[int]]] = {}
        while self._has_room():
            number, request = self.waiting[0]
            rows = [self.free.pop() for _ in request.prompts]
            for row, prompt in zip(rows, request.prompts, strict=True):
                prefilled, index = self._prefilled(prompt)
                _, to_rows, indices = starts.setdefault(id(prefilled), (prefilled, [], []))
                to_rows.append(row)
                indices.append(index)
            self.texts.append(Text(number, request, rows, uniforms(request.key, self.max_new_tokens)))
            self.waiting.popleft()
        for prefilled, to_rows, indices in starts.values():
            self.slots.start(to_rows, prefilled, indices)
        return bool(self.texts)

    def _has_room(self) -> bool:
        """Whether the next request fits in the free rows, of which more are made if it needs more than there are."""
        if not self.waiting:
            return False
        width = len(self.waiting[0][1].prompts)
        if not self.texts and width > self.slots.rows:
            self._begin_anew()
        return width <= len(self.free)

    def _prefilled(self, prompt: Prompt) -> tuple[Prefilled, int]:
        """Return where the prompt's keys and values are; compute them, with those soon needed, if nowhere."""
        for chunk in self.prefilled:
            if prompt in chunk:
                return chunk[prompt]
        known = {known for chunk in self.prefilled for known in chunk}
        wanted: dict[Prompt, None] = {prompt: None}
        for _, request in self.waiting:
            wanted.update(dict.fromkeys(found for found in request.prompts if found not in known))
            if len(wanted) >= max(min(8, self.slots.rows), self.slots.rows // 8):
                break
        prefilled = self.slots.prefill(list(wanted))
        self.prefilled.append({found: (prefilled, index) for index, found in enumerate(wanted)})
        return prefilled, 0

    def writing(self) -> list[Text]:
        """Return the texts that may get another token."""
        return [text for text in self.texts if text.asked < self.max_new_tokens]

    def longest(self) -> int:
        """Return the tokens of the longest row, the one fed in this step included."""
        return max(text.asked + text.request.longest_prompt for text in self.texts)

    def release(self, text: Text) -> None:
        """Free the rows of a text that has ended."""
        text.ended = True
        self.texts = [other for other in self.texts if other is not text]
        self.free += text.rows
        self.slots.stop(text.rows)

    def compact(self) -> None:
        """Once nothing waits and half of the rows are free, drop the free rows."""
        self._look_ahead()
        used = [row for text in self.texts for row in text.rows]
        if self.waiting or not used or 2 * len(used) > self.slots.rows or not self.slots.shrinks:
            return
        self.slots.keep_rows(used)
        place = {row: index for index, row in enumerate(used)}
        for text in self.texts:
            text.rows = [place[row] for row in text.rows]
        self.free = []

    def halve(self) -> bool:
        """Go on with half the rows; return whether that is possible.

        What is unfinished waits again, and comes out the same: a text depends on its request alone.
        """
        unfinished = [(text.number, text.request) for text in self.texts]
        widest = max(len(request.prompts) for _, request in (*unfinished, *self.waiting))
        if self.slots.rows <= widest:
            return False
        self.most_rows = max(widest, self.slots.rows // 2)
        self.waiting.extendleft(reversed(unfinished))
        self._begin_anew()
        return True
