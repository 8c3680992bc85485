"""Chat models through their own template; adapters, quantised weights, and what comes with a model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration, dynamic_module_utils

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.decoding.tokenization import render_chat
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import read_examples
from dino_pipeline.models import ModelRef
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateRecord
from tests.commands import answer, invoke, refused
from tests.conftest import TOY_SPEC
from tests.records import recorded
from tests.test_decoder import TEXTS, greedy, naive_greedy, requests
from tests.toys import char_tokenizer, chat_tokenizer, save_generator, tiny_model

SPEC = TaskSpec.model_validate({**TOY_SPEC, "inputs": None})


def prompts(decoder: Decoder, text: str) -> list[tuple[int, ...]]:
    return decoder.encode([decoder.render(SPEC.prompt(label, text), SPEC.opening(label)) for label in SPEC.labels])


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_generator(tmp_path_factory.mktemp("chat"), "llama")
    chat_tokenizer().save_pretrained(folder)
    return folder


def test_prompts_are_those_of_the_models_own_template() -> None:
    decoder = Decoder(tiny_model("llama"), chat_tokenizer(), chat=True)
    for text, of_text in zip(TEXTS, (prompts(decoder, text) for text in TEXTS), strict=True):
        for label, result in zip(SPEC.labels, of_text, strict=True):
            user, _, answer = SPEC.prompt(label, text).rpartition("\n")
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            whole = decoder.tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
            assert answer == 'Then: "'
            assert list(result) == whole
            assert result[0] == decoder.tokenizer.cls_token_id


def test_a_templates_own_marks_are_no_text_of_a_chat_and_any_text_otherwise() -> None:
    chat, plain = (Decoder(tiny_model("llama"), chat_tokenizer(), chat=chat) for chat in (True, False))
    assert {"<cls>", "<sep>"} <= {*chat.marks}
    assert not plain.marks


def test_a_models_commit_is_told_where_it_has_one() -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer())
    assert decoder.facts() == {"model_commit": None}
    decoder.model.config._commit_hash = "a" * 40
    assert decoder.facts() == {"model_commit": "a" * 40}


@pytest.mark.slow
def test_debiasing_under_chat_equals_the_naive_loop() -> None:
    decoder = Decoder(tiny_model("llama"), chat_tokenizer(), rows=7, chat=True)
    wanted = requests(decoder)
    assert greedy(decoder, wanted, 20) == naive_greedy(decoder, wanted, 20)


def test_a_template_that_closes_the_answer_is_refused() -> None:
    tokenizer = char_tokenizer()
    with pytest.raises(ModelError, match="has no chat template; give a chat model, or chat='off'"):
        render_chat(tokenizer, 'Task: "', '"')
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ModelError, match=r"leaves no answer open .*; give a model with another template, or chat='"):
        render_chat(tokenizer, 'Task: "', '"')


def test_a_run_with_a_chat_model(chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**TOY_SPEC, "inputs": None}))
    (tmp_path / "inputs.txt").write_text("A dog.\nTwo <sep>u: men.\nThe bird.\n")
    spec = tmp_path / "spec.json"
    call: list[str | Path] = ["generate", spec, "--model", chat_model, "--inputs", tmp_path / "inputs.txt"]
    call += ["--keep-unfinished", "--keep-newlines", "--max-new-tokens", "8"]
    done = answer(*call, "--run", tmp_path / "chat")
    assert done.exit_code == 0, done.output
    assert "prompts go into the model's chat template; --chat off leaves them as they are" in done.stderr
    assert "1 inputs left out: the input holds <sep> of the model's chat template" in done.stderr
    shown = invoke("spec", "show", spec, "--input", "A dog.", "--model", chat_model)
    assert '<cls>u: Same: "A dog."<sep>a: Then: "\n--- label 0.5' in shown
    model = recorded(Run(tmp_path / "chat"), GenerateRecord).options.model
    assert (model.chat, model.adapter) == (True, None)
    assert "up to date" in invoke(*call, "--run", tmp_path / "chat")
    assert "chat" in refused(*call, "--run", tmp_path / "chat", "--chat", "off")
    said = refused("spec", "show", spec, "--input", "A dog.", "--model", "pocket")
    assert "no chat template; give a chat model, or leave --model out" in said
    invoke(*call, "--run", tmp_path / "plain", "--chat", "off")
    chat, plain = (read_examples(tmp_path / run / "shards" / "00000.jsonl") for run in ("chat", "plain"))
    assert [each.text_b for each in chat] != [each.text_b for each in plain]
    invoke("filter", tmp_path / "chat", "--verify", "--dev-share", "0", "--near-duplicates", "0")
    about = json.loads((tmp_path / "chat" / "label-scores" / "about.json").read_text())
    assert about["chat"] == "on"


def test_an_adapter_is_part_of_the_model(tmp_path: Path, run: Run) -> None:
    folder = save_generator(tmp_path / "model", "llama")
    torch.manual_seed(1)
    config, adapter = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False), f"{tmp_path}/adapter"
    adapted = get_peft_model(tiny_model("llama"), config)
    adapted.save_pretrained(adapter)
    decoder = load_decoder(ModelRef(name=f"{folder}", adapter=adapter), device="cpu", rows=8)
    tokens = torch.tensor([decoder.encode(["A dog."])[0]])
    with torch.inference_mode():
        expected, plain = adapted(tokens).logits, tiny_model("llama")(tokens).logits
        result = decoder.model(tokens).logits
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert (result - plain).abs().max() > 0.01
    save_generator(tmp_path / "other", "gpt2")
    with pytest.raises(ModelError, match=r"adapter: is not an adapter for .*other"):
        load_decoder(ModelRef(name=f"{tmp_path / 'other'}", adapter=adapter), device="cpu")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"task_name": "t", "labels": {"a": {"instruction": 'Say: "'}}}))
    call = ("generate", spec, "--model", folder, "--adapter", adapter, "--run", run.path, "--samples", "2")
    invoke(*call, "--keep-unfinished", "--keep-newlines")
    model = recorded(run, GenerateRecord).options.model
    assert model.adapter == adapter
    assert len(model.adapter_fingerprint or "") == 16


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_generator(tmp_path / "model", "llama")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="quantize: needs bitsandbytes, which is not installed: pip install b"):
        load_decoder(ModelRef(name=f"{folder}", quantize="4bit"), device="cpu")
    with pytest.raises(OptionError, match="adapter: needs peft"):
        load_decoder(ModelRef(name=f"{folder}", adapter="a/b"), device="cpu")


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=80, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder, .*; give a decoder-only model"):
        load_decoder(ModelRef(name=f"{tmp_path}"), device="cpu")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_generator(tmp_path / "model", "llama")
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_decoder(ModelRef(name=f"{folder}"), device="cpu")
    decoder = load_decoder(ModelRef(name=f"{folder}", trust_remote_code=True), device="cpu", rows=8)
    assert type(decoder.model).__name__ == "OwnModel"
    assert not isinstance(decoder.model, type(AutoModelForCausalLM.from_config(tiny_model("gpt2").config)))
