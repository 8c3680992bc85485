"""Loading a language model for the decoder: its dtype, its device and how many rows it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.selfcheck import sees_ahead
from dino_pipeline.decoding.tuning import faster_dtype, tune
from dino_pipeline.errors import ModelError, first_line, require_package
from dino_pipeline.models import check_weights, load_error, pickle_allowed, safe_loading

NARROW = 512
"""Models narrower than this have little to win by half precision, and keep the same texts on all machines."""
MOST_ROWS = {"cpu": 128, "gpu": 1024}
"""More rows than these are hardly faster."""
LENGTH = 256
"""Tokens a row is reckoned with, prompt and text together."""


@dataclass(frozen=True)
class Generator:
    """A language model, and all that decides what it computes."""

    path: str
    """Folder or Hub id."""
    revision: str | None = None
    """On the Hub."""
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``."""
    adapter: str | None = None
    """Folder or Hub id of a LoRA adapter for it."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Load its weights in so many bits, by bitsandbytes."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    chat: bool = False
    """Put prompts into its chat template."""

    @property
    def source(self) -> dict[str, Any]:
        """What the library's loaders are told."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def has_chat_template(generator: Generator) -> bool:
    """Say whether a model's tokenizer brings a chat template."""
    try:
        return load_tokenizer(generator).chat_template is not None
    except ModelError:
        return False  # what is wrong with the model is said when it is loaded


def load_tokenizer(generator: Generator) -> Any:
    """Load a model's tokenizer alone.

    Raises:
        ModelError: it cannot be loaded.
    """
    name = generator.path
    try:
        return AutoTokenizer.from_pretrained(name, **generator.source)
    except Exception as error:  # tokenizers raises no kind of its own
        raise load_error(name, error, "its tokenizer cannot be loaded", "give a folder or a Hub id") from error


def pick_dtype(generator: Generator, *, device: str) -> str:
    """Return the dtype that a model is fastest in here, by a measurement; a narrow model stays in float32."""
    try:
        config = AutoConfig.from_pretrained(generator.path, **generator.source)
        width = config.get_text_config().hidden_size
    except (OSError, ValueError, KeyError, AttributeError):
        return "float32"  # what is wrong with the model is said when it is loaded
    return "float32" if width < NARROW else faster_dtype(device, width)


def load_decoder(
    generator: Generator,
    *,
    device: str,
    device_map: str | None = None,
    rows: int | None = None,
) -> Decoder:
    """Load a model and its tokenizer from a folder or the Hub.

    Args:
        generator: which, and how.
        device: where the model runs.
        device_map: how accelerate spreads a model that one card does not hold ("auto", "balanced", ...), instead of
            ``device``.
        rows: prompts side by side; None takes as many as the free memory holds, see `rows_that_fit`.

    Raises:
        ModelError: it cannot be loaded, or is no decoder-only causal language model.
    """
    tokenizer, model = _load(generator, device, device_map)
    if sees_ahead(model):
        raise ModelError(
            f"{generator.path}: cannot be loaded as a causal language model (its predictions depend on later tokens, "
            "as an encoder's do); give a decoder-only model"
        )
    rows = rows or rows_that_fit(model)
    if device_map is None and generator.quantize is None:
        tune(model, rows)
    return Decoder(model, tokenizer, rows=rows, chat=generator.chat)


def _load(generator: Generator, device: str, device_map: str | None) -> tuple[Any, Any]:
    name, source = generator.path, generator.source
    placed: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    if generator.quantize:
        placed = {"device_map": device_map or {"": device}, "quantization_config": _quantization(generator)}
    check_weights(name)
    try:
        config: Any = AutoConfig.from_pretrained(name, **source)
        if config.is_encoder_decoder:
            raise ModelError(
                f"{name}: is an encoder-decoder, whose texts follow no prompt that could be contrasted token by token; "
                "give a decoder-only model"
            )
        tokenizer = load_tokenizer(generator)
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, **source, **safe_loading(), dtype=generator.dtype, **placed
        )
        model = model if placed else model.to(device)
        return tokenizer, _adapted(model, generator).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name}: does not fit on {device_map or device} in {generator.dtype}; use --device-map auto, "
            "--dtype bfloat16, --quantize 4bit, or a smaller model"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        remedy = "give a folder or a Hub id that AutoModelForCausalLM loads, or `pocket`"
        raise load_error(name, error, "cannot be loaded as a causal language model", remedy) from error


def _quantization(generator: Generator) -> BitsAndBytesConfig:
    require_package("bitsandbytes", "quantize")
    if generator.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=generator.dtype)


def _adapted(model: Any, generator: Generator) -> Any:
    """Return a model with its LoRA adapter, if it has one, merged into its weights unless they are quantised."""
    if not (adapter := generator.adapter):
        return model
    require_package("peft", "adapter")
    from peft import PeftModel

    check_weights(adapter)
    try:
        if not (Path(adapter).is_dir() or pickle_allowed()):
            hf_hub_download(adapter, "adapter_model.safetensors")  # peft would take a pickled one instead
        adapted = PeftModel.from_pretrained(model, adapter)
        return adapted.get_base_model() if generator.quantize else adapted.merge_and_unload()
    except Exception as error:  # peft raises whatever its parts do
        raise ModelError(
            f"{adapter}: is no adapter for {generator.path} ({first_line(error)}); give one that was trained "
            "on this model and is stored as safetensors"
        ) from error


def rows_that_fit(model: PreTrainedModel) -> int:
    """Return how many prompts fit side by side into half of the free memory, with a step's logits, up to `MOST_ROWS`.

    A guess from the model's shape, for rows of `LENGTH` tokens; should it be too high, the decoder goes on with fewer.
    """
    config = model.config.get_text_config()
    size = model.get_output_embeddings().weight.element_size()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1)
    cache = 2 * config.num_hidden_layers * heads * width * LENGTH * size
    logits = model.get_output_embeddings().weight.shape[0] * (size + 3 * 4)  # and three passes over them in float32
    most = MOST_ROWS["cpu" if model.device.type == "cpu" else "gpu"]
    return max(8, min(most, _free_bytes(model) // 2 // (cache + logits) // 8 * 8))


def _free_bytes(model: PreTrainedModel) -> int:
    """Return the free memory of all devices that hold layers, among which the cache is spread like them."""
    places = getattr(model, "hf_device_map", {"": model.device}).values()
    cards = {place for place in places if isinstance(place, int) or str(place).startswith("cuda")}
    if cards:
        return sum(torch.cuda.mem_get_info(card)[0] for card in cards)
    return int(psutil.virtual_memory().available)
