"""The engine that asks a server: any that offers OpenAI's completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar

from dino_pipeline.decoding.answers import MalformedTextError, ServerAnswer, check_text
from dino_pipeline.decoding.completions import (
    CompletionsClient,
    NoAnswerError,
    RequestRefusedError,
    request_body,
)
from dino_pipeline.decoding.engine import Completion, EngineFacts, Finish, Request, Scored, seed_of
from dino_pipeline.decoding.received_texts import ReceivedTexts
from dino_pipeline.decoding.server_abilities import check_top_k, probe
from dino_pipeline.decoding.server_debias import (
    PROBES,
    START_SCHEDULER,
    PluginWriter,
    RejectionWriter,
    has_plugin,
)
from dino_pipeline.errors import OptionError
from dino_pipeline.generate_options import Debiasing
from dino_pipeline.options import Sampling
from dino_pipeline.processes import in_threads
from dino_pipeline.stage_records import ServerAbilities, ServerCost, ServerDebiasing, ServerPrices, ServerUsage

MOST_FAILURES = 32
"""Texts in a row, and at least twice as many as are asked for at the same time, whose failure ends a run."""
RECEIVED: tuple[Finish, ...] = ("stop", "newline", "length")
"""Texts with these ends are kept until a shard holds them. For all others the server wrote nothing."""
NOT_SCORED = Scored(-math.inf, 0)
"""Stands for a text that the server does not score."""
Result = TypeVar("Result")
Write = Callable[[Request, int | None], Completion]
"""Writes a text; the number is how often it is asked for at most if the server does not answer, None: as usual."""
WITH_PLUGIN = ServerAbilities(dialect="fields", seeds="hold", logprobs=True, tells_ends=True)
"""What a server with the plug-in supports. The plug-in samples, not the server."""


class Server:
    """Writes texts with a model on a server.

    Args:
        model: name of the model on the server.
        base_url: the server's address, ending in /v1.
        note: takes what the user should know, a message and a remedy, as `Reporter.note`.
        concurrency: texts that are asked for at the same time.
        timeout: seconds after which a request is given up and sent again.
        prices: dollars per million tokens.
        usage: requests and tokens of earlier calls, to which those of this one are added.
        debiasing: what debiasing took in earlier calls, likewise.
        received: texts of an earlier call that was cut short; those of this one are added.

    Raises:
        OptionError: the address is malformed.
    """

    marks: tuple[str, ...] = ()
    refill_rows = True

    def __init__(
        self,
        model: str,
        base_url: str,
        note: Callable[[str, str], None],
        *,
        concurrency: int = 16,
        timeout: float = 600.0,
        prices: ServerPrices | None = None,
        usage: ServerUsage | None = None,
        debiasing: ServerDebiasing | None = None,
        received: ReceivedTexts | None = None,
    ) -> None:
        self.client = CompletionsClient(model, base_url, timeout, usage or ServerUsage(), note)
        self.base_url, self.note, self.concurrency = self.client.base_url, note, concurrency
        self.received = received
        self.prices = prices or ServerPrices()
        self.debias: Debiasing | None = None
        """How texts are debiased; None ignores counter-prompts. To be chosen before the first text."""
        self.debiasing = debiasing or ServerDebiasing()
        self.abilities: ServerAbilities | None = None
        self._keeps_top_k = False
        self._noted: set[str] = set()
        """Kinds of failures that were noted."""
        self._hopeless: set[object] = set()
        """Prompts that the server does not answer."""
        self._failures = 0
        """Texts in a row that were not answered."""

    def render(self, prompt: str, opening: str) -> str:
        """Return the prompt as it is."""
        return prompt

    def encode(self, texts: Sequence[str]) -> Sequence[str]:
        """Return the texts as they are."""
        return texts

    def fits(self, prompts: Iterable[str], max_new_tokens: int) -> bool:
        """Return True. A server answers with an error if a prompt is too long."""
        return True

    def close(self) -> None:
        """Ask and receive nothing any more: threads that are still asking end. The server goes on."""
        self.client.close()
        if self.received is not None:
            self.received.close()

    def facts(self) -> EngineFacts:
        """Return what the server supports, requests and tokens so far, and their cost."""
        usage = self.client.usage
        facts: EngineFacts = {"usage": usage}
        if self.abilities:
            facts["server"] = self.abilities
        if self.debias:
            facts["debiasing"] = self.debiasing
        if self.prices != ServerPrices():
            spent = usage.prompt_tokens * self.prices.prompt + usage.completion_tokens * self.prices.completion
            facts["cost"] = ServerCost(dollars=round(spent / 1e6, 6), dollars_a_million_tokens=self.prices)
        return facts

    def sample(
        self, requests: Iterable[Request], sampling: Sampling, *, stop: str = '"', stop_at_newline: bool = True
    ) -> Iterator[Completion]:
        """Write a text for each request, several at the same time. Yield each as it ends.

        Raises:
            ModelError: the server does not answer.
            OptionError: the server does not support what the options ask for.
        """
        waiting = iter(requests)
        first = list(islice(waiting, 1))
        if not first:
            return
        try:
            write = self._writer(sampling, stop, stop_at_newline)
        except NoAnswerError as error:
            raise error.named from error
        before = self.debiasing
        jobs = chain(first, waiting)
        for number, written in in_threads(lambda request: self._written(request, write), jobs, self.concurrency):
            yield replace(written, number=number)
        self._note_debiasing(before)

    def _written(self, request: Request, write: Write) -> Completion:
        """Return a request's text, and keep it; without text if there is none.

        Raises:
            ModelError: the server answers nothing any more.
        """
        try:
            written = self._attempt(request.prompts[0], lambda tries: write(request, tries))
        except RequestRefusedError as error:
            written = self._without_text("refused", f"the server refuses a prompt, whose text is left out ({error})")
        except MalformedTextError as error:
            written = self._without_text("malformed", f"the server answers with no text, which is left out ({error})")
        except NoAnswerError as error:
            message = f"the server does not answer a prompt, whose text is left out ({error.named.message})"
            return self._without_text("unanswered", message)
        if self.received is not None and written.finish in RECEIVED:
            self.received.add(request.key, written)
        return written

    def _attempt(self, prompt: object, ask: Callable[[int | None], Result]) -> Result:
        """Return what ``ask`` returns, given the number of tries.

        If the server does not answer it, but another prompt, ask once more.

        Raises:
            NoAnswerError: the server does not answer this prompt.
            ModelError: it answers no prompt, or none of many in a row.
        """
        try:
            result = ask(1 if prompt in self._hopeless else None)
        except NoAnswerError as error:
            if not self._answers_anything():
                raise error.named from error
            result = self._last_attempt(prompt, ask)
        except (RequestRefusedError, MalformedTextError):
            self._count(has_failed=False)  # an answer, too
            raise
        self._count(has_failed=False)
        return result

    def _answers_anything(self) -> bool:
        """Return whether the server answers a short prompt, if only by refusing it. It may have to be started again."""
        try:
            self.client.ask({"prompt": PROBES[0], "max_tokens": 1}, may_refuse=True)
        except NoAnswerError:
            return False
        except RequestRefusedError:
            pass
        return True

    def _last_attempt(self, prompt: object, ask: Callable[[int | None], Result]) -> Result:
        try:
            return ask(1)
        except NoAnswerError as error:
            self._hopeless.add(prompt)
            if self._count(has_failed=True) >= max(MOST_FAILURES, 2 * self.concurrency):
                raise error.named from error
            raise

    def _count(self, *, has_failed: bool) -> int:
        """Count a text that was not answered, or begin anew after one that was. Return how many in a row were not."""
        with self.client.lock:
            self._failures = self._failures + 1 if has_failed else 0
            return self._failures

    def _without_text(self, finish: Finish, message: str) -> Completion:
        """Return a completion without a text, and note the first one of its kind."""
        self._note_once(finish, message)
        return Completion(0, "", finish, (), 0, None, None)

    def _note_once(self, kind: str, message: str) -> None:
        with self.client.lock:
            is_first = kind not in self._noted
            self._noted.add(kind)
        if is_first:
            self.note(message, "")

    def _writer(self, sampling: Sampling, stop: str, stop_at_newline: bool) -> Write:
        """Return what writes a text, after a look at what the server supports."""
        if self.debias == "plugin":
            self.abilities = WITH_PLUGIN
            with_plugin = PluginWriter(
                self.client, sampling, stop, stop_at_newline=stop_at_newline, count=self._count_debiasing
            )
            return with_plugin.write
        abilities = self.abilities = self.abilities or probe(self.client, stop, self.concurrency, self.note)
        if sampling.top_k and not self._keeps_top_k:
            check_top_k(self.client, abilities.dialect, stop)
            self._keeps_top_k = True

        def write(request: Request, tries: int | None) -> Completion:
            # A newline is not sent as a stop string: most servers do not report which of several ended a text.
            more = {"logprobs": 1} if abilities.logprobs else {}
            seed = seed_of(request.key)
            body = request_body(request.prompts[0], sampling, [stop], seed, abilities.dialect, **more)
            answer = self.client.ask(body, may_refuse=True, tries=tries)
            check_text(answer)
            return _completion(answer, stop, stop_at_newline)

        if self.debias is None:
            return write
        by_rejection = RejectionWriter(
            self.client,
            sampling,
            stop,
            abilities.dialect,
            stop_at_newline=stop_at_newline,
            count=self._count_debiasing,
        )
        return lambda request, tries: (
            by_rejection.write(request, tries) if len(request.prompts) > 1 else write(request, tries)
        )

    def score(self, pairs: Sequence[tuple[str, str]], *, stop: str = '"') -> list[Scored]:
        """Return how likely each text is after its prompt, by the log-probabilities of an echo (vLLM, SGLang).

        A text to which the server gives no finite probability, or no answer, has the log-probability minus infinity.

        Raises:
            ModelError: the server answers nothing any more.
        """
        scores = in_threads(lambda pair: self._score_or_none(pair[0], pair[1] + stop), pairs, self.concurrency)
        return [score for _, score in sorted(scores)]

    def _score_or_none(self, prompt: str, text: str) -> Scored:
        try:
            return self._attempt(prompt, lambda tries: self._score(prompt, text, tries))
        except (RequestRefusedError, MalformedTextError, NoAnswerError) as error:
            self._note_once("not scored", f"the server does not score a text, which is left out ({error})")
            return NOT_SCORED

    def check_scores(self) -> None:
        """Score a short text, and raise if that is not possible.

        Raises:
            OptionError: the server does not echo log-probabilities.
            ModelError: it does not answer.
        """
        try:
            self._score("Sentence 1: ", "A dog runs.", None)
        except NoAnswerError as error:
            raise error.named from error
        except (RequestRefusedError, MalformedTextError) as error:
            raise OptionError(
                f"{self.base_url}: echoes no log-probabilities, so it scores no texts ({error})",
                "give {scorer=MODEL}, a model that runs here",
            ) from error

    def _score(self, prompt: str, text: str, tries: int | None) -> Scored:
        body = {"prompt": prompt + text, "max_tokens": 1, "echo": True, "logprobs": 1}
        answer = self.client.ask(body, may_refuse=True, tries=tries)
        check_text(answer)
        starts, values = answer.token_starts, answer.token_logprobs
        if not starts or len(starts) != len(values) or starts[0] != 0 or not answer.text.startswith(prompt):
            raise MalformedTextError("no echo with log-probabilities")
        length = len(prompt + text)
        of_text: list[float] = []
        for start, end, value in zip(starts, [*starts[1:], length], values, strict=True):
            # a token that holds the end of the prompt and the beginning of the text counts as text
            if end > len(prompt) and start < length and value is not None:
                of_text.append(value)
        if not of_text:
            raise MalformedTextError("no log-probabilities of the text")
        return Scored(sum(of_text) / len(of_text), len(of_text))

    def has_plugin(self) -> bool:
        """Return whether the server has the plug-in that debiases, see `server_debias.has_plugin`.

        Raises:
            ModelError: it does not answer.
        """
        try:
            return has_plugin(self.client)
        except NoAnswerError as error:
            raise error.named from error

    def _count_debiasing(self, further: ServerDebiasing) -> None:
        with self.client.lock:
            self.debiasing = self.debiasing.plus(further)

    def _note_debiasing(self, before: ServerDebiasing) -> None:
        """Note what debiasing took since ``before``."""
        torn, rounds = self.debiasing.torn - before.torn, self.debiasing.rounds - before.rounds
        if torn:
            self.note(
                f"the server tore the prompts of texts apart {torn} times; they were asked for again", START_SCHEDULER
            )
        if rounds:
            texts = self.debiasing.texts - before.texts
            self.note(f"debiasing by rejection took {rounds / max(texts, 1):.1f} rounds a text", "")


def _completion(answer: ServerAnswer, stop: str, stop_at_newline: bool) -> Completion:
    """Return an answer as a result. Some servers leave the stop string in the text."""
    text, found_stop, _ = answer.text.partition(stop)
    stopped = found_stop or (answer.ended and all(reported == stop for reported in answer.stopped_by))
    finish: Finish = "stop" if stopped else "length"
    if stop_at_newline and "\n" in text:
        text, finish = text.partition("\n")[0], "newline"
    return Completion(0, text, finish, (), answer.length or len(answer.token_logprobs), answer.logprob, None)
