"""Tiny encoders of every kind that people train, as their folders are on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

from tests.toys import CHARACTERS

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
"""In the order that RoBERTa's have: the padding is token 1, after which its positions begin."""
VOCAB = {token: number for number, token in enumerate([*TOKENS, *CHARACTERS])}
ENDS = {"vocab_size": len(VOCAB), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SMALL = {
    **ENDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
OFFSET = {**SMALL, "max_position_embeddings": 66}
"""Of which 64 can be used: positions begin at 2."""


def tokenizer(wrapped: str = "<s> $A </s>", **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer of characters that puts special tokens around a text."""
    backend = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    backend.decoder = decoders.Fuse()
    special = [(token, VOCAB[token]) for token in wrapped.split() if token in VOCAB]
    backend.post_processor = processors.TemplateProcessing(single=wrapped, special_tokens=special)
    tokens = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**tokens, **settings})


def save_raw(folder: Path, config: Any, **settings: Any) -> Path:
    """Save a model with random weights and its tokenizer, without pooling."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer(**settings).save_pretrained(folder)
    return folder


def save_decoder(folder: Path, config: Any) -> Path:
    """Save a model whose tokens see those before them alone, padded on the left; no end token closes its texts."""
    return save_raw(folder, config, wrapped="$A", padding_side="left", cls_token=None, sep_token=None, mask_token=None)


def save_modules(folder: Path, *more: Any, **settings: Any) -> Path:
    """Save a bi-encoder: BERT, its pooling and further modules."""
    raw = save_raw(folder.with_name(f"{folder.name}-raw"), BertConfig(**SMALL), model_max_length=64)
    modules = [Transformer(str(raw)), Pooling(SMALL["hidden_size"]), *more]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder), create_model_card=False)
    return folder


def save_static(folder: Path) -> Path:
    table = torch.nn.init.normal_(torch.empty(len(VOCAB), 16))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer(), embedding_weights=table)], device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


def save_model2vec(folder: Path) -> Path:
    """Save a table as model2vec does: fewer vectors than tokens, which a mapping tells, and a weight for each token."""
    folder.mkdir()
    tensors = {
        "embeddings": torch.nn.init.normal_(torch.empty(40, 16)),
        "mapping": torch.arange(len(VOCAB)) % 40,
        "weights": torch.linspace(0.5, 1.5, len(VOCAB), dtype=torch.float64),
    }
    save_file(tensors, folder / "model.safetensors")
    types = {"": "StaticEmbedding", "1_Normalize": "Normalize"}
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(types.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text('{"model_type": "model2vec", "normalize": true}')
    tokenizer()._tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Change settings in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


ENCODERS: dict[str, Callable[[Path], Path]] = {
    "bert": lambda folder: save_raw(folder, BertConfig(**SMALL)),
    "roberta": lambda folder: save_raw(folder, RobertaConfig(**OFFSET), model_max_length=64),
    "roberta, no limit stated": lambda folder: save_raw(folder, RobertaConfig(**OFFSET)),
    "xlm-roberta": lambda folder: save_raw(folder, XLMRobertaConfig(**OFFSET)),
    "mpnet": lambda folder: save_raw(folder, MPNetConfig(**OFFSET)),
    "deberta-v3": lambda folder: save_raw(
        folder, DebertaV2Config(**SMALL, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"])
    ),
    "electra": lambda folder: save_raw(folder, ElectraConfig(**SMALL, embedding_size=8)),
    "modernbert": lambda folder: save_raw(folder, ModernBertConfig(**SMALL, cls_token_id=0, sep_token_id=2)),
    "distilbert": lambda folder: save_raw(
        folder, DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64, **ENDS)
    ),
    "qwen3": lambda folder: save_decoder(folder, Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8)),
    "gemma3": lambda folder: save_decoder(
        folder, Gemma3TextConfig(**SMALL, num_key_value_heads=1, head_dim=8, sliding_window=16)
    ),
    "gpt2": lambda folder: save_decoder(folder, GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **ENDS)),
    "t5": lambda folder: save_raw(
        folder,
        T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=1, **ENDS),
        wrapped="$A </s>",
    ),
    "static": save_static,
    "model2vec": save_model2vec,
    "dense": lambda folder: save_modules(folder, Dense(16, 8), Normalize()),
    "prompts": lambda folder: save_modules(
        folder, prompts={"query": "find: ", "document": "text: "}, default_prompt_name="query"
    ),
}
