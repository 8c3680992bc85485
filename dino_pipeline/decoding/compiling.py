"""Compiling the decoder's step with torch.compile, where the job is long enough and the compiled step proves faster."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from functools import partial

import psutil
import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.graphs import FixedSlots
from dino_pipeline.decoding.selfcheck import slots_defect
from dino_pipeline.decoding.slots import PlainRows, Slots
from dino_pipeline.decoding.tuning import pack_weights, unpack_weights
from dino_pipeline.errors import ModelError, first_line

log = logging.getLogger(__name__)

LONG = 1200.0
"""Jobs of fewer seconds are not compiled: each length of rows takes up to a minute."""
FEWEST = 200
"""Nor are those of fewer steps, whatever a step takes."""
WORTH = 1.05
"""The compiled step is kept if it is so many times as fast."""
PROMPT, STEPS = 70, 5


def compile_step(decoder: Decoder) -> None:
    """Compile the model's step for fixed shapes, without asking whether that pays.

    Raises:
        ModelError: it cannot be compiled here.
    """
    before = decoder.make_rows
    try:
        reason = "it does not run in slots" if before is PlainRows else _compile(decoder)
    except Exception as error:
        reason = first_line(error)
    if reason:
        _undo(decoder, before)
        raise ModelError(
            f"--compile on: the step cannot be compiled here ({reason}); leave it to --compile auto, or install a C++ "
            "compiler"
        )


def compile_if_it_pays(decoder: Decoder, row_tokens: int) -> bool:
    """Compile the step if the job is long and a trial on this machine says that it is faster; return whether.

    Args:
        decoder: changed only if it pays.
        row_tokens: about how many tokens the job takes, each counted once for every prompt that it is written under.
    """
    before, steps = decoder.make_rows, row_tokens / decoder.rows
    if before is PlainRows or steps < FEWEST or not _room_for_copies(decoder):
        return False
    try:
        eager = _step_seconds(decoder)
        if steps * eager < LONG:
            return False
        reason = _compile(decoder)
        faster = eager / _step_seconds(decoder)
        if not reason and faster > WORTH:
            return True
        log.info("the compiled step is not kept: %s", reason or f"it is {faster:.2f} times as fast")
    except Exception as error:  # no C++ compiler, too little memory, or what a foreign architecture makes of it
        log.info("the step cannot be compiled here: %s", first_line(error))
    _undo(decoder, before)
    return False


def _room_for_copies(decoder: Decoder) -> bool:
    """Whether a CPU's free memory holds the weights again for some lengths of rows: each has its own packed ones."""
    weights = 4 * decoder.model.get_memory_footprint()
    return decoder.model.device.type != "cpu" or bool(2 * weights < psutil.virtual_memory().available)


def _compile(decoder: Decoder) -> str | None:
    """Let the decoder step with a compiled forward; return what is wrong with it, None if nothing."""
    unpack_weights(decoder.model)  # the compiler packs them itself, and cannot look into packed ones
    if decoder.model.device.type == "cpu":
        torch._inductor.config.freezing = True  # as an option of torch.compile it does not reach the weights
    torch._dynamo.config.recompile_limit = 64  # one for each bucket of lengths
    compiled = torch.compile(decoder.model.forward, dynamic=False)
    decoder.make_rows = partial(FixedSlots, forward=compiled)
    return slots_defect(decoder.model, decoder.make_rows)


def _undo(decoder: Decoder, make_rows: Callable[..., Slots | PlainRows]) -> None:
    if decoder.make_rows is not make_rows:
        decoder.make_rows = make_rows
        pack_weights(decoder.model, decoder.rows)


def _step_seconds(decoder: Decoder) -> float:
    """Return the median seconds of a step of all rows."""
    length = min(PROMPT, (decoder.context or PROMPT) - 1)
    prompt = tuple(torch.randint(decoder.vocab, (length,), generator=torch.Generator().manual_seed(0)).tolist())
    slots = decoder.make_rows(decoder.model, decoder.rows, length)
    seconds = []
    try:
        with torch.inference_mode():
            slots.start(range(decoder.rows), slots.prefill([prompt]), [0] * decoder.rows)
            for _ in range(1 + STEPS):
                start = time.perf_counter()
                float(slots.step(length)[0, 0])  # reading a number waits for the device
                seconds.append(time.perf_counter() - start)
    finally:
        slots.close()
    return statistics.median(seconds[1:])
