"""Compares a model's next-token distributions in bfloat16 and in float32.

    python -m benchmarks.precision [--model pocket] [--inputs 100]

The model writes texts in float32. At every position of every text, the distributions of both dtypes are compared under
the own prompt, after self-debiasing, and after top-k and top-p. The measure is total variation, half the sum of
absolute differences: the least share of tokens that two samplers draw differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, quantiles

import click
import torch
from torch import Tensor

from benchmarks.common import SPEC, distinct_sentences
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Request
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.decoding.next_token import debias
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.progress import table
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
        of_prompt = decoder.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
        logits.append(of_prompt.index_fill(1, decoder.banned, -torch.inf).log_softmax(-1))
    rows = torch.arange(len(logits) * len(tokens)).view(len(logits), -1).T
    debiased = debias(torch.cat(logits), rows, SAMPLING.decay, SAMPLING.floor).log_softmax(-1)
    return {"own prompt": logits[0].exp(), "debiased": debiased.exp(), "top-k, top-p": cut(debiased)}


def cut(log_probs: Tensor) -> Tensor:
    """Return the distributions that tokens are drawn from."""
    probs, tokens = log_probs.topk(SAMPLING.top_k)
    probs = probs.softmax(-1)
    probs = probs.masked_fill(probs.cumsum(-1) - probs > SAMPLING.top_p, 0.0)
    return torch.zeros_like(log_probs).scatter(1, tokens, probs / probs.sum(-1, keepdim=True))


def total_variations(full: Decoder, half: Decoder, wanted: Sequence[Request]) -> Iterator[dict[str, list[float]]]:
    """Yield the total variations of each text, one per position, by stage."""
    for text in full.sample(wanted, SAMPLING):
        one, other = (distributions(decoder, wanted[text.number], text.tokens) for decoder in (full, half))
        yield {stage: ((one[stage] - other[stage]).abs().sum(-1) / 2).tolist() for stage in one}


@click.command()
@click.option("--model", default="pocket", show_default=True)
@click.option("--inputs", "num_inputs", default=100, show_default=True)
def main(model: str, num_inputs: int) -> None:
    """Print mean total variation between float32 and bfloat16."""
    full, half = (load_decoder(ModelRef(name=model, dtype=dtype), device="cpu") for dtype in ("float32", "bfloat16"))
    spec, inputs = load_spec(SPEC), distinct_sentences(num_inputs)
    by_stage: dict[str, list[float]] = {}
    for of_text in total_variations(full, half, requests(full, spec, inputs)):
        for stage, values in of_text.items():
            by_stage.setdefault(stage, []).extend(values)
    rows = [
        [stage, f"{len(values):,}", f"{fmean(values):.4f}", f"{quantiles(values, n=20)[-1]:.4f}", f"{max(values):.3f}"]
        for stage, values in by_stage.items()
    ]
    click.echo(table(["distribution", "positions", "mean", "95 %", "most"], rows))


if __name__ == "__main__":
    main()
