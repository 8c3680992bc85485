from __future__ import annotations

from random import Random

import pytest

from dino_pipeline import pocket
from dino_pipeline.decoder import Decoder, Request, load_decoder
from dino_pipeline.encoders import load_encoder
from dino_pipeline.pocket.frames import random_frame, similarity
from dino_pipeline.pocket.grammar import parse, write
from dino_pipeline.sampling import Sampling
from dino_pipeline.slots import Slots
from dino_pipeline.spec import load_spec
from tests.test_spec import SPECS

X1 = [write(random_frame(Random(seed)), Random(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(str(pocket.GENERATOR), dtype="float32", device="cpu", rows=64)


def texts(decoder: Decoder, label: str, decay: float, samples: int = 20) -> list[tuple[str, str, str]]:
    """(input, text, how it ended) of one label of the STS spec."""
    spec = load_spec(SPECS / "sts-x2.json")
    requests, inputs = [], []
    for text in X1:
        prompts = decoder.encode([spec.prompt(name, text) for name in (label, *spec.labels[label].counter_labels)])
        requests += [Request(tuple(prompts), (text, label, sample)) for sample in range(samples)]
        inputs += [text] * samples
    done = sorted(decoder.sample(requests, Sampling(decay=decay)), key=lambda found: found.number)
    return [(text, found.text, found.finish) for text, found in zip(inputs, done, strict=True)]


def test_the_files_are_small() -> None:
    files = [file for folder in (pocket.GENERATOR, pocket.ENCODER) for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) < 10 * 2**20
    assert all((folder / "README.md").exists() for folder in (pocket.GENERATOR, pocket.ENCODER))


def test_the_generator_runs_in_slots_and_stops_at_the_quote(decoder: Decoder) -> None:
    assert decoder.make_rows is Slots
    found = [finish for label in ("1", "0.5", "0") for _, _, finish in texts(decoder, label, 100)]
    assert found.count("stop") >= 0.99 * len(found)


def test_a_prompt_is_cut_into_tokens_as_in_training(decoder: Decoder) -> None:
    """A prompt that ends at the opening quotation mark is a prefix of the prompt with its text."""
    prompt = load_spec(SPECS / "sts-x2.json").prompt("0.5", X1[0])
    alone, whole = decoder.encode([prompt, prompt + 'A nurse lifted it."'])
    assert whole[: len(alone)] == alone


def mean_gold(found: list[tuple[str, str, str]]) -> float:
    """Mean similarity, by the grammar, of the pairs that it can read."""
    frames = [(parse(text), parse(written)) for text, written, _ in found]
    grades = [similarity(one, other) for one, other in frames if one and other]
    assert len(grades) >= 0.8 * len(found)
    return sum(grades) / len(grades)


def test_labels_are_followed_and_debiasing_parts_them(decoder: Decoder) -> None:
    same, near, far = (mean_gold(texts(decoder, label, 100)) for label in ("1", "0.5", "0"))
    assert same > near > far
    assert far < mean_gold(texts(decoder, "0", 0)) - 0.1


def test_the_encoder_loads_with_mean_pooling() -> None:
    model = load_encoder(str(pocket.ENCODER))
    assert model.encode(["A man eats.", "The sun shines."]).shape == (2, 128)
    assert model.max_seq_length == 128
