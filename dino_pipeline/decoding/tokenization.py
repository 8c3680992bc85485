"""Between text and tokens: prompts as the model reads them, and where a generated text ends."""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from dino_pipeline.decoding.engine import Completion, Finish
from dino_pipeline.errors import ModelError, first_line

log = logging.getLogger(__name__)
Prompt = tuple[int, ...]
"""A prompt's token ids."""
UNFINISHED_BYTES = "\ufffd"
"""Text that a token decodes to if it holds only part of a character's bytes."""
NEVER = "\0"
"""A stop string that no text holds: texts end at the longest length."""
PROBES = "aA0.\nаα字ا"
"""Characters of which a tokenizer knows one at least."""
UNFINISHED_MESSAGE = "CONTINUE_FINAL_MESSAGE_TAG"
"""What `transformers` puts behind an answer that is to go on, and takes away again where it finds it once."""
PLACEHOLDER = re.compile(
    r"<\|.*\|>|[<\[]\W*(unused|reserved|extra_id|extra_token|placeholder|dummy)\w*\W*[>\]]", re.IGNORECASE
)
"""Matches added tokens that stand for nothing, even if the tokenizer does not mark them as special."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    opening: str,
    *,
    today: datetime | date | None = None,
    alternative: str = "{chat=off}",
) -> str:
    """Return a prompt in the tokenizer's chat template: the user's message, and the beginning of the answer.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the text that a model without a template would continue.
        opening: its last part, with which the answer begins.
        today: the day, from its beginning, or the time that the template takes for now; None: the clock's.
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
        with _fixed_surroundings(today):
            rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))
        if UNFINISHED_MESSAGE in rendered:
            raise ValueError("it repeats the answer's beginning")
        return rendered
    except Exception as error:  # a template is a program that can raise anything
        raise ModelError(
            f"the chat template leaves no answer open ({first_line(error)})",
            f"give a model with another template, or {alternative}",
        ) from error


_rendering = threading.Lock()
"""Held while a template is rendered, because the clock is changed for the whole process."""


@contextmanager
def _fixed_surroundings(today: datetime | date | None) -> Iterator[None]:
    """Fix what a template can ask for besides its messages: the clock, unless ``today`` is None, and chance.

    `transformers` takes no clock for a template, so its own is changed, for all threads of the process meanwhile.
    """
    with _rendering:
        chance, clock = random.getstate(), chat_template_utils.datetime
        random.seed(0)
        if today is not None:
            now = today if isinstance(today, datetime) else datetime.combine(today, time())
            chat_template_utils.datetime = SimpleNamespace(now=lambda *_, **__: now)
        try:
            yield
        finally:
            chat_template_utils.datetime = clock
            random.setstate(chance)


def prints_today(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether prompts in the tokenizer's chat template depend on the day or the time."""
    times = (datetime(2001, 2, 3, 4, 5, 6), datetime(2014, 12, 25, 16, 17, 18))
    return len({render_chat(tokenizer, 'A text: "', '"', today=now) for now in times}) > 1


def template_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the strings to which a chat template gives a meaning, such as the end of a turn."""
    return tuple(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *_markup(tokenizer).values()]))


def _markup(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the added tokens that are never written: special ones, with a role or without, and placeholders."""
    markup = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special or PLACEHOLDER.fullmatch(str(token)):
            markup[number] = str(token)
    return markup


def banned_tokens(tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None, vocab: int) -> Tensor:
    """Return the ids of tokens that are never written: special tokens, ends of text, and ids without a text.

    Only the stop string ends a text. A model that prefers to end the document must not.

    Args:
        tokenizer: the model's tokenizer.
        eos: the end-of-text ids of the model's generation configuration.
        vocab: logits per position, which can be more than the tokenizer has tokens.
    """
    ends = [eos] if isinstance(eos, int) else list(eos or ())
    no_text = (*tokenizer.all_special_ids, *_markup(tokenizer), *ends)
    special = {token for token in no_text if token is not None and token < vocab}
    return torch.tensor(sorted({*special, *(set(range(vocab)) - _known_tokens(tokenizer))}), dtype=torch.long)


def _known_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that a tokenizer has a text for. There can be gaps between them."""
    return {*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder}


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


def _pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to a text. At its beginning, tokenizers of SentencePiece's kind drop a blank."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    length = len(tokenizer.decode(before))
    decoded = tokenizer.batch_decode([[*before, token] for token in tokens], clean_up_tokenization_spaces=False)
    return [text[length:] for text in decoded]


class StopRule:
    """Finds the end of a text while it is being written.

    A table over the vocabulary marks the tokens that *may* end a text: those that hold the last character of the stop
    string, a newline, or part of a character's bytes. The text is decoded and searched only after such a token. So a
    stop string of several characters is found however it is split into tokens, and other tokens cost nothing.

    Args:
        tokenizer: the model's tokenizer.
        vocab: logits per position.
        stop: the string that ends a text, or `NEVER`.
        stop_at_newline: whether a newline ends a text as well.

    Raises:
        ModelError: the model never writes the stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int, stop: str, *, stop_at_newline: bool) -> None:
        if stop in template_marks(tokenizer):
            raise ModelError(
                f"the stop string {stop!r} is a special token of the model, which is never written",
                "choose another stop string",
            )
        self.tokenizer = tokenizer
        self.stop = stop
        self.stop_at_newline = stop_at_newline
        marks = (stop[-1], "\n") if stop_at_newline else (stop[-1],)
        self.may_end = [False] * vocab
        known = [token for token in sorted(_known_tokens(tokenizer)) if token < vocab]
        pieces = _pieces(tokenizer, known)
        for token, piece in zip(known, pieces, strict=True):
            self.may_end[token] = UNFINISHED_BYTES in piece or any(mark in piece for mark in marks)
        written = set().union(*pieces)
        if stop != NEVER and UNFINISHED_BYTES not in written and not written.issuperset(stop):
            raise ModelError(f"no token of the model holds a part of the stop string {stop!r}", "choose another")

    def find(self, tokens: Sequence[int]) -> Ending | None:
        """Return the end of the text if its last token brought it, else None."""
        if not self.may_end[tokens[-1]]:
            return None
        return ending_of(self.decode(tokens), self.stop, stop_at_newline=self.stop_at_newline)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens."""
        return decode(self.tokenizer, tokens)


def without_unknown_tokens(tokenizer: PreTrainedTokenizerBase, vocab: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer that reads added words without an embedding in the model as ordinary text.

    Such words come with a tokenizer that was extended without its model. Special tokens among them stay: a prompt never
    holds them, unless a chat template does.

    Args:
        tokenizer: the model's tokenizer, which is not changed.
        vocab: tokens that the model knows.
    """
    added = tokenizer.added_tokens_decoder.items()
    unknown = [str(token) for number, token in added if number >= vocab and not token.special]
    if not unknown or not tokenizer.is_fast:
        return tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in unknown]
    fitted = copy.deepcopy(tokenizer)
    fitted._tokenizer = Tokenizer.from_str(json.dumps(content))
    shown = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
    log.warning("the model knows no token %s of its tokenizer: read as ordinary text", shown)
    return fitted


def _tokens_behind(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the tokenizer puts behind a text, such as one for the end."""
    probe = next((text for text in PROBES if tokenizer(text, add_special_tokens=False)["input_ids"]), "")
    plain, whole = tokenizer(probe, add_special_tokens=False)["input_ids"], tokenizer(probe)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return len(whole) - start - len(plain)
    return 0  # the text is read otherwise with special tokens around it: what is behind cannot be told from the text


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens."""
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


class PromptReader:
    """How an engine with a model of its own reads prompts, and where it ends texts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab: int,
        context: int | None,
        *,
        chat: bool = False,
        chat_date: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer = without_unknown_tokens(tokenizer, vocab)
        self.vocab = vocab
        """Logits per position."""
        self.context = context
        """Most tokens that a prompt and its text may have together. None: no limit."""
        self.chat, self.chat_date = chat, chat_date
        self.behind = _tokens_behind(tokenizer)
        """Tokens that the tokenizer puts behind a text. A prompt goes on, and so lacks them."""
        self.marks = template_marks(tokenizer) if chat else ()
        self.row_tokens = 0
        """See `LocalEngine`."""
        self.on_step: Callable[[], object] = lambda: None
        """See `LocalEngine`."""
        self._stop_rules: dict[tuple[str, bool], StopRule] = {}

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it. ``opening`` is its last part, with which the answer begins."""
        return render_chat(self.tokenizer, prompt, opening, today=self.chat_date) if self.chat else prompt

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        """Return the token ids of rendered prompts, with the special tokens that the tokenizer puts in front.

        A special token written out in a text, such as ``</s>``, is encoded as plain text. In a chat template it is the
        template's own and keeps its meaning.

        Raises:
            ModelError: the tokenizer has a token that the model does not know.
        """
        if self.chat:
            encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        else:
            encoded = self.tokenizer(list(texts), split_special_tokens=True)["input_ids"]
            encoded = [ids[: len(ids) - self.behind] for ids in encoded]
        prompts = [tuple(ids) for ids in encoded]
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
