"""The engine vLLM, in this process: each prompt of a text is a request, and a plug-in writes them in lock-step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dino_pipeline.decoding.engine import Completion, EngineFacts, Request, Scored, key_digest
from dino_pipeline.decoding.prefill import continuation
from dino_pipeline.decoding.tokenization import Ending, Prompt, PromptReader, completion
from dino_pipeline.errors import ModelError, OptionError, first_line
from dino_pipeline.models import ModelRef, check_weights
from dino_pipeline.options import Sampling

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read when vLLM is imported

TESTED = ((0, 32), (0, 33))
"""Versions of vLLM that the plug-in was tried with: from the first, up to the second."""
MAX_TRIES = 8
"""Times that a text is asked for before the engine counts as unable to hold its group."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Nats a token by which log-probabilities of the self-check may differ."""
SELF_CHECK_TOKENS = 12
TEARS_GROUPS = ("speculative_config", "pipeline_parallel_size", "scheduler_cls", "logits_processors", "logprobs_mode")
"""Arguments of vLLM that would keep a text's prompts from being written in lock-step, or their margins from us."""
PLUGIN = "dino_pipeline.decoding.vllm_plugin"


@dataclass
class _Text:
    """A text that is being written."""

    number: int
    request: Request
    tries: int = 0
    ids: list[str] = field(default_factory=list)
    """The request of each prompt, the own prompt's first."""
    tokens: list[list[int]] = field(default_factory=list)
    log_probs: list[list[float]] = field(default_factory=list)
    """For each prompt, the log-probability of each token."""


class VllmEngine(PromptReader):
    """Writes texts with vLLM.

    Args:
        model: which model.
        arguments: of `vllm.LLM`, by name. They go before ours.

    Raises:
        ModelError: vLLM cannot load the model, or writes other texts than it says.
        OptionError: vLLM is of a version that the plug-in does not fit, or an argument tears groups.
    """

    refill_rows = False

    def __init__(self, model: ModelRef, arguments: Mapping[str, Any]) -> None:
        self.torn = 0
        """Groups that fell out of step and were asked for again."""
        self.llm = _load(model, arguments)
        self.engine = self.llm.llm_engine
        config = self.engine.vllm_config
        from dino_pipeline.decoding.vllm_plugin import SpecialTokens

        vocab = config.model_config.get_vocab_size()
        super().__init__(self.llm.get_tokenizer(), vocab, config.model_config.max_model_len, chat=model.chat)
        self.special = SpecialTokens.of(config, vocab)
        self.most_requests = 2 * config.scheduler_config.max_num_seqs
        self._numbers = itertools.count()
        self._self_check()

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request. Yield each text as it ends, in any order."""
        rule = self.stop_rule(stop, stop_at_newline)
        waiting = iter(enumerate(requests))
        texts: dict[str, _Text] = {}  # by the ids of their requests
        try:
            while True:
                for number, request in waiting:
                    self._ask(_Text(number, request), sampling, texts)
                    if len(texts) >= self.most_requests:
                        break
                if not texts:
                    return
                for text in self._step(texts):
                    if self.special.torn in itertools.chain.from_iterable(text.tokens):
                        self._ask_again(text, sampling, texts)
                        continue
                    own = text.tokens[0]
                    ending = rule.find(own)
                    if ending is None and len(own) == sampling.max_new_tokens:
                        ending = Ending(rule.decode(own), "length")
                    if ending:
                        self._forget(text, texts)
                        yield completion(text.number, own, list(zip(*text.log_probs, strict=True)), ending)
        finally:
            self.engine.abort_request(list(texts))

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, with ``stop`` as its last part."""
        prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
        encoded = dict(zip(prompts, self.encode(prompts), strict=True))
        whole = self.encode([prompt + text + stop for prompt, text in pairs])
        wanted = [continuation(encoded[prompt], tokens) for (prompt, _), tokens in zip(pairs, whole, strict=True)]
        scored = self._log_probs([(one.prompt, one.tokens) for one in wanted])
        return [Scored(sum(values) / len(values), len(values)) for values in scored]

    def facts(self) -> EngineFacts:
        """Return what the run's record holds about the engine."""
        return {"model_commit": getattr(self.engine.vllm_config.model_config.hf_config, "_commit_hash", None)}

    def _ask(self, text: _Text, sampling: Sampling, texts: dict[str, _Text]) -> None:
        """Hand the requests of a text to vLLM."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from dino_pipeline.decoding.vllm_plugin import GroupMember

        prompts = text.request.prompts
        group = str(next(self._numbers))
        text.ids = [f"{group}-{place}" for place in range(len(prompts))]
        text.tokens, text.log_probs = [[] for _ in prompts], [[] for _ in prompts]
        for place, (name, prompt) in enumerate(zip(text.ids, prompts, strict=True)):
            member = GroupMember(
                group, place, len(prompts), key_digest(text.request.key, 16).hex(), **sampling.model_dump()
            )
            parameters = SamplingParams(
                temperature=0.0,
                max_tokens=sampling.max_new_tokens,
                detokenize=False,
                logprobs=0,
                output_kind=RequestOutputKind.DELTA,
                extra_args=member.argument(),
            )
            texts[name] = text
            self.engine.add_request(name, {"prompt_token_ids": list(prompt)}, parameters)

    def _step(self, texts: dict[str, _Text]) -> list[_Text]:
        """Let vLLM take a step. Return the texts that got a token."""
        written: dict[int, _Text] = {}
        for output in self.engine.step():
            text = texts.get(output.request_id)
            if text is None:  # it has ended since
                continue
            place = text.ids.index(output.request_id)
            new = output.outputs[0]
            text.tokens[place].extend(new.token_ids)
            for token, values in zip(new.token_ids, new.logprobs or (), strict=True):
                text.log_probs[place].append(values[token].logprob)
            written[text.number] = text
        return list(written.values())

    def _ask_again(self, text: _Text, sampling: Sampling, texts: dict[str, _Text]) -> None:
        """Ask for a text whose group fell out of step once more. The same random numbers give the same text."""
        self._forget(text, texts)
        self.torn += 1
        text.tries += 1
        if text.tries == MAX_TRIES:
            raise ModelError(
                f"vLLM does not hold the {len(text.ids)} prompts of a text in one step",
                "give it more memory ({gpu_memory}), or a larger {engine_arg=max_num_batched_tokens=8192}",
            )
        self._ask(text, sampling, texts)

    def _forget(self, text: _Text, texts: dict[str, _Text]) -> None:
        self.engine.abort_request(text.ids)
        for name in text.ids:
            texts.pop(name, None)

    def _log_probs(self, texts: Sequence[tuple[Prompt, Sequence[int]]]) -> list[list[float]]:
        """Return the log-probability of each token of some texts after their prompts, as vLLM reads them at once."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        whole = [{"prompt_token_ids": [*prompt, *tokens]} for prompt, tokens in texts]
        found = []
        for output, (_, tokens) in zip(self.llm.generate(whole, parameters, use_tqdm=False), texts, strict=True):
            of_tokens = output.prompt_logprobs[-len(tokens) :]
            found.append([values[token].logprob for token, values in zip(tokens, of_tokens, strict=True)])
        return found

    def _self_check(self) -> None:
        """Write a few texts, and compare their log-probabilities with those that vLLM gives the same texts.

        Raises:
            ModelError: they differ.
        """
        random = np.random.default_rng(0)
        allowed = np.setdiff1d(np.arange(min(self.vocab, len(self.tokenizer))), self.special.banned)
        requests = []
        for number, size in enumerate((1, 3, 2, 3)):
            lengths = random.integers(4, 20, size=size)
            requests.append(Request(tuple(tuple(random.choice(allowed, n).tolist()) for n in lengths), (number,)))
        sampling = Sampling(max_new_tokens=SELF_CHECK_TOKENS, decay=20.0)
        for text in self.sample(requests, sampling, stop="\0", stop_at_newline=False):
            prompts: tuple[Prompt, ...] = requests[text.number].prompts
            means = [
                float(np.mean(values)) for values in self._log_probs([(prompt, text.tokens) for prompt in prompts])
            ]
            margin = means[0] - max(means[1:]) if len(means) > 1 else 0.0
            differences = (abs(means[0] - (text.logprob or 0.0)), abs(margin - (text.margin or 0.0)))
            if max(differences) > TOLERANCE[self.engine.vllm_config.model_config.dtype]:
                raise ModelError(
                    "vLLM writes other texts than it reads: log-probabilities of the same text differ by "
                    f"{max(differences):.2g} nats a token",
                    "use {engine=transformers}, or {dtype=float32}",
                )


def _load(model: ModelRef, arguments: Mapping[str, Any]) -> Any:
    """Return a `vllm.LLM` with the plug-in."""
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    version = tuple(int(part) for part in vllm.__version__.split("+")[0].split(".")[:2])
    if not TESTED[0] <= version < TESTED[1]:
        first, last = (".".join(map(str, each)) for each in TESTED)
        raise OptionError(
            f"needs vllm from {first} up to, but not including, {last}; {vllm.__version__} is installed",
            "install another version",
            option="engine",
            value="vllm",
        )
    if refused := sorted(set(arguments) & set(TEARS_GROUPS)):
        raise OptionError(f"{refused[0]} tears the prompts of a text apart", "leave it out", option="engine_arg")
    path = model.path("generator")
    check_weights(path)
    ours: dict[str, Any] = {
        "model": path,
        "revision": model.revision,
        "dtype": model.dtype or "auto",
        "trust_remote_code": model.trust_remote_code,
        "generation_config": "vllm",
        "async_scheduling": False,
        "scheduler_cls": f"{PLUGIN}.GroupScheduler",
        "disable_log_stats": True,
        "enforce_eager": not torch.cuda.is_available(),
    }
    if model.quantize:
        ours["quantization"] = "bitsandbytes"
    try:
        config = EngineArgs(**{**ours, **arguments}).create_engine_config()
        plugin = f"{PLUGIN}:{'SelfDebiasV2' if config.use_v2_model_runner else 'SelfDebias'}"
        return vllm.LLM(**{**ours, **arguments, "logits_processors": [plugin]})
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"{path}: vLLM cannot load it ({first_line(error)})", "see {engine_arg}") from error
