"""The options that say which language model writes texts, and how it runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dino_pipeline.errors import OptionError
from dino_pipeline.models import POCKET
from dino_pipeline.options import Flag, Options

MODEL, SPEED = "The model", "Speed"


class ModelOptions(Options):
    """Options of everything that runs a language model on this machine or on a cluster of one's own."""

    model: Annotated[str, Flag(MODEL, metavar="MODEL")] = Field(
        POCKET, min_length=1, description="Folder or Hub id of a language model."
    )
    revision: Annotated[str | None, Flag(MODEL, metavar="REVISION")] = Field(
        None, description="The model's revision on the Hub."
    )
    chat: Annotated[Literal["auto", "on", "off"], Flag(MODEL)] = Field(
        "auto", description="Put prompts into the model's chat template, with the answer begun; auto: if it has one."
    )
    adapter: Annotated[str | None, Flag(MODEL, metavar="MODEL")] = Field(
        None, description="Folder or Hub id of a LoRA adapter for the model (needs peft)."
    )
    quantize: Annotated[Literal["8bit", "4bit"] | None, Flag(MODEL)] = Field(
        None, description="Load the weights in this format (needs bitsandbytes)."
    )
    trust_remote_code: Annotated[bool, Flag(MODEL)] = Field(False, description="Run code that comes with the model.")
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(MODEL)] = Field(
        "auto",
        description="auto: bfloat16 if a measurement says that it is faster. A run keeps the dtype it started with.",
    )
    rows: Annotated[int | None, Flag(SPEED, metavar="auto|N", data=False, default="auto")] = Field(
        None, ge=1, description="Prompts that run at the same time; auto: as many as fit, 128 at most, on a GPU 1024."
    )
    device: Annotated[str | None, Flag(SPEED, metavar="DEVICE", data=False, default="a GPU if there is one")] = Field(
        None, description="cpu, cuda, cuda:1, ..."
    )
    device_map: Annotated[
        Literal["auto", "balanced", "balanced_low_0", "sequential"] | None, Flag(SPEED, data=False)
    ] = Field(None, description="Spread a model that one device does not hold over all devices.")

    @field_validator("rows", mode="before")
    @classmethod
    def _auto_rows(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _one_placement(self) -> Self:
        if self.device and self.device_map:
            raise OptionError(
                f"cannot be combined with the device map {self.device_map}",
                "leave out {device} or {device_map}",
                option="device",
                value=self.device,
            )
        return self
