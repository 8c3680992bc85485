from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dino_pipeline as dino
from dino_pipeline.decoding.decoder import Decoder, Generator
from dino_pipeline.models import ModelRef
from tests.toys import char_tokenizer, chat_tokenizer, save_generator, tiny_model

PROMPT, COUNTERS = 'Same: "A dog."\nThen: "', ['Near: "A dog."\nThen: "', 'Far: "A dog."\nThen: "']
WIDE: dict[str, Any] = {"top_k": 0, "top_p": 0.95, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(Decoder(tiny_model("gpt2"), char_tokenizer(), rows=16), ModelRef(name="toy"))


def test_the_ith_text_is_the_same_for_any_number_of_texts(generator: Generator) -> None:
    eight = generator.write(PROMPT, COUNTERS, n=8, **WIDE)
    assert [text.number for text in eight] == list(range(8))
    assert [text.text for text in generator.write(PROMPT, COUNTERS, n=3, **WIDE)] == [text.text for text in eight[:3]]
    assert len({text.text for text in eight}) > 4
    other = generator.write(PROMPT, COUNTERS, n=8, seed=7, **WIDE)
    assert [text.text for text in other] != [text.text for text in eight]


def test_counter_prompts_give_margins_and_other_texts(generator: Generator) -> None:
    debiased, plain = (generator.write(PROMPT, counters, n=8, **WIDE) for counters in (COUNTERS, []))
    assert all(text.margin is not None for text in debiased)
    assert all(text.margin is None for text in plain)
    assert [text.text for text in debiased] != [text.text for text in plain]
    undebiased = generator.write(PROMPT, COUNTERS, n=8, decay=0, **WIDE)
    assert [text.text for text in undebiased] == [text.text for text in plain], "the random numbers are the same"


def test_a_text_scores_as_it_did_when_it_was_written(generator: Generator) -> None:
    texts = [text for text in generator.write(PROMPT, n=30, **WIDE) if text.finish == "stop"]
    scores = generator.score(PROMPT, [text.text for text in texts])
    assert len(texts) > 1
    assert [score.logprob for score in scores] == pytest.approx([text.logprob for text in texts], abs=1e-4)
    assert [score.tokens for score in scores] == [text.length for text in texts]


def test_a_chat_model_answers_from_the_prompts_last_line() -> None:
    generator = Generator(Decoder(tiny_model("llama"), chat_tokenizer(), rows=4, chat=True), ModelRef(name="toy"))
    default = generator.write(PROMPT, **WIDE)
    assert default == generator.write(PROMPT, opening='Then: "', **WIDE)
    assert default != generator.write(PROMPT, opening='"', **WIDE)
    assert generator.write('Say: "', **WIDE) == generator.write('Say: "', opening='"', **WIDE)


def test_a_model_is_loaded_by_its_name(tmp_path: Path) -> None:
    folder = str(save_generator(tmp_path / "model"))
    generator = dino.load_generator(folder, rows=8, device="cpu")
    assert (generator.model.name, generator.model.dtype, generator.model.chat) == (folder, "float32", False)
    assert generator.model.fingerprint
    assert generator.engine.rows == 8
    assert len(generator.write(PROMPT, counters=COUNTERS, n=2)) == 2
    assert repr(generator) == f"Generator({folder!r}, dtype='float32', rows=8)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": -3}, "top_k=-3: must be at least 0"),
        ({"top_p": 7}, "top_p=7: must be at most 1"),
        ({"decay": -1}, "decay=-1: must be at least 0"),
        ({"floor": 2}, "floor=2: must be at most 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": 2}, "temperature: there is no such option; choose from top_k, top_p"),
        ({"n": 0}, "n=0: must be at least 1"),
        ({"stop": ""}, "stop: must not be empty"),
        ({"counters": "Far"}, "counters='Far': must be a list of prompts"),
        ({"counters": [""]}, "counters: must not be empty"),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"max_new_tokens": 250}, "the prompt leaves less than 250 tokens of the model's context; shorten the prompt"),
    ],
)
def test_wrong_values_are_refused_by_name(generator: Generator, given: dict[str, Any], message: str) -> None:
    with pytest.raises(dino.OptionError, match=message):
        generator.write(**{"prompt": PROMPT, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float8"}, "dtype='float8': must be one of auto, float32, bfloat16, float16"),
        ({"rows": 0}, "rows=0: must be at least 1"),
        ({"quantize": "2bit"}, "quantize='2bit': must be one of 8bit, 4bit"),
        ({"device": "gpu7"}, "device='gpu7': "),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu': cannot be combined .*; leave out device or"),
        ({"model": "./nowhere"}, "./nowhere: "),
        ({"temperature": 2}, "temperature: there is no such option"),
    ],
)
def test_wrong_options_of_the_model_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises((dino.OptionError, dino.ModelError), match=message):
        dino.load_generator(**given)
