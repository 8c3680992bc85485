"""Self-debiasing: how likely a token is under its own instruction, less what the counter-instructions like more."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def debias(log_probs: Tensor, groups: Tensor, decay: float, floor: float) -> Tensor:
    """Return the self-debiased next-token log-probabilities, one row a group, up to a constant a row.

    With p the distribution under the group's own prompt and q the element-wise maximum of the distributions under
    its counter-prompts, the result is proportional to ``p * max(floor, exp(-decay * max(0, q - p)))``
    (Schick & Schütze 2021, "Generating Datasets with Pretrained Language Models", section 3; Schick et al. 2021,
    "Self-Diagnosis and Self-Debiasing", section 3).

    Args:
        log_probs: ``(rows, vocab)`` natural-log next-token probabilities, one row a prompt. A token may be -inf.
        groups: ``(groups, 1 + counters)`` row numbers: the own prompt first, then the counter-prompts. A group with
            fewer counters than the widest repeats its own row, which changes nothing (the difference is 0).
        decay: how sharply a token is punished for being likelier under a counter-prompt (the paper's lambda, 100).
        floor: the least factor a token keeps (the paper's epsilon, 0.01); with 0 nothing is kept from vanishing.

    Returns:
        ``(groups, vocab)`` log-probabilities in the dtype of ``log_probs``, not normalised.
    """
    own = log_probs.index_select(0, groups[:, 0])
    if groups.shape[1] == 1:
        return own
    worst = log_probs.index_select(0, groups[:, 1])
    for column in range(2, groups.shape[1]):
        torch.maximum(worst, log_probs.index_select(0, groups[:, column]), out=worst)
    penalty = worst.exp_().sub_(own.exp()).clamp_(min=0).mul_(decay)
    if floor > 0:
        penalty.clamp_(max=-math.log(floor))
    return own.sub_(penalty)
