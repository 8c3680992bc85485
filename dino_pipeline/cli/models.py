"""Which generator a command uses: its options, what run.json holds of it, and the same generator again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dino_pipeline.model_options import ModelOptions
from dino_pipeline.models import ModelRef

MODEL = (
    click.option(
        "--model", metavar="MODEL", default="pocket", show_default=True, help="Folder or Hub id of a language model."
    ),
    click.option("--revision", metavar="REVISION", help="The model's revision on the Hub."),
    click.option(
        "--chat",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Put prompts into the model's chat template, the answer begun; auto: if it has one.",
    ),
    click.option("--adapter", metavar="MODEL", help="Folder or Hub id of a LoRA adapter for the model (needs peft)."),
    click.option("--quantize", type=click.Choice(["8bit", "4bit"]), help="Load its weights so (needs bitsandbytes)."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="auto: bfloat16 where it is faster, by a measurement; a run keeps what it began with.",
    ),
)
SOURCE = ("revision", "adapter", "quantize", "trust_remote_code")
GENERATOR = (*SOURCE, "dtype", "chat")
"""The options that name a generator, beside --model."""


def chosen_generator(options: Mapping[str, Any], begun: Mapping[str, Any], device: str) -> ModelRef:
    """Return the generator that options name; what they leave open is as a run began, or found out here."""
    from dino_pipeline.decoding.loading import resolve_model

    given = {name: options[name] for name in ("model", *GENERATOR)}
    return resolve_model(ModelOptions.of(given), device, generator_of(begun) if begun else None)


def recorded(ref: ModelRef) -> dict[str, Any]:
    """Return what run.json holds of a generator: what is at its default is left out, but for the first four."""
    more = {
        "chat": "on" if ref.chat else None,
        "adapter": ref.adapter,
        "adapter_fingerprint": ref.adapter_fingerprint,
        "quantize": ref.quantize,
        "trust_remote_code": ref.trust_remote_code or None,
    }
    return {
        "model": ref.name,
        "revision": ref.revision,
        "fingerprint": ref.fingerprint,
        "dtype": ref.dtype,
        **{key: value for key, value in more.items() if value is not None},
    }


def generator_of(begun: Mapping[str, Any]) -> ModelRef:
    """Return the generator that run.json holds."""
    names = (*SOURCE, "dtype", "fingerprint", "adapter_fingerprint")
    held = {name: begun[name] for name in names if name in begun}
    return ModelRef(name=begun["model"], chat=begun.get("chat") == "on", **held)
