"""The options of everything that writes texts: the model, the texts, the preview."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from dino_pipeline.errors import OptionError
from dino_pipeline.models import POCKET, Quantization
from dino_pipeline.options import ColumnNames, Flag, Options, RunFolder, Sampling, default_of

MODEL, SPEED, ENGINE = "The model", "Speed", "What runs the model"
EngineName = Literal["transformers", "vllm", "openai"]
ENGINES = "transformers: this package's own decoder. vllm: vLLM in this process, for large models and many GPUs."
SPEED_OPTIONS = ("tensor_parallel", "max_model_len", "gpu_memory")
"""Options of vLLM that do not change the texts."""
SPEED_ARGUMENTS = (
    *("max_num_batched_tokens", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size", "enforce_eager"),
    *("enable_prefix_caching", "enable_chunked_prefill", "swap_space", "cpu_offload_gb", "download_dir"),
)
"""Arguments of vLLM's engine that do not, either. A run may go on with others."""


class ModelOptions(Options):
    """Options of everything that runs a language model on this machine or on a cluster of one's own."""

    model: Annotated[str, Flag(MODEL, metavar="MODEL")] = Field(
        POCKET, min_length=1, description="Folder or Hub id of a language model."
    )
    revision: Annotated[str | None, Flag(MODEL, metavar="REVISION")] = Field(
        None, description="The model's revision on the Hub."
    )
    chat: Annotated[Literal["auto", "on", "off"], Flag(MODEL)] = Field(
        "auto", description="Put prompts into the model's chat template, with the answer begun; auto: if it has one."
    )
    chat_date: Annotated[date | None, Flag(MODEL, metavar="YYYY-MM-DD", default="the day on which a run began")] = (
        Field(None, description="The day that the chat template takes for today, if it prints one.")
    )
    adapter: Annotated[str | None, Flag(MODEL, metavar="MODEL")] = Field(
        None, description="Folder or Hub id of a LoRA adapter for the model (needs peft)."
    )
    quantize: Annotated[Quantization | None, Flag(MODEL)] = Field(
        None, description="Load the weights in this format: 8bit or 4bit (needs bitsandbytes); with vLLM fp8 or 4bit."
    )
    trust_remote_code: Annotated[bool, Flag(MODEL)] = Field(False, description="Run code that comes with the model.")
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(MODEL)] = Field(
        "auto",
        description="auto: bfloat16 if a measurement says that it is faster. A run keeps the dtype it started with.",
    )
    rows: Annotated[int | None, Flag(SPEED, metavar="auto|N", data=False, default="auto")] = Field(
        None, ge=1, description="Prompts that run at the same time; auto: as many as fit, 128 at most, on a GPU 1024."
    )
    device: Annotated[str | None, Flag(SPEED, metavar="DEVICE", data=False, default="a GPU if there is one")] = Field(
        None, description="cpu, cuda, cuda:1, ..."
    )
    device_map: Annotated[
        Literal["auto", "balanced", "balanced_low_0", "sequential"] | None, Flag(SPEED, data=False)
    ] = Field(None, description="Spread a model that one device does not hold over all devices.")

    @field_validator("rows", mode="before")
    @classmethod
    def _auto_rows(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _one_placement(self) -> Self:
        if self.device and self.device_map:
            raise OptionError(
                f"cannot be combined with the device map {self.device_map}",
                "leave out {device} or {device_map}",
                option="device",
                value=self.device,
            )
        return self


class EngineOptions(ModelOptions):
    """Options of everything that chooses what runs the model."""

    engine: Annotated[Literal["transformers", "vllm"], Flag(ENGINE)] = Field("transformers", description=ENGINES)
    tensor_parallel: Annotated[int | None, Flag(ENGINE, data=False, default="1")] = Field(
        None, ge=1, description="GPUs that share each layer of the model in vLLM."
    )
    max_model_len: Annotated[int | None, Flag(ENGINE, data=False, metavar="TOKENS", default="the model's")] = Field(
        None, ge=1, description="Longest prompt with its text that vLLM has room for."
    )
    gpu_memory: Annotated[float | None, Flag(ENGINE, data=False, metavar="SHARE", default="vLLM's")] = Field(
        None, gt=0, le=1, description="Share of the GPU's memory that vLLM takes, on a CPU of the machine's."
    )
    engine_arg: Annotated[dict[str, JsonValue], Flag(ENGINE, metavar="NAME=VALUE")] = Field(
        default_factory=dict, description="Any other argument of vLLM's engine, by vLLM's name."
    )

    @field_validator("engine_arg")
    @classmethod
    def _values(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Read strings as JSON where they are JSON: ``8192`` is a number, and ``fp8`` a string."""
        return {name: _json_value(given) for name, given in value.items()}

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.engine == "vllm":
            self._refuse_foreign(("device", "device_map", "adapter"), "transformers")
        else:
            self._refuse_foreign((*SPEED_OPTIONS, "engine_arg"), "vllm")
        if self.quantize == ("8bit" if self.engine == "vllm" else "fp8"):
            remedy = "give {quantize=fp8}" if self.engine == "vllm" else "give {quantize=8bit} or {engine=vllm}"
            problem = f"the engine {self.engine} cannot"
            raise OptionError(problem, remedy, option="quantize", value=self.quantize)
        return self

    def _refuse_foreign(self, names: tuple[str, ...], engine: str) -> None:
        for name in names:
            if name in self.model_fields_set and getattr(self, name) != default_of(type(self).model_fields[name]):
                raise OptionError(
                    f"belongs to the engine {engine}", f"leave it out, or give {{engine={engine}}}", option=name
                )


WRITTEN_INPUTS = 500
"""Inputs to write if neither a file nor the user says how many."""
Debiasing = Literal["plugin", "rejection"]
"""How a server's texts are debiased."""
INPUTS, SAMPLING, REJECTED = "Inputs and texts", "Sampling", "What is rejected"
ENOUGH, SERVER, CLUSTER = "Until there is enough", "A server instead, and the best of several", "Beyond one machine"
LOCAL_OPTIONS = (*(name for name in ModelOptions.model_fields if name not in ("model", "device")),)
"""Options of a model that runs here. With a server, only its scorer has a device."""
SERVER_OPTIONS = ("base_url", "debias", "concurrency", "timeout", "prices", "scorer")
WORKER_OPTIONS = ("workers", "worker_cpus", "worker_gpus")


def _spec_default(name: str) -> Any:
    """Return an optional field with the help and the bounds of one of `Sampling`; None takes the spec's value."""
    field = Sampling.model_fields[name]
    bounds: dict[str, Any] = {}
    for limit in field.metadata:
        bounds |= asdict(limit)
    return Field(None, description=field.description, **bounds)


def _else(name: str) -> Flag:
    return Flag(SAMPLING, default=f"the spec's, else {Sampling.model_fields[name].default:g}")


class InputOptions(Options):
    """Where to write, and which inputs to write about."""

    run: Annotated[RunFolder, Flag(metavar="FOLDER", data=False, default="outputs/SPEC")] = Field(
        None, description="Folder of the run."
    )
    inputs: Annotated[Any, Flag(INPUTS, metavar="FILE", data=False)] = Field(
        None,
        description="File or dataset of texts for <X1>, instead of writing them; from Python also a list.",
    )
    input_format: Annotated[Literal["auto", "text", "jsonl", "sts"], Flag(INPUTS, data=False)] = Field(
        "auto",
        description="Format of the file: a text per line, JSON, or tab-separated pairs of sentences; auto: by its "
        "ending, tables and datasets too.",
    )
    column: Annotated[ColumnNames, Flag(INPUTS, metavar="text_a=NAME", data=False)] = Field(
        default_factory=dict, description="Column of the texts, where its name does not say."
    )


class SamplingOptions(Options):
    """Options of sampling; None leaves a value to the spec."""

    top_k: Annotated[int | None, _else("top_k")] = _spec_default("top_k")
    top_p: Annotated[float | None, _else("top_p")] = _spec_default("top_p")
    decay: Annotated[float | None, _else("decay")] = _spec_default("decay")
    floor: Annotated[float | None, _else("floor")] = _spec_default("floor")
    max_new_tokens: Annotated[int | None, _else("max_new_tokens")] = _spec_default("max_new_tokens")


class TextSettings(Options):
    """The number of texts to write, and the rules that reject some of them."""

    num_inputs: Annotated[int | None, Flag(INPUTS, default=f"all that are given, else {WRITTEN_INPUTS}")] = Field(
        None, ge=1, description="Number of inputs."
    )
    samples: Annotated[int, Flag(INPUTS)] = Field(5, ge=1, description="Texts per input and label, or per label.")
    seed: Annotated[int, Flag(SAMPLING)] = Field(42, description="Seed of all random choices.")
    keep_unfinished: Annotated[bool, Flag(REJECTED)] = Field(
        False, description="Keep texts without the closing stop string."
    )
    keep_newlines: Annotated[bool, Flag(REJECTED)] = Field(False, description="Let texts hold newlines.")
    min_words: Annotated[int, Flag(REJECTED)] = Field(0, ge=0, description="Reject texts of fewer words.")
    min_tokens: Annotated[int, Flag(REJECTED)] = Field(0, ge=0, description="Reject texts of fewer tokens.")


class ShardSettings(Options):
    """The number of candidates per text, and of texts per file."""

    best_of: Annotated[int, Flag(SERVER, metavar="N")] = Field(
        1,
        ge=1,
        description="Write N candidates for each text whose label has counter-labels, and keep the one of the best "
        "margin.",
    )
    shard_size: Annotated[int, Flag(CLUSTER, metavar="TEXTS")] = Field(
        1024,
        ge=1,
        description="Texts per shard. A worker writes one shard at a time, and loses at most that one if it is killed.",
    )


class PreviewOptions(EngineOptions, TextSettings, SamplingOptions, InputOptions):
    """The options of a preview."""

    texts: Annotated[int, Flag(data=False)] = Field(3, ge=1, description="Texts of each label to show.")


class GenerateOptions(ShardSettings, EngineOptions, TextSettings, SamplingOptions, InputOptions):
    """The options of the generate stage."""

    fresh: Annotated[bool, Flag(data=False)] = Field(
        False, description="Delete what the run has generated, and start over."
    )
    until_target: Annotated[int | None, Flag(ENOUGH, metavar="N", data=False)] = Field(
        None,
        ge=1,
        description="Generate and filter in turn until the filter keeps N pairs of each label; then keep exactly N.",
    )
    budget: Annotated[int | None, Flag(ENOUGH, metavar="TEXTS", data=False, default="20 N per label")] = Field(
        None, ge=1, description="Most texts to write until there is enough."
    )
    more: Annotated[tuple[tuple[str, int], ...], Flag(ENOUGH, metavar="LABEL=N", data=False)] = Field(
        (),
        description="Write N extra texts per input for LABEL. Repeat the extra texts of earlier calls in later ones.",
    )
    engine: Annotated[EngineName, Flag(ENGINE)] = Field(  # type: ignore[assignment]
        "transformers",
        description=f"{ENGINES} openai: a server of completions (vLLM, SGLang, llama.cpp, TGI).",
    )
    base_url: Annotated[str | None, Flag(SERVER, metavar="URL", data=False)] = Field(
        None, description="The server's address, such as http://localhost:8000/v1; its key is OPENAI_API_KEY."
    )
    debias: Annotated[Literal["auto", "rejection", "off"], Flag(SERVER)] = Field(
        "auto",
        description="How a server's texts are debiased; auto: by the plug-in, if a vLLM server has it; rejection: by "
        "rejecting tokens of proposed texts, exactly, in many requests to a vLLM server. A run goes on as it began.",
    )
    concurrency: Annotated[int, Flag(SERVER, data=False)] = Field(
        16, ge=1, description="Texts that the server is asked for at the same time."
    )
    timeout: Annotated[float, Flag(SERVER, metavar="SECONDS", data=False)] = Field(
        600.0, gt=0, description="Longest time that a request may take."
    )
    prices: Annotated[tuple[float, float] | None, Flag(SERVER, metavar="IN OUT", data=False)] = Field(
        None, description="Dollars per million tokens, to add up the costs."
    )
    scorer: Annotated[str | None, Flag(SERVER, metavar="MODEL|server")] = Field(
        None,
        description="Measures the margins of a server's texts: a model that runs here, or the server if it can echo.",
    )
    ray: Annotated[str | None, Flag(CLUSTER, metavar="[ADDRESS]", data=False, optional_value="auto")] = Field(
        None,
        description="Work on a Ray cluster: at ADDRESS, else at $RAY_ADDRESS, else on one that is started here (needs "
        "ray).",
    )
    workers: Annotated[int | None, Flag(CLUSTER, data=False, default="what the cluster has")] = Field(
        None, ge=1, description="Most workers on the cluster."
    )
    worker_cpus: Annotated[float | None, Flag(CLUSTER, data=False, default="1")] = Field(
        None, gt=0, description="CPUs per worker."
    )
    worker_gpus: Annotated[float | None, Flag(CLUSTER, data=False, default="1, if the cluster has any")] = Field(
        None, ge=0, description="GPUs per worker."
    )
    storage: Annotated[str | None, Flag(CLUSTER, metavar="URL", data=False)] = Field(
        None, description="Store the texts there as well, and fetch from there what is finished."
    )

    @field_validator("more", mode="before")
    @classmethod
    def _label_counts(cls, value: Any) -> Any:
        """Take a mapping, pairs, ``LABEL=N`` strings, or one such string."""
        items = value.items() if isinstance(value, Mapping) else value
        if isinstance(items, str):
            items = (items,)
        if not hasattr(items, "__iter__"):
            raise ValueError("must give a number of texts for each label")
        return tuple(_label_count(item) for item in items)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.budget and not self.until_target:
            raise OptionError(
                "has no meaning without a target",
                "give {until_target} as well, or leave it out",
                option="budget",
                value=self.budget,
            )
        if self.more and self.until_target:
            raise OptionError("cannot be combined with a target", "leave out {more} or {until_target}", option="more")
        if self.engine == "openai":
            self._check_server()
        else:
            self._refuse_foreign(SERVER_OPTIONS, "openai")
        if self.ray is None:
            for name in WORKER_OPTIONS:
                if getattr(self, name) is not None:
                    raise OptionError(
                        "has no meaning without a cluster", "give {ray} as well, or leave it out", option=name
                    )
        return self

    def _check_server(self) -> None:
        self._refuse_foreign(LOCAL_OPTIONS, "transformers")
        if self.ray is not None:
            raise OptionError(
                "a cluster runs models of its own, not a server",
                "leave it out; {concurrency} sends more requests at the same time",
                option="ray",
            )
        if not self.base_url:
            remedy = "give {base_url=http://localhost:8000/v1}"
            raise OptionError("needs the server's address", remedy, option="engine", value="openai")
        if self.debias == "off":
            self.check_undebiased()
        if self.debias == "rejection" and self.decay == 0:
            raise OptionError(
                "rejects nothing with a decay of 0",
                "leave out {decay}, or give {debias=off}",
                option="debias",
                value=self.debias,
            )
        if self.device and self.scorer in (None, "server"):
            raise OptionError("belongs to a model that runs here", "leave it out", option="device", value=self.device)

    def check_undebiased(self) -> None:
        """Raise `OptionError` if an option has no meaning for a server whose texts are not debiased."""
        for name in ("decay", "floor"):
            if getattr(self, name):
                raise OptionError(
                    "the server's texts are not debiased", "leave it out, or give {debias=rejection}", option=name
                )
        if self.best_of > 1 and not self.scorer:
            raise OptionError(
                "needs a scorer, because a server reports no margins",
                "give {scorer=MODEL} or {scorer=server}",
                option="best_of",
                value=self.best_of,
            )


def _json_value(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _label_count(item: Any) -> tuple[str, int]:
    """Return the label and the number of ``LABEL=N`` or of a pair.

    Raises:
        OptionError: it is neither, or the number is not a whole one above 0.
    """
    is_pair = not isinstance(item, str) and hasattr(item, "__len__") and len(item) == 2
    label, number = item if is_pair else str(item).rpartition("=")[::2]
    if not label or isinstance(number, bool) or not str(number).isdecimal() or int(number) < 1:
        raise OptionError("is not LABEL=N with N of 1 or more", option="more", value=f"{label}={number}")
    return str(label), int(number)
