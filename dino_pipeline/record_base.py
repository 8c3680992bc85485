"""What the records of all stages share: what a stage was made with, which files it made, how two records differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_serializer

from dino_pipeline.options import Options
from dino_pipeline.rows import RowsRead

Status = Literal["running", "clearing", "done"]
"""``clearing``: the stage starts over, and what an earlier call left is being deleted."""


class Record(BaseModel):
    """Base of everything in run.json: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def updated(self, **fields: Any) -> Self:
        """Return a copy with some fields replaced, validated again."""
        return type(self).model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **fields})


class FinishedFile(Record):
    """A file as it was when a stage had finished it."""

    sha256: str
    size: int
    """In bytes."""
    modified: int
    """Time of its last change, in nanoseconds since 1970."""


class StageRecord(Record):
    """What one stage was made with. Subclasses add its options and results."""

    stage: ClassVar[str]

    status: Status = "running"
    options: BaseModel
    """Everything that a user can choose and that decides what the stage makes."""
    sources: str = ""
    """What the stage reads, as digests joined by ``+``. If that changes, the stage starts over."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Options that only change speed. They are never compared."""
    rows_read: tuple[RowsRead, ...] = Field(default=(), exclude_if=lambda value: not value)
    """What was read of the user's data."""
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    ended: str | None = None
    files: dict[str, FinishedFile] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """What the stage made, by name in the run's folder; of shards, SHA256SUMS holds the checksums."""

    @property
    def is_done(self) -> bool:
        return self.status == "done"

    def compared(self) -> dict[str, JsonValue]:
        """Return what decides the result, by name. Subclasses add what they derive from the options."""
        return self.model_dump(mode="json", include={"options"})["options"]  # type: ignore[no-any-return]

    @field_serializer("options")
    def _recorded_options(self, options: BaseModel) -> dict[str, JsonValue]:
        """Leave out options that do not change the result, in run.json and so in `compared`."""
        return options.recorded() if isinstance(options, Options) else options.model_dump(mode="json")

    def differences(self, other: Self) -> dict[str, tuple[JsonValue, JsonValue]]:
        """Return the options that differ, by dotted name, with their values here and in the other record."""
        here, there = dict(_flat(self.compared())), dict(_flat(other.compared()))
        names = dict.fromkeys((*here, *there))
        return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}


def _flat(value: JsonValue, prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the leaves of nested objects by dotted name; lists are leaves."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value
