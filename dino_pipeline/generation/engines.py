"""Which engine writes the texts: a model on this machine, the same on a Ray cluster, or a server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from dino_pipeline.cluster import choose_resources
from dino_pipeline.decoding.engine import LocalEngine, Scorer
from dino_pipeline.decoding.loading import load_decoder, load_engine, resolve_model
from dino_pipeline.decoding.received_texts import ReceivedTexts
from dino_pipeline.errors import ModelError, require_package
from dino_pipeline.generate_options import SPEED_OPTIONS, Debiasing, EngineOptions, GenerateOptions, ModelOptions
from dino_pipeline.generation.plan import needs_debiasing
from dino_pipeline.generation.ray_writer import RayShardWriter
from dino_pipeline.generation.shard_writer import EngineWriter, ShardWriter
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.models import ModelRef, model_path, pick_device
from dino_pipeline.progress import Reporter, doing
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import GenerateRecord, ServerPrices

if TYPE_CHECKING:
    from dino_pipeline.decoding.server import Server


class LazyWriter:
    """Loads a writer when it is first asked for. Further calls return the same one."""

    def __init__(self, load: Callable[[], ShardWriter]) -> None:
        self._load = load
        self._writer: ShardWriter | None = None

    def __call__(self) -> ShardWriter:
        if self._writer is None:
            self._writer = self._load()
        return self._writer

    def close(self) -> None:
        """Free the memory of the engine, if it was loaded."""
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True)
class EngineChoice:
    """An engine that options name, before it is loaded."""

    model: ModelRef
    load_writer: LazyWriter
    """Loads the model, and returns what writes shards with it."""
    speed: dict[str, JsonValue]
    """Settings that do not change the texts, for the record."""
    scorer: ModelRef | Literal["server"] | None = None
    debias: Debiasing | None = None
    """How a server's texts are debiased."""


def choose_engine(
    options: GenerateOptions,
    spec: TaskSpec,
    before: GenerateRecord | None,
    reporter: Reporter,
    received: Path | None = None,
) -> EngineChoice:
    """Return the engine that options name.

    Args:
        options: of the generate stage. With ``ray``, the cluster must be connected.
        spec: the instructions.
        before: record of the run that continues. It decides what the options leave open, such as the dtype.
        reporter: gets notes.
        received: file in which texts are kept until a shard holds them; None keeps none.

    Raises:
        OptionError: an option does not fit this machine, or a package is not installed.
        ModelError: the run started with a model that is missing.
    """
    if options.engine == "openai":
        return _server_engine(options, spec, before, reporter, received)
    started = before.options.model if before else None
    if options.ray is not None:
        return _cluster_engine(options, started, reporter)
    return local_engine(options, started, reporter, received)


def local_engine(
    options: EngineOptions, started: ModelRef | None, reporter: Reporter, received: Path | None = None
) -> EngineChoice:
    """Return the model that options name, to be run on this machine.

    Args:
        options: of the engine.
        started: the model of the run that continues.
        reporter: gets notes.
        received: file in which a stop keeps the texts of shards under way; None keeps none.
    """
    device = pick_device(options.device)
    with doing(reporter, f"looking at {options.model}"):
        model = resolve_model(options, device, started)
    _note_template(model, options, reporter)

    def load() -> EngineWriter:
        if options.engine == "vllm":
            reporter.note("vLLM is starting, which takes half a minute and more")
        with doing(reporter, f"loading and checking {options.model}"):
            engine = load_engine(model, options, device)
        return EngineWriter(engine, received=None if received is None else ReceivedTexts(received), local=engine)

    return EngineChoice(model, LazyWriter(load), _local_speed(options, device))


def _local_speed(options: EngineOptions, device: str) -> dict[str, JsonValue]:
    names = ("rows", *((*SPEED_OPTIONS, "engine_arg") if options.engine == "vllm" else ("device_map",)))
    return {"device": device, **{name: getattr(options, name) for name in names}}


def _note_template(model: ModelRef, options: ModelOptions, reporter: Reporter) -> None:
    """Note that prompts go into a chat template, unless the user asked for it."""
    if model.chat and options.chat == "auto":
        reporter.note("prompts go into the model's chat template", "{chat=off} leaves them as they are")


def _cluster_engine(options: GenerateOptions, started: ModelRef | None, reporter: Reporter) -> EngineChoice:
    """Return the model that options name, to be run on the connected cluster.

    A worker decides its dtype and its fingerprint: this machine may have neither the GPU nor the model.
    """
    use_gpus = options.device in (None, "cuda")
    gpus = options.tensor_parallel if options.worker_gpus is None else options.worker_gpus
    resources = choose_resources(options.workers, options.worker_cpus, gpus, use_gpus=use_gpus)
    device = options.device or ("cuda" if resources.gpus else "cpu")
    writer = RayShardWriter(resources, reporter)
    own_options = EngineOptions.of({name: getattr(options, name) for name in options.model_fields_set & _ENGINE})
    model: ModelRef = writer.run_on_worker(_resolve_on_worker, own_options, device, started)
    _note_template(model, options, reporter)

    def load() -> RayShardWriter:
        writer.load_model(functools.partial(_load_on_worker, model, device, own_options), model.fingerprint)
        return writer

    speed = {**_local_speed(options, device), "ray": True, "workers": resources.workers}
    return EngineChoice(model, LazyWriter(load), speed)


_ENGINE = set(EngineOptions.model_fields)


def _resolve_on_worker(options: ModelOptions, device: str, started: ModelRef | None) -> ModelRef:
    return resolve_model(options, pick_device(device), started)


def _load_on_worker(model: ModelRef, device: str, options: EngineOptions) -> tuple[LocalEngine, str | None]:
    """Return the loaded model, with the fingerprint that it has on this machine."""
    return load_engine(model, options, device), model_fingerprint(model_path(model.name, "generator"))


def _server_engine(
    options: GenerateOptions, spec: TaskSpec, before: GenerateRecord | None, reporter: Reporter, received: Path | None
) -> EngineChoice:
    """Return the server that options name, with the scorer of its texts."""
    require_package("aiohttp", "engine", "openai", extra="openai")
    from dino_pipeline.decoding.completions import public_address
    from dino_pipeline.decoding.server import Server
    from dino_pipeline.decoding.server_debias import START_PLUGIN

    base_url = options.base_url or ""  # the options check that there is one
    speed: dict[str, JsonValue] = {"base_url": public_address(base_url)}
    speed |= {name: getattr(options, name) for name in ("concurrency", "timeout")}

    @functools.cache
    def load_server() -> Server:
        prices = before.cost.dollars_a_million_tokens if before and before.cost else ServerPrices()
        if options.prices:
            prices = ServerPrices(prompt=options.prices[0], completion=options.prices[1])
        return Server(
            options.model,
            base_url,
            reporter.note,
            concurrency=options.concurrency,
            timeout=options.timeout,
            prices=prices,
            usage=before.usage if before else None,
            debiasing=before.debiasing if before else None,
            received=None if received is None else ReceivedTexts(received),
        )

    scorer, load_scorer = _server_scorer(options, before, load_server)
    if isinstance(scorer, ModelRef):
        speed["device"] = pick_device(options.device)
    debias = _debiasing(options, spec, before, load_server)

    def load() -> EngineWriter:
        server = load_server()
        server.debias = debias
        if debias is None and options.debias == "auto" and needs_debiasing(options, spec):
            _note_undebiased(options, reporter)
        if debias == "plugin" and before and not server.has_plugin():
            raise ModelError(
                f"{server.base_url}: lacks the plug-in, which debiased the texts that the run has",
                f"{START_PLUGIN}, or start over with {{fresh=True}}",
            )
        return EngineWriter(server, load_scorer, server.received)

    return EngineChoice(ModelRef(name=options.model), LazyWriter(load), speed, scorer, debias)


def _server_scorer(
    options: GenerateOptions, before: GenerateRecord | None, load_server: Callable[[], Server]
) -> tuple[ModelRef | Literal["server"] | None, Callable[[], Scorer] | None]:
    """Return what scores a server's texts, and what loads it; nothing if options name no scorer."""
    if options.scorer is None:
        return None, None
    if options.scorer == "server":

        def ask_server() -> Scorer:
            server = load_server()
            server.check_scores()  # before anything is paid for
            return server

        return "server", ask_server
    device = pick_device(options.device)
    recorded = before.options.scorer if before else None
    started = recorded if isinstance(recorded, ModelRef) else None
    model = resolve_model(ModelOptions.of({"model": options.scorer}), device, started)

    @functools.cache
    def load() -> Scorer:
        return load_decoder(model, device=device)

    return model, load


def _debiasing(
    options: GenerateOptions, spec: TaskSpec, before: GenerateRecord | None, load_server: Callable[[], Server]
) -> Debiasing | None:
    """Return how a server's texts are debiased: as the options say, as the run began, or as the server can.

    Raises:
        OptionError: they are not, and an option has no meaning without.
    """
    if options.debias == "rejection":
        return "rejection"
    if options.debias == "auto":
        if before and before.options.engine == "openai":
            if before.options.debias:
                return before.options.debias
        elif needs_debiasing(options, spec) and load_server().has_plugin():
            return "plugin"
    options.check_undebiased()
    return None


def _note_undebiased(options: GenerateOptions, reporter: Reporter) -> None:
    """Note that a server's texts are not debiased, with what would contrast them."""
    from dino_pipeline.decoding.server_debias import START_PLUGIN

    others = "" if options.best_of > 1 else "; {best_of=4} {scorer=MODEL} keeps the most contrasting of four"
    reporter.note(
        "the server does not debias: each text is written under its own instruction alone",
        f"{START_PLUGIN}, or give {{debias=rejection}}{others}",
    )
