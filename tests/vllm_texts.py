"""Texts by vLLM and by the decoder, to be compared. It needs vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request, Task, task_key, task_prompts, uniforms
from dino_pipeline.decoding.loading import load_decoder, load_engine, resolve_model
from dino_pipeline.decoding.next_token import debias
from dino_pipeline.decoding.vllm_engine import VllmEngine
from dino_pipeline.generate_options import EngineOptions
from dino_pipeline.options import Sampling
from dino_pipeline.spec import TaskSpec

INPUTS = ["A man is riding a horse.", "The dog sleeps on the sofa.", "A boy reads a book.", "Two girls are painting."]
CONTRASTS = TaskSpec.model_validate(
    {
        "task_name": "contrasts",
        "labels": {
            "3": {
                "instruction": 'Write a sentence.\nSentence 1: "<X1>"\nSentence 2: "',
                "counter_labels": ["2", "1", "0"],
            },
            "2": {"instruction": 'Sentence 1: "<X1>"\nSentence 2: "', "counter_labels": ["0"]},
            "1": {"instruction": 'Write two sentences.\nSentence 1: "<X1>"\nSentence 2: "'},
            "0": {"instruction": 'Sentence: "', "counter_labels": ["1", "2"]},
        },
    }
)
NEAR = 1e-3
"""Probability mass within which a draw or a cut counts as a tie: debiasing magnifies rounding by its decay."""


@contextmanager
def vllm(model: str | Path, **options: Any) -> Iterator[VllmEngine]:
    """Start vLLM with a model, and end it."""
    chosen = EngineOptions.of({"model": str(model), "engine": "vllm", "max_model_len": 256, **options})
    engine = load_engine(resolve_model(chosen, "cpu"), chosen, "cpu")
    assert isinstance(engine, VllmEngine)
    with closing(engine):
        yield engine


def decoder(model: str | Path) -> Decoder:
    return load_decoder(resolve_model(EngineOptions.of({"model": str(model)}), "cpu"), device="cpu")


def requests(engine: Any, spec: TaskSpec, samples: int) -> list[Request]:
    tasks = [
        Task(at, text, label, sample)
        for at, text in enumerate(INPUTS)
        for label in spec.labels
        for sample in range(samples)
    ]
    made = []
    for task in tasks:
        prompts = engine.encode(task_prompts(spec, 42, task, engine.render))
        made.append(Request(tuple(prompts), task_key(spec, 42, task)))
    return made


def write(engine: Any, wanted: Sequence[Request], sampling: Sampling, **how: Any) -> list[Completion]:
    return sorted(engine.sample(wanted, sampling, **how), key=lambda text: text.number)


@torch.inference_mode()
def is_tie(model: Decoder, request: Request, text: Completion, other: Completion, sampling: Sampling) -> bool:
    """Return whether two texts part where rounding decides: at a draw, or at the edge of top-k or top-p."""
    step = next(at for at, (a, b) in enumerate(zip(text.tokens, other.tokens, strict=False)) if a != b)
    rows = []
    for prompt in request.prompts:
        logits = model.model(torch.tensor([[*prompt, *text.tokens[:step]]])).logits[0, -1]
        rows.append(logits.index_fill(0, model.banned, -torch.inf).log_softmax(0))
    group = torch.arange(len(rows))[None]
    scores, _ = debias(torch.stack(rows), group, sampling.decay, sampling.floor)[0].double().sort(descending=True)
    count = sampling.top_k or len(scores)
    probs = scores[:count].softmax(0)
    before = probs.cumsum(0) - probs
    kept = probs[before <= sampling.top_p] if 0 < sampling.top_p < 1 else probs
    draw = uniforms(request.key, step + 1)[step]
    edges = [(before - sampling.top_p).abs().min(), (kept.cumsum(0) / kept.sum() - draw).abs().min()]
    edges += [scores[count - 1] - scores[count]] if count < len(scores) else []
    return min(edges) < NEAR


def assert_same(
    model: Decoder, engine: VllmEngine, wanted: Sequence[Request], sampling: Sampling | None = None, **how: Any
) -> list[Completion]:
    """Assert that both write the same texts, up to rounding; return vLLM's."""
    drawn = sampling or Sampling()
    ours, theirs = write(model, wanted, drawn, **how), write(engine, wanted, drawn, **how)
    assert len(ours) == len(theirs) == len(wanted)
    parted = [at for at in range(len(wanted)) if ours[at].tokens != theirs[at].tokens]
    assert all(is_tie(model, wanted[at], ours[at], theirs[at], drawn) for at in parted)
    assert len(parted) <= 1 + len(wanted) / 50
    for at in set(range(len(wanted))) - set(parted):
        assert (ours[at].text, ours[at].finish) == (theirs[at].text, theirs[at].finish)
        assert (theirs[at].margin is None) == (len(wanted[at].prompts) == 1)
    return theirs
