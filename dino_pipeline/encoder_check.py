"""Whether a model is an encoder of texts: what it is refused for, and what is put right before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_pipeline.errors import ModelError, reason_of
from dino_pipeline.model_files import is_hub_id

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OTHER_KINDS = {
    "CrossEncoder": "a cross-encoder, which scores two texts together and has no embedding of one",
    "SparseEncoder": "a sparse encoder, whose embeddings are weights of words",
    "MultiVectorEncoder": "a late-interaction encoder, which has an embedding of each token",
}
"""What other models of sentence-transformers are, by the model type that their files give."""
NO_TEXT_TABLES = ("relative", "vision", "visual", "image", "audio", "entity", "x_position", "y_position", "h_", "w_")
"""Parts of the names of tables of positions that are not those of a text's tokens."""
TRIED = ("a", "a text of some more words than the other")
"""Texts that every encoder has to encode, side by side."""


def name_on_hub(name: str) -> str:
    """Return the repository that a name means: those of sentence-transformers may be named without their user."""
    from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS

    is_short = "/" not in name and not Path(name).exists() and name.lower() not in ORIGINAL_TRANSFORMER_MODELS
    return f"sentence-transformers/{name}" if is_short else name


def check_kind(name: str, revision: str | None) -> None:
    """Refuse a model that is not a bi-encoder, or that needs code from its own folder, as its files say.

    Raises:
        ModelError: it is a cross-encoder, a sparse or a late-interaction one, an adapter of a model that is not there,
            or names an activation function of its own, in whose place sentence-transformers would put another.
    """
    base = _read(name, "adapter_config.json", revision).get("base_model_name_or_path")
    if base and not Path(base).exists() and not is_hub_id(base):
        raise ModelError(f"{name}: is an adapter of {base}, and there is no such folder", "bring it back")
    modules = _read(name, "modules.json", revision)
    kind = _read(name, "config_sentence_transformers.json", revision).get("model_type")
    if not modules and _is_reranker(_read(name, "config.json", revision)):
        kind = "CrossEncoder"
    if kind in OTHER_KINDS:
        raise ModelError(
            f"{name}: is {OTHER_KINDS[kind]}", "give a bi-encoder, or the model that this one was trained from"
        )
    for module in modules:
        if module["type"].endswith(".Dense"):
            settings = _read(name, f"{module['path']}/config.json", revision)
            activation = settings.get("activation_function") or "torch."
            if not activation.startswith("torch."):
                raise ModelError(*own_code(name, f"the activation function {activation}"))


def own_code(name: str, what: str = "code of its own") -> tuple[str, str]:
    """Return message and remedy for an encoder that would run code from its folder."""
    return (
        f"{name}: cannot be loaded as an encoder (it brings {what}, and such code is never run)",
        "take another one; in Python, dino_pipeline.evaluate takes a SentenceTransformer that you loaded yourself",
    )


def _read(name: str, file: str, revision: str | None) -> Any:
    """Return the content of a JSON file of a model, an empty object if there is none."""
    from sentence_transformers.util import load_file_path

    path = load_file_path(name, file, revision=revision)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as content:
        return json.load(content)


def _is_reranker(config: Any) -> bool:
    """Return whether a model of `transformers` gives one score, as cross-encoders without other files do."""
    architecture = (config.get("architectures") or [""])[0]
    return architecture.endswith("ForSequenceClassification") and len(config.get("id2label", "01")) == 1


def make_usable(model: SentenceTransformer, name: str) -> None:
    """Put right what the files of a model leave open or say wrongly of its tokenizer.

    Texts are cut where the model has no further positions. Padding stands behind the texts if positions are counted
    from the beginning of a row: before them, it would move each text by the length of its neighbours. What only a
    missing token would make impossible, another does: the end of a text pads.

    Raises:
        ModelError: weights or tokens are missing.
    """
    backbone, tokenizer = model.transformers_model, model.tokenizer
    if backbone is None or not hasattr(tokenizer, "model_max_length"):
        return
    if missing := missing_weights(backbone):  # they would be random
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(f"{name}: cannot be loaded as an encoder (it lacks the weights {shown})", "give a whole one")
    _check_tokens(name, tokenizer, _input_rows(backbone))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ModelError(f"{name}: its tokenizer has neither a token for padding nor one for the end of a text")
    if tokenizer.model_max_length is None or tokenizer.model_max_length < 1:
        tokenizer.model_max_length = 10**30  # as `transformers` has it where no limit is stated
    limit, is_absolute = position_limit(backbone)
    if limit:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    if is_absolute:
        tokenizer.padding_side = "right"


def missing_weights(backbone: Any) -> list[str]:
    """Return the names of weights that were in none of a model's files, without those of poolers, which nothing uses.

    `transformers` marks the others when it loads them.
    """
    is_loaded = {
        name: getattr(weight, "_is_hf_initialized", False)
        for name, weight in backbone.named_parameters()
        if "pooler" not in name
    }
    return [name for name, loaded in is_loaded.items() if not loaded] if any(is_loaded.values()) else []


def position_limit(backbone: Any) -> tuple[int | None, bool]:
    """Return the most tokens that a model has positions for, None without a limit, and whether positions are absolute.

    Absolute ones are rows of a table, of which RoBERTa and its kin leave the first ones unused, up to that of padding.
    """
    from torch.nn import Embedding

    rows = []
    for name, module in backbone.named_modules():
        last = name.rpartition(".")[2]
        of_text = not any(part in name if part[-1] != "_" else last.startswith(part) for part in NO_TEXT_TABLES)
        if isinstance(module, Embedding) and ("position" in last or last == "wpe") and of_text:
            unused = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            rows.append(module.num_embeddings - unused)
    stated = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    limits = [*rows, stated] if isinstance(stated, int) and stated > 0 else rows
    return min(limits, default=None), bool(rows)


def check_limit(model: SentenceTransformer, name: str) -> None:
    """Raise `ModelError` if an encoder that a user loaded takes more tokens than it has positions for."""
    limit = None if model.transformers_model is None else position_limit(model.transformers_model)[0]
    if limit and model.max_seq_length and model.max_seq_length > limit:
        raise ModelError(
            f"{name}: takes texts of {model.max_seq_length} tokens, and has positions for {limit}",
            f"set its max_seq_length to {limit}",
        )


def _input_rows(backbone: Any) -> int | None:
    """Return the number of token vectors that a model has, None if it is not known."""
    try:
        rows: int | None = getattr(backbone.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # some models have no table of token vectors
        return None
    return rows


def _check_tokens(name: str, tokenizer: Any, rows: int | None) -> None:
    """Refuse a tokenizer without words, or with tokens that the model has no vectors for.

    Tokens for padding and masks without a vector are given up, as if there were none.

    Raises:
        ModelError: see above.
    """
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{name}: its tokenizer knows no words", "add the tokenizer's files, such as tokenizer.json")
    if rows is None or len(tokenizer) <= rows:
        return
    for role in ("pad_token", "mask_token"):
        if (number := getattr(tokenizer, f"{role}_id")) is not None and number >= rows:
            setattr(tokenizer, role, None)
    used = {tokenizer.bos_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.eos_token, tokenizer.unk_token}
    added = tokenizer.added_tokens_decoder
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        is_plain = number not in added or not added[number].special
        if number >= rows and (is_plain or token in used):
            raise ModelError(
                f"{name}: its tokenizer has tokens, such as {token!r}, beyond the {rows} that the model has vectors of",
                "give the tokenizer that belongs to the model",
            )


def try_encoding(model: SentenceTransformer, name: str) -> None:
    """Encode two texts; what a model cannot do is better known at once.

    Raises:
        ModelError: it fails, or an embedding is not made of numbers.
    """
    import numpy as np

    try:
        vectors = model.encode(list(TRIED), show_progress_bar=False)
    except Exception as error:  # modules that do not fit together raise anything
        raise ModelError(
            f"{name}: cannot encode a text ({type(error).__name__}: {reason_of(error)})",
            "take another encoder, or see whether the dimensions of its modules, in their config.json, go together",
        ) from error
    if not np.isfinite(vectors).all():
        raise ModelError(f"{name}: its embeddings are not numbers (NaN)", "take other weights; these are damaged")


def first_token_is_blind(model: SentenceTransformer) -> bool:
    """Return whether the first token's state, which is the embedding, does not depend on the last token.

    In a decoder it sees none of the others: texts that begin alike would have the same embedding.
    """
    import torch

    features = model.preprocess([TRIED[1], TRIED[1]])
    ids, places = features["input_ids"], features["attention_mask"][0].nonzero()[:, 0]
    last, middle = places[-1], ids[0, places[len(places) // 2]]
    ids[1, last] = middle if middle != ids[0, last] else ids[0, places[0]]
    features = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in features.items()}
    model.eval()
    with torch.no_grad():
        whole, changed = model(features)["sentence_embedding"].float()
    return bool(ids[0, last] != ids[1, last]) and torch.allclose(whole, changed, atol=1e-6)
