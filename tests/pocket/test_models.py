from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from dino_pipeline import pocket
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.models import ModelRef, load_encoder
from dino_pipeline.progress import SilentReporter
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.text import distinct_n
from tests.test_spec import SPECS
from tests.toys import Listener, char_tokenizer, tiny_model
from tools.pocket.fidelity import Quality, main, measure, sts_spec, summarise
from tools.pocket.frames import random_frame
from tools.pocket.grammar import write

pytestmark = pytest.mark.slow

X1 = write(random_frame(Random(0)), Random(0))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(ModelRef(name="pocket", dtype="float32"), device="cpu", rows=64)


@pytest.fixture(scope="module")
def found(decoder: Decoder) -> dict[tuple[str, float | None], Quality]:
    qualities = measure(decoder, SilentReporter(), num_inputs=60, samples=2)
    return {(quality.label, quality.decay): quality for quality in qualities}


def test_the_files_are_small() -> None:
    files = [file for folder in (pocket.GENERATOR, pocket.ENCODER) for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) < 10 * 2**20
    assert all((folder / "README.md").exists() for folder in (pocket.GENERATOR, pocket.ENCODER))


def test_the_generator_runs_in_cached_rows(decoder: Decoder) -> None:
    assert decoder.cached_length.allows(60)


def test_a_prompt_is_cut_into_tokens_as_in_training(decoder: Decoder) -> None:
    """A prompt that ends at the opening quotation mark is a prefix of the prompt with its text."""
    prompt = load_spec(SPECS / "sts-x2.json").prompt("0.5", X1)
    alone, whole = decoder.encode([prompt, prompt + 'A nurse lifted it."'])
    assert whole[: len(alone)] == alone


def test_the_measured_spec_is_the_shipped_one() -> None:
    measured, shipped = sts_spec(), load_spec(SPECS / "sts-x2.json")
    assert measured.labels == shipped.labels
    assert isinstance(measured.inputs, TaskSpec)
    assert isinstance(shipped.inputs, TaskSpec)
    assert measured.inputs.labels == shipped.inputs.labels
    assert measured.inputs.sampling == shipped.inputs.sampling


def test_texts_end_are_sentences_and_are_new(found: dict[tuple[str, float | None], Quality]) -> None:
    for quality in found.values():
        assert quality.stopped >= 0.98, quality
        assert quality.parsed >= 0.9, quality
        assert quality.novel >= 0.9, quality
        assert quality.distinct_2 >= 0.4, quality
    assert found["inputs", None].parsed >= 0.97


def test_labels_are_followed_and_debiasing_parts_them(found: dict[tuple[str, float | None], Quality]) -> None:
    """The regression test of decoder and sampling: what debiasing does to the pocket generator's labels."""
    gold = {key: quality.gold or 0.0 for key, quality in found.items()}
    strict = {key: quality.strict or 0.0 for key, quality in found.items()}
    assert gold["1", None] >= 0.92
    assert strict["1", None] >= 0.85
    for label in ("0.5", "0"):
        assert all(gold[label, weak] > gold[label, strong] for weak, strong in pairwise((0, 10, 30, 100))), label
        assert strict[label, 30] > strict[label, 0] + 0.2
    assert gold["0", 0] >= 0.4
    assert gold["0", 100] <= 0.1


def test_seeds_are_summed_up_by_mean_and_spread(found: dict[tuple[str, float | None], Quality]) -> None:
    quality = found["0.5", 100]
    other = Quality(**{**vars(quality), "seed": 43, "parsed": quality.parsed - 0.02})
    (summary,) = summarise([quality, other])
    assert summary.values["parsed"] == pytest.approx((quality.parsed - 0.01, 0.02 / 2**0.5))
    assert summary.values["gold"] == (quality.gold, 0)


def test_distinct_n_counts_runs_of_words() -> None:
    assert distinct_n(["A dog runs.", "a dog sits"], 2) == 3 / 4
    assert distinct_n(["Alone"], 2) == 0


def test_the_command_prints_a_table_and_writes_every_seed(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    call = ["--num-inputs", "6", "--samples", "1", "--seed", "1", "--seed", "2", "--output", str(output)]
    done = CliRunner().invoke(main, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "pocket: 6 inputs, 1 texts per input and label, seeds 1, 2" in done.stdout
    assert "label 0.5    100" in done.stdout
    rows = json.loads(output.read_text())["models"][0]["qualities"]
    assert len(rows) == 2 * (1 + 1 + 4 + 4)
    assert {row["seed"] for row in rows} == {1, 2}


def test_the_encoder_loads_with_mean_pooling() -> None:
    model = load_encoder(str(pocket.ENCODER))
    assert model.encode(["A man eats.", "The sun shines."]).shape == (2, 128)
    assert model.max_seq_length == 128


def test_a_generator_that_writes_no_sentence_of_the_grammar_is_graded_all_the_same() -> None:
    reporter = Listener()
    (inputs,) = measure(Decoder(tiny_model("gpt2"), char_tokenizer()), reporter, num_inputs=4, samples=1)
    assert (inputs.label, inputs.parsed) == ("inputs", 0)
    assert reporter.notes == ["none of the inputs is a sentence of the grammar: no texts are written for them"]


def test_a_model_that_is_no_generator_is_named() -> None:
    done = CliRunner().invoke(main, [str(pocket.ENCODER)])
    assert done.exit_code == 2
    assert "cannot be loaded as a causal language model" in done.stderr
