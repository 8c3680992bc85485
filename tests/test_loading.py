from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from dino_pipeline.decoding import loading
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import load_decoder, rows_that_fit
from dino_pipeline.errors import ModelError
from dino_pipeline.models import ModelRef
from tests.test_decoder import requests, sampled
from tests.toys import char_tokenizer, save_generator, tiny_model


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_rows_are_what_free_memory_holds(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    model = tiny_model(architecture)
    counts = []
    for free in (0, 5 * 10**6, 12 * 10**6, 10**12):
        monkeypatch.setattr(loading, "_free_bytes", lambda model, free=free: free)
        counts.append(rows_that_fit(model))
    assert counts[0] == 8
    assert counts[-1] == 128
    assert counts == sorted(counts)
    assert 8 < counts[1] < counts[2] < 128
    assert all(rows % 8 == 0 for rows in counts)


@pytest.mark.slow
def test_a_model_spread_over_devices_writes_the_same(tmp_path: Path) -> None:
    """Spread over memory and disk, as accelerate does where one card is too small; hooks bring weights in."""
    folder = save_generator(tmp_path / "model", "llama")
    whole = load_decoder(ModelRef(name=str(folder), dtype="float32"), device="cpu")
    wanted = requests(whole)
    expected = sampled(whole, wanted)
    spread = load_decoder(ModelRef(name=str(folder), dtype="float32"), device="cpu", device_map="auto")
    assert sampled(spread, wanted) == expected
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(tiny_model("llama"), places, main_device="cpu", offload_dir=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in model.parameters())
    assert sampled(Decoder(model, char_tokenizer(), rows=16), wanted) == expected


def test_threads_load_in_turn_and_bars_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    load, loading_now, most = AutoModelForCausalLM.from_pretrained, list[int](), list[int]()

    def watched(*args: Any, **kwargs: Any) -> Any:
        loading_now.append(1)
        most.append(len(loading_now))
        assert not logging.is_progress_bar_enabled()
        loaded = load(*args, **kwargs)
        loading_now.pop()
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with ThreadPoolExecutor(4) as threads:
        decoders = list(threads.map(lambda _: load_decoder(ModelRef(name="pocket"), device="cpu", rows=2), range(4)))
    assert not any(parameter.is_meta for decoder in decoders for parameter in decoder.model.parameters())
    assert most == [1] * 4
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_generator(tmp_path / "model")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match="does not fit on cpu in float32; use device_map='auto'"):
        load_decoder(ModelRef(name=str(folder), dtype="float32"), device="cpu")
