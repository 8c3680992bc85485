"""A generator's LoRA adapter: loaded, and merged into the weights where that changes nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from dino_pipeline.decoding.self_check import TOLERANCE
from dino_pipeline.errors import DinoError, ModelError, reason_of, require_package
from dino_pipeline.model_files import check_files, pickle_allowed
from dino_pipeline.models import ModelRef

PROBE_TOKENS = 8
"""Tokens of the text whose logits are compared before and after merging."""


def with_adapter(load: Callable[[], Any], model: ModelRef) -> Any:
    """Return a model with its adapter, merged into the weights if it then computes the same.

    It does not where weights have a second use: an adapter of the output matrix, merged, would change the input
    embeddings of a model that ties the two. Quantised weights cannot be merged without loss, either.

    Args:
        load: loads the model without the adapter.
        model: its name and that of the adapter.

    Raises:
        ModelError: the adapter cannot be loaded, or does not fit the model.
        OptionError: peft is not installed.
    """
    adapter = model.adapter or ""
    require_package("peft", "adapter")
    check_files(adapter)
    loaded = load()
    try:
        adapted = _adapted(loaded, adapter)
        del loaded  # two models may not fit into memory
        expected = _probe(adapted)
        is_quantized = getattr(adapted.get_base_model(), "is_quantized", False)
        if not is_quantized and not _changes_tied_weights(adapted):
            merged = _merged(adapted, expected)
            if merged is not None:
                return merged
            del adapted  # merging has changed its weights
            adapted = _adapted(load(), adapter)
        if not _is_close(_probe(adapted.get_base_model()), expected):
            raise ValueError("works only inside peft, because it does not change layers")
        return adapted.get_base_model()
    except (DinoError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # peft raises whatever the libraries below it do
        raise ModelError(
            f"{adapter}: is not an adapter for {model.path('generator')} ({reason_of(error)})",
            "give one that was trained on this model and is stored as safetensors",
        ) from error


def _adapted(loaded: Any, adapter: str) -> Any:
    """Return a model with the layers of an adapter beside its own."""
    from peft import PeftModel

    if not (Path(adapter).is_dir() or pickle_allowed()):
        hf_hub_download(adapter, "adapter_model.safetensors")  # else peft would load a pickled file
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(loaded, adapter).eval()
    if unfit := [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]:
        raise ValueError(f"its weights have other names: {unfit[0][:200]}")
    if getattr(adapted.peft_config["default"], "alora_invocation_tokens", None):
        raise ValueError("an activated LoRA works in peft alone")
    return adapted


def _changes_tied_weights(adapted: Any) -> bool:
    """Return whether the adapter changes a weight that another layer uses, too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = list(adapted.modules())
    uses = Counter(id(weight) for module in modules for weight in module._parameters.values() if weight is not None)
    changed = [module.get_base_layer() for module in modules if isinstance(module, BaseTunerLayer)]
    return any(uses[id(weight)] > 1 for layer in changed for weight in layer._parameters.values())


def _merged(adapted: Any, expected: Tensor) -> Any:
    """Return the model with the adapter merged into its weights, None if it then computes something else."""
    try:
        merged = adapted.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError):
        return None  # a kind of adapter that cannot be merged
    return merged if _is_close(_probe(merged), expected) else None


def _is_close(logits: Tensor, expected: Tensor) -> bool:
    difference = (logits.float() - expected.float()).square().mean().sqrt() / expected.float().std()
    return float(difference) <= TOLERANCE.get(expected.dtype, 5e-2)


@torch.inference_mode()
def _probe(model: Any) -> Tensor:
    """Return ``(tokens, vocab)`` logits of a text of random tokens, in the model's dtype."""
    vocab = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocab, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens.to(model.device), use_cache=False).logits[0].to(model.dtype)
