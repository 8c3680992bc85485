"""Between text and tokens: prompts as the model reads them, and where a generated text ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dino_pipeline.decoding.engine import Completion, Finish
from dino_pipeline.errors import ModelError, first_line

Prompt = tuple[int, ...]
"""A prompt's token ids."""
UNFINISHED_BYTES = "\ufffd"
"""Text that a token decodes to if it holds only part of a character's bytes."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase, prompt: str, opening: str, *, alternative: str = "{chat=off}"
) -> str:
    """Return a prompt in the tokenizer's chat template: the user's message, and the beginning of the answer.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the text that a model without a template would continue.
        opening: its last part, with which the answer begins.
        alternative: what to do without a template, for the error's remedy.

    Raises:
        ModelError: there is no template, or it closes the answer.
    """
    if tokenizer.chat_template is None:
        raise ModelError("the model has no chat template", f"give a chat model, or {alternative}")
    messages = [
        {"role": "user", "content": prompt.removesuffix(opening).rstrip()},
        {"role": "assistant", "content": opening},
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))
    except Exception as error:  # a template is a program that can raise anything
        raise ModelError(
            f"the chat template leaves no answer open ({first_line(error)})",
            f"give a model with another template, or {alternative}",
        ) from error


def template_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the strings to which a chat template gives a meaning, such as the end of a turn."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))


def banned_tokens(tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None, vocab: int) -> Tensor:
    """Return the ids of tokens that are never written: special tokens, ends of text, and ids without a text.

    Only the stop string ends a text. A model that prefers to end the document must not.

    Args:
        tokenizer: the model's tokenizer.
        eos: the end-of-text ids of the model's generation configuration.
        vocab: logits per position, which can be more than the tokenizer has tokens.
    """
    ends = [eos] if isinstance(eos, int) else list(eos or ())
    special = {token for token in (*tokenizer.all_special_ids, *ends) if token < vocab}
    return torch.tensor(sorted({*special, *range(len(tokenizer), vocab)}), dtype=torch.long)


@dataclass(frozen=True)
class Ending:
    """The end of a text."""

    text: str
    """The text without what ended it."""
    finish: Finish


def ending_of(text: str, stop: str, *, stop_at_newline: bool) -> Ending | None:
    """Return the first end of a text, at its stop string or at a newline, None if it goes on."""
    found = text.find(stop)
    newline = text.find("\n") if stop_at_newline else -1
    if found >= 0 and not 0 <= newline < found:
        return Ending(text[:found], "stop")
    return Ending(text[:newline], "newline") if newline >= 0 else None


class StopRule:
    """Finds the end of a text while it is being written.

    A table over the vocabulary marks the tokens that *may* end a text: those that hold the last character of the stop
    string, a newline, or part of a character's bytes. The text is decoded and searched only after such a token. So a
    stop string of several characters is found however it is split into tokens, and other tokens cost nothing.

    Args:
        tokenizer: the model's tokenizer.
        vocab: logits per position.
        stop: the string that ends a text.
        stop_at_newline: whether a newline ends a text as well.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int, stop: str, *, stop_at_newline: bool) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.stop_at_newline = stop_at_newline
        marks = (stop[-1], "\n") if stop_at_newline else (stop[-1],)
        self.may_end = [False] * vocab
        pieces = tokenizer.batch_decode([[token] for token in range(min(vocab, len(tokenizer)))])
        for token, piece in enumerate(pieces):
            self.may_end[token] = UNFINISHED_BYTES in piece or any(mark in piece for mark in marks)

    def find(self, tokens: Sequence[int]) -> Ending | None:
        """Return the end of the text if its last token brought it, else None."""
        if not self.may_end[tokens[-1]]:
            return None
        return ending_of(self.decode(tokens), self.stop, stop_at_newline=self.stop_at_newline)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens."""
        return decode(self.tokenizer, tokens)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens."""
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


class PromptReader:
    """How an engine with a model of its own reads prompts, and where it ends texts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab: int, context: int | None, *, chat: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        """Logits per position."""
        self.context = context
        """Most tokens that a prompt and its text may have together. None: no limit."""
        self.chat = chat
        self.marks = template_marks(tokenizer) if chat else ()
        self._stop_rules: dict[tuple[str, bool], StopRule] = {}

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it. ``opening`` is its last part, with which the answer begins."""
        return render_chat(self.tokenizer, prompt, opening) if self.chat else prompt

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        """Return the token ids of rendered prompts, with the special tokens that the tokenizer puts in front.

        A special token written out in a text, such as ``</s>``, is encoded as plain text. In a chat template it is the
        template's own and keeps its meaning.

        Raises:
            ModelError: the tokenizer has a token that the model does not know.
        """
        if self.chat:
            encoded = self.tokenizer(list(texts), add_special_tokens=False)
        else:
            encoded = self.tokenizer(list(texts), split_special_tokens=True)
        prompts = [tuple(ids) for ids in encoded["input_ids"]]
        highest = max(map(max, filter(None, prompts)), default=0)
        if highest >= self.vocab:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise ModelError(
                f"the tokenizer writes token {token!r} as {highest}, and the model knows {self.vocab} tokens",
                "give a model whose tokenizer fits it",
            )
        return prompts

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return decode(self.tokenizer, tokens)

    def fits(self, prompts: Iterable[Prompt], max_new_tokens: int) -> bool:
        """Return whether the model's context has room for a text after each prompt."""
        return self.context is None or max(map(len, prompts)) + max_new_tokens <= self.context

    def close(self) -> None:
        """Do nothing: Python frees the model with the engine."""

    def stop_rule(self, stop: str, stop_at_newline: bool) -> StopRule:
        """Return the rule for where texts end. Rules are cached, as a table over the vocabulary takes a while."""
        key = (stop, stop_at_newline)
        if key not in self._stop_rules:
            self._stop_rules[key] = StopRule(self.tokenizer, self.vocab, stop, stop_at_newline=stop_at_newline)
        return self._stop_rules[key]


def completion(number: int, tokens: Sequence[int], log_probs: Sequence[Sequence[float]], ending: Ending) -> Completion:
    """Return a text that has ended as a result. ``log_probs`` has a row a token, and a column a prompt."""
    means = np.mean(log_probs, axis=0)  # (prompts,)
    margin = float(means[0] - means[1:].max()) if len(means) > 1 else None
    return Completion(number, ending.text, ending.finish, tuple(tokens), len(tokens), float(means[0]), margin)
