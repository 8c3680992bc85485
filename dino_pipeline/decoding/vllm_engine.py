"""The engine vLLM, in this process: each prompt of a text is a request, and a plug-in writes them in lock-step."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.sampling_params import RequestOutputKind

from dino_pipeline.decoding.engine import Completion, EngineFacts, Request, Scored, key_digest
from dino_pipeline.decoding.group_member import GroupMember, group_members
from dino_pipeline.decoding.prefill import continuations
from dino_pipeline.decoding.tokenization import NEVER, Ending, Prompt, PromptReader, completion
from dino_pipeline.decoding.vllm_start import start_vllm
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling

log = logging.getLogger(__name__)
MAX_TRIES = 8
"""Times that a text is asked for before the engine counts as unable to hold its prompts in step."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Nats a token by which log-probabilities may differ in the self-check."""
CHECKED_TOKENS = 12
"""Tokens of each text of the self-check."""
_open_engines: list[VllmEngine] = []
"""The engine of this process, if there is one: vLLM runs one at a time."""


@dataclass
class _Text:
    """A text that is being written."""

    number: int
    request: Request
    tries: int = 0
    ids: list[str] = field(default_factory=list)
    """vLLM's request of each prompt, the own prompt's first."""
    tokens: list[list[int]] = field(default_factory=list)
    """The tokens that each request has got: the same ones, unless they fell out of step."""
    log_probs: list[list[float]] = field(default_factory=list)
    """Their log-probabilities under each prompt."""
    finished: bool = False
    """Whether vLLM has ended one of the requests."""


class VllmEngine(PromptReader):
    """Writes texts with vLLM.

    Args:
        model: which model.
        arguments: of `vllm.LLM`, by name. They go before ours.

    Raises:
        ModelError: vLLM cannot load the model, runs another one, or writes other texts than it reads.
        OptionError: vLLM has a version that the plug-in does not fit, or an argument that parts a text's prompts.
    """

    def __init__(self, model: ModelRef, arguments: Mapping[str, object]) -> None:
        self.torn = 0
        """Texts that were asked for again, as their prompts fell out of step."""
        self.users, self.started_with = 1, (model, dict(arguments))
        llm, self.special = start_vllm(model, arguments)
        self.llm, self.engine = llm, llm.llm_engine
        config = self.engine.vllm_config
        of_model = config.model_config
        options = {"revision": of_model.tokenizer_revision, "trust_remote_code": of_model.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(of_model.tokenizer, **options)  # vLLM's is a pool of several
        vocab, context = of_model.get_vocab_size(), of_model.max_model_len
        super().__init__(tokenizer, vocab, context, chat=model.chat, chat_date=model.chat_date)
        self.rows = config.scheduler_config.max_num_seqs
        self.refill_rows = torch.cuda.is_available()
        self._numbers = itertools.count()
        self._is_writing = False
        _open_engines.append(self)
        try:
            self._self_check(TOLERANCE[config.model_config.dtype])
        except BaseException:
            self.close()
            raise
        self.torn = 0

    @staticmethod
    def shared(model: ModelRef, arguments: Mapping[str, object]) -> VllmEngine:
        """Return the engine of this process if it was started in the same way, else a new one.

        Raises:
            ModelError: vLLM runs another model, or cannot load this one.
        """
        for engine in _open_engines:
            if engine.started_with != (model, arguments):
                raise ModelError("vLLM runs one model at a time in a process", "close the other one first")
            engine.users += 1
            return engine
        return VllmEngine(model, arguments)

    def close(self) -> None:
        """Free the memory, once nobody uses the engine any more."""
        self.users -= 1
        if self.users == 0:
            _open_engines.remove(self)
            self.engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request. Yield each text as it ends, in any order.

        Raises:
            ModelError: the prompts of a text fall out of step again and again.
        """
        self._check_free()
        self._is_writing = True
        rule = self.stop_rule(stop, stop_at_newline)
        waiting = iter(enumerate(requests))
        writing: dict[str, _Text] = {}  # by the ids of the requests
        torn = self.torn
        try:
            while True:
                while len(writing) < 2 * self.rows and (following := next(waiting, None)):
                    self._ask(_Text(*following), sampling, writing)
                if not writing:
                    break
                advanced = self._step(writing)
                self.on_step()
                for text in advanced:
                    if self._is_torn(text):
                        self._ask_again(text, sampling, writing)
                        continue
                    own = text.tokens[0]
                    ending = rule.find(own)
                    if ending is None and len(own) == sampling.max_new_tokens:
                        ending = Ending(rule.decode(own), "length")
                    if ending is None and text.finished:
                        raise ModelError(f"vLLM ended a text after {len(own)} tokens", "raise {max_model_len}")
                    if ending:
                        self._forget(text, writing)
                        yield completion(text.number, own, list(zip(*text.log_probs, strict=True)), ending)
        finally:
            self._is_writing = False
            self.engine.abort_request(list(writing))
            if self.torn > torn:
                log.warning("%d texts were asked for again, as their prompts fell out of step", self.torn - torn)

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, with ``stop`` as its last part.

        Tokens that are never written keep their probability here.
        """
        wanted = continuations(self.encode, [(prompt, text + stop) for prompt, text in pairs])
        longest = max((len(one.prompt) + len(one.tokens) for one in wanted), default=0)
        if self.context is not None and longest >= self.context:
            problem = f"leaves no room to score a text, which takes {longest + 1} tokens with its prompt"
            raise OptionError(problem, "raise it", option="max_model_len", value=self.context)
        scored = self._log_probs([(one.prompt, one.tokens) for one in wanted])
        return [Scored(sum(values) / len(values), len(values)) for values in scored]

    def undebiased(self, request: Request, tokens: Sequence[int], sampling: Sampling) -> list[int]:
        """Return what each token would be without debiasing, see `LocalEngine.undebiased`."""
        prompt, key = request.prompts[0], key_digest(request.key, 16).hex()
        prefixes, parameters = [], []
        for step in range(len(tokens)):
            prefixes.append({"prompt_token_ids": [*prompt, *tokens[:step]]})
            group = str(next(self._numbers))
            member = GroupMember(group=group, place=0, size=1, key=key, sampling=sampling, first_step=step)
            parameters.append(SamplingParams(max_tokens=1, detokenize=False, extra_args=member.argument()))
        outputs = self._read(prefixes, parameters)
        return [output.outputs[0].token_ids[0] for output in outputs]

    def facts(self) -> EngineFacts:
        """Return what the run's record holds about the engine."""
        commit = getattr(self.engine.vllm_config.model_config.hf_config, "_commit_hash", None)
        return {"model_commit": commit, "torn": self.torn}

    def _ask(self, text: _Text, sampling: Sampling, writing: dict[str, _Text]) -> None:
        """Hand the requests of a text to vLLM."""
        prompts = text.request.prompts
        if len(prompts) > self.rows:
            problem = f"the {len(prompts)} prompts of a text do not run at the same time"
            raise OptionError(problem, "raise it", option="rows", value=self.rows)
        group = str(next(self._numbers))
        text.ids = [f"{group}-{place}" for place in range(len(prompts))]
        text.tokens, text.log_probs, text.finished = [[] for _ in prompts], [[] for _ in prompts], False
        members = group_members(text.request, group, sampling)
        for name, prompt, member in zip(text.ids, prompts, members, strict=True):
            parameters = SamplingParams(
                max_tokens=sampling.max_new_tokens,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args=member.argument(),
            )
            writing[name] = text
            self.engine.add_request(name, {"prompt_token_ids": list(prompt)}, parameters)

    def _step(self, writing: Mapping[str, _Text]) -> list[_Text]:
        """Let vLLM take a step. Return the texts that got a token."""
        longer: dict[int, _Text] = {}
        for output in self.engine.step():
            if text := writing.get(output.request_id):  # else it has ended since
                place, new = text.ids.index(output.request_id), output.outputs[0]
                text.tokens[place].extend(new.token_ids)
                self.row_tokens += len(new.token_ids)
                text.log_probs[place].extend(
                    values[token].logprob for token, values in zip(new.token_ids, new.logprobs, strict=True)
                )
                text.finished |= output.finished
                longer[text.number] = text
        return list(longer.values())

    def _check_free(self) -> None:
        """Raise `ModelError` while `sample` writes: vLLM's steps would hand its tokens to others."""
        if self._is_writing:
            raise ModelError("vLLM is writing texts, and does one thing at a time", "wait until they are written")

    def _read(self, prompts: Sequence[Any], parameters: Any) -> list[Any]:
        """Return vLLM's outputs for whole prompts."""
        self._check_free()
        return self.llm.generate(prompts, parameters, use_tqdm=False)

    def _is_torn(self, text: _Text) -> bool:
        """Return whether the requests of a text have fallen out of step."""
        first = text.tokens[0]
        return self.special.torn in first[-1:] or any(others != first for others in text.tokens)

    def _ask_again(self, text: _Text, sampling: Sampling, writing: dict[str, _Text]) -> None:
        """Ask once more for a text whose requests fell out of step. The same random numbers give the same text."""
        self._forget(text, writing)
        self.torn += 1
        text.tries += 1
        if text.tries == MAX_TRIES:
            raise ModelError(
                f"vLLM does not keep the {len(text.ids)} prompts of a text in step",
                "give it more memory ({gpu_memory=0.95}) or longer steps ({engine_arg=max_num_batched_tokens=8192})",
            )
        self._ask(text, sampling, writing)

    def _forget(self, text: _Text, writing: dict[str, _Text]) -> None:
        self.engine.abort_request(text.ids)
        for name in text.ids:
            del writing[name]

    def _log_probs(self, texts: Sequence[tuple[Prompt, Sequence[int]]]) -> list[list[float]]:
        """Return the log-probability of each token of some texts after their prompts, which vLLM reads as a whole."""
        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        whole = [{"prompt_token_ids": [*prompt, *tokens]} for prompt, tokens in texts]
        found = []
        for output, (_, tokens) in zip(self._read(whole, parameters), texts, strict=True):
            of_tokens = output.prompt_logprobs[-len(tokens) :]
            found.append([values[token].logprob for token, values in zip(tokens, of_tokens, strict=True)])
        return found

    def _self_check(self, tolerance: float) -> None:
        """Write a few texts, and compare their log-probabilities with those that vLLM gives the same texts.

        Raises:
            ModelError: they differ by more than ``tolerance``, in nats a token.
        """
        generator = np.random.default_rng(0)
        allowed = np.setdiff1d(np.arange(min(self.vocab, len(self.tokenizer))), self.special.banned)
        requests = []
        for number, size in enumerate((1, 3, 2, 3)):
            lengths = generator.integers(4, 20, size=size)
            requests.append(Request(tuple(tuple(generator.choice(allowed, n).tolist()) for n in lengths), (number,)))
        sampling = Sampling(max_new_tokens=CHECKED_TOKENS, decay=20.0)
        longest = max(request.longest_prompt for request in requests) + CHECKED_TOKENS
        if self.context is not None and longest >= self.context:
            problem = f"is too short to try the engine, which takes {longest + 1} tokens"
            raise OptionError(problem, "raise it", option="max_model_len", value=self.context)
        texts = list(self.sample(requests, sampling, stop=NEVER, stop_at_newline=False))  # before vLLM is to read any
        alone = next(text for text in texts if len(requests[text.number].prompts) == 1)
        if list(alone.tokens) != self.undebiased(requests[alone.number], alone.tokens, sampling):
            raise ModelError("vLLM writes other tokens in a text than one by one", "use {engine=transformers}")
        for text in texts:
            prompts: tuple[Prompt, ...] = requests[text.number].prompts
            means = [float(np.mean(read)) for read in self._log_probs([(prompt, text.tokens) for prompt in prompts])]
            margin = means[0] - max(means[1:]) if len(means) > 1 else 0.0
            difference = max(abs(means[0] - (text.logprob or 0.0)), abs(margin - (text.margin or 0.0)))
            if not difference <= tolerance:  # it may be no number
                raise ModelError(
                    f"vLLM writes texts whose log-probabilities are {difference:.2g} nats a token from those that it "
                    "reads in the same texts",
                    "use {engine=transformers}, or {dtype=float32}",
                )
