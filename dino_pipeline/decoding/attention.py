"""What a position may look at: masks for rows of different lengths, in models with and without attention windows."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_pipeline.errors import ModelError


def attention_masks(
    windows: dict[str, int | None], queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Return the additive 4-D mask, ``(rows, 1, queries, keys)``, or one for each kind of layer where they differ.

    Args:
        windows: for each kind of attention layer, how many positions it looks back, None for all.
        queries: ``(rows, queries)`` positions.
        keys: ``(rows, keys)`` or ``(1, keys)`` positions; those after a query's own are hidden from it.
        dtype: the model's.
    """

    def mask(window: int | None) -> Tensor:
        hidden = keys[:, None] > queries[:, :, None]
        if window is not None:
            hidden |= keys[:, None] <= queries[:, :, None] - window
        zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return zeros.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]

    reach = keys.shape[1]
    binding = {kind: None if window is None or window >= reach else window for kind, window in windows.items()}
    if len(set(binding.values())) == 1:
        return mask(next(iter(binding.values())))
    return {kind: mask(window) for kind, window in binding.items()}


def attention_windows(model: PreTrainedModel) -> dict[str, int | None]:
    """Return for each kind of attention layer how many positions it looks back, None for all.

    Raises:
        ModelError: the model has layers that slots cannot serve (linear, chunked, recurrent ...).
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"full_attention": None} if window is None else {"sliding_attention": window}
    known: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    if strange := [kind for kind in dict.fromkeys(kinds) if kind not in known]:
        raise ModelError(f"layers of type {', '.join(strange)}")
    return {kind: known[kind] for kind in dict.fromkeys(kinds)}
