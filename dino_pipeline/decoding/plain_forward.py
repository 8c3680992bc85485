"""The plain forward: one text alone through the model, without a cache. It is right for every causal language model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SMALL_BUFFER = 2**16
"""Buffers of other types than floats are restored up to this many elements."""


class PlainForward:
    """Runs single texts through a model, each as if it were the first.

    Some models keep what they compute for one text and use it for the next: the frequencies of "dynamic" rotary
    embeddings grow with the longest text so far. So each forward begins and ends with the model as it was when this
    object was made: attributes, floating-point and small buffers. Lists and dicts that a model changes in place are not
    restored.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.skips_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.states = [_State(module) for module in model.modules()]

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], last: int | None = None) -> Tensor:
        """Return ``(tokens, vocab)`` logits in float32, those after the ``last`` tokens or after all."""
        self._restore()
        try:
            input_ids = torch.tensor([tuple(tokens)], device=self.model.device)  # (1, tokens)
            # of a large vocabulary, the logits of a whole prompt take longer than its layers
            kept = {"logits_to_keep": last} if last is not None and self.skips_logits else {}
            logits = self.model(input_ids=input_ids, use_cache=False, **kept).logits[0]
            return (logits if last is None else logits[-last:]).float()
        finally:
            self._restore()

    def _restore(self) -> None:
        for state in self.states:
            state.restore()


class _State:
    """What a module itself holds apart from parameters: attributes and buffers."""

    REGISTERS = ("_parameters", "_buffers", "_modules")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = self._attributes()
        self.buffers = dict(module._buffers)
        self.values = {}
        for name, buffer in self.buffers.items():
            # Causal masks are large and boolean, and nothing writes into them.
            if buffer is not None and (buffer.is_floating_point() or buffer.numel() <= SMALL_BUFFER):
                self.values[name] = buffer.clone()

    def restore(self) -> None:
        """Give the module all this back."""
        if self.module._buffers or self.buffers:
            self.module._buffers.clear()
            self.module._buffers.update(self.buffers)
            for name, value in self.values.items():
                self.module._buffers[name].copy_(value)  # type: ignore[union-attr]
        own = self.module.__dict__
        for added in own.keys() - self.attributes.keys() - set(self.REGISTERS):
            if not callable(own[added]):  # hooks and replaced forwards stay
                del own[added]
        own.update(self.attributes)

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in self.module.__dict__.items() if name not in self.REGISTERS}
