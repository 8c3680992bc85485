"""How far is a model's distribution in bfloat16 from that in float32?

    python -m benchmarks.precision [--model pocket] [--inputs 100]

The model writes texts in float32. Then, at every position of every text, the next-token distributions of both dtypes
are compared: under the own prompt, after self-debiasing, and after top-k and top-p, from which tokens are drawn. Total
variation is half the sum of absolute differences: the share of tokens that would come out differently at best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, quantiles

import click
import torch
from torch import Tensor

from benchmarks.common import SPEC, distinct_sentences
from dino_pipeline.console import table
from dino_pipeline.decoding.debias import debias
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Request
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec

SAMPLING = Sampling()


def requests(decoder: Decoder, spec: TaskSpec, inputs: Sequence[str]) -> list[Request]:
    """Return one request for each input and label."""
    return [
        Request(
            tuple(decoder.encode([spec.prompt(name, text) for name in (label, *spec.labels[label].counter_labels)])),
            ("precision", text, label),
        )
        for text in inputs
        for label in spec.labels
    ]


@torch.inference_mode()
def distributions(decoder: Decoder, request: Request, tokens: tuple[int, ...]) -> dict[str, Tensor]:
    """Return ``(tokens, vocab)`` probabilities at each position of a text, by stage."""
    logits = []
    for prompt in request.prompts:
        ids = torch.tensor([[*prompt, *tokens[:-1]]])
        found = decoder.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
        logits.append(found.index_fill(1, decoder.banned, -torch.inf).log_softmax(-1))
    rows = torch.arange(len(logits) * len(tokens)).view(len(logits), -1).T
    debiased = debias(torch.cat(logits), rows, SAMPLING.decay, SAMPLING.floor).log_softmax(-1)
    return {"own prompt": logits[0].exp(), "debiased": debiased.exp(), "top-k, top-p": cut(debiased)}


def cut(log_probs: Tensor) -> Tensor:
    """Return the distributions that tokens are drawn from."""
    probs, tokens = log_probs.topk(SAMPLING.top_k)
    probs = probs.softmax(-1)
    probs = probs.masked_fill(probs.cumsum(-1) - probs > SAMPLING.top_p, 0.0)
    return torch.zeros_like(log_probs).scatter(1, tokens, probs / probs.sum(-1, keepdim=True))


def compared(full: Decoder, half: Decoder, asked: Sequence[Request]) -> Iterator[dict[str, list[float]]]:
    """Yield each text's total variations, one a position."""
    for done in full.sample(asked, SAMPLING):
        one, other = (distributions(decoder, asked[done.number], done.tokens) for decoder in (full, half))
        yield {stage: ((one[stage] - other[stage]).abs().sum(-1) / 2).tolist() for stage in one}


@click.command()
@click.option("--model", default="pocket", show_default=True)
@click.option("--inputs", "num_inputs", default=100, show_default=True)
def main(model: str, num_inputs: int) -> None:
    """Print mean total variation between float32 and bfloat16."""
    full, half = (load_decoder(ModelRef(name=model, dtype=dtype), device="cpu") for dtype in ("float32", "bfloat16"))
    spec, inputs = load_spec(SPEC), distinct_sentences(num_inputs)
    found: dict[str, list[float]] = {}
    for each in compared(full, half, requests(full, spec, inputs)):
        for stage, values in each.items():
            found.setdefault(stage, []).extend(values)
    rows = [
        [stage, f"{len(values):,}", f"{fmean(values):.4f}", f"{quantiles(values, n=20)[-1]:.4f}", f"{max(values):.3f}"]
        for stage, values in found.items()
    ]
    click.echo(table(["distribution", "positions", "mean", "95 %", "most"], rows))


if __name__ == "__main__":
    main()
