"""Decoding steps in few shapes, so that a GPU can replay each shape as a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_pipeline.decoding.cache import CachedRows, round_up

STEP_UNIT = 32
"""A step looks at a multiple of this many positions."""
LENGTH_UNIT = 128
"""Rows have room for a multiple of this many tokens, since another length changes all shapes."""


class FixedShapeRows(CachedRows):
    """Rows whose steps always cover all rows and a multiple of `STEP_UNIT` positions. On a GPU each shape is a graph.

    A step of a language model is a few hundred small kernels, which a CPU launches more slowly than a GPU runs them.
    Masks hide the additional positions, so the logits are those of `CachedRows`.
    """

    shrinks = False

    def __init__(self, model: PreTrainedModel, count: int, length: int) -> None:
        super().__init__(model, count, round_up(length, LENGTH_UNIT))
        devices = set(getattr(model, "hf_device_map", {0: 0}).values())
        self.records = model.device.type == "cuda" and len(devices) == 1
        """Whether steps are CUDA graphs, which cannot span devices."""
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """For each number of positions, the recorded step and the logits that it writes."""

    def step(self, longest: int) -> Tensor:
        """Return ``(rows, vocab)`` logits after each row's newest token. The next step overwrites them."""
        reach = round_up(longest, STEP_UNIT)
        if not self.records:
            return super().step(reach)
        with torch.cuda.device(self.device):
            if reach not in self.graphs:
                self.graphs[reach] = self._record(reach)
            graph, logits = self.graphs[reach]
            graph.replay()
        return logits

    def lengthen(self, length: int) -> None:
        """Make room for rows of ``length`` tokens. Recorded steps refer to the old memory and are dropped."""
        self.graphs.clear()
        super().lengthen(round_up(length, LENGTH_UNIT))

    def close(self) -> None:
        """Free the memory now."""
        self.graphs.clear()
        super().close()

    def _record(self, reach: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record a step as a graph.

        CUDA wants two runs before a capture. Each writes the same keys and values to the same places, so they do no
        harm.
        """
        main_stream = torch.cuda.current_stream()
        capture_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        capture_stream.wait_stream(main_stream)
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(capture_stream):
                for _ in range(2):
                    super().step(reach)
            main_stream.wait_stream(capture_stream)
            with torch.cuda.graph(graph, pool=pool, stream=capture_stream):
                logits = super().step(reach)
        finally:
            torch.cuda.set_stream(main_stream)  # a capture that fails stays on its own stream
            main_stream.wait_stream(capture_stream)
        return graph, logits
