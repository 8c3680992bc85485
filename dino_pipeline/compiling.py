"""Compiling the decoder's step with torch.compile, where the job is long enough and the compiled step proves faster."""

from __future__ import annotations

import logging
import statistics
import time

import torch
from torch import Tensor

from dino_pipeline.decoder import Decoder
from dino_pipeline.errors import ModelError
from dino_pipeline.graphs import FixedSlots
from dino_pipeline.selfcheck import TOLERANCE
from dino_pipeline.slots import PlainRows
from dino_pipeline.tuning import pack_weights, unpack_weights

log = logging.getLogger(__name__)

LONG = 1200.0
"""Jobs of fewer seconds are not compiled: each length of rows takes up to a minute."""
WORTH = 1.05
"""The compiled step is kept if it is so many times as fast."""
PROMPT, STEPS = 70, 5


def compile_step(decoder: Decoder) -> None:
    """Compile the model's step for fixed shapes, without asking whether that pays.

    Raises:
        ModelError: it cannot be compiled here.
    """
    try:
        _compile(decoder)
        _trial(decoder)
    except Exception as error:
        raise ModelError(
            f"--compile on: the step cannot be compiled here ({_first_line(error)}); "
            "leave it to --compile auto, or install a C++ compiler"
        ) from error


def compile_if_it_pays(decoder: Decoder, row_tokens: int) -> bool:
    """Compile the step if the job is long and a trial on this machine says that it is faster; return whether.

    Args:
        decoder: changed only if it pays.
        row_tokens: about how many tokens the job takes, each counted once for every prompt that it is written under.
    """
    if decoder.make_rows is PlainRows:
        return False
    eager, expected = _trial(decoder)
    if row_tokens / decoder.rows * eager < LONG:
        return False
    forward, make_rows = decoder.model.forward, decoder.make_rows
    try:
        _compile(decoder)
        compiled, found = _trial(decoder)
        log.info("the compiled step is %.2f times as fast as the eager one", eager / compiled)
        if eager > WORTH * compiled and _same(found, expected):
            return True
    except Exception as error:  # a missing C++ compiler, or what the compiler makes of a foreign architecture
        log.info("the step cannot be compiled here: %s", _first_line(error))
    decoder.model.forward, decoder.make_rows = forward, make_rows
    pack_weights(decoder.model, decoder.rows)
    return False


def _compile(decoder: Decoder) -> None:
    unpack_weights(decoder.model)  # the compiler packs them itself, and cannot look into packed ones
    if decoder.model.device.type == "cpu":
        torch._inductor.config.freezing = True  # as an option of torch.compile it does not reach the weights
    torch._dynamo.config.recompile_limit = 64  # one for each bucket of lengths
    decoder.make_rows = FixedSlots
    decoder.model.forward = torch.compile(decoder.model.forward, dynamic=False)  # type: ignore[method-assign]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _trial(decoder: Decoder) -> tuple[float, Tensor]:
    """Return the median seconds of a full step, and its logits."""
    slots = decoder.make_rows(decoder.model, decoder.rows, PROMPT + STEPS)
    prompt = tuple(torch.randint(decoder.vocab, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist())
    with torch.inference_mode():
        slots.start(range(decoder.rows), slots.prefill([prompt]), [0] * decoder.rows)
        logits = slots.step(PROMPT).clone()
        seconds = []
        for _ in range(STEPS):
            start = time.perf_counter()
            float(slots.step(PROMPT)[0, 0])  # reading a number waits for the device
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), logits


def _same(found: Tensor, expected: Tensor) -> bool:
    difference = (found.float() - expected.float()).abs().max() / expected.float().std()
    return bool(difference <= TOLERANCE.get(expected.dtype, 5e-2))
