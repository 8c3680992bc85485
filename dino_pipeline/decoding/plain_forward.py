"""The plain forward: one text alone through the model, without a cache. It is right for every causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class PlainForward:
    """Runs single texts through a model, each as if it were the first.

    Some models keep what they compute for one text and use it for the next: the frequencies of "dynamic" rotary
    embeddings grow with the longest text so far. So each forward ends with the model as it was at the beginning.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.states = [_State(module) for module in model.modules()]

    def logits(self, tokens: Sequence[int], last: int | None = None) -> Tensor:
        """Return ``(tokens, vocab)`` logits in float32, those after the ``last`` tokens or after all."""
        with self._unchanged():
            input_ids = torch.tensor([tuple(tokens)], device=self.model.device)  # (1, tokens)
            logits = self.model(input_ids=input_ids, use_cache=False).logits[0]
            return logits[-last:].float() if last else logits.float()

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        try:
            yield
        finally:
            for state in self.states:
                state.restore()


class _State:
    """What a module holds apart from parameters and submodules."""

    REGISTERS = ("_parameters", "_buffers", "_modules")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = self._attributes()
        self.buffers = dict(module._buffers)
        # Causal masks are large and boolean, and nothing writes into them.
        floating = {name: buffer for name, buffer in self.buffers.items() if buffer is not None}
        self.values = {name: buffer.clone() for name, buffer in floating.items() if buffer.is_floating_point()}

    def restore(self) -> None:
        """Give the module all this back."""
        if self.module._buffers or self.buffers:
            self.module._buffers.clear()
            self.module._buffers.update(self.buffers)
            for name, value in self.values.items():
                self.module._buffers[name].copy_(value)  # type: ignore[union-attr]
        own = self.module.__dict__
        for added in own.keys() - self.attributes.keys() - set(self.REGISTERS):
            del own[added]
        own.update(self.attributes)

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in self.module.__dict__.items() if name not in self.REGISTERS}
