"""The joint decoder: samples each text under several prompts at once, many texts in lock-step."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dino_pipeline.decoding.chat import marks, render
from dino_pipeline.decoding.devices import Coming, is_out_of_memory, put
from dino_pipeline.decoding.engine import Completion, Request, Scored
from dino_pipeline.decoding.graphs import FixedSlots
from dino_pipeline.decoding.lane import Lane, Text
from dino_pipeline.decoding.next_token import next_tokens
from dino_pipeline.decoding.prefill import Prompt, shared_start
from dino_pipeline.decoding.sampling import Sampling
from dino_pipeline.decoding.scoring import Continuation, mean_log_probs, plain_mean_log_prob
from dino_pipeline.decoding.selfcheck import slots_defect
from dino_pipeline.decoding.slots import PlainRows, Slots
from dino_pipeline.decoding.stops import Ending, StopRule, banned_tokens
from dino_pipeline.errors import ModelError

log = logging.getLogger(__name__)


def completion(text: Text, ending: Ending) -> Completion:
    """Return a text that has ended."""
    means = np.mean(text.logprobs, axis=0)
    margin = float(means[0] - means[1:].max()) if len(means) > 1 else None
    tokens = tuple(text.tokens)
    return Completion(text.number, ending.text, ending.finish, tokens, len(tokens), float(means[0]), margin)


@dataclass(frozen=True)
class _Step:
    """One more token for some texts, to be read when it has been computed."""

    texts: list[Text]
    coming: Coming

    def read(self) -> Iterator[Text]:
        """Give the texts their tokens; those that have ended meanwhile get none."""
        for text, token, under_prompts in zip(self.texts, *self.coming.lists(), strict=True):
            if not text.ended:
                text.tokens.append(token)
                text.logprobs.append(under_prompts[: len(text.rows)])
                yield text


class Decoder:
    """Samples texts under prompt groups with one causal language model.

    Each text occupies one row per prompt. Rows come free as texts end and are refilled at once, so that a step always
    runs full; each distinct prompt goes through the model once. Where the model's logits do not survive the self-check,
    rows are computed one by one instead, with a warning.

    Args:
        model: any decoder-only causal language model of `transformers`.
        tokenizer: its tokenizer.
        rows: prompts that run side by side; more is faster until memory or cores are full. Where memory runs out, half
            as many go on.
        chat: put prompts into the tokenizer's chat template.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, rows: int = 128, chat: bool = False
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rows = rows
        self.chat = chat
        self.marks = marks(tokenizer) if chat else ()
        """What no text may hold."""
        self.vocab = model.get_output_embeddings().weight.shape[0]
        self.banned = banned_tokens(tokenizer, model.generation_config.eos_token_id, self.vocab).to(model.device)
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._stop_rules: dict[tuple[str, bool], StopRule] = {}
        self.make_rows = _rows_for(model)
        self.streams = model.device.type != "cpu"
        """Elsewhere rows that come free are dropped, and cost nothing."""
        self.delay = 1 if model.device.type == "cuda" else 0
        """Steps that are under way while an older one is read: a GPU need not wait for what the CPU makes of it."""

    def render(self, prompt: str, opening: str) -> str:
        """Return a prompt as the model reads it, given the part with which an answer begins."""
        return render(self.tokenizer, prompt, opening) if self.chat else prompt

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        """Return the token ids of rendered prompts, with what the tokenizer puts in front.

        ``</s>`` in a text is only text; of a chat template it is the template's own.
        """
        if self.chat:
            return [tuple(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        return [tuple(ids) for ids in self.tokenizer(list(texts), split_special_tokens=True)["input_ids"]]

    def fits(self, prompts: Iterable[Prompt], max_new_tokens: int) -> bool:
        """Whether the prompts leave room for a text in the model's context."""
        return self.context is None or max(map(len, prompts)) + max_new_tokens <= self.context

    def stop_rule(self, stop: str, stop_at_newline: bool) -> StopRule:
        """Return the (cached) rule for where texts end."""
        key = (stop, stop_at_newline)
        if key not in self._stop_rules:
            self._stop_rules[key] = StopRule(self.tokenizer, self.vocab, stop, stop_at_newline=stop_at_newline)
        return self._stop_rules[key]

    @torch.inference_mode()
    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request; yield each as it ends, in no particular order.

        A text does not depend on the other requests, their order or the number of rows, but for the last bits of the
        model's own arithmetic.

        Args:
            requests: what to write, taken as rows come free; those that share prompts side by side run fastest.
            sampling: how tokens are drawn.
            stop: the string that ends a text.
            stop_at_newline: whether a newline ends a text as well.
        """
        rule = self.stop_rule(stop, stop_at_newline)
        lane = Lane(partial(self.make_rows, self.model), self.rows, requests, sampling.max_new_tokens)
        steps: deque[_Step] = deque()
        try:
            while self._step(lane, steps, sampling) or steps:
                late = self.delay if lane.writing() else 0
                while len(steps) > late:
                    for text in steps.popleft().read():
                        if ending := self._ending(text, rule, sampling.max_new_tokens):
                            yield completion(text, ending)
                            lane.release(text)
        finally:
            lane.close()

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, ``stop`` included.

        Pairs with the same prompt cost little more than one; give many at once. The text is tokenised together with its
        prompt, as a reader would find it.

        Args:
            pairs: rendered prompt and text, each at least a token.
            stop: what ends a text.
        """
        prompts = dict.fromkeys(prompt for prompt, _ in pairs)
        encoded = dict(zip(prompts, self.encode(list(prompts)), strict=True))
        whole = self.encode([prompt + text + stop for prompt, text in pairs])
        asked = [_continuation(encoded[prompt], tokens) for (prompt, _), tokens in zip(pairs, whole, strict=True)]
        if self.make_rows is not PlainRows:
            means = mean_log_probs(self.model, asked, self.banned, self.vocab)
        else:
            means = [plain_mean_log_prob(self.model, each, self.banned) for each in asked]
        return [Scored(mean, len(each.tokens)) for mean, each in zip(means, asked, strict=True)]

    def facts(self) -> dict[str, Any]:
        """Return the commit that a model of the Hub was loaded from."""
        return {"model_commit": getattr(self.model.config, "_commit_hash", None)}

    def _ending(self, text: Text, rule: StopRule, max_new_tokens: int) -> Ending | None:
        if ending := rule.find(text.tokens):
            return ending
        return Ending(rule.decode(text.tokens), "length") if len(text.tokens) == max_new_tokens else None

    def _step(self, lane: Lane, steps: deque[_Step], sampling: Sampling) -> bool:
        """Admit what has room, and begin one more token for every text; return whether any text is being written."""
        try:
            lane.compact()
            more = lane.admit()
            if texts := lane.writing():
                steps.append(self._next(lane, texts, sampling))
            return more
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        steps.clear()
        had = lane.slots.rows
        if not lane.halve():
            raise ModelError(
                f"{_name(self.model)}: {self.model.device.type} memory does not hold even {had} prompts beside the "
                "model; use --dtype bfloat16, --device-map auto, or a smaller model"
            )
        self.rows = lane.most_rows
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory with %d rows: going on with %d and the same texts, up to rounding", had, self.rows)
        return True

    def _next(self, lane: Lane, texts: list[Text], sampling: Sampling) -> _Step:
        logits = lane.slots.step(lane.longest()).index_fill_(1, self.banned, -torch.inf)
        widest = max(len(text.rows) for text in texts)
        groups = put([text.rows + text.rows[:1] * (widest - len(text.rows)) for text in texts], logits.device)
        uniform = put([text.draws[text.asked] for text in texts], logits.device)
        tokens, log_probs = next_tokens(logits, groups, uniform, sampling)
        lane.slots.feed(groups, tokens)
        for text in texts:
            text.asked += 1
        return _Step(texts, Coming(tokens, log_probs))


def _rows_for(model: PreTrainedModel) -> Callable[[PreTrainedModel, int, int], Slots | PlainRows]:
    """Return the fastest rows that compute what a plain forward does."""
    if model.device.type == "cuda":
        if not (reason := slots_defect(model, FixedSlots)):
            return FixedSlots
        log.warning("%s cannot step in fixed shapes (%s): tried without, slower", _name(model), reason)
    if not (reason := slots_defect(model)):
        return Slots
    log.warning("%s cannot run in slots (%s): rows are computed one by one, slower", _name(model), reason)
    return PlainRows


def _continuation(prompt: Prompt, whole: Prompt) -> Continuation:
    """Return what follows the prompt; a token that holds the prompt's end and the text's beginning follows it, too."""
    same = max(1, min(shared_start(prompt, whole), len(whole) - 1))
    return Continuation(whole[:same], whole[same:])


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__
