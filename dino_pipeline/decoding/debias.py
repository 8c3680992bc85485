"""Self-debiasing: lower the probability of tokens that the counter-prompts find more likely than the own prompt."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def debias(log_probs: Tensor, groups: Tensor, decay: float, floor: float) -> Tensor:
    """Return the self-debiased next-token log-probabilities of each group, up to a constant per row.

    With p the distribution under the group's own prompt and q the element-wise maximum of the distributions under
    its counter-prompts, the result is proportional to ``p * max(floor, exp(-decay * max(0, q - p)))``
    (Schick & Schütze 2021, "Generating Datasets with Pretrained Language Models", section 3; Schick et al. 2021,
    "Self-Diagnosis and Self-Debiasing", section 3).

    Args:
        log_probs: ``(rows, vocab)`` natural-log next-token probabilities, one row per prompt. Tokens may be -inf.
        groups: ``(groups, 1 + counters)`` row numbers: the own prompt first, then the counter-prompts. A group with
            fewer counter-prompts than the widest repeats its own row, which changes nothing (the difference is 0).
        decay: how sharply a token is punished for being likelier under a counter-prompt (the paper's lambda, 100).
        floor: the least factor that a token keeps (the paper's epsilon, 0.01). With 0, a token can vanish.

    Returns:
        ``(groups, vocab)`` log-probabilities in the dtype of ``log_probs``, not normalised.
    """
    own = log_probs.index_select(0, groups[:, 0])  # (groups, vocab)
    if groups.shape[1] == 1:
        return own
    highest = log_probs.index_select(0, groups[:, 1])  # log of q, (groups, vocab)
    for column in range(2, groups.shape[1]):
        torch.maximum(highest, log_probs.index_select(0, groups[:, column]), out=highest)
    penalty = highest.exp_().sub_(own.exp()).clamp_(min=0).mul_(decay)  # decay * max(0, q - p)
    if floor > 0:
        penalty.clamp_(max=-math.log(floor))
    return own.sub_(penalty)
