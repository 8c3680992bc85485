"""Texts do not depend on their neighbours, whatever a model does with long texts, or with texts beside long ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.architectures import (
    LENGTHS,
    THRESHOLD,
    same_alone,
    tiny_config,
    tiny_model,
    tokenizer,
    variants,
    written,
)
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.self_check import CachedLength, row_defect
from dino_pipeline.decoding.shallow_copy import shallow_copy

pytestmark = pytest.mark.slow
CACHED, BY_LENGTH, ONE_BY_ONE = "cached", "cached up to 32 tokens, then one by one", "one by one"


@pytest.mark.parametrize(
    ("architecture", "variant", "rows"),
    [
        ("gpt2", "as it is", CACHED),
        ("gpt_neo", "as it is", BY_LENGTH),
        ("gptj", "as it is", CACHED),
        ("opt", "as it is", CACHED),
        ("llama", "longrope", BY_LENGTH),
        ("phi3", "longrope", BY_LENGTH),
        ("phi3", "window", CACHED),
        ("mixtral", "window", CACHED),
        ("gemma2", "window", CACHED),
        ("qwen3_moe", "as it is", CACHED),
        ("longcat_flash", "longrope", BY_LENGTH),
        ("bloom", "as it is", ONE_BY_ONE),
        ("mamba", "as it is", ONE_BY_ONE),
    ],
)
def test_a_text_beside_longer_ones_is_the_text_alone(architecture: str, variant: str, rows: str) -> None:
    model = tiny_model(architecture, **dict(variants(architecture))[variant])
    assert same_alone(model) == (True, rows)


class LengthScaled(LlamaForCausalLM):
    """Attends otherwise beyond a length that no configuration names: as many keys as the longest row has."""

    def forward(self, input_ids: Any, position_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        longest = input_ids.shape[1] + (past_key_values.get_seq_length() if past_key_values is not None else 0)
        output = super().forward(input_ids, position_ids=position_ids, past_key_values=past_key_values, **kwargs)
        if longest > THRESHOLD:
            output.logits = output.logits * 3
        return output


class Growing(LlamaForCausalLM):
    """Keeps the longest text that it has seen, and writes otherwise from then on."""

    seen = 0

    def forward(self, input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        self.seen = max(self.seen, input_ids.shape[1])
        output = super().forward(input_ids, position_ids=position_ids, **kwargs)
        output.logits = output.logits * (1 + max(self.seen - THRESHOLD, 0) / 100)
        return output


def built(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    return kind(tiny_config("llama")).eval()


def test_a_threshold_without_a_name_is_found() -> None:
    assert same_alone(built(LengthScaled)) == (True, BY_LENGTH)


def test_what_a_model_keeps_from_one_text_does_not_reach_the_next() -> None:
    decoder = Decoder(built(Growing), tokenizer(), rows=8)
    assert not decoder.cached_length.allows(100)
    long_first = written(decoder, LENGTHS[::-1])
    short_first = written(Decoder(built(Growing), tokenizer(), rows=8), LENGTHS)
    assert {length: text.tokens for length, text in long_first.items()} == {
        length: text.tokens for length, text in short_first.items()
    }


def test_scores_do_not_depend_on_neighbours_either() -> None:
    model = tiny_model("llama", **dict(variants("llama"))["longrope"])
    decoder = Decoder(model, tokenizer())
    pairs = [("w5 w6 w7", " w8 w9"), ("w5 w6 w7", " w8 w9" * 60), ("w10 " * 40, "w11 " * 20)]
    together = [scored.logprob for scored in decoder.score(pairs, stop=" w20")]
    alone = [Decoder(model, tokenizer()).score([pair], stop=" w20")[0].logprob for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-5)


def test_long_rows_are_tried_when_they_are_first_needed(caplog: pytest.LogCaptureFixture) -> None:
    length = CachedLength(tiny_model("gpt_neo"))
    assert (length.proven, length.wrong) == (0, None)
    assert length.allows(20)
    assert (length.proven, length.wrong) == (32, 64)
    assert not length.allows(200)
    assert len(caplog.messages) == 0  # 20 tokens run in a cache, and longer rows were not asked for yet
    assert not length.allows(60)


def test_a_shallow_copy_has_each_kind_of_layer_and_leaves_the_model_alone() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    model = tiny_model("gemma3_text", num_hidden_layers=6, layer_types=kinds).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = shallow_copy(model)
    assert len(copied.model.layers) == 3
    assert len(model.model.layers) == model.config.num_hidden_layers == 6
    assert copied.dtype == torch.float32
    assert row_defect(copied) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.bfloat16
