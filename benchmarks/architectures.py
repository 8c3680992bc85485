"""Try every decoder-only architecture that the installed `transformers` builds tiny: do its rows depend on neighbours?

    python -m benchmarks.architectures > docs/architectures.md

It takes ten minutes. Each architecture gets random weights, once as it is and once for each kind of threshold that its
configuration knows: an attention window, rotary frequencies that change with the length. A text is written alone and
beside much longer ones.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request
from dino_pipeline.decoding.self_check import sees_ahead
from dino_pipeline.decoding.tokenization import NEVER
from dino_pipeline.options import Sampling

VOCAB = 96
CONTEXT = 512
THRESHOLD = 48
"""Tokens beyond which the variants compute otherwise."""
LENGTHS = (6, 40, 150)
"""Tokens of prompts: one that stays below the threshold, one whose text crosses it, one beyond it."""
NEW_TOKENS = 16
MOST_PARAMETERS = 3e7

SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embed_dim", "embedding_size", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["attention_heads"], 4),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "decoder_ffn_dim", "dff", "d_inner"], 64),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], CONTEXT),
    **dict.fromkeys(["head_dim", "d_head", "d_kv", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "bos_token_id", "eos_token_id"], 1),
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "qk_head_dim": 16,
    "rotary_dim": 4,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
"""Small values for the sizes that configurations have."""
OWN_SIZES: dict[str, dict[str, Any]] = {
    "bert_generation": {"is_decoder": True},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": THRESHOLD},
    **{kind: {"head_dim": 8} for kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "reformer": {"is_decoder": True},
}
"""What single architectures need besides; None leaves a size out."""
NO_SIZES = {"n_inner", "head_dim", "q_lora_rank"}
"""Left out where a configuration has None."""


@dataclass(frozen=True)
class Verdict:
    """What came of one architecture and variant."""

    architecture: str
    variant: str
    rows: str
    """How its rows run, or why it is not there."""
    equal: bool | None = None
    """Whether a text beside longer ones was the text alone. None: it was not run."""


def tiny_config(architecture: str, **changes: Any) -> Any:
    """Return a small configuration of a model type."""
    kind = CONFIG_MAPPING[architecture]
    default = kind()
    sizes = {}
    for name, value in SIZES.items():
        if hasattr(default, name) and not (name in NO_SIZES and getattr(default, name) is None):
            sizes[name] = value
    if "kv_lora_rank" in sizes:  # latent attention has as many heads of keys as of queries
        sizes["num_key_value_heads"] = 4
    sizes |= OWN_SIZES.get(architecture, {}) | changes
    return kind(**{name: value for name, value in sizes.items() if value is not None})


def variants(architecture: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names of variants, and what each changes in the configuration."""
    yield "as it is", {}
    config = tiny_config(architecture)
    if hasattr(config, "sliding_window"):
        yield "window", {"sliding_window": THRESHOLD, "use_sliding_window": True}
    if isinstance(getattr(config, "rope_parameters", None), dict) and "rope_type" in config.rope_parameters:
        # frequencies: half of a head's dimensions, or of the part of them that is rotated
        dims = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dims = int(dims * config.rope_parameters.get("partial_rotary_factor", 1.0))
        dims = getattr(config, "qk_rope_head_dim", None) or dims
        scaled = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": THRESHOLD}
        factors = {"short_factor": [1.0] * (dims // 2), "long_factor": [4.0 + at for at in range(dims // 2)]}
        own = {"original_max_position_embeddings": THRESHOLD}
        own = own if hasattr(config, "original_max_position_embeddings") else {}
        yield "longrope", {"rope_parameters": config.rope_parameters | scaled | factors, **own}
        yield "dynamic", {"rope_parameters": config.rope_parameters | {"rope_type": "dynamic", "factor": 4.0}}


def tiny_model(architecture: str, **changes: Any) -> Any:
    """Return a small model of a type, with random weights.

    Raises:
        ValueError: it stays large.
    """
    config = tiny_config(architecture, **changes)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(copy.deepcopy(config)).num_parameters()
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters, as its parts have configurations of their own")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of `VOCAB` words."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0")


def written(decoder: Decoder, lengths: tuple[int, ...]) -> dict[int, Completion]:
    """Write a text after a prompt of each length, with one counter-prompt of 6 tokens; return them by that length."""
    generator = torch.Generator().manual_seed(1)
    prompt = tuple(torch.randint(5, VOCAB, (max(LENGTHS),), generator=generator).tolist())
    requests = [Request((prompt[:length], prompt[-6:]), ("key", length)) for length in lengths]
    sampling = Sampling(top_k=0, top_p=0.95, max_new_tokens=NEW_TOKENS)
    completions = decoder.sample(requests, sampling, stop=NEVER, stop_at_newline=False)
    return {lengths[completion.number]: completion for completion in completions}


def same_alone(model: Any) -> tuple[bool, str]:
    """Return whether texts are the same beside longer ones, and how the model's rows run.

    If they are not, they are compared again in float64: in float32, rounding can decide between two tokens.
    """
    equal, rows = _same_alone(model)
    return (equal, rows) if equal else (_same_alone(model.double())[0], rows)


def _same_alone(model: Any) -> tuple[bool, str]:
    together = Decoder(model, tokenizer(), rows=8)
    beside = written(together, LENGTHS)
    alone = {length: written(Decoder(model, tokenizer(), rows=2), (length,))[length] for length in LENGTHS}
    equal = all(beside[length].tokens == alone[length].tokens for length in LENGTHS)
    length = together.cached_length
    if length.wrong is None:
        return equal, "cached"
    return equal, f"cached up to {length.proven} tokens, then one by one" if length.proven else "one by one"


def verdicts(architecture: str) -> Iterator[Verdict]:
    """Try an architecture in all variants."""
    try:
        changes = dict(variants(architecture))
        tiny_model(architecture)
    except Exception as error:  # configurations and models raise whatever they like
        yield Verdict(architecture, "", f"not built: {_short(error)}")
        return
    for name, changed in changes.items():
        try:
            model = tiny_model(architecture, **changed)
            if sees_ahead(model):
                yield Verdict(architecture, name, "refused: an encoder")
                return
            equal, rows = same_alone(model)
            yield Verdict(architecture, name, rows, equal)
        except Exception as error:
            yield Verdict(architecture, name, f"not run: {_short(error)}")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".replace("|", "/")


VARIANTS = ("as it is", "window", "longrope", "dynamic")
HEAD = """# Architectures

A text must not depend on the texts beside it. Every decoder-only architecture that the installed `transformers` builds
from a small configuration was tried: short texts beside long ones and alone, with and without thresholds in its
configuration (an attention window of {threshold} tokens, rotary frequencies that change at {threshold} tokens or grow
with the length). {equal} of {tried} variants wrote the same texts (`python -m benchmarks.architectures`, {versions},
float32, random weights).

- *cached*: rows of all lengths step together on a cache of keys and values.
- *cached to 32*: rows of up to 32 tokens do, the next power of 2 below the threshold. Longer ones are computed one by
  one, without a cache.
- *one by one*: all rows are, because the architecture has layers without keys and values, takes no positions, or fails
  the self-check.
- –: the configuration knows no such threshold. *not valid*: it does not take this small one.

| as it is | window | longrope | dynamic | architectures |
|---|---|---|---|---|
"""


def page(found: Sequence[Verdict], versions: str) -> str:
    """Return the page for docs: architectures that fared alike in a line."""
    of: dict[str, dict[str, Verdict]] = {}
    for verdict in found:
        of.setdefault(verdict.architecture, {})[verdict.variant] = verdict
    refused = [
        name for name, verdicts in of.items() if any(each.rows.startswith("refused") for each in verdicts.values())
    ]
    unbuilt = {name: verdicts[""].rows for name, verdicts in of.items() if "" in verdicts}
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, verdicts in of.items():
        if name not in unbuilt and name not in refused:
            cells = tuple(_cell(verdicts.get(variant)) for variant in VARIANTS)
            alike.setdefault(cells, []).append(name)
    tried = [verdict.equal for verdict in found if verdict.equal is not None]
    text = HEAD.format(threshold=THRESHOLD, equal=sum(tried), tried=len(tried), versions=versions)
    for cells, names in sorted(alike.items(), key=lambda line: -len(line[1])):
        text += f"| {' | '.join(cells)} | {_listed(names)} |\n"
    composed = [name for name, reason in unbuilt.items() if "million parameters" in reason]
    others = [name for name in unbuilt if name not in composed]
    text += f"\n**Refused**, as their predictions see later tokens: {_listed(refused)}.\n"
    text += f"\n**Not tried**: models of several parts, whose text model has an entry of its own: {_listed(composed)}. "
    text += f"Configurations that cannot be made small by the same values as the others: {_listed(others)}. "
    return text + "The check runs for them as for any model, when they are used.\n"


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    if verdict.rows.startswith("not run"):
        return "not valid"
    rows = verdict.rows.replace(" tokens, then one by one", "").replace("up to", "to")
    return rows if verdict.equal else f"**{rows}, but other texts**"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@click.command(help=__doc__)
@click.argument("architectures", nargs=-1)
def main(architectures: tuple[str, ...]) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    known = sorted(config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING)
    found = []
    for architecture in architectures or known:
        for verdict in verdicts(architecture):
            click.echo(
                f"{verdict.architecture}, {verdict.variant}: {verdict.rows}; the same: {verdict.equal}", err=True
            )
            found.append(verdict)
    click.echo(page(found, f"transformers {transformers.__version__}, torch {torch.__version__}"), nl=False)


if __name__ == "__main__":
    main()
