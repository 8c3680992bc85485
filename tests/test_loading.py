from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from dino_pipeline.decoding import compiling, loading
from dino_pipeline.decoding.compiling import compile_if_it_pays, compile_step
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import Generator, load_decoder, rows_that_fit
from dino_pipeline.decoding.sampling import Sampling
from dino_pipeline.decoding.slots import Slots
from dino_pipeline.errors import ModelError
from tests.test_decoder import requests, sampled
from tests.toys import char_tokenizer, save_generator, tiny_model

MANY = 8 * 1000
"""Tokens of a job of 1,000 steps of 8 rows."""


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_rows_are_what_free_memory_holds(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    model = tiny_model(architecture)
    found = []
    for free in (0, 5 * 10**6, 12 * 10**6, 10**12):
        monkeypatch.setattr(loading, "_free_bytes", lambda model, free=free: free)
        found.append(rows_that_fit(model))
    assert found[0] == 8
    assert found[-1] == 128
    assert found == sorted(found)
    assert 8 < found[1] < found[2] < 128
    assert all(rows % 8 == 0 for rows in found)


@pytest.mark.slow
def test_a_model_spread_over_devices_writes_the_same(tmp_path: Path) -> None:
    """Spread over memory and disk, as accelerate does where one card is too small; hooks bring weights in."""
    folder = save_generator(tmp_path / "model", "llama")
    whole = load_decoder(Generator(str(folder), dtype="float32"), device="cpu")
    asked = requests(whole)
    expected = sampled(whole, asked)
    spread = load_decoder(Generator(str(folder), dtype="float32"), device="cpu", device_map="auto")
    assert sampled(spread, asked) == expected
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(tiny_model("llama"), places, main_device="cpu", offload_dir=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in model.parameters())
    assert sampled(Decoder(model, char_tokenizer(), rows=16), asked) == expected


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_generator(tmp_path / "model")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match="does not fit on cpu in float32; use --device-map auto"):
        load_decoder(Generator(str(folder), dtype="float32"), device="cpu")


class Clock:
    """A clock that only forwards move."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, seconds: float, forward: Any) -> Any:
        """What torch.compile makes of a forward, and no compiler: one that takes so long."""

        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return forward(*args, **kwargs)

        return timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(compiling, "time", found := Clock())
    return found


@pytest.fixture
def tardy(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """A decoder whose eager step takes two seconds."""
    decoder = Decoder(tiny_model("gpt2"), char_tokenizer(), rows=8)
    decoder.model.forward = clock.takes(2.0, decoder.model.forward)
    monkeypatch.setattr(compiling, "LONG", 0.0)
    return decoder


@pytest.mark.parametrize(("seconds", "kept"), [(1.9, True), (1.91, False), (4.0, False)])
def test_a_compiled_step_is_kept_where_it_is_faster(
    tardy: Decoder, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float, kept: bool
) -> None:
    same = tiny_model("gpt2").forward
    monkeypatch.setattr(torch, "compile", lambda forward, **options: clock.takes(seconds, same))
    assert compile_if_it_pays(tardy, MANY) is kept
    assert (tardy.make_rows is not Slots) is kept


def test_a_compiled_step_that_computes_something_else_is_not_kept(
    tardy: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **options: tiny_model("gpt2", seed=1).forward)
    assert not compile_if_it_pays(tardy, MANY)
    assert tardy.make_rows is Slots
    with pytest.raises(ModelError, match="its logits differ"):
        compile_step(tardy)
    assert tardy.make_rows is Slots


def test_short_jobs_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    decoder = Decoder(tiny_model("gpt2"), char_tokenizer(), rows=8)
    assert not compile_if_it_pays(decoder, 100)
    assert not compile_if_it_pays(decoder, MANY)


def test_where_nothing_can_be_compiled_auto_goes_on_and_on_says_so(
    tardy: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(forward: Any, **options: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    asked = requests(tardy)[:3]
    before = sampled(tardy, asked)
    assert not compile_if_it_pays(tardy, MANY)
    assert sampled(tardy, asked) == before
    with pytest.raises(ModelError, match=r"--compile on: the step cannot be compiled here \(no C\+\+ compiler\)"):
        compile_step(tardy)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_compiled_step_writes_the_same_texts() -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer(), rows=16)
    asked, short = requests(decoder)[:3], Sampling(top_k=0, top_p=0.95, max_new_tokens=15)
    expected = {done.number: done.text for done in decoder.sample(asked, short)}
    compile_step(decoder)
    assert decoder.make_rows is not Slots
    assert {done.number: done.text for done in decoder.sample(asked, short)} == expected
