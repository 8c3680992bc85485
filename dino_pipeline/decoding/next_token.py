"""The next token of many texts at once, each debiased by its counter-prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dino_pipeline.options import Sampling

SHORTLIST = {True: 32, False: 1024}
"""Length of the shortlist, with top-k and without."""
MIN_VOCAB = 8192
"""Smaller vocabularies have no shortlist."""
COLUMNS = 1024
"""The vocabulary is treated as a table of this many columns, whose maxima lead to the likeliest tokens."""
SAFE_LOGIT = 60.0
"""Sums of exponentials of logits up to this are exact enough in float32, whose range ends at e to the 88th power."""
CACHE_ELEMENTS = 2**20
"""Numbers computed in one go on a CPU (4 MB in float32), so that they stay in its cache."""


def next_tokens(logits: Tensor, groups: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw each text's next token from the self-debiased distribution, after top-k and top-p.

    On a CPU each token is first drawn from a shortlist, the likeliest tokens under the own prompt. For most texts,
    `_from_shortlist` proves that the whole vocabulary gives the same token. The others are drawn from all tokens.

    Args:
        logits: ``(rows, vocab)``, one row per prompt, -inf for banned tokens. Any float type.
        groups: ``(texts, 1 + counters)`` row numbers, the own prompt's first. Texts with fewer counter-prompts than
            others repeat their own row.
        uniform: ``(texts,)`` float64 numbers in [0, 1).
        sampling: top-k, top-p, decay and floor.

    Returns:
        ``(texts,)`` tokens, and ``(texts, 1 + counters)`` float64: their natural-log probability under each prompt.

    Raises:
        FloatingPointError: the logits of a text are not numbers.
    """
    size = max(SHORTLIST[sampling.top_k > 0], 4 * sampling.top_k)
    if logits.device.type == "cpu" and max(4 * size, MIN_VOCAB) <= logits.shape[1]:
        totals, maxima = log_totals(logits)
        _check_finite(totals[groups])
        shortlist = likeliest(logits, maxima, groups[:, 0], size)
        tokens, proven = _from_shortlist(logits, totals, groups, shortlist, uniform, sampling)
        if len(others := (~proven).nonzero().squeeze(1)):
            tokens[others] = _from_all(logits, totals, groups[others], uniform[others], sampling)
    else:
        totals = torch.logsumexp(logits.float(), dim=1).double()  # (rows,)
        _check_finite(totals[groups])
        tokens = _from_all(logits, totals, groups, uniform, sampling)
    return tokens, logits[groups, tokens[:, None]].double() - totals[groups]


def _check_finite(totals: Tensor) -> None:
    if not totals.isfinite().all():
        raise FloatingPointError("logits are not finite")


def log_totals(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what turns logits into log-probabilities, and maxima that help to find the likeliest tokens.

    Args:
        logits: ``(rows, vocab)``.

    Returns:
        ``(rows,)`` float64: the logarithm of the sum of each row's exponentials. And ``(rows, columns)``: the maximum
        of each column, that is, of tokens c, c + columns, c + 2 columns ... The last, incomplete round of the
        vocabulary belongs to no column.
    """
    vocab = logits.shape[1]
    rows_at_once = max(1, CACHE_ELEMENTS // vocab)
    columns = min(COLUMNS, vocab)
    whole = vocab - vocab % columns
    scratch = torch.empty(rows_at_once, vocab, device=logits.device)  # reused: fresh memory costs page faults
    totals, maxima = [], []
    for rows in torch.split(logits, rows_at_once):
        values = rows if rows.dtype == torch.float32 else scratch[: len(rows)].copy_(rows)
        column_max = values[:, :whole].reshape(len(rows), -1, columns).amax(dim=1)  # (rows, columns)
        row_max = torch.cat([column_max, values[:, whole:]], dim=1).amax(dim=1, keepdim=True)  # (rows, 1)
        if float(row_max.abs().max()) < SAFE_LOGIT:
            row_max = torch.zeros_like(row_max)  # saves the pass that subtracts it
        else:
            values = torch.sub(values, row_max, out=scratch[: len(rows)])
        total = torch.exp(values, out=scratch[: len(rows)]).sum(dim=1)
        totals.append(row_max.squeeze(1).double() + total.double().log())
        maxima.append(column_max)
    return torch.cat(totals), torch.cat(maxima)


def likeliest(logits: Tensor, maxima: Tensor, rows: Tensor, size: int) -> Tensor:
    """Return the likeliest tokens of some rows, the likeliest first.

    The ``size`` likeliest tokens are in the ``size`` columns with the highest maxima: if one were in another column,
    each of those columns would hold a token at least as likely. So only tokens of these columns are compared, in
    GPT-2's vocabulary 32 x 49 of 50,257, and those of the incomplete last round.

    Args:
        logits: ``(all rows, vocab)``.
        maxima: ``(all rows, columns)``, see `log_totals`.
        rows: ``(n,)`` row numbers.
        size: tokens per row.

    Returns:
        ``(n, size)`` tokens.
    """
    vocab = logits.shape[1]
    columns = maxima.shape[1]
    whole = vocab - vocab % columns
    best_columns = maxima[rows].topk(min(size, columns)).indices  # (n, size)
    in_columns = torch.arange(0, whole, columns)[:, None] + best_columns[:, None]  # (n, rounds, size)
    in_last_round = torch.arange(whole, vocab).expand(len(rows), -1)
    candidates = torch.cat([in_columns.flatten(1), in_last_round], dim=1)
    return candidates.gather(1, logits[rows[:, None], candidates].topk(size).indices)


def _from_shortlist(
    logits: Tensor, totals: Tensor, groups: Tensor, shortlist: Tensor, uniform: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Draw each text's token from its shortlist, and prove that the whole vocabulary gives the same token.

    Debiasing makes no token likelier. So tokens outside the shortlist stay below its least likely token's probability
    under the own prompt. With top-k, the proof is that all k tokens are above that bound. A shortlist of 4 tokens::

        own prompt    a -1.0    b -1.2    c -2.0    d -3.0    bound -3.0
        debiased      a -5.6    b -1.2    c -2.3    d -3.0
        k = 2         b and c are above -3.0: proven
        k = 3         d is not above -3.0: a token outside might be the third

    Without top-k, a debiased text is never proven. Others are if the shortlist has more probability than top-p keeps.

    Args:
        logits: ``(rows, vocab)``.
        totals: ``(rows,)``, see `log_totals`.
        groups: ``(texts, 1 + counters)`` row numbers.
        shortlist: ``(texts, size)`` tokens, the likeliest first.
        uniform: ``(texts,)``.
        sampling: top-k, top-p, decay and floor.

    Returns:
        ``(texts,)`` tokens, and ``(texts,)`` whether each is proven.
    """
    own = groups[:, 0]
    log_probs = logits[groups[:, :, None], shortlist[:, None]].double() - totals[groups][:, :, None]
    bound = log_probs[:, 0, -1]  # (texts,); log_probs is (texts, 1 + counters, size)
    rows_of_texts = torch.arange(groups.numel()).view_as(groups)
    scores = debias(log_probs.flatten(0, 1), rows_of_texts, sampling.decay, sampling.floor)  # (texts, size)
    if sampling.top_k > 0:
        scores, kept = scores.topk(sampling.top_k)
        candidates, probs = shortlist.gather(1, kept), scores.softmax(dim=-1)
        proven = scores[:, -1] > bound
    else:
        candidates, probs = shortlist, scores.exp()
        undebiased = (groups == own[:, None]).all(dim=1) | (sampling.decay == 0)
        proven = undebiased & (probs.sum(dim=-1) > sampling.top_p) & (0 < sampling.top_p < 1)
    return candidates.gather(1, draw(probs, uniform, sampling.top_p)).squeeze(1), proven


def _from_all(logits: Tensor, totals: Tensor, groups: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Draw each text's token from the whole vocabulary. Return ``(texts,)`` tokens; arguments as `_from_shortlist`."""
    texts_at_once = len(groups)
    if logits.device.type == "cpu":
        texts_at_once = max(1, CACHE_ELEMENTS // (logits.shape[1] * groups.shape[1]))
    tokens = []
    for some, numbers in zip(torch.split(groups, texts_at_once), torch.split(uniform, texts_at_once), strict=True):
        rows = some.flatten()
        log_probs = logits[rows].float() - totals[rows, None].float()  # (texts * (1 + counters), vocab)
        rows_of_texts = torch.arange(some.numel(), device=some.device).view_as(some)
        scores = debias(log_probs, rows_of_texts, sampling.decay, sampling.floor)  # (texts, vocab)
        tokens.append(choose(scores, numbers, sampling.top_k, sampling.top_p))
    return torch.cat(tokens)


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


def choose(log_probs: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw one token per row by inverse transform, after top-k and then top-p.

    Top-p works on the probabilities that top-k left, renormalised. It keeps a token as long as those before it sum to
    at most p, and so always keeps the first.

    Args:
        log_probs: ``(rows, vocab)`` natural-log probabilities.
        uniform: ``(rows,)`` float64 numbers in [0, 1).
        top_k: candidates per row, 0 for all.
        top_p: probability mass to keep, 0 or 1 for all.

    Returns:
        ``(rows,)`` token ids.
    """
    vocab = log_probs.shape[-1]
    scores, tokens = log_probs.topk(min(top_k, vocab) if top_k > 0 else vocab, dim=-1)  # (rows, candidates)
    return tokens.gather(-1, draw(scores.double().softmax(dim=-1), uniform, top_p)).squeeze(-1)


def draw(probs: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Draw one candidate per row, after top-p.

    Args:
        probs: ``(rows, candidates)`` float64 probabilities, the largest first. They need not sum to 1.
        uniform: ``(rows,)`` float64 numbers in [0, 1).
        top_p: probability mass to keep, 0 or 1 for all.

    Returns:
        ``(rows, 1)`` indices of candidates.
    """
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier candidates
    if 0 < top_p < 1:
        probs = probs.masked_fill(before > top_p, 0.0)
    reached = probs.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * reached[:, -1:]
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1
    return (reached <= target).sum(dim=-1, keepdim=True).minimum(last)  # rounding must not lead past the last one
