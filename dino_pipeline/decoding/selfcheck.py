"""Does a model survive what the decoder does with it? A few short prompts, compared with a plain forward's logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_pipeline.decoding.attention import attention_windows
from dino_pipeline.decoding.prefill import Prompt
from dino_pipeline.decoding.slots import Slots
from dino_pipeline.errors import ModelError

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted difference of logits (root mean square), relative to their spread."""
STEPS = 3


def slots_defect(model: PreTrainedModel, make_rows: Callable[..., Slots] = Slots) -> str | None:
    """Compare slot logits with a plain forward's on a few short prompts; return what is wrong, None if nothing.

    Rows of different lengths, a prefill, several steps, a refill that takes the shared beginning of its prompts from
    the first and, where attention windows are small, a prompt longer than the window take part.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:  # rows of different lengths would go wrong
        return "its forward takes no position_ids"
    try:
        windows = attention_windows(model)
    except ModelError as error:
        return str(error)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 64
    small = [window for window in windows.values() if window is not None and window <= 64]
    lengths = [length for length in (2, 5, 11, *(window + 3 for window in small)) if length + STEPS <= context]
    try:
        worst = _largest_difference(model, lengths, make_rows)
    except Exception as error:  # whatever a foreign architecture raises means: not in slots
        return f"{type(error).__name__}: {error}"
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    return (
        None if worst <= tolerance else f"its logits differ by {worst:.1e} of their spread, more than {tolerance:.0e}"
    )


@torch.inference_mode()
def _largest_difference(model: PreTrainedModel, lengths: Sequence[int], make_rows: Callable[..., Slots]) -> float:
    vocab = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)

    def texts() -> list[Prompt]:
        return [tuple(torch.randint(vocab, (length + STEPS,), generator=generator).tolist()) for length in lengths]

    first = texts()
    slots = make_rows(model, len(first), max(map(len, first)))
    try:
        worst = _difference_of_texts(slots, first, lengths)
        halves = zip(first, texts(), lengths, strict=True)
        refill = [old[: length // 2] + new[length // 2 :] for old, new, length in halves]
        return max(worst, _difference_of_texts(slots, refill, lengths))
    finally:
        slots.close()


def _difference_of_texts(slots: Slots, texts: Sequence[Prompt], lengths: Sequence[int]) -> float:
    """Write the texts, of which the first ``lengths`` tokens are prompts, and return how far the logits are off."""
    prefilled = slots.prefill([text[:length] for text, length in zip(texts, lengths, strict=True)])
    slots.start(range(len(texts)), prefilled, range(len(texts)))
    plain = [_plain_logits(slots.model, text) for text in texts]
    worst = 0.0
    for step in range(STEPS):
        logits = slots.step(max(lengths) + step)
        expected = torch.stack([rows[length + step - 1] for rows, length in zip(plain, lengths, strict=True)])
        if not torch.isfinite(logits).all():
            return float("inf")
        rounding = torch.finfo(slots.model.dtype).eps * expected.abs().max()  # of logits far from 0, in half precision
        difference = (logits.float() - expected).square().mean().sqrt()
        worst = max(worst, float((difference - rounding).clamp(min=0) / expected.std()))
        following = torch.tensor([text[length + step] for text, length in zip(texts, lengths, strict=True)])
        slots.feed(slots.every_row[:, None], following.to(slots.device))
    return worst


@torch.inference_mode()
def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether predictions change with later tokens: `AutoModelForCausalLM` loads encoders, too, without a word."""
    vocab = model.get_input_embeddings().weight.shape[0]
    text = tuple(torch.randint(vocab, (8,), generator=torch.Generator().manual_seed(0)).tolist())
    early, whole = _plain_logits(model, text[:4])[-1], _plain_logits(model, text)[3]
    return float((early - whole).abs().max() / whole.std()) > TOLERANCE.get(model.dtype, 5e-2)


def _plain_logits(model: PreTrainedModel, text: Prompt) -> Tensor:
    return model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0].float()
