"""The door for what a server answers: everything that comes from outside is checked, bounded and given a type here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dino_pipeline.errors import short
from dino_pipeline.stage_records import ServerUsage

STOP_FIELDS = ("stop_reason", "matched_stop")
"""Where servers report what stopped a text (vLLM, SGLang)."""
LONGEST_TOKEN = 256
"""Characters that a token has at most, as far as a text's length is believed."""
MOST_TOKENS = 2**53
"""Larger counts are ignored."""


class SenselessAnswerError(Exception):
    """An answer is cut or malformed, or reports an error. Another try may help."""


class MalformedTextError(Exception):
    """The text of an answer cannot be used, and another try would bring the same."""


@dataclass(frozen=True)
class ServerAnswer:
    """A server's answer to one prompt."""

    text: str
    """Valid Unicode."""
    ended: bool
    """Whether the server says that the text ended by itself: at the stop string, or at the model's end of text."""
    stopped_by: tuple[object, ...]
    """What stopped the text, by each of the `STOP_FIELDS` that the server fills. Empty if it fills none."""
    tokens: tuple[int, ...]
    """Ids of the text's tokens, with those that ended it. Empty if not reported (vLLM does)."""
    prompt_tokens: tuple[int, ...]
    """Ids of the prompt's tokens. Empty if not reported."""
    token_logprobs: tuple[float | None, ...]
    """Natural-log probability of each token, None for the first token of an echo. Empty if not reported."""
    token_starts: tuple[int, ...]
    """Position of each token's first character. Empty if not reported."""
    length: int
    """Tokens of all texts of the request, 0 if not reported."""
    defect: str | None = None
    """Why the text cannot be used, whatever else the answer says."""

    @property
    def ended_document(self) -> bool:
        """Whether the model's end of text ended it, on a server that tells that from a stop string."""
        return self.ended and not any(isinstance(reason, str) for reason in self.stopped_by)

    @property
    def log_probs(self) -> list[float]:
        """Return each token's log-probability, nothing if one is missing."""
        values = [value for value in self.token_logprobs if value is not None and math.isfinite(value)]
        return values if len(values) == len(self.token_logprobs) else []

    @property
    def logprob(self) -> float | None:
        """Return the mean log-probability per token, None if the server does not report it or it is not finite."""
        values = self.log_probs
        return sum(values) / len(values) if values else None


def check_text(answer: ServerAnswer) -> None:
    """Raise `MalformedTextError` if the text of an answer cannot be used."""
    if answer.defect:
        raise MalformedTextError(answer.defect)


def parse_answers(content: bytes, body: Mapping[str, object]) -> tuple[list[ServerAnswer], ServerUsage]:
    """Return an answer's texts, one for each prompt, and what they used.

    A text itself must be there. What else the answer says of it is left out where it has another form than it should.

    Args:
        content: the body of the answer.
        body: the request that it answers.

    Raises:
        SenselessAnswerError: it is not JSON, or not one completion for each prompt.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        begins = content[:60].decode(errors="replace").strip()
        raise SenselessAnswerError(f"its answers are not JSON; they begin {begins!r}") from error
    if not isinstance(answer, dict):
        raise SenselessAnswerError("its answers are not completions")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
        if answer.get("error"):
            raise SenselessAnswerError(f"answers with an error: {short(answer['error'])}")
        raise SenselessAnswerError("its answers are not completions")
    prompts = _prompts(body["prompt"])
    if len(choices) != len(prompts):
        raise SenselessAnswerError(f"answers {len(prompts)} prompts with {len(choices)} texts")
    usage = answer.get("usage")
    used = ServerUsage(
        requests=1, prompt_tokens=_count(usage, "prompt_tokens"), completion_tokens=_count(usage, "completion_tokens")
    )
    choices = sorted(choices, key=lambda choice: _count(choice, "index"))
    most: Any = body.get("max_tokens", 0)
    # an echo brings the prompt's own text back, of which every character may be a token
    most_tokens = int(most) + (max(map(len, prompts)) if body.get("echo") else 0)
    return [_parsed(choice, used.completion_tokens, most_tokens) for choice in choices], used


def _prompts(prompt: Any) -> Sequence[str | Sequence[int]]:
    """Return what a request's field holds, a string or the ids of tokens or several of either, as a list of prompts."""
    is_one = isinstance(prompt, str) or not prompt or isinstance(prompt[0], int)
    return [prompt] if is_one else prompt


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("text"), str)


def _parsed(choice: Mapping[str, Any], length: int, most_tokens: int) -> ServerAnswer:
    logprobs = choice.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, dict) else {}
    text, defect = choice["text"], None
    if len(text) > LONGEST_TOKEN * most_tokens:
        text, defect = "", f"{len(text):,} characters in {most_tokens} tokens"
    elif not _is_unicode(text):
        text, defect = "", "half a character"
    return ServerAnswer(
        text=text,
        ended=choice.get("finish_reason") == "stop",
        stopped_by=tuple(choice[name] for name in STOP_FIELDS if name in choice),
        tokens=_integers(choice.get("token_ids")),
        prompt_tokens=_integers(choice.get("prompt_token_ids")),
        token_logprobs=_log_probs(logprobs.get("token_logprobs")),
        token_starts=_integers(logprobs.get("text_offset")),
        length=length,
        defect=defect,
    )


def _is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode. JSON can hold one half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(holder: object, name: str) -> int:
    """Return a count that a JSON object holds, 0 if it holds none."""
    value: Any = holder.get(name) if isinstance(holder, dict) else None
    return int(value) if _is_integer(value) and 0 <= value <= MOST_TOKENS else 0


def _integers(values: object) -> tuple[int, ...]:
    """Return a list of whole numbers, nothing if it is anything else."""
    if isinstance(values, list) and all(_is_integer(value) and abs(value) <= MOST_TOKENS for value in values):
        return tuple(values)
    return ()


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _log_probs(values: object) -> tuple[float | None, ...]:
    """Return a list of log-probabilities or None, nothing if it is anything else."""
    if not isinstance(values, list):
        return ()
    checked: list[float | None] = []
    for value in values:
        if value is None:
            checked.append(None)
        elif isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= MOST_TOKENS:
            checked.append(float(value))
        elif value == -math.inf:
            checked.append(value)
        else:
            return ()
    return tuple(checked)
