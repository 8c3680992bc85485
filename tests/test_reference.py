"""Trainings that follow the authors' code: their formulas in NumPy, and numbers computed from them once."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import dino_pipeline as dino
from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.models import load_encoder
from dino_pipeline.training.objectives import TrainingContext, get_objective, resolve_hyperparameters, row_views
from dino_pipeline.training.objectives.masked_words import IGNORED, SpanOptions
from dino_pipeline.training.objectives.mirror import mask_as_authors, pad_means
from dino_pipeline.training.objectives.reference import ClipCallback, Reference, slanted_triangular
from dino_pipeline.training.padding import rows_grouped_by_length
from dino_pipeline.training.quality import fit_batch_size
from dino_pipeline.training.trainer import count_steps
from tests.toys import without_dropout

TEXTS = [
    "a dog",
    "two cats run over the hill",
    "rain",
    "the sun shines on the river and on the hill, and the dog sleeps",
]


def followed(name: str, tokenizer: Any = None, steps: int = 8, own: dict[str, Any] | None = None, **given: Any) -> Any:
    """The context of a training that follows the authors' code."""
    hyperparameters = resolve_hyperparameters(get_objective(name), {"faithful": True, **given}, own or {})
    return TrainingContext(hyperparameters, tokenizer, seed=1, steps=steps)


class Size(torch.nn.Module):
    """Stands for an encoder of two dimensions whose embeddings are given."""

    def get_embedding_dimension(self) -> int:
        return 2


def angles(*degrees: float) -> torch.Tensor:
    """Vectors of length 1 in the plane."""
    turned = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([turned.cos(), turned.sin()], dim=1)


# IS-CSE: push, search, drop the nearest


def test_is_cse_pushes_searches_and_drops_the_nearest() -> None:
    """With temperature 1, two rows, a memory of four and one neighbour, computed by hand in NumPy."""
    own = {"buffer": 4, "neighbours": 1, "temperature": 1.0, "alpha": 0.5, "alpha_start": 0.5}
    loss = get_objective("is-cse").loss(Size(), followed("is-cse", own=own)).double()
    losses = []
    for first, second in ((angles(0, 90), angles(10, 80)), (angles(20, 60), angles(30, 52))):
        given = first.clone().requires_grad_()
        losses.append(loss.contrast(given, second))
    assert losses[0].item() == pytest.approx(0.367654, abs=1e-6), "the memory is half full: SimCSE alone"
    # beside itself, the nearest of 30 degrees is 10, and of 52 degrees 30
    assert losses[1].item() == pytest.approx(expected_second(), abs=1e-9)
    assert losses[1].item() == pytest.approx(0.946919, abs=1e-6)
    losses[1].backward()
    gradient = given.grad
    assert gradient is not None
    for row, column in np.ndindex(2, 2):
        assert gradient[row, column].item() == pytest.approx(slope(row, column), abs=1e-6)


def in_plane(*degrees: float) -> np.ndarray:
    turned = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(turned), np.sin(turned)], axis=1)


def expected_second(first: np.ndarray | None = None) -> float:
    """The loss of the second batch: z2 are 30 and 52 degrees, the memory is 10, 80, 30, 52."""
    z1, z2 = in_plane(20, 60) if first is None else first, in_plane(30, 52)
    memory = in_plane(10, 80, 30, 52)
    star = []
    for view in z2:
        neighbour = memory[np.argsort(-(memory @ view), kind="stable")[1]]
        weights = np.exp(np.array([view @ view, view @ neighbour]) / 2)
        star.append((weights[0] * view + weights[1] * neighbour) / weights.sum())
    return contrasted(z1, z2) + 0.5 * contrasted(z1, np.stack(star))


def contrasted(first: np.ndarray, second: np.ndarray) -> float:
    one, two = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    logits = one @ two.T
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)))


def slope(row: int, column: int) -> float:
    """The finite difference of the second batch's loss."""
    values = []
    for step in (1e-5, -1e-5):
        moved = in_plane(20, 60)
        moved[row, column] += step
        values.append(expected_second(moved))
    return (values[0] - values[1]) / 2e-5


def test_is_cse_smooths_from_the_batch_that_fills_its_memory_and_a_larger_batch_is_its_own_memory() -> None:
    for buffer, first in ((6, 2), (4, 1), (2, 0), (1, 0)):
        own = {"buffer": buffer, "neighbours": 1, "alpha": 5.0, "alpha_start": 5.0}
        with_second, alone = (
            get_objective("is-cse").loss(Size(), followed("is-cse", own={**own, **alpha})).double()
            for alpha in ({}, {"alpha": 0, "alpha_start": 0})
        )
        for batch in range(4):
            views = angles(0, 40), angles(10 + batch, 50)
            differs = with_second.contrast(*views).item() != alone.contrast(*views).item()
            assert differs == (batch >= first), (buffer, batch)


# DeCLUTR: places of anchors, whole spans of tokens, one mean over all masked words


def test_declutr_s_anchors_are_a_longest_span_apart() -> None:
    distances: list[int] = []
    for anchors, tokens in ((2, 2048), (2, 5000), (3, 3072)):
        spans = SpanOptions(anchors=anchors, spans="fixed")
        for number in range(1500):
            starts = sorted(anchor[0] for anchor, *_ in spans.draw(tokens, Random(number)))
            distances += [later - earlier for earlier, later in pairwise(starts)]
    assert min(distances) > 512
    scaled = SpanOptions(anchors=2, spans="scaled")
    for number in range(300):
        (first, _), (second, _) = (anchor for anchor, *_ in scaled.draw(80, Random(number)))
        assert abs(first - second) > 20


def test_faithful_declutr_cuts_spans_at_tokens(toy_encoder: Path) -> None:
    tokenizer = load_encoder(str(toy_encoder)).tokenizer
    text = "ab  cd\tef " * 500
    dataset = get_objective("declutr").build({"document": [text]}, followed("declutr", tokenizer=tokenizer))
    assert row_views(dataset) is not None
    ids = tokenizer(" " + " ".join(text.split()), add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    for span in dataset[0].values():
        assert span in whole
        assert 32 <= len(tokenizer(span, add_special_tokens=False)["input_ids"]) <= 512
    with pytest.raises(DataError, match="under 2048"):
        get_objective("declutr").build({"document": ["ab cd"]}, followed("declutr", tokenizer=tokenizer))


def test_declutr_takes_one_mean_over_the_masked_words_of_all_anchors(toy_encoder: Path) -> None:
    """The columns have three masked words and one; a mean of two means would weigh that one three times as much."""
    torch.manual_seed(0)
    model = without_dropout(toy_encoder)
    loss = get_objective("declutr").loss(model, followed("declutr", tokenizer=model.tokenizer))
    columns = [model.preprocess(TEXTS[:2]) for _ in range(6)]
    labels = [torch.full_like(column["input_ids"], IGNORED) for column in columns[:2]]
    for column, row, place in ((0, 1, 1), (0, 1, 2), (0, 1, 3), (1, 1, 4)):
        labels[column][row, place] = 9
    masks = iter(labels)
    loss.words.mask = lambda features: (features, next(masks))
    value = loss([{**column} for column in columns], None).item()
    logarithms = []
    states = model({**columns[0]})["token_embeddings"]
    for row, place in ((1, 1), (1, 2), (1, 3), (1, 4)):
        logits = loss.words.head(inputs_embeds=states[None, None, row, place]).logits[0, 0].detach().double().numpy()
        logarithms.append(np.log(np.exp(logits).sum()) - logits[9])
    embedded = [model({**column})["sentence_embedding"].detach().double().numpy() for column in columns]
    anchors, near = np.concatenate(embedded[:2]), np.concatenate([np.mean(embedded[n : n + 2], axis=0) for n in (2, 4)])
    views = np.concatenate([anchors, near])
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    similar = views @ views.T / 0.05
    np.fill_diagonal(similar, -np.inf)
    gold = [4, 5, 6, 7, 0, 1, 2, 3]
    contrast = np.mean([np.log(np.exp(row).sum()) - row[at] for row, at in zip(similar, gold, strict=True)])
    assert value == pytest.approx(contrast + np.mean(logarithms), abs=1e-4)


# Mirror-BERT: padded means, in training and in encoding; masks


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_faithful_mirror_bert_encodes_what_it_trains_in_plain_sentence_transformers(
    toy_encoder: Path, tmp_path: Path, pooling: Literal["mean", "cls"]
) -> None:
    model = load_encoder(str(toy_encoder), pooling=pooling).eval()
    bare = AutoModel.from_pretrained(toy_encoder).eval()
    model.max_seq_length = 50
    loss = get_objective("mirror-bert").loss(model, followed("mirror-bert", pooling=pooling))
    inputs = AutoTokenizer.from_pretrained(toy_encoder)(
        TEXTS, padding="max_length", truncation=True, max_length=50, return_tensors="pt"
    )
    states = bare(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    expected = states.mean(1) if pooling == "mean" else states[:, 0]  # of 50 states, those of padding included
    assert torch.allclose(loss.embed(model.preprocess(TEXTS)), expected, atol=1e-6)
    model.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert np.allclose(again.encode(TEXTS), expected.detach(), atol=1e-6)
    again.train()
    trained = again(again.preprocess(TEXTS))["sentence_embedding"].sum()
    trained.backward()
    for name, parameter in again.named_parameters():
        if pooling == "mean" and name.startswith("2."):
            assert parameter.grad is not None
            assert not parameter.grad.any(), "the layer of ones stays as it is if the encoder is trained on"


def test_an_encoder_that_pools_padding_is_neither_grouped_by_length_nor_parted_into_mini_batches(
    toy_encoder: Path, tmp_path: Path
) -> None:
    model = load_encoder(str(toy_encoder)).eval()
    model.max_seq_length = 50
    pad_means(model, followed("mirror-bert").hyperparameters)
    texts = TEXTS * 8
    whole = model(model.preprocess(texts))["sentence_embedding"]
    with rows_grouped_by_length(model):
        assert torch.allclose(model(model.preprocess(texts))["sentence_embedding"], whole, atol=1e-6)
    model.save(str(tmp_path))
    few: dict[str, Any] = {"steps": 1, "batch_size": 8, "mini_batch_size": 2, "progress": False}
    lines = [f"a dog of number {n} runs over the hill" for n in range(40)]
    for encoder, given in ((tmp_path, {}), (toy_encoder, {"faithful": True})):
        with pytest.raises(OptionError, match="mini_batch_size=2: the embeddings are means over padding"):
            dino.finetune(lines, encoder=str(encoder), objective="mirror-bert", **few, **given)


def test_means_over_padding_need_layers() -> None:
    from tests.toys import static_encoder

    with pytest.raises(OptionError, match="means over padding need an encoder with layers"):
        pad_means(static_encoder(), followed("mirror-bert").hyperparameters)


def test_mirror_masks_the_first_of_equal_spans_and_never_the_last_place() -> None:
    text = "abcdefghijklmnopqrstuvwxyz012345"
    starts = Counter(len(mask_as_authors(text, Random(n), 5).split(" [MASK] ")[0]) for n in range(5000))
    assert sorted(starts) == list(range(len(text) - 5))
    for number in range(50):
        assert mask_as_authors("ab" * 20, Random(number), 4) in (f" [MASK] {'ab' * 18}", f"a [MASK] {'b' + 'ab' * 17}")
    assert mask_as_authors("abcd", Random(0), 4) == "abcd"


# SimCSE's head


def test_faithful_simcse_sup_keeps_its_head(toy_encoder: Path, tmp_path: Path) -> None:
    texts = [{"text_a": f"a dog {n}", "text_b": f"{b} {n}", "label": s} for n in range(12) for b, s in PAIRS]
    few: dict[str, Any] = {"encoder": str(toy_encoder), "steps": 2, "batch_size": 8, "progress": False}
    encoder = dino.finetune(texts, objective="simcse-sup", faithful=True, run=tmp_path / "run", **few)
    again = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    assert [type(module).__name__ for module in again] == ["Transformer", "Pooling", "Dense"]
    pooled = again[1](again[0](again.preprocess(TEXTS)))["sentence_embedding"].detach().numpy()
    layer = again[2].linear
    by_hand = np.tanh(pooled @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    assert np.allclose(again.encode(TEXTS), by_hand, atol=1e-5)
    assert np.allclose(encoder.encode(TEXTS), by_hand, atol=1e-5)
    plain = dino.finetune(texts, objective="simcse-sup", **few)
    assert len(plain) == 2


PAIRS = (("the dog", 1.0), ("no dog", 0.0))


def test_a_head_begins_as_bert_s_layers_do() -> None:
    class Wide(torch.nn.Module):
        def get_embedding_dimension(self) -> int:
            return 256

    torch.manual_seed(0)
    for faithful, spread in ((True, 0.02), (False, 1 / math.sqrt(3 * 256))):
        given = {"faithful": True} if faithful else {}
        hyperparameters = resolve_hyperparameters(get_objective("simcse"), given, {})
        loss = get_objective("simcse").loss(Wide(), TrainingContext(hyperparameters, None, seed=1))
        layer = loss.heads["256"][0]
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.02)
        assert bool(layer.bias.any()) != faithful


# Optimizer, rate, clipping, batches


class Layer(torch.nn.Module):
    """A weight and a bias with given gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("reference", "weight", "bias"),
    [
        # AdamW's formulas on the gradients (1, -.01) and .1, then half of them: rate .1, decay .5, epsilon .1
        (Reference("", "", adam="torch", epsilon=0.1, decays_all=True), (0.733387, -1.789535), 0.362596),
        (Reference("", "", adam="corrected", epsilon=0.1), (0.8576925, -1.8044036), 0.4937527),
        (Reference("", "", adam="uncorrected", epsilon=0.1), (0.7356627, -1.802775), 0.4767844),
    ],
)
def test_the_optimizers_follow_their_formulas(reference: Reference, weight: tuple[float, float], bias: float) -> None:
    layer = Layer()
    hyperparameters = Hyperparameters(learning_rate=0.1, weight_decay=0.5, warmup=0, schedule="constant")
    optimizer, schedule = reference.optimizers(layer, hyperparameters, 2)
    for share in (1.0, 0.5):
        layer.weight.grad = share * torch.tensor([1.0, -0.01], dtype=torch.float64)
        layer.bias.grad = share * torch.tensor([0.1], dtype=torch.float64)
        optimizer.step()
        schedule.step()
    found = [*layer.weight.tolist(), *layer.bias.tolist()]
    assert found == pytest.approx(by_formula(reference), abs=1e-12)
    assert found == pytest.approx([*weight, bias], abs=1e-6)


def by_formula(reference: Reference) -> list[float]:
    """Two steps of AdamW, a number at a time."""
    found = []
    for value, gradient, decay in ((1.0, 1.0, 0.5), (-2.0, -0.01, 0.5), (0.5, 0.1, 0.5 * reference.decays_all)):
        mean = square = 0.0
        for step, share in ((1, 1.0), (2, 0.5)):
            mean, square = 0.9 * mean + 0.1 * share * gradient, 0.999 * square + 0.001 * (share * gradient) ** 2
            first, second = 1 - 0.9**step, 1 - 0.999**step
            if reference.adam == "torch":
                value -= 0.1 * decay * value
                value -= 0.1 * (mean / first) / (math.sqrt(square / second) + 0.1)
            else:
                size = 0.1 * math.sqrt(second) / first if reference.adam == "corrected" else 0.1
                value -= size * mean / (math.sqrt(square) + 0.1)
                value -= 0.1 * decay * value
        found.append(value)
    return found


def test_rates_rise_and_fall_as_in_the_authors_code() -> None:
    slanted = [slanted_triangular(step, steps=100) for step in (0, 8, 9, 54, 99)]
    assert slanted == pytest.approx([0.128125, 0.903125, 1.0, 0.515625, 0.03125])
    for name, warmup in (("dino", 3), ("sbert", 1), ("simcse", 0), ("mirror-bert", 0)):
        objective, layer = get_objective(name), Layer()
        hyperparameters = followed(name).hyperparameters
        reference = objective.followed(hyperparameters)
        assert reference is not None
        optimizer, schedule = reference.optimizers(layer, hyperparameters, 25)
        rates = []
        for _ in range(25):
            rates.append(optimizer.param_groups[0]["lr"] / hyperparameters.learning_rate)
            optimizer.step()
            schedule.step()
        falls = [1 - (step - warmup) / (25 - warmup) for step in range(warmup, 25)]
        rises = [step / warmup for step in range(warmup)]
        assert rates == pytest.approx([*rises, *falls] if name != "mirror-bert" else [1.0] * 25), name


def test_gradients_of_heads_are_clipped_with_the_others() -> None:
    layer = Layer()
    layer.weight.grad = torch.tensor([3.0, 0.0], dtype=torch.float64)
    layer.bias.grad = torch.tensor([4.0], dtype=torch.float64)
    ClipCallback(layer, 1.0).on_pre_optimizer_step(None, None, None)
    assert layer.weight.grad.tolist() == pytest.approx([0.6, 0.0], abs=1e-5)
    assert layer.bias.grad.tolist() == pytest.approx([0.8], abs=1e-5)


def test_batches_are_those_of_the_authors_code() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"anchor": [f"text {n}" for n in range(450)]})
    for name, steps in (("mirror-bert", 2), ("simcse", 8), ("is-cse", 8), ("declutr", 28)):
        context = followed(name)
        objective = get_objective(name)
        fitted = fit_batch_size(objective, context.hyperparameters, rows, 1)
        assert fitted.batch_size == objective.defaults.batch_size
        assert count_steps(objective, context, len(rows)) == steps, "rows that fill no batch are left out, or are not"
    with pytest.raises(OptionError, match="there are only 100 rows for a batch of 200"):
        count_steps(get_objective("mirror-bert"), followed("mirror-bert"), 100)
    repeated = Dataset.from_dict({"anchor": ["a"] * 600, "positive": ["b"] * 600, "negative": ["c"] * 600})
    sup = get_objective("simcse-sup")
    assert fit_batch_size(sup, followed("simcse-sup").hyperparameters, repeated, 1).batch_size == 512


def test_the_last_checkpoint_is_kept_unless_people_s_scores_choose(toy_encoder: Path, tmp_path: Path) -> None:
    texts = [f"a dog of number {n} runs over the hill" for n in range(40)]
    scored = [{"text_a": text, "text_b": text[: 9 + n], "label": n % 3 / 2} for n, text in enumerate(texts)]
    few: dict[str, Any] = {"encoder": str(toy_encoder), "objective": "mirror-bert", "steps": 12, "batch_size": 8}
    few |= {"faithful": True, "progress": False}
    record = dino.finetune(texts, run=tmp_path / "run", **few).dino.record
    assert record.selection.kept == "last"
    assert record.measured == "dev"
    assert record.selection.best == pytest.approx(record.history[-1].dev, abs=0.01)
    again = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    assert again.max_seq_length == 50, "texts are cut in encoding as in training"
    assert "| dev alignment and uniformity" in (tmp_path / "run" / "model" / "README.md").read_text()
    chosen = dino.finetune(texts, select_on=scored, **few).dino.record
    assert chosen.selection.kept == "best"


def test_the_head_of_words_is_that_of_the_authors_model(toy_encoder: Path) -> None:
    """Its parameters are trained, decayed and clipped with the encoder's, each once."""
    model = load_encoder(str(toy_encoder))
    loss = get_objective("declutr").loss(model, followed("declutr", tokenizer=model.tokenizer))
    reference = get_objective("declutr").faithful
    assert isinstance(reference, Reference)
    optimizer, _ = reference.optimizers(loss, followed("declutr").hyperparameters, 10)
    given = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(given) == len(set(given))
    whole = AutoModelForMaskedLM.from_pretrained(toy_encoder)
    assert len(given) >= len(list(whole.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["is-cse", "declutr", "mirror-bert"])
def test_an_interrupted_training_ends_as_a_whole_one(toy_encoder: Path, tmp_path: Path, name: str) -> None:
    """Optimizer, rate, memory and the layer of ones are what they would have been."""
    own = {"is-cse": {"buffer": 16, "neighbours": 4}, "declutr": {"shortest": 4, "longest": 12}}
    few: dict[str, Any] = {"encoder": str(toy_encoder), "objective": name, "faithful": True, "steps": 20}
    few |= {"batch_size": 8, "learning_rate": 1e-3, "objective_options": own.get(name, {})}
    texts = [f"{a} dog runs fast. {b} cat sits still. Then {a} rain falls on {b}." for a in "abcdefgh" for b in "ijkl"]

    def stop(progress: object) -> None:
        if getattr(progress, "done", 0) == 14:
            raise KeyboardInterrupt

    whole = dino.finetune(texts, run=tmp_path / "whole", progress=False, **few)
    with pytest.raises(KeyboardInterrupt):
        dino.finetune(texts, run=tmp_path / "parts", progress=stop, **few)
    resumed = dino.finetune(texts, run=tmp_path / "parts", progress=False, **few)
    assert resumed.dino.state == "resumed"
    assert np.allclose(resumed.encode(texts[:9]), whole.encode(texts[:9]), atol=1e-5)
