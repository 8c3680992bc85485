"""Loading a language model for the decoder: its dtype, its device and how many rows it gets."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dino_pipeline.decoder import Decoder
from dino_pipeline.errors import ModelError
from dino_pipeline.selfcheck import sees_ahead
from dino_pipeline.tuning import faster_dtype, tune

NARROW = 512
"""Models narrower than this have little to win by half precision, and keep the same texts on all machines."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, *, revision: str | None = None, device: str) -> str:
    """Return the dtype that a model is fastest in here, by a measurement; a narrow model stays in float32."""
    try:
        width = AutoConfig.from_pretrained(name, revision=revision).get_text_config().hidden_size
    except (OSError, ValueError, KeyError, AttributeError):
        return "float32"  # what is wrong with the model is said when it is loaded
    return "float32" if width < NARROW else faster_dtype(device, width)


def load_decoder(name: str, *, revision: str | None = None, dtype: str, device: str, rows: int) -> Decoder:
    """Load a model and its tokenizer from a folder or the Hub.

    Raises:
        ModelError: it cannot be loaded, or is no decoder-only causal language model.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
        model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be loaded as a causal language model ({str(error).strip().splitlines()[0]}); "
            "give a folder or a Hub id that AutoModelForCausalLM loads, or `pocket`"
        ) from error
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name}: is an encoder-decoder; give a decoder-only model")
    model = model.to(device).eval()
    if sees_ahead(model):
        raise ModelError(
            f"{name}: cannot be loaded as a causal language model (its predictions depend on later tokens, as an "
            "encoder's do); give a decoder-only model"
        )
    tune(model, rows)
    return Decoder(model, tokenizer, rows=rows)
