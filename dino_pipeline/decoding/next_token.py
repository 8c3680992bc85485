"""The next token of many texts at once, each under its own prompt and its counter-prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_pipeline.decoding.debias import debias
from dino_pipeline.decoding.sampling import Sampling, choose, draw

SHORTLIST = {True: 32, False: 1024}
"""Candidates looked at first, with top-k and without: what lies below them can be ruled out nearly always."""
COLUMNS = 1024
"""The vocabulary is looked at as a table of so many columns, whose maxima say where the likeliest tokens are."""
SMALL = 8192
"""Smaller vocabularies are looked at whole."""
SAFE = 60.0
"""Exponentials of numbers up to this lose nothing in float32, whose range ends at e to the 87th power."""
CACHED = 2**20
"""Probabilities looked at in one go on a CPU (4 MB in float32), so that they stay in its cache."""


def next_tokens(logits: Tensor, groups: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw each text's next token from the self-debiased distribution, after top-k and top-p.

    On a CPU only each text's likeliest tokens are debiased, as long as that provably changes nothing: debiasing makes
    no token likelier, so that one below the shortlist under the own prompt stays below it. Texts where that decides
    nothing are computed over the whole vocabulary.

    Args:
        logits: ``(rows, vocab)``, one row a prompt; -inf where a token must not come. Any float type.
        groups: ``(texts, 1 + counters)`` row numbers: the own prompt's first. Texts with fewer counter-prompts than
            others repeat their own row.
        uniform: ``(texts,)`` float64 numbers in [0, 1).
        sampling: top-k, top-p, decay and floor.

    Returns:
        ``(texts,)`` tokens, and ``(texts, 1 + counters)`` float64: their natural-log probability under each prompt.
    """
    size = max(SHORTLIST[sampling.top_k > 0], 4 * sampling.top_k)
    if logits.device.type == "cpu" and max(4 * size, SMALL) <= logits.shape[1]:
        totals, maxima = log_totals(logits)
        shortlist = likeliest(logits, maxima, groups[:, 0], size)
        tokens, exact = _from_shortlist(logits, totals, groups, shortlist, uniform, sampling)
        if len(left := (~exact).nonzero().squeeze(1)):
            tokens[left] = _from_all(logits, totals, groups[left], uniform[left], sampling)
    else:
        totals = torch.logsumexp(logits.float(), dim=1).double()
        tokens = _from_all(logits, totals, groups, uniform, sampling)
    return tokens, logits[groups, tokens[:, None]].double() - totals[groups]


def log_totals(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(rows,)`` float64: the logarithm of the sum of each row's exponentials; and ``(rows, columns)`` maxima.

    A maximum is that of every `columns`-th token; those after the last full round are in none.
    """
    vocab = logits.shape[1]
    step = max(1, CACHED // vocab)
    columns = min(COLUMNS, vocab)
    whole = vocab - vocab % columns
    scratch = torch.empty(step, vocab, device=logits.device)
    totals, maxima = [], []
    for rows in torch.split(logits, step):
        values = rows if rows.dtype == torch.float32 else scratch[: len(rows)].copy_(rows)
        highest = values[:, :whole].reshape(len(rows), -1, columns).amax(dim=1)
        top = torch.cat([highest, values[:, whole:]], dim=1).amax(dim=1, keepdim=True)
        if float(top.abs().max()) < SAFE:
            top = torch.zeros_like(top)
        else:
            values = torch.sub(values, top, out=scratch[: len(rows)])
        total = torch.exp(values, out=scratch[: len(rows)]).sum(dim=1)
        totals.append(top.squeeze(1).double() + total.double().log())
        maxima.append(highest)
    return torch.cat(totals), torch.cat(maxima)


def likeliest(logits: Tensor, maxima: Tensor, rows: Tensor, size: int) -> Tensor:
    """Return ``(rows, size)``: the rows' likeliest tokens, the likeliest first.

    They are all in the columns with the highest maxima, so that nine in ten tokens need not be looked at.
    """
    vocab = logits.shape[1]
    columns = maxima.shape[1]
    whole = vocab - vocab % columns
    best = maxima[rows].topk(min(size, columns)).indices
    rounds = torch.arange(0, whole, columns)[:, None] + best[:, None]
    rest = torch.arange(whole, vocab).expand(len(rows), -1)
    tokens = torch.cat([rounds.flatten(1), rest], dim=1)
    return tokens.gather(1, logits[rows[:, None], tokens].topk(size).indices)


def _from_shortlist(
    logits: Tensor, totals: Tensor, groups: Tensor, tokens: Tensor, uniform: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Return one of the tokens for each text, and whether it is the one that the whole vocabulary would give."""
    own = groups[:, 0]
    log_probs = logits[groups[:, :, None], tokens[:, None]].double() - totals[groups][:, :, None]
    least = log_probs[:, 0, -1]
    texts = torch.arange(groups.numel()).view_as(groups)
    scores = debias(log_probs.flatten(0, 1), texts, sampling.decay, sampling.floor)
    if sampling.top_k > 0:
        scores, kept = scores.topk(sampling.top_k)
        probs, tokens = scores.softmax(dim=-1), tokens.gather(1, kept)
        exact = scores[:, -1] > least
    else:
        probs = scores.exp()
        undebiased = (groups == own[:, None]).all(dim=1) | (sampling.decay == 0)
        exact = undebiased & (probs.sum(dim=-1) > sampling.top_p) & (0 < sampling.top_p < 1)
    return tokens.gather(1, draw(probs, uniform, sampling.top_p)).squeeze(1), exact


def _from_all(logits: Tensor, totals: Tensor, groups: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Return a token for each text, after looking at the whole vocabulary."""
    step = max(1, CACHED // (logits.shape[1] * groups.shape[1])) if logits.device.type == "cpu" else len(groups)
    tokens = []
    for rows, numbers in zip(torch.split(groups, step), torch.split(uniform, step), strict=True):
        log_probs = logits[rows.flatten()].float() - totals[rows.flatten(), None].float()
        texts = torch.arange(rows.numel(), device=rows.device).view_as(rows)
        scores = debias(log_probs, texts, sampling.decay, sampling.floor)
        tokens.append(choose(scores, numbers, sampling.top_k, sampling.top_p))
    return torch.cat(tokens)
