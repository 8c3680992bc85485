"""What a request to vLLM says of the text that it belongs to: whoever asks writes it, and the plug-in reads it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dino_pipeline.decoding.engine import Request, key_digest
from dino_pipeline.options import Sampling

PLUGIN = "dino_pipeline.decoding.vllm_plugin"
"""The module that vLLM loads the plug-in and the scheduler from."""
ARGUMENT = "dino"
"""Name of the request's extra argument."""
MOST_TOKENS = 2**20
"""Longest text. The plug-in draws all random numbers of a text at once."""


class GroupMember(BaseModel):
    """What a request says of the group that it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    place: int = Field(ge=0)
    """0: the text's own prompt; others are its counter-prompts."""
    size: int = Field(ge=1)
    """Requests of the group."""
    key: str = Field(pattern="^[0-9a-f]{32}$")
    """Digest of the key of the text's random numbers."""
    sampling: Sampling
    first_step: int = Field(0, ge=0)
    """Random numbers to skip, as the prompt holds the beginning of the text."""

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        if self.place >= self.size or self.sampling.max_new_tokens > MOST_TOKENS:
            raise ValueError(f"place {self.place} of {self.size}, with {self.sampling.max_new_tokens} tokens")
        return self

    @classmethod
    def of(cls, params: Any) -> Self | None:
        """Return what a request says, None if it is none of ours.

        Args:
            params: the request's `vllm.SamplingParams`, None if it has none.

        Raises:
            ValueError: what it says is malformed.
        """
        argument = (params.extra_args or {}).get(ARGUMENT) if params is not None else None
        return None if argument is None else cls.model_validate_json(argument)

    def argument(self) -> dict[str, str]:
        """Return the request's extra argument."""
        return {ARGUMENT: self.model_dump_json()}


def group_members(request: Request, group: str, sampling: Sampling) -> list[GroupMember]:
    """Return what the request of each prompt of a text says, the own prompt's first."""
    size, key = len(request.prompts), key_digest(request.key, 16).hex()
    return [GroupMember(group=group, place=place, size=size, key=key, sampling=sampling) for place in range(size)]
