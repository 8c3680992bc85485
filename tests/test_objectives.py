"""Each loss against a few lines of NumPy in double precision; each way of drawing views against its distribution."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import beta, chisquare, kstest

from dino_pipeline.encoder_options import OBJECTIVES, Hyperparameters
from dino_pipeline.errors import DataError, ModelError, OptionError
from dino_pipeline.models import load_encoder
from dino_pipeline.training.objectives import (
    TrainingContext,
    get_objective,
    resolve_hyperparameters,
    row_views,
)
from dino_pipeline.training.objectives.masked_words import SpanOptions
from dino_pipeline.training.objectives.mirror import draw_view, mask_characters, mask_words
from dino_pipeline.training.objectives.pairs import (
    InfoNCELoss,
    LearnedTemperature,
    NTXentLoss,
    PairClassificationLoss,
    own_tensors,
)
from dino_pipeline.training.objectives.reference import Reference
from dino_pipeline.training.objectives.view_objectives import (
    InstanceSmoothedLoss,
    MemoryBuffer,
    SimCSELoss,
    smooth_views,
)
from tests.toys import without_dropout

DOCS = (Path(__file__).parent.parent / "docs" / "objectives.md").read_text()
Matrix = NDArray[np.float64]
SIZE = 6


class Stub(torch.nn.Module):
    """Stands for an encoder whose embeddings are given."""

    def get_embedding_dimension(self) -> int:
        return SIZE


def recipe(
    name: str, steps: int = 10, tokenizer: Any = None, own: dict[str, str] | None = None, **given: Any
) -> TrainingContext:
    return TrainingContext(
        resolve_hyperparameters(get_objective(name), given, own or {}), tokenizer, seed=1, steps=steps, classes=3
    )


def drawn(seed: int, rows: int = 5, columns: int = 2) -> list[Matrix]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(rows, SIZE)) for _ in range(columns)]


def tensors(matrices: list[Matrix]) -> list[torch.Tensor]:
    return [torch.tensor(matrix) for matrix in matrices]


def unit(matrix: Matrix) -> Matrix:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def cross_entropy(logits: Matrix, gold: list[int]) -> float:
    return float(np.mean([np.log(np.exp(row).sum()) - row[at] for row, at in zip(logits, gold, strict=True)]))


def info_nce(first: Matrix, *others: Matrix, temperature: float) -> float:
    logits = unit(first) @ unit(np.concatenate(others)).T / temperature
    return cross_entropy(logits, list(range(len(first))))


def test_nt_xent_has_both_views_of_all_others_as_negatives() -> None:
    first, second = drawn(0)
    views = unit(np.concatenate([first, second]))
    logits = views @ views.T / 0.04
    np.fill_diagonal(logits, -np.inf)
    n = len(first)
    gold = [*range(n, 2 * n), *range(n)]
    loss = NTXentLoss(Stub(), recipe("mirror-bert"))  # type: ignore[arg-type]
    assert loss.compare(tensors([first, second]), None).item() == pytest.approx(cross_entropy(logits, gold), abs=1e-9)


def test_hard_negatives_stand_beside_the_positives_of_the_batch() -> None:
    columns = drawn(1, columns=3)
    loss = InfoNCELoss(Stub(), recipe("simcse-sup"))  # type: ignore[arg-type]
    assert loss.compare(tensors(columns), None).item() == pytest.approx(info_nce(*columns, temperature=0.05), abs=1e-9)


def test_simcse_compares_behind_its_head() -> None:
    first, second = drawn(2)
    loss = SimCSELoss(Stub(), recipe("simcse")).double()  # type: ignore[arg-type]
    layer = loss.heads[str(SIZE)][0]  # type: ignore[index]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    heads = [np.tanh(each @ weight.T + bias) for each in (first, second)]
    expected = info_nce(*heads, temperature=0.05)
    assert loss.compare(tensors([first, second]), None).item() == pytest.approx(expected, abs=1e-9)


def test_cpt_is_the_mean_of_the_cross_entropies_over_rows_and_columns(toy_encoder: Path) -> None:
    """On a real encoder without dropout."""
    model = without_dropout(toy_encoder)
    loss = get_objective("cpt").loss(model, recipe("cpt", mini_batch_size=2))
    value = loss([model.preprocess(column) for column in TEXTS[:2]], None)
    u, v = (unit(model.encode(column).astype(np.float64)) for column in TEXTS[:2])
    logits = u @ v.T / 0.07
    expected = (cross_entropy(logits, [0, 1, 2, 3]) + cross_entropy(logits.T, [0, 1, 2, 3])) / 2
    assert value.item() == pytest.approx(expected, abs=1e-4)


TEXTS = [
    ["a dog", "two cats run", "rain", "the sun"],
    ["dogs", "cats", "it rains", "sunny day"],
    ["x", "yy", "zzz", "zz"],
]


@pytest.mark.parametrize("name", ["cpt", "simcse", "mirror-bert", "is-cse", "simcse-sup", "sbert"])
def test_cached_gradients_are_the_plain_ones(toy_encoder: Path, name: str) -> None:
    model = without_dropout(toy_encoder)
    columns = TEXTS if name == "simcse-sup" else TEXTS[:2]
    grown = []
    for mini in (4 if name == "cpt" else None, 2):
        torch.manual_seed(0)
        model.zero_grad()
        loss = get_objective(name).loss(model, recipe(name, mini_batch_size=mini))
        value = loss([model.preprocess(column) for column in columns], torch.tensor([0, 1, 1, 2]))
        value.backward()
        grown.append((value.item(), {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}))
    assert grown[0][0] == pytest.approx(grown[1][0], abs=1e-5)
    assert grown[0][1].keys() == grown[1][1].keys()
    assert len(grown[0][1]) > 10
    for at, plain in grown[0][1].items():
        assert torch.allclose(plain, grown[1][1][at], atol=1e-5), at


def test_the_temperature_is_learned_and_bounded() -> None:
    scale = LearnedTemperature(0.07).double()
    first, second = tensors(drawn(3))
    assert torch.autograd.gradcheck(scale, (first.requires_grad_(), second.requires_grad_()))
    scale(first, second).sum().backward()
    assert scale.t.grad is not None
    assert scale.t.grad != 0
    torch.nn.init.constant_(scale.t, 50.0)
    assert scale(first, first).max().item() == pytest.approx(100.0)


def test_sbert_is_a_softmax_over_both_embeddings_and_their_distance() -> None:
    u, v = drawn(4)
    labels = [0, 2, 1, 1, 0]
    loss = PairClassificationLoss(Stub(), recipe("sbert")).double()  # type: ignore[arg-type]
    layer = loss.classifiers[str(SIZE)]
    weight, bias = (np.asarray(each.detach()) for each in layer.parameters())
    logits = np.concatenate([u, v, np.abs(u - v)], axis=1) @ weight.T + bias
    value = loss.compare(tensors([u, v]), torch.tensor(labels))
    assert value.item() == pytest.approx(cross_entropy(logits, labels), abs=1e-9)


def smoothed_by_hand(views: Matrix, memory: Matrix, neighbours: int) -> Matrix:
    """The memory holds the views, so that the nearest is left out."""
    found = []
    for z in views:
        nearest = sorted(range(len(memory)), key=lambda at: -float(memory[at] @ z))[1 : neighbours + 1]
        values = np.stack([z, *memory[nearest]])
        weights = np.exp(values @ z / 2)
        found.append((weights / weights.sum()) @ values)
    return np.stack(found)


def test_is_cse_aggregates_a_view_and_its_nearest_remembered_ones() -> None:
    views = unit(drawn(5)[0])
    memory = np.concatenate([unit(drawn(6, rows=35)[0]), views])
    for neighbours in (1, 16, 40, 64):
        found = smooth_views(torch.tensor(views), torch.tensor(memory), neighbours)
        assert np.allclose(found, smoothed_by_hand(views, memory, neighbours), atol=1e-12)
    given = torch.tensor(views, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: smooth_views(z, torch.tensor(memory), 7), (given,))


def test_is_cse_remembers_first_in_first_out_and_takes_no_part_before_it_is_full() -> None:
    memory, expected = MemoryBuffer(7, SIZE), deque[list[float]](maxlen=7)
    for seed, rows in enumerate((3, 3, 1, 5, 9, 2)):
        assert memory.is_full == (len(expected) == 7)
        given = drawn(seed, rows)[0].astype(np.float32)
        memory.push(torch.tensor(given))
        expected.extend(given.tolist())
        held = sorted(map(tuple, memory.entries[: len(expected)].tolist()))
        assert held == sorted(map(tuple, expected))

    loss = InstanceSmoothedLoss(Stub(), recipe("is-cse", own={"buffer": "10", "neighbours": "4"})).double()  # type: ignore[arg-type]
    layer = loss.heads[str(SIZE)][0]  # type: ignore[index]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    remembered: list[Matrix] = []
    for step in range(4):
        z1, z2 = (np.tanh(each @ weight.T + bias) for each in drawn(10 + step))
        expected_loss = info_nce(z1, z2, temperature=0.05)
        remembered.append(unit(z2))
        if step >= 1:  # this batch's five fill the memory, and are searched, too
            star = smoothed_by_hand(unit(z2), np.concatenate(remembered[-2:]), 4)
            expected_loss += 0.1 * info_nce(z1, star, temperature=0.05)
        value = loss.compare(tensors(drawn(10 + step)), None)
        assert value.item() == pytest.approx(expected_loss, abs=1e-7), step


def test_is_cse_raises_alpha_along_a_quarter_of_a_cosine() -> None:
    own = {"alpha": "0.05", "alpha_start": "0.005", "buffer": "5"}
    loss = InstanceSmoothedLoss(Stub(), recipe("is-cse", steps=8, own=own)).double()  # type: ignore[arg-type]
    alphas = []
    for _ in range(6):
        alphas.append(loss.alpha)
        loss.compare(tensors(drawn(0)), None)
    expected = [0.005, 0.0084254, 0.0181802, 0.0327793, 0.05, 0.05]  # .05 - .045 cos(pi step / steps), until steps / 2
    assert alphas == pytest.approx(expected, abs=1e-6)
    assert InstanceSmoothedLoss(Stub(), recipe("is-cse")).alpha == 0.1  # type: ignore[arg-type]


def test_gradients_of_the_new_losses_are_those_of_finite_differences() -> None:
    first, second = tensors(drawn(7))
    remembered = InstanceSmoothedLoss(Stub(), recipe("is-cse", own={"buffer": "15", "neighbours": "4"})).double()  # type: ignore[arg-type]
    memory = remembered.memories[str(SIZE)]
    assert isinstance(memory, MemoryBuffer)
    memory.push(torch.tensor(unit(drawn(8, rows=10)[0])))
    remembered.compare([first, second], None)
    memory.push = lambda embeddings: None  # type: ignore[method-assign]  # it holds these views, without gradients

    def value(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return remembered.compare([a, b], None)

    assert torch.autograd.gradcheck(value, (first.requires_grad_(), second.requires_grad_()))
    classifier = PairClassificationLoss(Stub(), recipe("sbert")).double()  # type: ignore[arg-type]
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert torch.autograd.gradcheck(lambda a, b: classifier.compare([a, b], labels), (first, second))


def span_draws(spans: SpanOptions, tokens: int, count: int) -> Iterator[list[list[tuple[int, int]]]]:
    for number in range(count):
        yield spans.draw(tokens, Random(number))


@pytest.mark.slow
def test_declutr_draws_lengths_and_places_as_the_paper_does() -> None:
    spans = SpanOptions(anchors=2, positives=2, shortest=32, longest=512, spans="fixed")
    tokens = spans.min_tokens
    anchors, positives, places, chunks = [], [], [], Counter[int]()
    for drawn_spans in span_draws(spans, tokens, 25_000):
        starts = [start for (start, _), *_ in drawn_spans]
        assert abs(starts[0] - starts[1]) > 512, "at least a longest span apart"
        for (start, end), *near in drawn_spans:
            anchors.append(end - start)
            chunks[start // 128] += 1
            for low, high in near:
                positives.append(high - low)
                assert low >= 0
                assert high <= tokens
                assert start - (high - low) <= low <= end, "overlapping, adjacent or subsumed"
                if start - (high - low) > 0 and end + (high - low) < tokens:
                    places.append((low - start + high - low) / (end - start + high - low))
    assert len(positives) == 100_000
    for lengths, parameters in ((anchors, (4, 2)), (positives, (2, 4))):
        assert min(lengths) >= 32
        assert max(lengths) < 512
        # a length is rounded down, so that each stands for a stretch of 1 / 480
        share = (np.array(lengths) - 32 + np.random.default_rng(0).random(len(lengths))) / 480
        assert kstest(share, beta(*parameters).cdf).statistic < 0.008
    assert kstest(places, "uniform").statistic < 0.01
    assert min(chunks.values()) > 0
    assert len(chunks) > 10, "anchors begin everywhere, ends included"


def test_declutr_scales_spans_to_short_documents_and_the_paper_refuses_them(toy_encoder: Path) -> None:
    spans = SpanOptions(anchors=2, positives=2, shortest=32, longest=512, spans="scaled")
    assert spans.bounds(5000) == (32, 512)
    assert spans.bounds(400) == (32, 100)
    assert spans.bounds(80) == (10, 20)
    for tokens in (4, 5, 9, 80):
        for drawn_spans in span_draws(spans, tokens, 200):
            for span in (each for anchor in drawn_spans for each in anchor):
                assert 0 <= span[0] < span[1] <= tokens
    tokenizer = load_encoder(str(toy_encoder)).tokenizer
    columns = {"document": ["One dog runs. Two cats sit.", "abc"]}
    assert len(get_objective("declutr").build(columns, recipe("declutr", tokenizer=tokenizer))) == 1
    with pytest.raises(DataError, match="document 1: has 3 tokens, as 1 of 1 have under 4"):
        get_objective("declutr").build({"document": ["abc"]}, recipe("declutr", tokenizer=tokenizer))
    with pytest.raises(DataError, match=r"under 2048; .*leave out faithful"):
        get_objective("declutr").build(columns, recipe("declutr", tokenizer=tokenizer, faithful=True))


def test_declutr_s_spans_are_whole_words_and_other_ones_in_each_epoch(toy_encoder: Path) -> None:
    text = "one two three four five six seven eight nine ten"
    dataset = get_objective("declutr").build(
        {"document": [text]}, recipe("declutr", tokenizer=load_encoder(str(toy_encoder)).tokenizer)
    )
    views = row_views(dataset)
    assert views is not None
    epochs = []
    for epoch in (0, 1, 0):
        views.epoch = epoch
        epochs.append(dataset[0])
    assert list(epochs[0]) == ["anchor0", "anchor1", "near0x0", "near0x1", "near1x0", "near1x1"]
    assert epochs[0] == epochs[2] != epochs[1]
    for span in epochs[0].values():
        assert f" {span.strip()} " in f" {text} "


WORDS = "the quick brown fox jumps over a lazy dog"


def test_mirror_masks_are_whole_words_anywhere_but_never_all() -> None:
    starts = Counter[int]()
    for number in range(9000):
        masked = mask_words(WORDS, Random(number), "[MASK]", 5)
        left, right = masked.split("[MASK]")
        gone = WORDS[len(left) : len(WORDS) - len(right)]
        assert left + gone + right == WORDS
        assert (left == "" or left[-1] == " ") and (right == "" or right[0] == " "), "no word is broken"
        assert len(gone) >= 5 or right == ""
        assert len(gone.split()[0]) >= 5 or len(" ".join(gone.split()[:-1])) < 5, "no more words than needed"
        starts[len(left)] += 1
    assert len(starts) == 9
    assert chisquare(list(starts.values())).pvalue > 1e-4
    assert mask_words("word", Random(0), "[MASK]", 5) == "word"


def test_mirror_masks_characters_and_leaves_short_texts() -> None:
    starts = Counter[int]()
    for number in range(8000):
        masked = mask_characters(WORDS, Random(number), "[MASK]", 5)
        left, right = masked.split(" [MASK] ")
        assert len(left) + 5 + len(right) == len(WORDS)
        assert WORDS.startswith(left)
        assert WORDS.endswith(right)
        starts[len(left)] += 1
    assert len(starts) == len(WORDS) - 5 + 1
    assert chisquare(list(starts.values())).pvalue > 1e-4
    short = {"anchor": "under thirty characters"}
    for kind in ("words", "characters", "none"):
        found = draw_view(short, Random(0), mask="[MASK]", kind=kind, span=5)
        assert found == {"anchor": short["anchor"], "positive": short["anchor"]}
    unparted = {"anchor": "今天天气很好我们一起去公园里散步然后再去河边看夕阳西下的美丽风景吧"}
    assert "[MASK]" in draw_view(unparted, Random(0), mask="[MASK]", kind="words", span=5)["positive"]


def test_masked_words_are_told_from_states_by_the_encoder_s_own_head(toy_encoder: Path, tmp_path: Path) -> None:
    """Its own language model gives the same loss, and the head's weights are the encoder's embeddings."""
    from transformers import AutoModelForMaskedLM

    from dino_pipeline.training.objectives.masked_words import MaskedWordLoss

    torch.manual_seed(0)
    whole = AutoModelForMaskedLM.from_pretrained(toy_encoder).eval()
    whole.save_pretrained(tmp_path)
    model = load_encoder(str(toy_encoder))
    model.tokenizer.save_pretrained(tmp_path)
    model = load_encoder(str(tmp_path)).eval()
    words = MaskedWordLoss(model, recipe("cmlm", tokenizer=model.tokenizer)).eval()
    features = model.preprocess(["a dog runs over the hill", "rain " * 12])
    before = features["input_ids"].clone()
    masked, labels = words.mask(features)
    assert torch.equal(features["input_ids"], before), "what is masked is a copy"
    chosen = labels != -100
    assert 0.03 < chosen.float().mean() < 0.4
    assert torch.equal(labels[chosen], before[chosen])
    assert not torch.isin(labels[chosen], torch.tensor(model.tokenizer.all_special_ids)).any()
    logits = whole(input_ids=masked["input_ids"], attention_mask=features["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[chosen], labels[chosen])
    assert words(model(masked)["token_embeddings"], labels).item() == pytest.approx(expected.item(), abs=1e-5)
    own = own_tensors(words, model)
    assert own
    assert not any("decoder.weight" in name or "embedding" in name for name in own)
    assert words(torch.zeros(1, 3, 32), torch.full((1, 3), -100)).item() == 0


def test_an_encoder_that_masks_no_words_is_named(toy_generator: Path) -> None:
    model = load_encoder(str(toy_generator))
    for name in ("declutr", "cmlm"):
        with pytest.raises(ModelError, match="has no masked language model"):
            get_objective(name).loss(model, recipe(name, tokenizer=model.tokenizer))
    model.tokenizer.mask_token = None
    with pytest.raises(ModelError, match="masks no words; take an encoder that was trained to"):
        get_objective("cmlm").loss(model, recipe("cmlm", tokenizer=model.tokenizer))


def test_cmlm_conditions_on_the_neighbour(toy_encoder: Path) -> None:
    model = without_dropout(toy_encoder)
    loss = get_objective("cmlm").loss(model, recipe("cmlm", tokenizer=model.tokenizer))
    values = []
    for first in (["a dog", "rain"], ["rain", "a dog"]):
        torch.manual_seed(1)
        features = [model.preprocess(column) for column in (first, ["the dog barks at night", "it rains all day"])]
        values.append(loss(features, None))
    assert values[0].item() != values[1].item()
    values[0].backward()
    gradients = [parameter.grad for parameter in loss.projections.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_told_in_full(name: str) -> None:
    objective = get_objective(name)
    assert objective.name == name
    assert re.search(r"(19|20)\d\d.*arXiv:\d{4}\.\d{5}", objective.citation)
    if isinstance(objective.faithful, Reference):
        followed = resolve_hyperparameters(objective, {"faithful": True}, {})
        assert followed.options.keys() == objective.defaults.options.keys()
        assert f"| `{name}` | {objective.faithful.code.removeprefix('github.com/')}" in DOCS
    else:
        assert f"`{name}`" in DOCS[DOCS.index("## What the authors do otherwise") :]
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 7)
    own = " ".join(f"{option}={value}" for option, value in objective.defaults.options.items())
    shown = (
        f"| {objective.defaults.batch_size:,}",
        f"| {objective.defaults.epochs:g} | {objective.defaults.pooling} |",
        own,
    )
    assert all(each in row for each in shown), row


def test_the_defaults_are_the_papers() -> None:
    sbert = Hyperparameters(epochs=1, batch_size=16, learning_rate=2e-5, weight_decay=0.01, warmup=0.1)
    simcse = Hyperparameters(epochs=1, batch_size=64, learning_rate=3e-5, weight_decay=0.0, warmup=0.0)
    expected = {
        "dino": sbert.updated(batch_size=32, options={"loss": "cosine"}),
        "sbert": sbert,
        "simcse": simcse.updated(max_length=32, pooling="cls", options={"temperature": 0.05}),
    }
    for name, training in expected.items():
        assert get_objective(name).defaults == training
    some: dict[str, dict[str, Any]] = {
        "simcse-sup": {"epochs": 3, "batch_size": 512, "learning_rate": 5e-5},
        "mirror-bert": {"batch_size": 200, "max_length": 50, "schedule": "constant", "temperature": 0.04},
        "is-cse": {"buffer": 1024, "neighbours": 16, "alpha": 0.1},
        "declutr": {"learning_rate": 5e-5, "weight_decay": 0.1, "shortest": 32, "longest": 512},
    }
    for name, values in some.items():
        defaults = get_objective(name).defaults
        found = {**vars(defaults), **defaults.options}
        assert {option: found[option] for option in values} == values, name


@pytest.mark.parametrize(
    ("name", "given", "own", "said"),
    [
        ("dino", {}, {"temperature": "1"}, "temperature: dino has no such option; it has loss"),
        ("dino", {}, {"loss": "cos"}, "loss=cos: must be one of cosine, cosent, angle"),
        ("is-cse", {}, {"buffer": "many"}, "buffer=many: must be a whole number"),
        ("is-cse", {}, {"alpha": "-1"}, "alpha=-1: must be at least 0"),
        ("is-cse", {}, {"buffer": "0"}, "buffer=0: must be at least 1"),
        ("simcse", {}, {"temperature": "0"}, "temperature=0: must be more than 0"),
        ("cmlm", {}, {"masked": "2"}, "masked=2: must be at most 1"),
        ("triplets", {"faithful": True}, {}, "faithful: triplets follows no paper"),
        ("cpt", {"faithful": True}, {}, "cpt has no code of its authors, and closes texts by another delimiter"),
        ("cmlm", {"faithful": True}, {}, "cmlm has no code of its authors"),
        ("declutr", {"mini_batch_size": 4}, {}, "declutr cannot cache gradients; leave it out"),
        ("dino", {"mini_batch_size": 4}, {"loss": "angle"}, "the rows of a batch are compared with one another"),
    ],
)
def test_options_that_an_objective_does_not_have_are_refused(
    name: str, given: dict[str, Any], own: dict[str, str], said: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        resolve_hyperparameters(get_objective(name), given, own)
