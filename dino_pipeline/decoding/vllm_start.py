"""Starts vLLM in this process, with the plug-in: checks its version and arguments, and leaves the process as it was."""

from __future__ import annotations

import difflib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import psutil
import torch
import vllm
from pydantic import ValidationError
from vllm.engine.arg_utils import EngineArgs

from dino_pipeline.decoding.group_member import PLUGIN
from dino_pipeline.decoding.vllm_plugin import SpecialTokens
from dino_pipeline.errors import ModelError, OptionError, option_given
from dino_pipeline.model_files import check_files, check_is_whole_model
from dino_pipeline.models import ModelRef, load_error

TESTED = ("0.32", "0.33")
"""Versions of vLLM that the plug-in was tried with: from the first up to, but not including, the second."""
FORBIDDEN = {
    "speculative_config": None,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_batch_sharded_sampling": False,
    "async_scheduling": False,
    "long_prefill_token_threshold": 0,
    "prefill_context_parallel_size": 1,
    "kv_sharing_fast_prefill": False,
    "stream_interval": 1,
    "skip_tokenizer_init": False,
    "logprobs_mode": "raw_logprobs",
    "logits_processors": None,
    "scheduler_cls": None,
}
"""Arguments that would part a text's prompts or change what is known of them, with the value that does not."""
NAMED = {"model": "model", "tokenizer": "model", "revision": "revision", "dtype": "dtype"}
"""Arguments that are options here, and recorded as such."""
REMEDY = "see {dtype}, {max_model_len}, {gpu_memory} and {engine_arg}"
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Settings of vLLM that have no arguments, unless the user sets them: threads on any core, and no chatter."""


def start_vllm(model: ModelRef, arguments: Mapping[str, object]) -> tuple[vllm.LLM, SpecialTokens]:
    """Return vLLM with the model and the plug-in, and the tokens that no text holds.

    Raises:
        ModelError: it cannot load the model.
        OptionError: its version was not tested, or an argument is refused.
    """
    version = [int(part) for part in vllm.__version__.split(".")[:2]]
    first, end = ([int(part) for part in each.split(".")] for each in TESTED)
    if not first <= version < end:
        problem = f"needs vllm from {TESTED[0]} up to, but not including, {TESTED[1]}; {vllm.__version__} is installed"
        raise OptionError(problem, "install another version", option="engine", value="vllm")
    known = [each.name for each in fields(EngineArgs)]
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}?" if close else "see the arguments of vLLM's engine"
            raise OptionError("vLLM has no such argument", remedy, option="engine_arg", value=name)
    for name, allowed in FORBIDDEN.items():
        if name in arguments and (allowed is None or arguments[name] != allowed):
            problem = f"{name}={arguments[name]} would part the prompts of a text, or hide what is read of them"
            raise OptionError(problem, "leave it out", option="engine_arg", value=name)
    if "hf_token" in arguments:
        problem, remedy = "would be recorded", "set the environment variable HF_TOKEN"
        raise OptionError(problem, remedy, option="engine_arg", value="hf_token")
    for name in NAMED.keys() & arguments:
        problem, remedy = f"{name} is an option of its own", f"give {option_given(NAMED[name], arguments[name])}"
        raise OptionError(problem, remedy, option="engine_arg", value=name)
    path = model.path("generator")
    if model.gguf:
        problem, remedy = "GGUF files are read by transformers alone", "give {engine=transformers}"
        raise OptionError(problem, remedy, option="model", value=model.name)
    check_files(path)
    check_is_whole_model(path)
    ours: dict[str, Any] = {
        "model": path,
        "revision": model.revision,
        "dtype": model.dtype or "auto",
        "quantization": {None: None, "4bit": "bitsandbytes"}.get(model.quantize, model.quantize),
        "trust_remote_code": model.trust_remote_code,
        "generation_config": "vllm",
        "async_scheduling": False,
        "scheduler_cls": f"{PLUGIN}.GroupScheduler",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **({} if torch.cuda.is_available() else _for_cpu(arguments)),
        **arguments,
    }
    defaults = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    try:
        with _isolated({**defaults, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}):
            config = EngineArgs(**ours).create_engine_config()
            if config.model_config.hf_config.is_encoder_decoder or config.model_config.runner_type != "generate":
                raise ModelError(f"{path}: is an encoder, or has one", "give a decoder-only model")
            special = SpecialTokens.of(config, config.model_config.get_vocab_size())
            return vllm.LLM(**ours, logits_processors=[f"{PLUGIN}:SelfDebias"]), special
    except ValidationError as error:  # its first line names a class of vLLM
        raise ModelError(f"{path}: vLLM cannot load it ({error.errors()[0]['msg']})", REMEDY) from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise load_error(path, error, "vLLM cannot load it", REMEDY) from error


def _for_cpu(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return what vLLM needs on a CPU: no compiler, and a cache of a quarter of the free memory."""
    if {"gpu_memory_utilization", "kv_cache_memory_bytes"} & set(arguments) or "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return {"enforce_eager": True}
    return {"enforce_eager": True, "kv_cache_memory_bytes": psutil.virtual_memory().available // 4}


@contextmanager
def _isolated(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and put them back; also the states of all random numbers, which vLLM seeds."""
    before = {name: os.environ.get(name) for name in environment}
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    os.environ.update(environment)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
