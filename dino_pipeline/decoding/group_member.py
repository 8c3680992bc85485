"""What a request to vLLM says of the text that it belongs to: the plug-in reads it, and whoever asks writes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from dino_pipeline.options import Sampling

ARGUMENT = "dino"
"""Name of the request's extra argument."""
MOST_TOKENS = 2**20
"""Longest text. The plug-in draws all random numbers of a text at once."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GroupMember:
    """What a request says of the group that it belongs to."""

    group: str
    place: Annotated[int, Field(ge=0)]
    """0: the text's own prompt; others are its counter-prompts."""
    size: Annotated[int, Field(ge=1)]
    """Requests of the group."""
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Digest of the key of the text's random numbers, in hexadecimal."""
    top_k: int
    top_p: float
    decay: float
    floor: float
    max_new_tokens: Annotated[int, Field(le=MOST_TOKENS)]

    @staticmethod
    def of(params: Any) -> GroupMember | None:
        """Return what a request says, None if it is none of ours.

        Args:
            params: the request's `vllm.SamplingParams`, None if it has none.

        Raises:
            ValueError: what it says is malformed.
        """
        argument = (params.extra_args or {}).get(ARGUMENT) if params is not None else None
        if argument is None:
            return None
        member = _reader().validate_json(argument)
        if member.place >= member.size:
            raise ValueError(f"{ARGUMENT}: place {member.place} of {member.size}")
        _ = member.sampling  # has bounds of its own
        return member

    def argument(self) -> dict[str, str]:
        """Return the request's extra argument."""
        return {ARGUMENT: json.dumps(asdict(self))}

    @property
    def sampling(self) -> Sampling:
        names = ("top_k", "top_p", "decay", "floor", "max_new_tokens")
        return _sampling(*(getattr(self, name) for name in names))


@lru_cache
def _reader() -> TypeAdapter[GroupMember]:
    return TypeAdapter(GroupMember)


@lru_cache(maxsize=64)
def _sampling(top_k: int, top_p: float, decay: float, floor: float, max_new_tokens: int) -> Sampling:
    return Sampling(top_k=top_k, top_p=top_p, decay=decay, floor=floor, max_new_tokens=max_new_tokens)
