"""How the authors of an objective trained in their own code: optimizer, rate, clipping, and what was kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from dino_pipeline.encoder_options import Hyperparameters, OptionValue

BETAS = (0.9, 0.999)
"""Decay of Adam's two moments, in all of the authors' code."""
SLANTED_RISE, SLANTED_RATIO = 0.1, 32
"""Share of the steps in which a slanted triangular rate rises, and its peak over its lowest value."""
NOT_DECAYED = ("bias", "LayerNorm.weight", "layer_norm.weight")
"""Parts of the names of parameters without weight decay."""


@dataclass(frozen=True)
class Reference:
    """The training that an objective's authors published as code."""

    code: str
    """Repository of the code."""
    more: str
    """What it does otherwise beside the options below, for the user."""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """The objective's own options."""
    hyperparameters: Mapping[str, object] = field(default_factory=dict)
    """Hyper-parameters that every objective has."""
    adam: Literal["torch", "corrected", "uncorrected"] = "corrected"
    """AdamW of torch, or that of transformers 4 with or without the correction of its moments' bias."""
    epsilon: float = 1e-8
    """Added to the root of AdamW's second moment."""
    decays_all: bool = False
    """Whether weights of normalisation and biases decay, too."""
    clip: float = 1.0
    """Largest norm of all gradients, those of heads included. 0: there is none."""
    slanted: bool = False
    """Whether the rate rises from, and falls to, a part of its peak in place of zero."""
    drops_last_batch: bool = False
    """Whether rows that do not fill the last batch are left out."""
    keeps_last: bool = False
    """Whether the last checkpoint is kept, not the best."""
    keeps_length: bool = False
    """Whether texts are cut in encoding as in training."""

    def optimizers(self, loss: nn.Module, hyperparameters: Hyperparameters, steps: int) -> tuple[Optimizer, LambdaLR]:
        """Return the optimizer of a loss's and its encoder's parameters, and the schedule of its rate."""
        groups = self._groups(loss, hyperparameters.weight_decay)
        optimizer: Optimizer
        if self.adam == "torch":
            optimizer = AdamW(groups, lr=hyperparameters.learning_rate, betas=BETAS, eps=self.epsilon)
        else:
            optimizer = TransformersAdamW(
                groups, hyperparameters.learning_rate, self.epsilon, corrects_bias=self.adam == "corrected"
            )
        factor: Callable[[int], float]
        if self.slanted:
            factor = partial(slanted_triangular, steps=steps)
        else:
            warmup, constant = math.ceil(hyperparameters.warmup * steps), hyperparameters.schedule == "constant"
            factor = partial(_trapezoid, warmup=warmup, steps=steps, constant=constant)
        return optimizer, LambdaLR(optimizer, factor)

    def _groups(self, loss: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in loss.named_parameters():
            if parameter.requires_grad:
                spared = not self.decays_all and any(part in name for part in NOT_DECAYED)
                (others if spared else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]


def slanted_triangular(step: int, *, steps: int) -> float:
    """Return the share of the peak rate in a step, the first being 0 (Howard & Ruder 2018, section 3.2)."""
    cut, done = int(steps * SLANTED_RISE), step + 1
    share = done / cut if done < cut else 1 - (min(done, steps) - cut) / max(steps - cut, 1)
    return (1 + share * (SLANTED_RATIO - 1)) / SLANTED_RATIO


def _trapezoid(step: int, *, warmup: int, steps: int, constant: bool) -> float:
    """Return the share of the peak rate in a step: it rises from 0, and then falls to 0 or stays."""
    if step < warmup:
        return step / warmup
    return 1.0 if constant else max(steps - step, 0) / max(steps - warmup, 1)


class TransformersAdamW(Optimizer):
    """AdamW as transformers had it up to version 4 (Loshchilov & Hutter 2019, algorithm 2).

    It differs from torch's: epsilon is added before the second moment's bias is corrected, weights decay after the
    step, and the correction of both moments' bias can be left out. Without it, the first 1,000 steps are larger.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rate: float, epsilon: float, *, corrects_bias: bool) -> None:
        super().__init__(groups, {"lr": rate, "eps": epsilon, "corrects_bias": corrects_bias, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change all parameters that have gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, parameter.grad, group)

    def _change(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = BETAS
        state["mean"].mul_(first).add_(gradient, alpha=1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = group["lr"]
        if group["corrects_bias"]:
            size *= math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        parameter.addcdiv_(state["mean"], state["square"].sqrt().add_(group["eps"]), value=-size)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


@dataclass(eq=False)
class ClipCallback(TrainerCallback):
    """Bounds the norm of all gradients of a loss and its encoder. The stock trainer leaves out a loss's own."""

    loss: nn.Module
    largest: float

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        nn.utils.clip_grad_norm_(self.loss.parameters(), self.largest)
