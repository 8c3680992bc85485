"""Options of the finetune stage: the hyper-parameters of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OptionValue = float | int | str
"""The value of an option that one objective alone has."""


@dataclass(frozen=True)
class Hyperparameters:
    """Hyper-parameters of a training. Each objective has defaults of its own, those of its paper."""

    epochs: float = 1
    steps: int | None = None
    """Number of steps. It replaces ``epochs``."""
    batch_size: int = 32
    """Rows per step, over all processes."""
    learning_rate: float = 2e-5
    """Peak of the learning rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: str = "linear"
    """Course of the learning rate after the warm-up: it falls to zero (linear) or stays (constant)."""
    max_length: int | None = None
    """Tokens after which training texts are cut. None: the encoder's own limit."""
    pooling: str = "mean"
    """How token states become an embedding (mean, cls, lasttoken), for encoders without pooling of their own."""
    mini_batch_size: int | None = None
    """Rows that the encoder takes at once. Gradients are cached, or accumulated where rows are independent."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe."""
    matryoshka: tuple[int, ...] = ()
    """Leading dimensions to train as embeddings of their own, besides the whole."""
    faithful: bool = False
    """Follow the paper's reference code where the default differs from it."""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """The objective's own options."""
