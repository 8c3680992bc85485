"""The joint decoder: samples each text under its own prompt and its counter-prompts, many texts in lock-step.

`Generator` is its face for Python users.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dino_pipeline.decoding.cache import CachedRows, UncachedRows
from dino_pipeline.decoding.engine import Completion, EngineFacts, LocalEngine, Request, Scored, uniforms
from dino_pipeline.decoding.next_token import choose, next_tokens
from dino_pipeline.decoding.plain_forward import PlainForward
from dino_pipeline.decoding.prefill import (
    continuations,
    is_out_of_memory,
    mean_log_probs,
    plain_mean_log_prob,
    to_device,
)
from dino_pipeline.decoding.scheduler import ActiveText, Scheduler
from dino_pipeline.decoding.self_check import CachedLength, context_of, model_name, not_finite
from dino_pipeline.decoding.tokenization import Ending, Prompt, PromptReader, StopRule, banned_tokens, completion
from dino_pipeline.errors import ModelError, OptionError, short
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling

log = logging.getLogger(__name__)


class Decoder(PromptReader):
    """Samples texts under groups of prompts with one causal language model.

    Each text occupies one row per prompt. Rows come free as texts end, and waiting requests take them at once, so that
    steps run full (but where requests that fit into a cache alternate with others). Each distinct prompt goes through
    the model once. Models, and lengths, whose logits do not pass the self-check run without a cache, with a warning.

    Args:
        model: any decoder-only causal language model of `transformers`.
        tokenizer: its tokenizer.
        rows: prompts that run at the same time. More is faster until memory or cores are full. If memory runs out, the
            decoder continues with half as many.
        chat: whether prompts go into the tokenizer's chat template.
        chat_date: the day that the template takes for today; None: the clock's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int = 128,
        chat: bool = False,
        chat_date: date | None = None,
    ) -> None:
        vocab = model.get_output_embeddings().weight.shape[0]
        super().__init__(tokenizer, vocab, context_of(model), chat=chat, chat_date=chat_date)
        self.model = model.eval()
        self.rows = rows
        self.banned = banned_tokens(self.tokenizer, model.generation_config.eos_token_id, self.vocab).to(model.device)
        self.plain = PlainForward(model)
        self.cached_length = CachedLength(model)
        self.refill_rows = model.device.type != "cpu"
        """On a CPU, free rows are dropped and cost nothing, so shards need not share steps. A GPU computes few rows
        hardly faster than many."""

    @torch.inference_mode()
    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request. Yield each text as it ends, in any order.

        A text does not depend on the other requests, their order or the number of rows, except for the last bits of the
        model's own arithmetic.

        Args:
            requests: the texts to write, read as rows come free. Neighbours that share prompts run fastest.
            sampling: how tokens are drawn.
            stop: the string that ends a text.
            stop_at_newline: whether a newline ends a text as well.

        Raises:
            ModelError: the memory does not hold a single text's prompts.
        """
        rule = self.stop_rule(stop, stop_at_newline)

        def fits_cache(numbered: tuple[int, Request]) -> bool:
            return self.cached_length.allows(numbered[1].longest_prompt + sampling.max_new_tokens)

        for in_cache, some in groupby(enumerate(requests), fits_cache):
            yield from self._write(some, sampling, rule, in_cache=in_cache)

    def _write(
        self, requests: Iterable[tuple[int, Request]], sampling: Sampling, rule: StopRule, *, in_cache: bool
    ) -> Iterator[Completion]:
        """Write a text for each numbered request, see `sample`."""
        make_rows = partial(CachedRows, self.model) if in_cache else partial(UncachedRows, self.plain)
        scheduler = Scheduler(make_rows, self.rows, requests, sampling.max_new_tokens)
        try:
            while texts := self._advance(scheduler, sampling):
                self.row_tokens += sum(len(text.rows) for text in texts)
                self.on_step()
                for text in texts:
                    if ending := self._ending(text, rule, sampling.max_new_tokens):
                        yield completion(text.number, text.tokens, text.log_probs, ending)
                        scheduler.release(text)
        finally:
            scheduler.close()

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, with ``stop`` as its last part.

        Pairs with the same prompt cost little more than one pair, so give many at once. Prompt and text are tokenised
        together, as they are in running text.

        Args:
            pairs: rendered prompts and texts. Each prompt has a token at least.
            stop: the string that ends a text.
        """
        wanted = continuations(self.encode, [(prompt, text + stop) for prompt, text in pairs])
        fits_cache = [self.cached_length.allows(len(one.prompt) + len(one.tokens)) for one in wanted]
        in_cache = [one for one, fits in zip(wanted, fits_cache, strict=True) if fits]
        cached_means = iter(mean_log_probs(self.model, in_cache, self.banned, self.vocab))
        scores = []
        for one, fits in zip(wanted, fits_cache, strict=True):
            mean = next(cached_means) if fits else plain_mean_log_prob(self.plain, one, self.banned)
            scores.append(Scored(mean, len(one.tokens)))
        return scores

    @torch.inference_mode()
    def log_probs(self, prompt: Prompt, tokens: Sequence[int]) -> Tensor:
        """Return ``(tokens, vocab)``: the log-probabilities of all tokens at each place of a text after a prompt."""
        # the logits at position i predict token i + 1
        logits = self.plain.logits([*prompt, *tokens], last=len(tokens) + 1)[:-1]
        return logits.index_fill_(-1, self.banned, -torch.inf).log_softmax(-1)

    @torch.inference_mode()
    def undebiased(self, request: Request, tokens: Sequence[int], sampling: Sampling) -> list[int]:
        """Return what each token would be without debiasing, see `LocalEngine.undebiased`."""
        log_probs = self.log_probs(request.prompts[0], tokens)  # (tokens, vocab)
        draws = torch.tensor(uniforms(request.key, len(tokens)), device=log_probs.device)  # (tokens,)
        return choose(log_probs, draws, sampling.top_k, sampling.top_p).tolist()

    def facts(self) -> EngineFacts:
        """Return the commit of the Hub that the model was loaded from."""
        return {"model_commit": getattr(self.model.config, "_commit_hash", None)}

    def _advance(self, scheduler: Scheduler, sampling: Sampling) -> list[ActiveText]:
        """Admit requests and write a token of each text. Return the texts, none if all requests are written."""
        while True:
            try:
                scheduler.compact()
                if scheduler.admit():
                    self._step(scheduler, sampling)
                return scheduler.texts
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # outside the except block: the error's traceback would keep tensors of the failed step alive
            self._continue_with_fewer_rows(scheduler)

    def _step(self, scheduler: Scheduler, sampling: Sampling) -> None:
        """Draw the next token of each text, feed it to the text's rows, and read it."""
        texts = scheduler.texts
        logits = scheduler.rows.step(scheduler.longest())  # (rows, vocab)
        logits.index_fill_(1, self.banned, -torch.inf)
        widest = max(len(text.rows) for text in texts)
        padded = [text.rows + text.rows[:1] * (widest - len(text.rows)) for text in texts]
        groups = to_device(padded, logits.device)  # (texts, 1 + counters)
        uniform = to_device([text.draws[len(text.tokens)] for text in texts], logits.device)  # (texts,)
        try:
            tokens, log_probs = next_tokens(logits, groups, uniform, sampling)  # (texts,), (texts, 1 + counters)
        except FloatingPointError as error:
            raise not_finite(self.model) from error
        scheduler.rows.feed(groups, tokens)
        for text, token, under_prompts in zip(texts, tokens.tolist(), log_probs.tolist(), strict=True):
            text.tokens.append(token)
            text.log_probs.append(under_prompts[: len(text.rows)])  # texts with fewer prompts are padded

    def _continue_with_fewer_rows(self, scheduler: Scheduler) -> None:
        """Halve the rows after memory has run out.

        Raises:
            ModelError: fewer rows are not possible.
        """
        before = scheduler.rows.count
        if not scheduler.halve():
            raise ModelError(
                f"{model_name(self.model)}: {self.model.device.type} memory does not hold even {before} prompts in "
                "addition to the model",
                "use {dtype=bfloat16}, {device_map=auto}, or a smaller model",
            )
        self.rows = scheduler.max_rows
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning(
            "out of memory with %d rows: going on with %d and the same texts, up to rounding", before, self.rows
        )

    def _ending(self, text: ActiveText, rule: StopRule, max_new_tokens: int) -> Ending | None:
        """Return the end of a text if its latest token brought it, else None."""
        if ending := rule.find(text.tokens):
            return ending
        return Ending(rule.decode(text.tokens), "length") if len(text.tokens) == max_new_tokens else None


class Generator:
    """A language model that writes texts which are likely after one prompt and unlikely after others.

    Python frees its memory with it, but for the engine vllm: that needs `close`, or a ``with`` statement.
    """

    def __init__(self, engine: LocalEngine, model: ModelRef) -> None:
        self.engine = engine
        self.model = model

    def __repr__(self) -> str:
        return f"Generator({self.model.name!r}, dtype={self.model.dtype!r}, rows={self.engine.rows})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory. The generator writes nothing after that."""
        self.engine.close()

    def write(
        self,
        prompt: str,
        counters: Sequence[str] = (),
        n: int = 1,
        *,
        seed: int = 42,
        stop: str = '"',
        keep_newlines: bool = False,
        opening: str | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Write texts after a prompt, debiased by counter-prompts.

        The i-th text depends on the model, the prompts, the seed and the sampling, not on ``n``. Texts that reach
        ``max_new_tokens`` before a stop string are returned, too, with ``finish`` "length".

            >>> generator = dino.load_generator("gpt2")
            >>> texts = generator.write('A question: "', counters=['A statement: "'], n=8, top_k=0)
            >>> texts[0].text, texts[0].margin

        Args:
            prompt: the own prompt. It ends where the text begins, usually with an opening quotation mark.
            counters: the counter-prompts.
            n: number of texts.
            seed: seed of the random numbers.
            stop: string that ends a text.
            keep_newlines: whether texts may contain newlines. If not, a newline ends a text.
            opening: for a model with a chat template, the last part of the prompt, with which the model's answer
                begins. By default, the prompt's last line, or the last character of a prompt of one line.
            sampling: ``top_k``, ``top_p``, ``decay``, ``floor`` and ``max_new_tokens``. Defaults are the paper's.

        Returns:
            The texts in the order of their numbers, each with ``text``, ``logprob``, ``margin`` and ``finish``.

        Raises:
            OptionError: a value is wrong, or a prompt leaves no room for a text.
            ModelError: memory runs out.
        """
        drawn = Sampling.of(sampling)
        if isinstance(counters, str):
            raise OptionError("must be a list of prompts", option="counters", value=counters)
        if n < 1:
            raise OptionError("must be at least 1", option="n", value=n)
        if not stop:
            raise OptionError("must not be empty", option="stop")
        prompts = self._encoded(prompt, counters, opening)
        if not self.engine.fits(prompts, drawn.max_new_tokens):
            raise OptionError(
                f"the prompt leaves less than {drawn.max_new_tokens} tokens of the model's context",
                "shorten the prompt, or lower {max_new_tokens}",
                option="max_new_tokens",
                value=drawn.max_new_tokens,
            )
        requests = [Request(prompts, ("write", seed, prompt, number)) for number in range(n)]
        texts = self.engine.sample(requests, drawn, stop=stop, stop_at_newline=not keep_newlines)
        return sorted(texts, key=lambda text: text.number)

    def score(self, prompt: str, texts: Sequence[str], *, stop: str = '"', opening: str | None = None) -> list[Scored]:
        """Return how likely each text is after a prompt, with ``stop`` as its last part.

        Args:
            prompt: the prompt, as for `write`.
            texts: the texts.
            stop: string that ends a text.
            opening: as for `write`.

        Returns:
            For each text ``logprob``, the mean natural-log probability per token, and ``tokens``, their number.

        Raises:
            OptionError: a value is wrong.
        """
        if isinstance(texts, str):
            raise OptionError("must be a list of texts", option="texts", value=texts)
        self._encoded(prompt, (), opening)
        rendered = self._rendered(prompt, opening)
        return self.engine.score([(rendered, text) for text in texts], stop=stop)

    def _encoded(self, prompt: str, counters: Sequence[str], opening: str | None) -> tuple[Prompt, ...]:
        """Return the token ids of the own prompt and the counter-prompts.

        Raises:
            OptionError: one of them has no tokens.
        """
        prompts = self.engine.encode([self._rendered(one, opening) for one in (prompt, *counters)])
        if not all(prompts):
            raise OptionError("must not be empty", option="counters" if prompts[0] else "prompt")
        return tuple(prompts)

    def _rendered(self, prompt: str, opening: str | None) -> str:
        """Return a prompt as the model reads it.

        Raises:
            OptionError: it is not a string.
        """
        if not isinstance(prompt, str):
            raise OptionError("must be a string", option="prompt", value=short(prompt))
        if opening is None:
            opening = prompt.rpartition("\n")[2] if "\n" in prompt else prompt[-1:]
        return self.engine.render(prompt, opening)
