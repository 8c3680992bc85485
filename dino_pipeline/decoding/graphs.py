"""Slots whose steps come in few shapes, so that a GPU can replay them instead of being told each kernel anew."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_pipeline.decoding.slots import Slots, round_up

BUCKET = 32
"""Steps look at multiples of so many positions."""
ROOM = 128
"""Rows are laid out in multiples of so many, as a change of layout changes all shapes."""


class FixedSlots(Slots):
    """Slots that always step over all rows and over a whole number of buckets; on a GPU each shape is a CUDA graph.

    A step of a language model is a few hundred small kernels, which a CPU hands out more slowly than a GPU does them.
    What a shorter reach would not have looked at is hidden by the mask, so that results are those of `Slots`.
    """

    shrinks = False

    def __init__(self, model: PreTrainedModel, rows: int, length: int) -> None:
        super().__init__(model, rows, round_up(length, ROOM))
        self.records = model.device.type == "cuda" and len(set(getattr(model, "hf_device_map", {0: 0}).values())) == 1
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def step(self, longest: int) -> Tensor:
        """Return ``(rows, vocab)`` logits after each row's newest token; the next step overwrites them."""
        reach = round_up(longest, BUCKET)
        if not self.records:
            return super().step(reach)
        with torch.cuda.device(self.device):
            if reach not in self.graphs:
                self.graphs[reach] = self._record(reach)
            graph, logits = self.graphs[reach]
            graph.replay()
        return logits

    def lengthen(self, length: int) -> None:
        """Let rows hold ``length`` tokens; what was recorded looked at the old memory."""
        self.graphs.clear()
        super().lengthen(round_up(length, ROOM))

    def close(self) -> None:
        self.graphs.clear()
        super().close()

    def _record(self, reach: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record the step; doing it twice before writes the same keys and values to the same places."""
        usual = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(usual)
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(aside):
                for _ in range(2):
                    super().step(reach)
            usual.wait_stream(aside)
            with torch.cuda.graph(graph, pool=pool, stream=aside):
                logits = super().step(reach)
        finally:
            torch.cuda.set_stream(usual)  # a capture that fails does not come back from its stream
            usual.wait_stream(aside)
        return graph, logits
