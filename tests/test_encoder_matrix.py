"""Every kind of encoder is trained, evaluated, published and loaded elsewhere, or refused with what to do."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertForSequenceClassification, LlamaConfig

import dino_pipeline as dino
from dino_pipeline.encoder_check import position_limit
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.models import embed, load_encoder, max_length_of
from dino_pipeline.training.health import STUCK_STEPS, LossWatch
from tests.commands import invoke, refused
from tests.encoders import ENCODERS, SMALL, edit, save_decoder, save_modules, save_raw, save_static, tokenizer

pytestmark = pytest.mark.slow

WORDS = ["abba", "cede", "dig", "eel", "fog", "gab", "hag", "ice", "jab", "keg", "lab", "mob"]
PAIRS = [
    Example(f"{a} {b}", " ".join([b, a, *WORDS][: 2 + 12 * (score == 0.5)]), score)
    for a in WORDS[:6]
    for b in WORDS[6:]
    for score in (0.9, 0.5, 0.1)
]
"""A third of the second texts are longer than the encoders' 64 tokens."""
DOCUMENTS = [
    Example(f"Abba cede dig. Eel fog gab hag. Ice jab keg lab mob. Fog {a * 9} {b}.") for a in "def" for b in WORDS
]
"""Longer than 64 tokens; all begin alike."""
TEXTS = ["fog", "a text of some words", "hag jab " * 30, "fog gab, and nothing else"]
NO_PEFT = importlib.util.find_spec("peft") is None
LORA = pytest.mark.skipif(NO_PEFT, reason="peft is not installed")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_examples(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path / "pairs.jsonl"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, ()) for name in ENCODERS),
        *(pytest.param(name, ("--lora", "2"), marks=LORA) for name in ("bert", "mpnet", "qwen3", "t5", "dense")),
        ("roberta, no limit stated", ("--max-length", "64")),
        ("qwen3", ("--objective", "simcse-sup")),
        ("gemma3", ("--objective", "simcse-sup")),
        ("prompts", ("--objective", "simcse", "--mini-batch-size", "4")),
        ("static", ("--objective", "simcse-sup")),
        ("dense", ("--objective", "simcse")),
    ],
)
def test_an_encoder_goes_the_whole_way(name: str, options: tuple[str, ...], data: Path, tmp_path: Path) -> None:
    encoder, run = ENCODERS[name](tmp_path / "encoder"), tmp_path / "run"
    few = ("--dev", data, "--steps", "2", "--batch-size", "8")
    invoke("finetune", data, "--encoder", encoder, "--run", run, *few, *options)
    invoke("evaluate", run, "--data", data)
    assert set(json.loads(_strict(run / "scores.json"))["models"][0]) >= {"max_length", "dimension"}
    invoke("publish", run, "--repo", "me/encoder", "--what", "model", "--license", "mit", "--dry-run")
    trained = load_encoder(str(run / "model"))
    published = shutil.move(run / "hub" / "model", tmp_path / "elsewhere")
    for path in (encoder, run):
        shutil.rmtree(path)
    plain = SentenceTransformer(str(published), device="cpu")
    found = plain.encode(TEXTS)
    np.testing.assert_allclose(found, trained.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found[:1], plain.encode(TEXTS[:1]), atol=1e-5, err_msg="neighbours change a text")
    assert np.isfinite(found).all() and np.abs(found - found[0]).max(axis=1)[1:].min() > 1e-4
    for file in Path(published).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content and str(Path.cwd()).encode() not in content, file.name


def _strict(path: Path) -> str:
    """The text of a JSON file, which holds no NaN or infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{path.name}: {constant}")

    json.loads(path.read_text(), parse_constant=refuse)
    return path.read_text()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_s_limit_is_what_its_positions_allow(name: str, tmp_path: Path) -> None:
    model = load_encoder(str(ENCODERS[name](tmp_path / "encoder")))
    limit = max_length_of(model)
    assert np.isfinite(model.encode(["ab " * 100])).all()
    if model.transformers_model is None or name == "t5":
        assert limit is None
        return
    assert limit == 64
    rows, is_absolute = position_limit(model.transformers_model)
    assert rows == 64
    if is_absolute:  # the next token has no position
        model.max_seq_length = 65
        with pytest.raises((IndexError, RuntimeError)):
            model.encode(["ab " * 100])


@pytest.mark.parametrize("stated", [0, -1, 512])
def test_limits_that_are_stated_wrongly_do_not_count(stated: int, tmp_path: Path) -> None:
    folder = save_modules(tmp_path / "encoder")
    edit(folder / "sentence_bert_config.json", max_seq_length=stated)
    edit(folder / "tokenizer_config.json", model_max_length=stated)
    assert max_length_of(load_encoder(str(folder))) == 64


def test_a_limit_beyond_the_positions_or_without_room_is_refused(data: Path, tmp_path: Path) -> None:
    encoder = ENCODERS["roberta, no limit stated"](tmp_path / "encoder")
    options = ("--encoder", encoder, "--run", tmp_path / "run", "--steps", "2")
    assert "--max-length 66: the encoder takes at most 64 tokens" in refused(
        "finetune", data, *options, "--max-length", "66"
    )
    for limit in ("1", "2"):
        said = refused("finetune", data, *options, "--max-length", limit)
        assert f"cut to {limit} tokens, and special ones and the prompt are 2 of these; give --max-length" in said


def test_an_encoder_in_memory_with_a_limit_beyond_its_positions_is_named(tmp_path: Path) -> None:
    model = SentenceTransformer(str(ENCODERS["roberta, no limit stated"](tmp_path / "encoder")), device="cpu")
    with pytest.raises(ModelError, match="texts of 66 tokens, and has positions for 64; set its max_seq_length to 64"):
        dino.evaluate(model, data=PAIRS, progress=False)
    model.max_seq_length = 64
    assert dino.evaluate(model, data=PAIRS, progress=False)


# Pooling


def test_a_decoder_s_first_token_is_no_embedding(tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL, num_key_value_heads=1)
    raw = save_decoder(tmp_path / "raw", config)
    few: dict[str, Any] = {"steps": 2, "batch_size": 8, "dev": PAIRS[:20]}
    notes: list[Any] = []
    trained = dino.finetune(PAIRS, encoder=str(raw), objective="simcse-sup", progress=notes.append, **few)
    assert trained.dino.record.pooling == "lasttoken"
    assert any("sees none of the others; the last token's is taken" in str(note) for note in notes)
    with pytest.raises(OptionError, match=r"pooling='cls': .* sees none of the others; give pooling='lasttoken' or"):
        dino.finetune(PAIRS, encoder=str(raw), pooling="cls", progress=False, **few)
    own = SentenceTransformer(modules=[Transformer(str(raw)), Pooling(16, "cls")], device="cpu")
    own.save(str(tmp_path / "own"))
    with pytest.raises(ModelError, match=r"own: the first token .* give an encoder with another pooling"):
        dino.finetune(PAIRS, encoder=str(tmp_path / "own"), progress=False, **few)


def test_a_loss_that_says_nothing_ends_a_training() -> None:
    watch = LossWatch()
    for step in range(STUCK_STEPS * 2):
        watch.see(0.0, step)  # learned
        watch.see(float(step), step)
    for step in range(STUCK_STEPS - 1):
        watch.see(3.4657359, step)
    with pytest.raises(ModelError, match=f"step 99: the loss has been 3.466 for {STUCK_STEPS} steps"):
        watch.see(3.4657359, 99)
    with pytest.raises(ModelError, match="step 100: the loss is not a number"):
        watch.see(float("nan"), 100)


def test_an_encoder_that_knows_none_of_the_words_is_refused(tmp_path: Path) -> None:
    folder = save_static(tmp_path / "encoder")
    model = SentenceTransformer(str(folder), device="cpu")
    model[0].embedding.weight.data.zero_()
    model.save(str(folder))
    with pytest.raises(ModelError, match=r"encoder: all texts have the same embedding"):
        dino.finetune(PAIRS, encoder=str(folder), objective="dino", steps=2, progress=False)


# Prompts and other settings of an encoder


def test_an_encoder_is_trained_with_the_prompt_that_it_is_encoded_with(tmp_path: Path) -> None:
    prompted = save_modules(tmp_path / "prompted", prompts={"query": "find: "}, default_prompt_name="query")
    bare = save_modules(tmp_path / "bare")
    few: dict[str, Any] = {"objective": "dino", "steps": 3, "batch_size": 8, "learning_rate": 1e-2, "dev": PAIRS[:20]}
    notes: list[Any] = []
    trained = dino.finetune(PAIRS, encoder=str(prompted), run=tmp_path / "run", progress=notes.append, **few)
    by_hand = [Example(f"find: {pair.text_a}", f"find: {pair.text_b}", pair.label) for pair in PAIRS]
    same = dino.finetune(by_hand, encoder=str(bare), progress=False, **{**few, "dev": by_hand[:20]})
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(weight, same.state_dict()[name], atol=1e-5, rtol=0)
    assert trained.dino.record.prompt == "find: " and same.dino.record.prompt == ""
    assert any("after the encoder's prompt 'find: '" in str(note) for note in notes)
    assert "find: " in (tmp_path / "run" / "run.json").read_text()
    assert '`encode` puts `"find: "` before each text' in (tmp_path / "run" / "model" / "README.md").read_text()
    plain = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    np.testing.assert_allclose(plain.encode("fog"), plain.encode("find: fog", prompt=""), atol=1e-6)


def test_settings_that_do_not_go_with_the_training_are_told(tmp_path: Path) -> None:
    folder = save_modules(tmp_path / "encoder", truncate_dim=8, similarity_fn_name="dot", prompts={"query": "find: "})
    notes: list[Any] = []
    trained = dino.finetune(PAIRS, encoder=str(folder), steps=2, batch_size=8, progress=notes.append)
    said = "\n".join(map(str, notes))
    assert "cuts its embeddings to 8 dimensions; all are trained" in said
    assert "compares by dot; it is trained by the cosine" in said
    assert "puts its prompts (query) before no text by default: none is trained" in said
    assert (trained.encode("fog").shape, trained.similarity_fn_name) == ((16,), "cosine")


def test_masked_words_are_learned_by_an_encoder_in_half_precision(tmp_path: Path) -> None:
    folder = save_raw(tmp_path / "encoder", BertConfig(**SMALL))
    AutoModel.from_pretrained(folder).bfloat16().save_pretrained(folder)
    few: dict[str, Any] = {"steps": 2, "batch_size": 4, "progress": False}
    for name in ("cmlm", "declutr"):
        trained = dino.finetune(DOCUMENTS, encoder=str(folder), objective=name, **few)
        assert trained.dtype == torch.float32


def test_texts_with_a_long_common_beginning_are_no_constant(tmp_path: Path) -> None:
    encoder = str(save_raw(tmp_path / "encoder", BertConfig(**SMALL)))
    few: dict[str, Any] = {"steps": 2, "batch_size": 8, "progress": False}
    assert dino.finetune(DOCUMENTS, encoder=encoder, objective="cpt", **few)
    with pytest.raises(ModelError, match="all texts have the same embedding"):
        dino.finetune(DOCUMENTS, encoder=encoder, objective="simcse", **few)


# What is no encoder


def _cross_encoder(folder: Path) -> None:
    CrossEncoder(str(save_raw(folder.with_name("raw"), BertConfig(**SMALL))), num_labels=1, device="cpu").save(
        str(folder)
    )


def _reranker(folder: Path) -> None:
    BertForSequenceClassification(BertConfig(**SMALL, num_labels=1)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _sparse_encoder(folder: Path) -> None:
    raw = folder.with_name("raw")
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(raw)
    tokenizer(model_max_length=64).save_pretrained(raw)
    layers = Transformer(str(raw), transformer_task="fill-mask")
    SparseEncoder(modules=[layers, SpladePooling("max")], device="cpu").save(str(folder))


def _with_code(folder: Path) -> None:
    code = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    edit(save_raw(folder, BertConfig(**SMALL)) / "config.json", auto_map=code, model_type="mine")
    (folder / "mine.py").write_text("raise SystemExit('it ran')")


def _with_module(folder: Path) -> None:
    modules = json.loads((save_modules(folder) / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Mine", "type": "mine.Mine"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "mine.py").write_text("raise SystemExit('it ran')")


def _with_activation(folder: Path) -> None:
    edit(save_modules(folder, Dense(16, 8)) / "2_Dense" / "config.json", activation_function="mine.Act")


def _dense_of_other_dimensions(folder: Path) -> None:
    dense = save_modules(folder, Dense(16, 8)) / "2_Dense"
    edit(dense / "config.json", in_features=12)
    save_file({"linear.weight": torch.zeros(8, 12), "linear.bias": torch.zeros(8)}, dense / "model.safetensors")


def _without_a_layer(folder: Path) -> None:
    weights = load_file(save_raw(folder, BertConfig(**SMALL)) / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _adapter_without_model(folder: Path) -> None:
    save_raw(folder, BertConfig(**SMALL))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone/base"}))


def _without_words(folder: Path) -> None:
    save_raw(folder, BertConfig(**SMALL))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _damaged(folder: Path) -> None:
    weights = load_file(save_raw(folder, BertConfig(**SMALL)) / "model.safetensors")
    weights["embeddings.word_embeddings.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (_cross_encoder, "is a cross-encoder, which .*; give a bi-encoder"),
        (_reranker, "is a cross-encoder"),
        (_sparse_encoder, "is a sparse encoder"),
        (_with_code, "it brings code of its own, and such code is never run.*; take another one"),
        (_with_module, "it brings code of its own"),
        (_with_activation, "it brings the activation function mine.Act"),
        (_dense_of_other_dimensions, "cannot encode a text .*; take another encoder, or see whether the dimensions"),
        (_without_a_layer, "lacks the weights encoder.layer.1.* and 13 more"),
        (_adapter_without_model, "is an adapter of /gone/base, and there is no such folder"),
        (_without_words, "its tokenizer knows no words; add the tokenizer's files"),
        (lambda folder: save_raw(folder, BertConfig(**{**SMALL, "vocab_size": 20})), "'p', beyond the 20"),
        (_damaged, "its embeddings are not numbers"),
    ],
)
def test_what_is_no_encoder_is_refused(save: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    save(tmp_path / "encoder")
    with pytest.raises(ModelError, match=f"{tmp_path}/encoder: .*{said}") as caught:
        load_encoder(str(tmp_path / "encoder"))
    assert "trust_remote_code" not in str(caught.value)


def test_an_encoder_of_two_kinds_of_texts_is_not_trained(tmp_path: Path) -> None:
    raw = save_raw(tmp_path / "raw", BertConfig(**SMALL), model_max_length=64)
    routes = [[Transformer(str(raw)), Pooling(16)] for _ in range(2)]
    SentenceTransformer(modules=[Router.for_query_document(*routes)], device="cpu").save(str(tmp_path / "encoder"))
    with pytest.raises(ModelError, match="layers of their own for queries and for documents"):
        dino.finetune(PAIRS, encoder=str(tmp_path / "encoder"), steps=2, progress=False)


def test_padding_without_a_vector_is_replaced(tmp_path: Path) -> None:
    folder = save_raw(tmp_path / "encoder", BertConfig(**SMALL))
    plain = embed(load_encoder(str(folder)), TEXTS)
    padded = tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded.save_pretrained(folder)
    np.testing.assert_allclose(embed(load_encoder(str(folder)), TEXTS), plain, atol=1e-6)
