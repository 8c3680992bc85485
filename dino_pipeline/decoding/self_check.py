"""Checks that a model computes the same in cached rows as in a plain forward, and chooses the fastest rows that do."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_pipeline.decoding.cache import CachedRows, RowFactory, UncachedRows
from dino_pipeline.decoding.prefill import attention_windows
from dino_pipeline.decoding.tokenization import Prompt
from dino_pipeline.errors import ModelError

log = logging.getLogger(__name__)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted difference of logits (root mean square), relative to their standard deviation."""
STEPS = 3
"""Decoding steps that are compared."""


def fastest_rows(model: PreTrainedModel) -> RowFactory:
    """Return the fastest kind of rows that computes what a plain forward does. Log a warning if it is the slow one."""
    if not (defect := row_defect(model)):
        return CachedRows
    log.warning("%s cannot run in cached rows (%s): rows are computed one by one, slower", model_name(model), defect)
    return UncachedRows


def model_name(model: PreTrainedModel) -> str:
    """Return the folder or Hub id that a model was loaded from, or the name of its class."""
    return model.config.name_or_path or type(model).__name__


def row_defect(model: PreTrainedModel) -> str | None:
    """Compare the logits of cached rows with a plain forward's on a few short prompts.

    The comparison covers rows of different lengths, a prefill, several steps, a refill that copies the shared beginning
    of its prompts from the first prefill and, for small attention windows, a prompt longer than the window.

    Returns:
        Why the model cannot run in cached rows, None if it can.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:  # rows of different lengths would be wrong
        return "its forward takes no position_ids"
    try:
        windows = attention_windows(model)
    except ModelError as error:
        return str(error)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 64
    small_windows = [window for window in windows.values() if window is not None and window <= 64]
    lengths = [length for length in (2, 5, 11, *(window + 3 for window in small_windows)) if length + STEPS <= context]
    try:
        worst = _largest_difference(model, lengths)
    except Exception as error:  # an unknown architecture can raise anything: it cannot run in cached rows
        return f"{type(error).__name__}: {error}"
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    if worst <= tolerance:
        return None
    return f"its logits differ by {worst:.1e} of their spread, more than {tolerance:.0e}"


@torch.inference_mode()
def _largest_difference(model: PreTrainedModel, lengths: Sequence[int]) -> float:
    """Return the largest difference over two rounds of texts, whose prompts have the given lengths."""
    generator = torch.Generator().manual_seed(0)
    first = _random_texts(model, lengths, generator)
    rows = CachedRows(model, len(first), max(map(len, first)))
    try:
        worst = _difference_of_texts(rows, first, lengths)
        refill = []
        for old, new, length in zip(first, _random_texts(model, lengths, generator), lengths, strict=True):
            refill.append(old[: length // 2] + new[length // 2 :])
        return max(worst, _difference_of_texts(rows, refill, lengths))
    finally:
        rows.close()


def _random_texts(model: PreTrainedModel, lengths: Sequence[int], generator: torch.Generator) -> list[Prompt]:
    vocab = model.get_input_embeddings().weight.shape[0]
    return [tuple(torch.randint(vocab, (length + STEPS,), generator=generator).tolist()) for length in lengths]


def _difference_of_texts(rows: CachedRows, texts: Sequence[Prompt], lengths: Sequence[int]) -> float:
    """Write texts token by token and return how far the logits are from a plain forward's.

    Args:
        rows: as many rows as texts.
        texts: token ids of prompt and text together.
        lengths: tokens of each prompt.
    """
    prefilled = rows.prefill([text[:length] for text, length in zip(texts, lengths, strict=True)])
    rows.start(range(len(texts)), prefilled, range(len(texts)))
    plain = [_plain_logits(rows.model, text) for text in texts]  # each (length, vocab)
    worst = 0.0
    for step in range(STEPS):
        logits = rows.step(max(lengths) + step)
        expected = torch.stack([of_text[length + step - 1] for of_text, length in zip(plain, lengths, strict=True)])
        if not torch.isfinite(logits).all():
            return float("inf")
        # in half precision, large logits are off by their own rounding
        rounding = torch.finfo(rows.model.dtype).eps * expected.abs().max()
        difference = (logits.float() - expected).square().mean().sqrt()
        worst = max(worst, float((difference - rounding).clamp(min=0) / expected.std()))
        following = torch.tensor([text[length + step] for text, length in zip(texts, lengths, strict=True)])
        rows.feed(rows.every_row[:, None], following.to(rows.device))
    return worst


@torch.inference_mode()
def sees_ahead(model: PreTrainedModel) -> bool:
    """Return whether predictions depend on later tokens. `AutoModelForCausalLM` loads encoders without a warning."""
    vocab = model.get_input_embeddings().weight.shape[0]
    text = tuple(torch.randint(vocab, (8,), generator=torch.Generator().manual_seed(0)).tolist())
    early, whole = _plain_logits(model, text[:4])[-1], _plain_logits(model, text)[3]
    return float((early - whole).abs().max() / whole.std()) > TOLERANCE.get(model.dtype, 5e-2)


def _plain_logits(model: PreTrainedModel, text: Prompt) -> Tensor:
    """Return ``(length, vocab)`` logits."""
    return model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0].float()
