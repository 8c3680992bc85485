"""Loading a language model for the decoder: its dtype, its device and how many rows it gets."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dino_pipeline.compiling import compile_if_it_pays, compile_step
from dino_pipeline.decoder import Decoder
from dino_pipeline.errors import ModelError, first_line
from dino_pipeline.selfcheck import sees_ahead
from dino_pipeline.tuning import faster_dtype, tune

NARROW = 512
"""Models narrower than this have little to win by half precision, and keep the same texts on all machines."""
MOST_ROWS = {"cpu": 128, "gpu": 1024}
"""More rows than these are hardly faster."""
LENGTH = 256
"""Tokens a row is reckoned with, prompt and text together."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, *, revision: str | None = None, device: str) -> str:
    """Return the dtype that a model is fastest in here, by a measurement; a narrow model stays in float32."""
    try:
        width = AutoConfig.from_pretrained(name, revision=revision).get_text_config().hidden_size
    except (OSError, ValueError, KeyError, AttributeError):
        return "float32"  # what is wrong with the model is said when it is loaded
    return "float32" if width < NARROW else faster_dtype(device, width)


def load_decoder(
    name: str,
    *,
    revision: str | None = None,
    dtype: str,
    device: str,
    device_map: str | None = None,
    rows: int | None = None,
    compiled: str = "off",
    row_tokens: int = 0,
) -> Decoder:
    """Load a model and its tokenizer from a folder or the Hub.

    Args:
        name: folder or Hub id.
        revision: the model's on the Hub.
        dtype: "float32", "bfloat16" or "float16".
        device: where the model runs.
        device_map: how accelerate spreads a model that one card does not hold ("auto", "balanced", ...), instead of
            ``device``.
        rows: prompts side by side; None takes as many as the free memory holds, see `rows_that_fit`.
        compiled: "on", "off", or "auto": if that pays for a job of ``row_tokens``.
        row_tokens: about how many tokens will be written, each counted once for every prompt.

    Raises:
        ModelError: it cannot be loaded, or is no decoder-only causal language model.
    """
    tokenizer, model = _load(name, revision, dtype, device, device_map)
    if sees_ahead(model):
        raise ModelError(
            f"{name}: cannot be loaded as a causal language model (its predictions depend on later tokens, as an "
            "encoder's do); give a decoder-only model"
        )
    rows = rows or rows_that_fit(model)
    if device_map is None:
        tune(model, rows)
    decoder = Decoder(model, tokenizer, rows=rows)
    if compiled == "on":
        compile_step(decoder)
    elif compiled == "auto" and device_map is None:
        compile_if_it_pays(decoder, row_tokens)
    return decoder


def _load(name: str, revision: str | None, dtype: str, device: str, device_map: str | None) -> tuple[Any, Any]:
    placed = {} if device_map is None else {"device_map": device_map}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
        model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=DTYPES[dtype], **placed)
        if model.config.is_encoder_decoder:
            raise ModelError(f"{name}: is an encoder-decoder; give a decoder-only model")
        return tokenizer, model.eval() if placed else model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name}: does not fit on {device_map or device} in {dtype}; use --device-map auto, --dtype bfloat16, or a "
            "smaller model"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be loaded as a causal language model ({first_line(error)}); "
            "give a folder or a Hub id that AutoModelForCausalLM loads, or `pocket`"
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
