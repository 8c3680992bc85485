"""Debiased texts from a server: by the plug-in of a vLLM server, or by rejection on one that echoes."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from dino_pipeline.decoding.answers import MalformedTextError, ServerAnswer, check_text
from dino_pipeline.decoding.completions import CompletionsClient, RequestRefusedError, request_body
from dino_pipeline.decoding.engine import Completion, Finish, Request, seed_of
from dino_pipeline.decoding.group_member import PLUGIN, group_members
from dino_pipeline.decoding.rejection import Proposal, write_by_rejection
from dino_pipeline.decoding.tokenization import Ending, completion, ending_of
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.options import Sampling
from dino_pipeline.stage_records import Dialect, ServerDebiasing

MAX_TRIES = 20
"""Times that a text's group is asked for. The requests of other groups tear it now and then, without a scheduler that
admits whole groups."""
START_PLUGIN = f"start vLLM with the logits processor {PLUGIN}:SelfDebias"
START_SCHEDULER = f"start vLLM with the scheduler class {PLUGIN}.GroupScheduler"
PROBES = ('The weather report: "', 'Task: Write two sentences that mean the same thing.\nSentence 1: "')
"""Prompts that a model goes on from differently, unless they are debiased as one text."""
PROMPTS_KEPT = 4096
"""Prompts whose tokens are kept, because samples of the same input share them."""

Count = Callable[[ServerDebiasing], None]


def has_plugin(client: CompletionsClient) -> bool:
    """Return whether the server debiases: then two prompts of one text get the same tokens.

    Raises:
        NoAnswerError: it does not answer.
        ModelError: it lets nobody in, or tears each group.
    """
    sampling = Sampling(top_k=0, top_p=0, max_new_tokens=8)
    for _ in range(MAX_TRIES):
        try:
            answers = client.ask_group(lambda: group_bodies(Request(PROBES, ("probe",)), sampling, []))
        except RequestRefusedError:
            return False
        if not all(answer.tokens for answer in answers):
            return False  # vLLM reports tokens
        one, other = (answer.tokens[:-1] if answer.ended else answer.tokens for answer in answers)
        shared = min(len(one), len(other))
        if one[:shared] != other[:shared]:
            return False
        if not any(answer.ended for answer in answers):
            return True
    raise ModelError(
        f"{client.base_url}: ends all of {MAX_TRIES} short texts at once",
        f"{START_SCHEDULER}, or give {{debias=off}}",
    )


def group_bodies(request: Request, sampling: Sampling, stop: Sequence[str]) -> list[dict[str, object]]:
    """Return the requests of a text, one for each prompt, to a server with the plug-in, which does the sampling."""
    group = uuid4().hex
    plain = Sampling(top_k=0, top_p=0, max_new_tokens=sampling.max_new_tokens)
    bodies = []
    for prompt, member in zip(request.prompts, group_members(request, group, sampling), strict=True):
        more = {"logprobs": 0, "return_token_ids": True, "vllm_xargs": member.argument()}
        seed = seed_of((group, member.place))  # matters to a server without the plug-in only, whose texts are to differ
        bodies.append(request_body(prompt, plain, stop, seed, "fields", **more))
    return bodies


class PluginWriter:
    """Writes texts with a vLLM server that has the plug-in: all prompts of a text at the same time."""

    def __init__(
        self, client: CompletionsClient, sampling: Sampling, stop: str, *, stop_at_newline: bool, count: Count
    ) -> None:
        self.client, self.sampling, self.count = client, sampling, count
        self.stops = _stops(stop, stop_at_newline)

    def write(self, request: Request, tries: int | None) -> Completion:
        """Write a text. Ask again for one whose prompts were not written in lock-step.

        Args:
            request: the text to write.
            tries: times that it is sent at most, if the server does not answer.

        Raises:
            RequestRefusedError: the server refuses a prompt.
            NoAnswerError: it does not answer.
            MalformedTextError: its answer is no text.
            ModelError: it tears the prompts apart again and again.
        """
        for torn in range(MAX_TRIES):
            answers = self.client.ask_group(lambda: group_bodies(request, self.sampling, self.stops), tries)
            for answer in answers:
                check_text(answer)
            if self._are_in_step(answers):
                self.count(ServerDebiasing(texts=1, torn=torn))
                return self._completion(answers)
        self.count(ServerDebiasing(torn=MAX_TRIES))
        raise ModelError(
            f"{self.client.base_url}: did not write the {len(request.prompts)} prompts of a text in one step, in "
            f"{MAX_TRIES} tries",
            f"{START_SCHEDULER}, or send fewer at a time by {{concurrency}}",
        )

    @staticmethod
    def _are_in_step(answers: Sequence[ServerAnswer]) -> bool:
        """Return whether all prompts got the same tokens, of which none ends the document: that marks torn groups."""
        own = answers[0]
        return all(each.tokens == own.tokens and each.tokens and not each.ended_document for each in answers)

    def _completion(self, answers: Sequence[ServerAnswer]) -> Completion:
        own = answers[0]
        by_prompt = [answer.log_probs for answer in answers]
        if any(len(values) != len(own.tokens) for values in by_prompt):
            raise MalformedTextError("lacks the log-probability of a token")
        finish: Finish = "length"
        if own.ended:
            finish = "newline" if "\n" in own.stopped_by and self.stops[0] != "\n" else "stop"
        return completion(0, own.tokens, list(zip(*by_prompt, strict=True)), Ending(own.text, finish))


class RejectionWriter:
    """Writes texts with a server that takes and reports tokens and echoes their log-probabilities (vLLM).

    Raises:
        OptionError: the server does not.
    """

    def __init__(
        self,
        client: CompletionsClient,
        sampling: Sampling,
        stop: str,
        dialect: Dialect,
        *,
        stop_at_newline: bool,
        count: Count,
    ) -> None:
        self.client, self.sampling, self.dialect, self.count = client, sampling, dialect, count
        self.stop, self.stop_at_newline = stop, stop_at_newline
        self.tokens_of = lru_cache(PROMPTS_KEPT)(self._tokens_of)
        self._check(PROBES[0])

    def write(self, request: Request, tries: int | None) -> Completion:
        """Write a text.

        Args:
            request: the text to write.
            tries: times that each request is sent at most, if the server does not answer.

        Raises:
            RequestRefusedError: the server refuses a prompt.
            NoAnswerError: it does not answer.
            MalformedTextError: its answer is no text.
            ModelError: no token is accepted.
        """
        prompts = [self.tokens_of(prompt, tries) for prompt in request.prompts]
        written = write_by_rejection(_TextOnServer(self, prompts, tries), request.key, self.sampling)
        text = self.decode(written.tokens, tries)
        ending = ending_of(text, self.stop, stop_at_newline=self.stop_at_newline) or Ending(text, "length")
        self.count(ServerDebiasing(texts=1, rounds=written.rounds))
        return completion(0, written.tokens, written.log_probs.tolist(), ending)

    def ask(self, body: dict[str, object], tries: int | None = None) -> list[ServerAnswer]:
        """Return the answers to a request that the server may refuse."""
        answers = self.client.ask_prompts(body, may_refuse=True, tries=tries)
        for answer in answers:
            check_text(answer)
        return answers

    def decode(self, tokens: Sequence[int], tries: int | None = None) -> str:
        """Return the text of some tokens, as the server echoes it."""
        return self.ask({"prompt": list(tokens), "max_tokens": 0, "echo": True}, tries)[0].text

    def log_probs(self, texts: Sequence[Sequence[int]], last: int, tries: int | None = None) -> NDArray[np.float64]:
        """Return the log-probabilities of the ``last`` tokens of some texts of given tokens.

        Returns:
            ``(last, texts)`` natural logarithms.
        """
        body = {"prompt": list(map(list, texts)), "max_tokens": 0, "echo": True, "logprobs": 1}
        columns = []
        for text, answer in zip(texts, self.ask(body | {"return_token_ids": True}, tries), strict=True):
            values = answer.token_logprobs
            if answer.prompt_tokens != tuple(text) or len(values) != len(text):
                raise MalformedTextError("echoes other tokens than it was given")
            columns.append(values[len(text) - last :])
            if not all(value is not None and math.isfinite(value) for value in columns[-1]):
                raise MalformedTextError("lacks the log-probability of a token")
        return np.array(columns, dtype=np.float64).T

    def _tokens_of(self, prompt: str, tries: int | None = None) -> tuple[int, ...]:
        """Return the tokens of a prompt, as the server reads it."""
        answer = self.ask({"prompt": prompt, "max_tokens": 1, "return_token_ids": True}, tries)[0]
        if not answer.prompt_tokens:
            raise MalformedTextError("does not report a prompt's tokens")
        return answer.prompt_tokens

    def _check(self, prompt: str) -> None:
        """Raise `OptionError` if a text that the server proposes cannot be scored token by token."""
        few = self.sampling.model_copy(update={"max_new_tokens": 4})
        try:
            tokens = self.tokens_of(prompt)
            body = request_body(tokens, few, [self.stop], 0, self.dialect, return_token_ids=True)
            answer = self.ask(body)[0]
            is_able = answer.tokens and answer.stopped_by and prompt in self.decode(tokens)
            if not is_able or not np.isfinite(self.log_probs([[*tokens, *answer.tokens]], len(answer.tokens))).all():
                raise self._unable()
        except (RequestRefusedError, MalformedTextError) as error:
            raise self._unable() from error

    def _unable(self) -> OptionError:
        return OptionError(
            f"{self.client.base_url}: does not take and report the ids of tokens with their log-probabilities",
            "take a vLLM server, or give {debias=off} {best_of=4} {scorer=MODEL}",
            option="debias",
            value="rejection",
        )


class _TextOnServer:
    """A server's model with the prompts of one text, see `rejection.ProposingModel`."""

    def __init__(self, writer: RejectionWriter, prompts: Sequence[tuple[int, ...]], tries: int | None) -> None:
        self.writer, self.prompts, self.tries = writer, prompts, tries
        self.stops = _stops(writer.stop, writer.stop_at_newline)
        self.spans_tokens = any(len(stop.encode()) > 1 for stop in self.stops)
        """Whether one of them can begin in a token that is accepted, and end in another that is proposed later."""

    def propose(self, tokens: Sequence[int], seed: int) -> Proposal:
        """Return a rest of the text, which ends where the text does."""
        writer = self.writer
        rest = writer.sampling.model_copy(update={"max_new_tokens": writer.sampling.max_new_tokens - len(tokens)})
        prompt = [*self.prompts[0], *tokens]
        body = request_body(prompt, rest, self.stops, seed, writer.dialect, return_token_ids=True)
        answer = writer.ask(body, self.tries)[0]
        proposed = answer.tokens[:-1] if answer.ended_document else answer.tokens
        if tokens and self.spans_tokens and self._ends([*tokens, *proposed[:-1]]):
            whole = [*tokens, *proposed]
            lengths = range(len(tokens) + 1, len(whole) + 1)
            end = bisect.bisect_left(lengths, True, key=lambda length: self._ends(whole[:length]))
            return Proposal(tuple(whole[len(tokens) : lengths[end]]), True)
        return Proposal(proposed, not answer.ended_document)

    def log_probs(self, tokens: Sequence[int], start: int) -> NDArray[np.float64]:
        """Return the log-probabilities of tokens under each prompt."""
        if len(tokens) == start:
            return np.empty((0, len(self.prompts)))
        texts = [[*prompt, *tokens] for prompt in self.prompts]
        return self.writer.log_probs(texts, len(tokens) - start, self.tries)

    def _ends(self, tokens: Sequence[int]) -> bool:
        text = self.writer.decode(tokens, self.tries)
        return ending_of(text, self.writer.stop, stop_at_newline=self.writer.stop_at_newline) is not None


def _stops(stop: str, stop_at_newline: bool) -> list[str]:
    return list(dict.fromkeys([stop, "\n"] if stop_at_newline else [stop]))
