"""A language model, loaded and fitted to the machine: its dtype, chat template, number of rows, layout of weights."""

from __future__ import annotations

import copy
import functools
import time
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import hf_hub_download
from pydantic import JsonValue
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from dino_pipeline.decoding.decoder import Decoder, Generator
from dino_pipeline.decoding.engine import LocalEngine
from dino_pipeline.decoding.generator_adapter import with_adapter
from dino_pipeline.decoding.gguf_files import complete_config, forget_format, quiet_reading, scale_frequencies
from dino_pipeline.decoding.tokenization import prints_today
from dino_pipeline.decoding.tuning import tune
from dino_pipeline.errors import DinoError, ModelError, OptionError, require_package
from dino_pipeline.generate_options import EngineOptions, ModelOptions
from dino_pipeline.model_files import check_files, check_is_whole_model, model_fingerprint, safe_loading
from dino_pipeline.models import POCKET, ModelRef, load_error, model_path, pick_device, quiet_loading
from dino_pipeline.options import accepts

NARROW = 512
"""Models of a smaller hidden size gain little by half precision. They stay in float32, and so write the same texts on
every machine."""
LEAST_ROWS = 16
"""Of vLLM, so that it holds all prompts of a text."""
MAX_ROWS = {"cpu": 128, "gpu": 1024}
"""More rows are hardly faster."""
ROW_LENGTH = 256
"""Tokens per row, prompt and text together, for which memory is estimated."""


def resolve_model(options: ModelOptions, device: str, started: ModelRef | None = None) -> ModelRef:
    """Return the model that options name, with dtype and chat template decided.

    What the options leave open is as in the run that continues. In a new run, a measurement decides the dtype, and
    prompts go into a chat template if the tokenizer has one.

    Args:
        options: the user's options.
        device: device on which the dtype is measured.
        started: the model in the record of the run that continues, None for a new run.

    Raises:
        ModelError: the run started with a folder that no longer exists.
    """
    path = model_path(options.model, "generator")
    if started and started.fingerprint and started.name == options.model and not Path(path).exists():
        raise ModelError(f"{path}: was there when the run started, and is missing", "bring it back")
    source = ModelRef(
        name=options.model,
        revision=options.revision,
        adapter=options.adapter,
        quantize=options.quantize,
        trust_remote_code=options.trust_remote_code,
    )
    dtype: str | None = options.dtype
    if dtype == "auto":
        dtype = (started.dtype if started else None) or pick_dtype(source, device=device)
    chat = options.chat == "on"
    if options.chat == "auto":
        chat = started.chat if started else has_chat_template(source)
    chat_date = _chat_date(source, options, started, chat=chat)
    decided = {"dtype": dtype, "chat": chat, "chat_date": chat_date, "fingerprint": model_fingerprint(path)}
    if options.adapter:
        decided["adapter_fingerprint"] = model_fingerprint(options.adapter)
    return source.model_copy(update=decided)


def load_engine(model: ModelRef, options: EngineOptions, device: str) -> LocalEngine:
    """Load a model into the engine that options name.

    Args:
        model: which model, with dtype and chat template decided.
        options: the user's options.
        device: device of the engine transformers; vLLM takes all that it sees.

    Raises:
        ModelError: the model cannot be loaded.
        OptionError: a package is not installed, or vLLM does not take an argument.
    """
    if options.engine == "transformers":
        return load_decoder(model, device=device, device_map=options.device_map, rows=options.rows)
    require_package("vllm", "engine", "vllm")
    from dino_pipeline.decoding.vllm_engine import VllmEngine

    named: dict[str, JsonValue] = {
        "max_num_seqs": options.rows and max(options.rows, LEAST_ROWS),
        "tensor_parallel_size": options.tensor_parallel,
        "max_model_len": options.max_model_len,
        "gpu_memory_utilization": options.gpu_memory,
    }
    given: dict[str, JsonValue] = {name: value for name, value in named.items() if value is not None}
    return VllmEngine.shared(model, {**given, **options.engine_arg})


def load_decoder(model: ModelRef, *, device: str, device_map: str | None = None, rows: int | None = None) -> Decoder:
    """Load a model and its tokenizer from a folder or the Hub.

    Args:
        model: which model, and all that decides what it computes.
        device: device to load it on.
        device_map: how accelerate spreads a model that one device does not hold ("auto", "balanced", ...), instead of
            ``device``.
        rows: prompts that run at the same time. None takes as many as fit into free memory, see `rows_that_fit`.

    Raises:
        ModelError: it cannot be loaded, or is not a decoder-only causal language model.
        OptionError: a package that the model needs is not installed.
    """
    tokenizer, loaded = _load(model, device, device_map)
    rows = rows or rows_that_fit(loaded)
    if device_map is None and model.quantize is None:
        tune(loaded, rows)
    return Decoder(loaded, tokenizer, rows=rows, chat=model.chat, chat_date=model.chat_date)


@accepts(EngineOptions)
def load_generator(model: str = POCKET, **options: Any) -> Generator:
    """Load a language model for writing and scoring texts.

    Args:
        model: folder or Hub id of a causal language model, or ``pocket`` for the embedded one.

    Raises:
        OptionError: an option is wrong, or a package that it needs is not installed.
        ModelError: the model cannot be loaded.
    """
    chosen = EngineOptions.of({"model": model, **options})
    device = pick_device(chosen.device)
    ref = resolve_model(chosen, device)
    return Generator(load_engine(ref, chosen, device), ref)


def load_tokenizer(model: ModelRef) -> Any:
    """Load a model's tokenizer alone.

    Raises:
        ModelError: it cannot be loaded.
    """
    path = model_path(model.name, "generator")
    try:
        return _read(AutoTokenizer, model)
    except DinoError:
        raise
    except Exception as error:  # tokenizers raises plain Exceptions
        raise load_error(path, error, "its tokenizer cannot be loaded", "give a folder or a Hub id") from error


def has_chat_template(model: ModelRef) -> bool:
    """Return whether a model's tokenizer has a chat template."""
    try:
        return load_tokenizer(model).chat_template is not None
    except ModelError:
        return False  # loading the model will report the error


def _chat_date(model: ModelRef, options: ModelOptions, started: ModelRef | None, *, chat: bool) -> date | None:
    """Return the day that the model's chat template takes for today, None if it prints none, or is not used.

    Raises:
        OptionError: it prints none, and the options name one.
        ModelError: the options name a day, and the tokenizer cannot be loaded.
    """
    if not chat and options.chat_date is None:
        return None
    try:
        tokenizer = load_tokenizer(model)
        if chat and prints_today(tokenizer):
            if started and started.chat:
                return options.chat_date or started.chat_date  # None in runs of versions that did not record it
            return options.chat_date or date.today()
    except ModelError:
        if options.chat_date is None:
            return None  # loading the model, or the first prompt, will report the error
        raise
    if options.chat_date is None:
        return None
    problem = "no chat template prints a day"
    raise OptionError(problem, "leave it out", option="chat_date", value=str(options.chat_date))


def pick_dtype(model: ModelRef, *, device: str) -> str:
    """Return the dtype that a model is fastest in on this machine, by a measurement. Narrow models stay in float32."""
    try:
        config = _read(AutoConfig, model)
        width = config.get_text_config().hidden_size
    except Exception:  # files that are not what their names say raise anything
        return "float32"  # loading the model will report the error
    return "float32" if width < NARROW else faster_dtype(device, width)


def _source(model: ModelRef) -> dict[str, Any]:
    """Return the arguments of `transformers`' loaders that say which files to load.

    Raises:
        OptionError: a package that they need is not installed.
    """
    source: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    if model.gguf:
        require_package("gguf", "model", model.name, extra="gguf")
        source["gguf_file"] = model.gguf
    return source


def _read(kind: Any, model: ModelRef) -> Any:
    """Return a model's configuration or tokenizer. A GGUF file is read once, as that can take many seconds."""
    source = _source(model)
    if model.gguf is None:
        return kind.from_pretrained(model.path("generator"), **source)
    file = _gguf_file(model)
    return copy.deepcopy(_read_gguf(kind, file, file.stat().st_mtime_ns))


def _gguf_file(model: ModelRef) -> Path:
    """Return the path of a model's GGUF file, fetched from the Hub if it is there.

    Raises:
        ModelError: the file does not exist.
    """
    name = model_path(model.name, "generator")
    check_files(name)
    if Path(name).exists():
        return Path(name)
    return Path(hf_hub_download(model.path("generator"), model.gguf or "", revision=model.revision))


@functools.lru_cache(maxsize=4)
def _read_gguf(kind: Any, file: Path, changed: int) -> Any:
    """Return what a GGUF file holds; ``changed`` is when it was written, so that another file of that name is read."""
    return kind.from_pretrained(str(file.parent), gguf_file=file.name)


def _load(model: ModelRef, device: str, device_map: str | None) -> tuple[Any, Any]:
    """Return the tokenizer, and the model with its adapter applied."""
    path, source, dtype = model.path("generator"), _source(model), model.dtype or "float32"
    placement: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    if model.quantize:
        placement = {"device_map": device_map or {"": device}, "quantization_config": _quantization(model)}
    check_files(path if model.gguf is None else model_path(model.name, "generator"))
    if model.gguf is None:
        check_is_whole_model(path)
    try:
        config = _read(AutoConfig, model)
        if model.gguf:
            complete_config(config, _gguf_file(model))
        if config.is_encoder_decoder:
            raise ModelError(
                f"{path}: is an encoder-decoder, whose texts follow no prompt that could be contrasted token by token",
                "give a decoder-only model",
            )
        tokenizer = load_tokenizer(model)
        settings = {**source, **safe_loading(), **placement}

        def load() -> Any:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, **settings
            )
            if missing := sorted(info["missing_keys"]):  # they would be random
                shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
                raise ModelError(
                    f"{path}: cannot be loaded as a causal language model (it lacks the weights {shown})",
                    "give a whole, decoder-only model",
                )
            if model.gguf:
                scale_frequencies(loaded, _gguf_file(model))
                forget_format(loaded, model.name)
            return loaded if placement else loaded.to(device)

        with quiet_loading(), quiet_reading():
            return tokenizer, (with_adapter(load, model) if model.adapter else load()).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{path}: does not fit on {device_map or device} in {dtype}",
            "use {device_map=auto}, {dtype=bfloat16}, {quantize=4bit}, or a smaller model",
        ) from error
    except DinoError:
        raise
    except Exception as error:  # files that are not what their names say raise anything
        remedy = "give a folder or a Hub id that AutoModelForCausalLM loads, or `pocket`"
        if model.gguf:
            path, remedy = model.name, "fetch the file again, as it may be cut; or give another"
        raise load_error(path, error, "cannot be loaded as a causal language model", remedy) from error


def _quantization(model: ModelRef) -> BitsAndBytesConfig:
    require_package("bitsandbytes", "quantize")
    if model.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=model.dtype or "float32")


def rows_that_fit(model: PreTrainedModel) -> int:
    """Return how many prompts fit into half of the free memory at the same time, `MAX_ROWS` at most.

    An estimate from the model's shape: the cache of rows of `ROW_LENGTH` tokens, and the logits of one step. If it is
    too high, the decoder continues with fewer rows.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight  # (vocab, hidden)
    size = head.element_size()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1)
    cache = 2 * config.num_hidden_layers * heads * width * ROW_LENGTH * size  # keys and values
    logits = head.shape[0] * (size + 3 * 4)  # and three passes over them in float32
    most = MAX_ROWS["cpu" if model.device.type == "cpu" else "gpu"]
    return max(8, min(most, _free_bytes(model) // 2 // (cache + logits) // 8 * 8))


def _free_bytes(model: PreTrainedModel) -> int:
    """Return the free memory of all devices that hold layers. The cache is spread over them like the layers."""
    places = getattr(model, "hf_device_map", {"": model.device}).values()
    cards = {place for place in places if isinstance(place, int) or str(place).startswith("cuda")}
    if cards:
        return sum(torch.cuda.mem_get_info(card)[0] for card in cards)
    return int(psutil.virtual_memory().available)


def faster_dtype(device: str, width: int) -> str:
    """Return "bfloat16" if matrix products of a width are at least 1.5 times as fast in it here, else "float32"."""
    full, half = (_product_seconds(device, width, dtype) for dtype in (torch.float32, torch.bfloat16))
    return "bfloat16" if full > 1.5 * half else "float32"


def _product_seconds(device: str, width: int, dtype: torch.dtype) -> float:
    """Return the least time of six products of 128 rows with a matrix of ``width`` by 16 times ``width``."""
    hidden = torch.ones(128, width, dtype=dtype, device=device)
    weight = torch.ones(16 * width, width, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float(nn.functional.linear(hidden, weight)[0, 0])  # reading a number waits for the device
        times.append(time.perf_counter() - start)
    return min(times)
