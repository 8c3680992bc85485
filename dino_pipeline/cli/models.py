"""Which generator a command uses: its options, what run.json holds of it, and the same generator again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.errors import ModelError
from dino_pipeline.models import model_fingerprint, model_path

if TYPE_CHECKING:
    from dino_pipeline.decoding.loading import Generator

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
"""The options that name a generator, beside --model; as `Generator` names what they say."""


def chosen_generator(options: Mapping[str, Any], begun: Mapping[str, Any], device: str) -> Generator:
    """Return the generator that options name; what they leave open is as a run began, or found out here."""
    from dino_pipeline.decoding.loading import Generator, has_chat_template, pick_dtype

    found = Generator(model_path(options["model"], "generator"), **{name: options[name] for name in SOURCE})
    if begun.get("fingerprint") and begun["model"] == options["model"] and not Path(found.path).is_dir():
        raise ModelError(f"{found.path}: was a folder when the run began, and is not there; bring it back")
    if (dtype := options["dtype"]) == "auto":
        dtype = begun.get("dtype") or pick_dtype(found, device=device)
    if (chat := options["chat"]) == "auto":
        chat = begun.get("chat", "off") if begun else ("on" if has_chat_template(found) else "off")
    return replace(found, dtype=dtype, chat=chat == "on")


def recorded(name: str, generator: Generator) -> dict[str, Any]:
    """Return what run.json holds of a generator: what is at its default is left out, but for the first four."""

    adapter = generator.adapter
    more = {
        "chat": "on" if generator.chat else None,
        "adapter": adapter,
        "adapter_fingerprint": model_fingerprint(adapter) if adapter else None,
        "quantize": generator.quantize,
        "trust_remote_code": generator.trust_remote_code or None,
    }
    return {
        "model": name,
        "revision": generator.revision,
        "fingerprint": model_fingerprint(generator.path),
        "dtype": generator.dtype,
        **{key: value for key, value in more.items() if value is not None},
    }


def generator_of(begun: Mapping[str, Any]) -> Generator:
    """Return the generator that run.json holds."""
    from dino_pipeline.decoding.loading import Generator

    held = {name: begun[name] for name in (*SOURCE, "dtype") if name in begun}
    return Generator(model_path(begun["model"], "generator"), chat=begun.get("chat") == "on", **held)
