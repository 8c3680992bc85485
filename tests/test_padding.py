"""Rows of a batch that are encoded in groups of like length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

import dino_pipeline as dino
from dino_pipeline.models import load_encoder
from dino_pipeline.training import padding
from dino_pipeline.training.padding import rows_grouped_by_length
from dino_pipeline.training.whitening import weigh
from tests.toys import save_generator, static_encoder, without_dropout

TEXTS = ["ab" * (1 + number * 7 % 23) for number in range(40)]


def widths(model: SentenceTransformer) -> list[tuple[int, int]]:
    """Shapes of the batches that the layers are given from now on."""
    shapes: list[tuple[int, int]] = []
    layers = model.transformers_model
    forward = layers.forward

    def noted(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    layers.forward = noted
    return shapes


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weights"])
def test_embeddings_and_gradients_are_those_of_the_whole_batch(toy_encoder: Path, pooling: str) -> None:
    model = without_dropout(toy_encoder)
    if pooling == "weights":
        model = weigh(model, [f"{text} {number}" for number, text in enumerate(TEXTS * 3)])
    elif pooling != "mean":
        model = load_encoder(str(toy_encoder), pooling=pooling).eval()
    target = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(0))

    def embeddings_and_gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        embeddings = model(model.preprocess(TEXTS))["sentence_embedding"]
        (embeddings * target).sum().backward()
        return embeddings.detach(), [each.grad.clone() for each in model.parameters() if each.grad is not None]

    shapes = widths(model)
    plain, plain_gradients = embeddings_and_gradients()
    whole = shapes.pop()
    with rows_grouped_by_length(model):
        grouped, gradients = embeddings_and_gradients()
    assert len(shapes) == padding.GROUPS
    assert sum(rows for rows, _ in shapes) == len(TEXTS)
    assert sum(rows * tokens for rows, tokens in shapes) < 0.8 * whole[0] * whole[1]
    torch.testing.assert_close(grouped, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, plain_gradients, atol=1e-4, rtol=1e-4)
    model(model.preprocess(TEXTS))
    assert shapes[-1] == whole, "after the block a batch is whole again"


def test_padding_may_stand_before_the_texts(tmp_path: Path) -> None:
    """As it does for decoders, whose positions are relative."""
    model = load_encoder(str(save_generator(tmp_path, "gemma3")), pooling="mean").eval()
    model.tokenizer.padding_side = "left"
    plain = model(model.preprocess(TEXTS))["sentence_embedding"]
    shapes = widths(model)
    with rows_grouped_by_length(model):
        grouped = model(model.preprocess(TEXTS))["sentence_embedding"]
    assert len(shapes) == padding.GROUPS
    torch.testing.assert_close(grouped, plain, atol=1e-5, rtol=1e-5)


def test_what_gains_nothing_stays_whole(toy_encoder: Path) -> None:
    model = load_encoder(str(toy_encoder))
    shapes = widths(model)
    with rows_grouped_by_length(model):
        model(model.preprocess(TEXTS[: 2 * padding.MIN_ROWS - 1]))
        assert len(shapes) == 1, "few rows"
    table = static_encoder()
    with rows_grouped_by_length(table):
        table(table.preprocess(TEXTS))


def test_a_training_on_a_cpu_groups_rows_unless_its_loss_reads_padding(
    toy_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there: batches stay whole")
    calls: list[int] = []
    plain = padding._forward_in_groups

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return plain(*args, **options)

    monkeypatch.setattr(padding, "_forward_in_groups", counted)
    options: dict[str, Any] = {"encoder": str(toy_encoder), "steps": 2, "batch_size": 16, "progress": False}
    dino.finetune([f"{text} {number}" for number, text in enumerate(TEXTS)], objective="simcse", **options)
    assert calls
    calls.clear()
    with_mask = {**options, "encoder": "pocket", "objective": "mirror-bert", "faithful": True}
    dino.finetune([f"{text} {number}" for number, text in enumerate(TEXTS)], **with_mask)
    assert not calls
