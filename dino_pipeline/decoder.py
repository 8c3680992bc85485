"""The joint decoder: samples each text under several prompts at once, many texts in lock-step."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dino_pipeline.errors import ModelError
from dino_pipeline.next_token import next_tokens
from dino_pipeline.sampling import Sampling, uniforms
from dino_pipeline.scoring import Continuation, mean_log_probs, plain_mean_log_prob
from dino_pipeline.slots import PlainRows, Prefilled, Prompt, Slots, accepts_positions, attention_windows
from dino_pipeline.stops import Ending, Finish, StopRule, banned_tokens
from dino_pipeline.tuning import faster_dtype, tune

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted difference of the self-check's logits, relative to their spread."""
NARROW = 512
"""Models narrower than this have little to win by half precision, and keep the same texts on all machines."""
LENGTHS = 32
"""Rows are laid out in multiples of so many tokens."""


@dataclass(frozen=True)
class Request:
    """One text to write."""

    prompts: tuple[Prompt, ...]
    """Token ids of the own prompt, then of the counter-prompts."""
    key: tuple[str | int, ...]
    """What the random numbers depend on; nothing else decides them."""

    @property
    def longest_prompt(self) -> int:
        return max(map(len, self.prompts))


@dataclass(frozen=True)
class Completion:
    """One text written."""

    number: int
    """Index of its request."""
    text: str
    finish: Finish
    tokens: tuple[int, ...]
    """All tokens written, the one that closed the text included."""
    logprob: float
    """Mean natural-log probability per token under the own prompt, before debiasing, the closing token included."""
    margin: float | None
    """``logprob`` minus the best counter-prompt's; None without counters."""


@dataclass
class _Text:
    """A text being written."""

    number: int
    rows: list[int]
    longest_prompt: int
    draws: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    """For each token, its log-probability under each prompt."""

    def complete(self, ending: Ending) -> Completion:
        means = np.mean(self.logprobs, axis=0)
        margin = float(means[0] - means[1:].max()) if len(means) > 1 else None
        return Completion(self.number, ending.text, ending.finish, tuple(self.tokens), float(means[0]), margin)


class Decoder:
    """Samples texts under prompt groups with one causal language model.

    Each text occupies one row per prompt. Rows come free as texts end and are refilled at once, so that a step always
    runs full; each distinct prompt goes through the model once. Where the model's logits do not survive the self-check,
    rows are computed one by one instead, with a warning.

    Args:
        model: any decoder-only causal language model of `transformers`.
        tokenizer: its tokenizer.
        rows: prompts that run side by side; more is faster until memory or cores are full.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, rows: int = 128) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rows = rows
        self.vocab = model.get_output_embeddings().weight.shape[0]
        self.banned = banned_tokens(tokenizer, model.generation_config.eos_token_id, self.vocab).to(model.device)
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._stop_rules: dict[tuple[str, bool], StopRule] = {}
        reason = slots_defect(model)
        if reason:
            log.warning("%s cannot run in slots (%s): rows are computed one by one, slower", _name(model), reason)
        self.make_rows: Callable[[PreTrainedModel, int, int], Slots | PlainRows] = PlainRows if reason else Slots

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        """Return the token ids of prompts, with what the tokenizer puts in front; ``</s>`` in a text is only text."""
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
        lane = _Lane(partial(self.make_rows, self.model), self.rows, requests, sampling.max_new_tokens)
        while lane.admit():
            self._step(lane, sampling)
            for text in lane.texts:
                if ending := self._ending(text, rule, sampling.max_new_tokens):
                    yield text.complete(ending)
                    lane.release(text)
            lane.compact()

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[float]:
        """Return how likely each text is after its prompt: mean natural-log probability per token, ``stop`` included.

        Pairs with the same prompt cost little more than one; give many at once. The text is tokenised together with its
        prompt, as a reader would find it.

        Args:
            pairs: prompt and text, each at least a token.
            stop: what ends a text.
        """
        prompts = dict.fromkeys(prompt for prompt, _ in pairs)
        encoded = dict(zip(prompts, self.encode(list(prompts)), strict=True))
        whole = self.encode([prompt + text + stop for prompt, text in pairs])
        asked = [_continuation(encoded[prompt], tokens) for (prompt, _), tokens in zip(pairs, whole, strict=True)]
        if self.make_rows is Slots:
            return mean_log_probs(self.model, asked, self.banned, self.vocab)
        return [plain_mean_log_prob(self.model, each, self.banned) for each in asked]

    def _ending(self, text: _Text, rule: StopRule, max_new_tokens: int) -> Ending | None:
        if ending := rule.find(text.tokens):
            return ending
        return Ending(rule.decode(text.tokens), "length") if len(text.tokens) == max_new_tokens else None

    def _step(self, lane: _Lane, sampling: Sampling) -> None:
        """Give every text in the lane its next token."""
        logits = lane.slots.step(lane.longest()).index_fill_(1, self.banned, -torch.inf)
        widest = max(len(text.rows) for text in lane.texts)
        rows = [text.rows + text.rows[:1] * (widest - len(text.rows)) for text in lane.texts]
        groups = torch.tensor(rows, device=logits.device)
        uniform = torch.tensor([text.draws[len(text.tokens)] for text in lane.texts], device=logits.device)
        tokens, log_probs = next_tokens(logits, groups, uniform, sampling)
        lane.slots.feed(groups, tokens)
        for text, token, under_prompts in zip(lane.texts, tokens.tolist(), log_probs.tolist(), strict=True):
            text.tokens.append(token)
            text.logprobs.append(under_prompts[: len(text.rows)])


def _continuation(prompt: Prompt, whole: Prompt) -> Continuation:
    """Return what follows the prompt; a token that holds the prompt's end and the text's beginning follows it, too."""
    same = next((at for at, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), len(prompt))
    same = max(1, min(same, len(whole) - 1))
    return Continuation(whole[:same], whole[same:])


class _Lane:
    """Which text sits in which rows: takes requests in as rows come free, and looks ahead at as many as it has rows."""

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
        self.texts: list[_Text] = []
        self.make_rows, self.most_rows, self.max_new_tokens = make_rows, most_rows, max_new_tokens
        self.prefilled: deque[dict[Prompt, tuple[Prefilled, int]]] = deque(maxlen=2)
        self._look_ahead()
        self.slots = self._new_slots()
        self.free = list(range(self.slots.rows))

    def _look_ahead(self) -> None:
        for number, request in islice(self.coming, self.most_rows - len(self.waiting)):
            self.waiting.append((number, request))
            self.length = max(self.length, -(-(request.longest_prompt + self.max_new_tokens) // LENGTHS) * LENGTHS)

    def _new_slots(self) -> Slots | PlainRows:
        """Return rows for what waits: no more than needed, enough for the first."""
        widths = [len(request.prompts) for _, request in self.waiting] or [1]
        return self.make_rows(max(min(self.most_rows, sum(widths)), widths[0]), self.length)

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
            draws = uniforms(request.key, self.max_new_tokens)
            self.texts.append(_Text(number, rows, request.longest_prompt, draws))
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
            self.slots = self._new_slots()
            self.free = list(range(self.slots.rows))
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
            if len(wanted) >= max(8, self.slots.rows // 8):
                break
        prefilled = self.slots.prefill(list(wanted))
        self.prefilled.append({found: (prefilled, index) for index, found in enumerate(wanted)})
        return prefilled, 0

    def longest(self) -> int:
        """Return the tokens of the longest row, the one fed in this step included."""
        return max(len(text.tokens) + text.longest_prompt for text in self.texts)

    def release(self, text: _Text) -> None:
        """Free the rows of a text that has ended."""
        self.texts = [other for other in self.texts if other is not text]
        self.free += text.rows

    def compact(self) -> None:
        """Once nothing waits and half of the rows are free, drop the free rows."""
        self._look_ahead()
        used = [row for text in self.texts for row in text.rows]
        if self.waiting or not used or 2 * len(used) > self.slots.rows:
            return
        self.slots.keep_rows(used)
        place = {row: index for index, row in enumerate(used)}
        for text in self.texts:
            text.rows = [place[row] for row in text.rows]
        self.free = []


def slots_defect(model: PreTrainedModel) -> str | None:
    """Compare slot logits with a plain forward's on a few short prompts; return what is wrong, None if nothing.

    Rows of different lengths, a prefill, several steps and, where attention windows are small, a prompt longer than the
    window take part.
    """
    if not accepts_positions(model):
        return "its forward takes no position_ids"
    try:
        windows = attention_windows(model)
    except ModelError as error:
        return str(error)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 64
    small = [window for window in windows.values() if window is not None and window <= 64]
    lengths = [length for length in (2, 5, 11, *(window + 3 for window in small)) if length + 3 <= context]
    try:
        worst = _largest_difference(model, lengths)
    except Exception as error:  # whatever a foreign architecture raises means: not in slots
        return f"{type(error).__name__}: {error}"
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    return (
        None if worst <= tolerance else f"its logits differ by {worst:.1e} of their spread, more than {tolerance:.0e}"
    )


@torch.inference_mode()
def _largest_difference(model: PreTrainedModel, lengths: Sequence[int], steps: int = 3) -> float:
    vocab = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    texts = [tuple(torch.randint(vocab, (length + steps,), generator=generator).tolist()) for length in lengths]
    slots = Slots(model, len(texts), max(map(len, texts)))
    prefilled = slots.prefill([text[:length] for text, length in zip(texts, lengths, strict=True)])
    slots.start(range(len(texts)), prefilled, range(len(texts)))
    plain = [_plain_logits(model, text) for text in texts]
    worst = 0.0
    for step in range(steps):
        logits = slots.step(max(lengths) + step)
        expected = torch.stack([rows[length + step - 1] for rows, length in zip(plain, lengths, strict=True)])
        if not torch.isfinite(logits).all():
            return float("inf")
        worst = max(worst, float((logits - expected).abs().max() / expected.std()))
        following = torch.tensor([text[length + step] for text, length in zip(texts, lengths, strict=True)])
        slots.feed(slots.every_row[:, None], following.to(slots.device))
    return worst


@torch.inference_mode()
def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether predictions change with later tokens: `AutoModelForCausalLM` loads encoders, too, without a word."""
    vocab = model.get_input_embeddings().weight.shape[0]
    text = tuple(torch.randint(vocab, (8,), generator=torch.Generator().manual_seed(0)).tolist())
    early, whole = _plain_logits(model, text[:4])[-1], _plain_logits(model, text)[3]
    return float((early - whole).abs().max() / whole.std()) > TOLERANCE.get(model.dtype, 5e-2)


def _plain_logits(model: PreTrainedModel, text: Prompt) -> Tensor:
    return model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0].float()


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, *, revision: str | None = None, device: str) -> str:
    """Return the dtype that a model is fastest in here, by a measurement; a narrow model stays in float32."""
    try:
        width = AutoConfig.from_pretrained(name, revision=revision).get_text_config().hidden_size
    except (OSError, ValueError, KeyError, AttributeError):
        return "float32"  # what is wrong with the model is said when it is loaded
    return "float32" if width < NARROW else faster_dtype(device, width)


def load_decoder(name: str, *, revision: str | None = None, dtype: str, device: str, rows: int) -> Decoder:
    """Load a model and its tokenizer from a folder or the Hub.

    Raises:
        ModelError: it cannot be loaded, or is no decoder-only causal language model.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
        model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be loaded as a causal language model ({str(error).strip().splitlines()[0]}); "
            "give a folder or a Hub id that AutoModelForCausalLM loads, or `pocket`"
        ) from error
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name}: is an encoder-decoder; give a decoder-only model")
    model = model.to(device).eval()
    if sees_ahead(model):
        raise ModelError(
            f"{name}: cannot be loaded as a causal language model (its predictions depend on later tokens, as an "
            "encoder's do); give a decoder-only model"
        )
    tune(model, rows)
    return Decoder(model, tokenizer, rows=rows)
