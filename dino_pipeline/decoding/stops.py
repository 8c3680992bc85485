"""Where a generated text ends: at the stop string, or at a newline where newlines are not wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dino_pipeline.decoding.engine import Finish

UNFINISHED_BYTES = "\ufffd"
"""What a token decodes to that holds only part of a character's bytes."""


@dataclass(frozen=True)
class Ending:
    """The text without what ended it, and what that was."""

    text: str
    finish: Finish


class StopRule:
    """Finds the end of a text while it is being written.

    A table over the vocabulary says which tokens *may* end a text (they hold the last character of the stop string, a
    newline, or part of a character's bytes); only after such a token is the text decoded and searched. A stop string of
    several characters is therefore found whatever tokens it is split into, and costs nothing elsewhere.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int, stop: str, *, stop_at_newline: bool) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.stop_at_newline = stop_at_newline
        marks = (stop[-1], "\n") if stop_at_newline else (stop[-1],)
        pieces = tokenizer.batch_decode([[token] for token in range(min(vocab, len(tokenizer)))])
        table = [any(mark in piece for mark in marks) or UNFINISHED_BYTES in piece for piece in pieces]
        self.may_end = table + [False] * (vocab - len(table))

    def find(self, tokens: Sequence[int]) -> Ending | None:
        """Return where the text ends, or None if it goes on after its last token."""
        if not self.may_end[tokens[-1]]:
            return None
        text = self.decode(tokens)
        stop = text.find(self.stop)
        newline = text.find("\n") if self.stop_at_newline else -1
        if stop >= 0 and not 0 <= newline < stop:
            return Ending(text[:stop], "stop")
        return Ending(text[:newline], "newline") if newline >= 0 else None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens."""
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def banned_tokens(tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None, vocab: int) -> Tensor:
    """Return the tokens never written: end of text and other special tokens, and ids without a text.

    Only the stop string ends a text; a model that would rather end the document must not.
    """
    ends = [eos] if isinstance(eos, int) else list(eos or ())
    special = {token for token in (*tokenizer.all_special_ids, *ends) if token < vocab}
    return torch.tensor(sorted({*special, *range(len(tokenizer), vocab)}), dtype=torch.long)
