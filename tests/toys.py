"""Tiny models of many architectures, and a tokenizer of single characters, made on the spot."""

from __future__ import annotations

import string
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from dino_pipeline.errors import PYTHON
from dino_pipeline.models import load_encoder
from dino_pipeline.progress import Progress, SilentReporter, full_note

CHARACTERS = list(string.ascii_letters + string.digits + " \"\n.,:;'!?<>-»«")
SPECIAL = ["<pad>", "<end>", "<unk>", "<cls>", "<sep>", "<mask>"]
VOCAB = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}

ENDS: dict[str, Any] = {"vocab_size": len(VOCAB) + 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
WINDOW = 24
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, **ENDS),
    "gpt_neox": GPTNeoXConfig(**SMALL, **ENDS),
    "opt": OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=256,
        init_std=0.3,
        **ENDS,
    ),
    "llama": LlamaConfig(**GROUPED, **ENDS),
    "qwen3": Qwen3Config(head_dim=8, **GROUPED, **ENDS),
    "mistral": MistralConfig(sliding_window=WINDOW, **GROUPED, **ENDS),
    "gemma3": Gemma3TextConfig(
        head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], **GROUPED, **ENDS
    ),
}


def char_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are single characters."""
    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<sep>",
        mask_token="<mask>",
    )


CHAT = "<cls>{% for message in messages %}{{ message.role[0] }}: {{ message.content }}<sep>{% endfor %}"


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Return the same with a chat template; it puts ``<cls>`` in front of other texts by itself, as Llama's does."""
    tokenizer = char_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A", special_tokens=[("<cls>", VOCAB["<cls>"])]
    )
    return tokenizer


def tiny_model(architecture: str, seed: int = 0) -> Any:
    """Return a causal language model with random weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture])).eval()


def recurrent_model() -> Any:
    """Return a model without attention, which slots cannot serve."""
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, initializer_range=0.3, **ENDS)
    return AutoModelForCausalLM.from_config(config).eval()


def save_generator(folder: Path, architecture: str = "gpt2", seed: int = 0) -> Path:
    """Save a tiny model with its tokenizer, as a user's model folder is."""
    tiny_model(architecture, seed).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    """Save a tiny encoder with its tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(**{**SMALL, "initializer_range": 0.05, "max_position_embeddings": 128}, **ENDS)
    BertModel(config).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return folder


def static_encoder() -> SentenceTransformer:
    """Return word vectors without layers above them, and so without dropout."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "one": 3, "two": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def without_dropout(folder: Path) -> SentenceTransformer:
    """Load an encoder that computes the same each time."""
    model = load_encoder(str(folder))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


class Listener(SilentReporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.seen: list[tuple[str, int, int]] = []
        self.last: Progress | None = None

    def update(self, progress: Progress) -> None:
        self.seen.append((progress.title, progress.done, progress.total))
        self.last = progress

    def note(self, message: str, remedy: str = "") -> None:
        self.notes.append(full_note(message, remedy, PYTHON))


class Quiet(Listener):
    """Is to be told nothing but how far it is, and what was read."""

    def note(self, message: str, remedy: str = "") -> None:
        assert "read" in message, message


def by_score(scores: Mapping[str, float]) -> list[str]:
    """Ids by falling score, equal ones by falling id, as trec_eval has them."""
    return sorted(sorted(scores, reverse=True), key=lambda name: -scores[name])
