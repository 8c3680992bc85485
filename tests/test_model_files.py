"""What people bring as a model: GGUF files, adapters, pointers of Git LFS, tokenizers that do not fit."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import dino_pipeline as dino
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.loading import load_decoder, resolve_model
from dino_pipeline.decoding.tokenization import Ending, StopRule, banned_tokens, prints_today, render_chat
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.generate_options import ModelOptions
from dino_pipeline.model_files import gguf_in, model_fingerprint
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from tests.commands import refused
from tests.hub import TOKEN, local_hub
from tests.test_decoder import requests
from tests.toys import CONFIGS, GROUPED, VOCAB, char_tokenizer, chat_tokenizer, save_generator, tiny_model

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that byte-level tokenizers write as the characters that they are."""


def byte_characters() -> list[str]:
    """Return what byte-level tokenizers write for each byte."""
    others = [byte for byte in range(256) if byte not in BYTES]
    return [chr(byte) if byte in BYTES else chr(256 + others.index(byte)) for byte in range(256)]


def save_gguf(file: Path, *, rope: dict[str, Any] | None = None, factors: list[float] | None = None) -> Any:
    """Write a tiny Llama as GGUF, float32, with a byte-level tokenizer; return the model that it holds.

    Its rotary frequencies can be scaled by what the header says, or divided by factors.
    """
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=258, rope_parameters=rope, **GROUPED))
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
    if rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if factors:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
        model.model.rotary_emb.inv_freq /= torch.tensor(factors)
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


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("rope", "factors"), [(LINEAR, None), ({**LINEAR, "rope_type": "yarn"}, None), (None, [1.0, 2.0, 4.0, 8.0])]
)
def test_scaled_rotary_frequencies_of_a_gguf_file_are_read(
    rope: dict[str, Any] | None, factors: list[float] | None, tmp_path: Path
) -> None:
    model = save_gguf(tmp_path / "tiny.gguf", rope=rope, factors=factors)
    decoder: Any = dino.load_generator(str(tmp_path / "tiny.gguf")).engine
    tokens = decoder.encode(["A dog runs and runs and runs."])[0]
    expected = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(decoder.plain.logits(tokens), expected.detach(), atol=1e-4, rtol=1e-4)
    plain = save_gguf(tmp_path / "plain.gguf")
    assert (plain(torch.tensor([tokens])).logits[0] - expected).abs().max() > 0.01


def test_a_part_of_a_gguf_model_is_refused(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m-00001-of-00002.gguf")
    said = refused_model(tmp_path / "m-00001-of-00002.gguf")
    assert "is one of several parts of a model; give the model as one GGUF file" in said


@pytest.mark.parametrize("change", ["renamed", "lacking"])
def test_weights_that_are_missing_are_named_not_random(change: str, tmp_path: Path) -> None:
    weights = save_generator(tmp_path / "model", "llama") / "model.safetensors"
    state = load_file(weights)
    if change == "renamed":
        state = {f"language_model.{name}": tensor for name, tensor in state.items()}
    else:
        del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    said = "lacks the weights lm_head.weight" if change == "renamed" else "lacks the weights model.layers.1.mlp.up_proj"
    assert said in refused_model(tmp_path / "model")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weights = save_generator(tmp_path / "model", "llama") / "model.safetensors"
    state = load_file(weights)
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, weights, metadata={"format": "pt"})
    said = refused_model(tmp_path / "model")
    assert "its logits are not finite in float32; give another --dtype, or intact weights" in said


def test_logits_that_cease_to_be_numbers_end_a_run_by_name() -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer())
    wanted = requests(decoder)[:3]
    assert decoder.cached_length.allows(60)
    with torch.no_grad():
        decoder.model.lm_head.weight[9] = float("nan")
    with pytest.raises(ModelError, match="LlamaForCausalLM: its logits are not finite in float32"):
        list(decoder.sample(wanted, Sampling(max_new_tokens=5)))


def test_adapters_that_change_no_layer_are_refused(tmp_path: Path) -> None:
    folder = save_generator(tmp_path / "model", "llama")
    called = {"task_type": "CAUSAL_LM", "alora_invocation_tokens": [VOCAB["d"]], "target_modules": ["q_proj", "v_proj"]}
    adapter_of(tiny_model("llama"), tmp_path / "called", **called)
    with pytest.raises(ModelError, match="an activated LoRA works in peft alone"):
        load_decoder(ModelRef(name=f"{folder}", adapter=f"{tmp_path / 'called'}"), device="cpu")
    adapter_of(tiny_model("llama"), tmp_path / "other", target_modules=["q_proj"])
    weights = tmp_path / "other" / "adapter_model.safetensors"
    renamed = {name.replace(".layers.", ".blocks."): tensor for name, tensor in load_file(weights).items()}
    save_file(renamed, weights)
    with pytest.raises(ModelError, match="its weights have other names"):
        load_decoder(ModelRef(name=f"{folder}", adapter=f"{tmp_path / 'other'}"), device="cpu")


def test_gaps_between_ids_are_banned_and_what_is_beyond_them_is_not() -> None:
    moved = {token: number + 3 * (number >= 60) for token, number in VOCAB.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(moved, unk_token="<unk>")), eos_token="<end>", unk_token="<unk>"
    )
    banned = set(banned_tokens(tokenizer, None, len(VOCAB) + 5).tolist())
    assert {60, 61, 62, len(VOCAB) + 3, len(VOCAB) + 4} <= banned
    assert not {moved[token] for token in VOCAB if len(token) == 1} & banned


def test_a_tokenizer_without_the_letter_a_keeps_whole_prompts() -> None:
    letters = {token: number for number, token in enumerate(["<pad>", "<end>", "<bos>", *'WRITE: "\n'])}
    of_letters = Tokenizer(models.BPE(letters, []))
    of_letters.decoder = decoders.Fuse()
    of_letters.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=of_letters, eos_token="<end>", pad_token="<pad>")
    decoder = Decoder(tiny_model("llama"), tokenizer)
    assert decoder.decode(decoder.encode(['WRITE: "'])[0]) == '<bos>WRITE: "'


@pytest.mark.parametrize("form", ["%H:%M:%S", "%d %b %Y", "%p"])
def test_the_time_in_a_template_is_fixed_like_the_day(form: str) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TODAY.replace("%d %B %Y", form)
    assert prints_today(tokenizer)
    begun = date(2025, 12, 31)
    assert len({render_chat(tokenizer, 'Say: "', '"', today=begun) for _ in range(3)}) == 1


def test_a_template_that_repeats_the_answer_is_refused() -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<sep>{% endfor %}({{ messages[-1].content }})"
    with pytest.raises(ModelError, match=r"leaves no answer open .it repeats the answer's beginning"):
        render_chat(tokenizer, 'Task.\nSay: "', 'Say: "')


def test_a_stop_string_with_a_blank_is_found_where_blanks_begin_words() -> None:
    words = ["<unk>", "▁One", '"', "▁the", "▁", "END", "a"]
    of_words = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    of_words.pre_tokenizer = pre_tokenizers.Metaspace()
    of_words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=of_words, unk_token="<unk>")
    rule = StopRule(tokenizer, len(words), '" ', stop_at_newline=False)
    assert rule.find([1, 2]) is None
    assert rule.find([1, 2, 3]) == Ending("One", "stop")


def test_a_gguf_file_on_the_hub_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    save_gguf(tmp_path / "tiny.gguf", rope=LINEAR)
    with local_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        api = HfApi(endpoint=hub.address, token=TOKEN)
        api.create_repo("me/models")
        api.upload_file(path_or_fileobj=tmp_path / "tiny.gguf", path_in_repo="tiny.gguf", repo_id="me/models")
        there = dino.load_generator("me/models:tiny.gguf")
    here = dino.load_generator(str(tmp_path / "tiny.gguf"))
    asked: dict[str, Any] = {"n": 2, "max_new_tokens": 6}
    assert there.write('A dog: "', **asked) == here.write('A dog: "', **asked)
    assert there.model.fingerprint is None
