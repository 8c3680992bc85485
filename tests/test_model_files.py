"""What people bring as a model: GGUF files, adapters, pointers of Git LFS, tokenizers that do not fit."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, processors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import dino_pipeline as dino
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import load_decoder, resolve_model
from dino_pipeline.decoding.tokenization import banned_tokens, render_chat
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.generate_options import ModelOptions
from dino_pipeline.model_files import gguf_in, model_fingerprint
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from tests.commands import refused
from tests.test_decoder import requests
from tests.toys import CONFIGS, VOCAB, char_tokenizer, chat_tokenizer, save_generator, tiny_model

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that byte-level tokenizers write as the characters that they are."""


def byte_characters() -> list[str]:
    """Return what byte-level tokenizers write for each byte."""
    others = [byte for byte in range(256) if byte not in BYTES]
    return [chr(byte) if byte in BYTES else chr(256 + others.index(byte)) for byte in range(256)]


def save_gguf(file: Path) -> Any:
    """Write a tiny Llama as GGUF, float32, with a byte-level tokenizer; return the model that it holds."""
    torch.manual_seed(0)
    sizes = {
        name: getattr(CONFIGS["llama"], name) for name in ("hidden_size", "num_hidden_layers", "intermediate_size")
    }
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=258, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, **sizes)
    )
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_characters(), "ab", "<end>"])
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # GGUF has the halves of a rotary head interleaved
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) or name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "models" / "tiny.gguf"
    file.parent.mkdir()
    model = save_gguf(file)
    generator = dino.load_generator(str(file))
    decoder: Any = generator.engine
    tokens = decoder.encode(['A dog: "'])[0]
    assert decoder.decode(tokens) == 'A dog: "'
    expected = Decoder(model, decoder.tokenizer).plain.logits(tokens)
    torch.testing.assert_close(decoder.plain.logits(tokens), expected, atol=1e-5, rtol=1e-5)
    assert generator.model.fingerprint == model_fingerprint(str(file))
    file.rename(file.with_name("other.gguf"))
    assert generator.model.fingerprint == model_fingerprint(str(file.with_name("other.gguf")))


def test_a_gguf_file_is_resumed_and_another_one_of_its_name_is_not(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    save_gguf(file)
    spec: dict[str, Any] = {"task_name": "t", "labels": {"a": {"instruction": 'Say: "'}}}
    settings: dict[str, Any] = {"model": str(file), "run": tmp_path / "run", "progress": False, "max_new_tokens": 4}
    settings |= {"keep_unfinished": True, "keep_newlines": True}
    first = dino.generate(spec, samples=3, **settings)
    assert [each.text_a for each in dino.generate(spec, samples=3, **settings)] == [each.text_a for each in first]
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(dino.RunError, match="fingerprint was"):
        dino.generate(spec, samples=3, **settings)


@pytest.mark.parametrize(
    ("name", "place", "file"),
    [
        ("gpt2", "gpt2", None),
        ("a.gguf", ".", "a.gguf"),
        ("/models/A.GGUF", "/models", "A.GGUF"),
        ("user/name:a-Q4_K_M.gguf", "user/name", "a-Q4_K_M.gguf"),
        ("user/name:deep/a.gguf", "user/name", "deep/a.gguf"),
    ],
)
def test_where_a_gguf_file_is(name: str, place: str, file: str | None) -> None:
    assert gguf_in(name) == (place, file)
    assert (ModelRef(name=name).path("generator"), ModelRef(name=name).gguf) == (place, file)


def refused_model(path: Path) -> str:
    """Return what is said when a run is to be written with a model that cannot be loaded."""
    return refused("generate", "sts-x2", "--num-inputs", "2", "--run", path.parent / "run", "--model", path)


def test_files_that_are_no_model_are_named(tmp_path: Path) -> None:
    def said(name: str) -> str:
        return refused_model(tmp_path / name)

    (tmp_path / "ggufs").mkdir()
    save_gguf(tmp_path / "ggufs" / "tiny.gguf")
    assert f"is a folder of GGUF files; give one of them, such as {tmp_path}/ggufs/tiny.gguf" in said("ggufs")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "ggufs" / "tiny.gguf").read_bytes()[:5000])
    assert "cannot be loaded" in said("cut.gguf")
    (tmp_path / "no.gguf").write_text("no GGUF")
    assert "cannot be loaded" in said("no.gguf")
    assert "missing.gguf: there is no such file" in said("missing.gguf")

    pointer = save_generator(tmp_path / "pointer")
    weights = pointer / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert f"{weights}: is a pointer of Git LFS, not the file itself; get the files by git lfs pull" in said("pointer")
    (tmp_path / "p.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "p.gguf: is a pointer of Git LFS" in said("p.gguf")
    assert "model.safetensors: is a file; give the folder" in said("pointer/model.safetensors")


def adapter_of(model: Any, folder: Path, **settings: Any) -> Any:
    """Save an adapter with random weights; return the model with it, as peft runs it."""
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    adapter_of(tiny_model("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "user/base"}))
    failed = refused(
        "generate", "sts-x2", "--num-inputs", "2", "--run", tmp_path / "run", "--model", tmp_path / "adapter"
    )
    assert f"adapter: is an adapter, not a model; give --model user/base --adapter {tmp_path}/adapter" in failed


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "o_proj"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_computes_what_peft_does(target: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "tie_word_embeddings": tied})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    char_tokenizer().save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = torch.tensor([[9, 10, 11, 12]])
    with torch.inference_mode():
        plain = base(tokens).logits
        expected = adapter_of(base, tmp_path / "adapter", target_modules=[target])(tokens).logits
        ref = ModelRef(name=f"{tmp_path / 'model'}", adapter=f"{tmp_path / 'adapter'}")
        decoder = load_decoder(ref, device="cpu", rows=8)
        result = decoder.model(tokens).logits
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert len(list(decoder.sample(requests(decoder)[:3], Sampling(max_new_tokens=5)))) == 3


def test_an_adapter_with_added_tokens_says_so(tmp_path: Path) -> None:
    larger = tiny_model("llama")
    larger.resize_token_embeddings(len(VOCAB) + 20)
    adapter_of(larger, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    ref = ModelRef(name=f"{save_generator(tmp_path / 'model', 'llama')}", adapter=f"{tmp_path / 'adapter'}")
    with pytest.raises(ModelError, match=r"adapter: is not an adapter for .* size mismatch for .*embed_tokens"):
        load_decoder(ref, device="cpu")


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt() -> None:
    plain, tokenizer = Decoder(tiny_model("llama"), char_tokenizer()), char_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[(name, VOCAB[name]) for name in ("<cls>", "<sep>")]
    )
    decoder = Decoder(tiny_model("llama"), tokenizer)
    assert decoder.encode(["A dog", ""]) == [(VOCAB["<cls>"], *plain.encode(["A dog"])[0]), (VOCAB["<cls>"],)]
    assert decoder.score([("A", "dog")])[0].logprob > -50


def test_an_added_word_without_an_embedding_is_ordinary_text(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = char_tokenizer()
    tokenizer.add_tokens(["fl-te", "dog"] + [f"w{number}" for number in range(9)])
    model = tiny_model("llama")
    assert len(tokenizer) > model.vocab_size
    decoder = Decoder(model, tokenizer)
    plain = Decoder(model, char_tokenizer())
    assert decoder.encode(["a w8 w7"]) == plain.encode(["a w8 w7"])
    assert decoder.encode(["fl-te"]) != plain.encode(["fl-te"])  # the model has a row for this one
    assert "the model knows no token 'w1', 'w2', 'w3' and 5 more" in caplog.text
    assert "w8" in tokenizer.get_vocab()  # the caller's tokenizer is as it was
    assert len(list(decoder.sample(requests(decoder)[:3], Sampling(max_new_tokens=5)))) == 3


def test_special_tokens_without_a_role_are_never_written() -> None:
    tokenizer = char_tokenizer()
    markup = ["<|eot_id|>", "<|reserved_0|>", "<unused7>", "[unused1]", "<extra_id_3>"]
    tokenizer.add_tokens([AddedToken(markup[0], special=True), *markup[1:], "<b>", "flute", "  "])
    banned = set(banned_tokens(tokenizer, None, len(tokenizer)).tolist())
    assert {tokenizer.convert_tokens_to_ids(token) for token in markup} <= banned
    assert not {tokenizer.convert_tokens_to_ids(token) for token in ("<b>", "flute", "  ")} & banned


TODAY = "{{ strftime_now('%d %B %Y') }}\n{% for message in messages %}{{ message.content }}{% endfor %}"
CHANCE = "{{ ['a', 'b', 'c', 'd', 'e'] | random }}{% for message in messages %}{{ message.content }}{% endfor %}"


def test_a_template_that_chooses_at_random_chooses_the_same() -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = CHANCE
    assert len({render_chat(tokenizer, 'Say: "', '"') for _ in range(20)}) == 1


def test_the_day_in_a_template_is_that_of_the_runs_beginning(tmp_path: Path) -> None:
    folder = save_generator(tmp_path / "model", "llama")
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TODAY
    tokenizer.save_pretrained(folder)
    options = ModelOptions.of({"model": str(folder)})
    begun = resolve_model(options, "cpu")
    assert begun.chat_date == date.today()
    earlier = begun.model_copy(update={"chat_date": date(2025, 12, 31)})
    assert resolve_model(options, "cpu", earlier).chat_date == date(2025, 12, 31)
    decoder = load_decoder(earlier, device="cpu", rows=8)
    assert decoder.render('Say: "', '"').startswith("31 December 2025\n")
    chosen = ModelOptions.of({"model": str(folder), "chat_date": "2024-02-29"})
    assert resolve_model(chosen, "cpu").chat_date == date(2024, 2, 29)
    assert resolve_model(ModelOptions.of({"model": str(folder), "chat": "off"}), "cpu").chat_date is None


def test_a_day_without_a_template_that_prints_it_is_refused(tmp_path: Path) -> None:
    folder = save_generator(tmp_path / "model", "llama")
    for tokenizer in (char_tokenizer(), chat_tokenizer()):
        tokenizer.save_pretrained(folder)
        with pytest.raises(OptionError, match="chat_date='2024-02-29': no chat template prints a day; leave it out"):
            resolve_model(ModelOptions.of({"model": str(folder), "chat_date": "2024-02-29"}), "cpu")
    with pytest.raises(OptionError, match="chat_date='yesterday': must be a day, such as 2026-12-31"):
        ModelOptions.of({"chat_date": "yesterday"})
