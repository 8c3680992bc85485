"""Which engine writes the texts: a model that runs here, or a server that is asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import given_parameters, options_of, under
from dino_pipeline.cli.models import GENERATOR, MODEL, chosen_generator, recorded
from dino_pipeline.console import Console
from dino_pipeline.errors import OptionError, require_package
from dino_pipeline.models import pick_device

if TYPE_CHECKING:
    from dino_pipeline.decoding.engine import Scorer
    from dino_pipeline.decoding.server import Server
    from dino_pipeline.generation.writer import Hands, OneEngine
    from dino_pipeline.progress import Reporter
    from dino_pipeline.run import Run


class Rows(click.ParamType[int | None]):
    """A whole number, or "auto", which becomes None."""

    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        return None if value == "auto" else click.IntRange(1).convert(value, param, ctx)


HERE = (
    under("The model"),
    *MODEL,
    under("Speed"),
    click.option(
        "--rows",
        type=Rows(),
        default="auto",
        show_default=True,
        help="Prompts side by side; auto: what free memory holds, 128 at most, on a GPU 1024.",
    ),
    click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]"),
    click.option(
        "--device-map",
        type=click.Choice(["auto", "balanced", "balanced_low_0", "sequential"]),
        help="Spread a model that one card does not hold over all, instead of --device.",
    ),
)
SERVED = (
    under("A server instead, and the best of several"),
    click.option(
        "--engine",
        type=click.Choice(["transformers", "openai"]),
        default="transformers",
        show_default=True,
        help="openai: ask a server that speaks its completions (vLLM, SGLang, llama.cpp, TGI); it cannot debias.",
    ),
    click.option("--base-url", metavar="URL", help="The server's, e.g. http://localhost:8000/v1; key: OPENAI_API_KEY."),
    click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Requests at once."),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=600.0,
        show_default=True,
        help="Seconds that a request may take.",
    ),
    click.option("--prices", type=(float, float), metavar="IN OUT", help="Dollars a million tokens, to sum up costs."),
    click.option(
        "--best-of",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Write N texts for one, where there are counter-labels, and keep that of the best margin.",
    ),
    click.option(
        "--scorer",
        metavar="MODEL|server",
        help="Who tells the margins of a server's texts: a model that runs here, or the server, if it echoes.",
    ),
)
SPEED = ("device_map", "rows")
"""What only makes a model faster, as `load_decoder` names it."""
OF_HERE = (*GENERATOR, *SPEED)
OF_SERVER = ("base_url", "concurrency", "timeout", "prices", "scorer")

here_options = options_of(HERE)
"""Gives a command the options that name a model which runs here."""
engine_options = options_of((*HERE, *SERVED))
"""Gives a command the options that name an engine."""


@dataclass(frozen=True)
class ChosenEngine:
    """An engine as the command line names it."""

    record: dict[str, Any]
    """What decides the texts, for run.json."""
    settings: dict[str, Any]
    """What does not."""
    hands: Callable[[], Hands]
    """Makes ready who writes with it."""
    debiases: bool = True


OwnEngine = Callable[[Mapping[str, Any], Mapping[str, Any], Console], ChosenEngine]


def chosen_engine(run: Run, options: Mapping[str, Any], console: Console, own: OwnEngine) -> ChosenEngine:
    """Return the engine that options name.

    Args:
        run: as which they leave open what it began with.
        options: of the command.
        console: is told what a user should know at once.
        own: returns a model that runs here or on a cluster.
    """
    before = {} if options["fresh"] else run.stage("generate")
    if options["engine"] == "openai":
        return _served(options, before, console)
    return own(options, before.get("options", {}), console)


def check_engine(options: Mapping[str, Any]) -> None:
    """Raise `OptionError` where an option belongs to another engine, or is missing."""
    foreign, engine = (OF_SERVER, "openai") if options["engine"] == "transformers" else (OF_HERE, "transformers")
    for option in given_parameters():
        if option.name in foreign:
            raise OptionError(f"{option.opts[0]} belongs to --engine {engine}; leave it out")
    if options["engine"] == "openai":
        if not options["base_url"]:
            raise OptionError("--engine openai needs --base-url, the server's address, e.g. http://localhost:8000/v1")
        for name in ("decay", "floor"):
            if options[name]:
                raise OptionError(f"--{name}: a server cannot debias; leave it out, and see --best-of")
        if options["best_of"] > 1 and not options["scorer"]:
            raise OptionError("--best-of needs --scorer with a server: a model that tells margins, or server")
        if options["device"] and options["scorer"] in (None, "server"):
            raise OptionError("--device belongs to a model that runs here; leave it out")


def check_devices(options: Mapping[str, Any]) -> None:
    """Raise `OptionError` where options for a model that runs on our own machines exclude each other."""
    if options["device"] and options["device_map"]:
        raise OptionError("--device and --device-map exclude each other; leave one out")


def engine_here(options: Mapping[str, Any], begun: Mapping[str, Any], console: Console) -> ChosenEngine:
    """Return the model that runs here, as options name it and, where they leave it open, as a run began.

    Raises:
        OptionError: options exclude each other.
    """
    check_devices(options)
    device = pick_device(options["device"])
    generator = chosen_generator(options, begun, device)
    record = recorded(generator)
    tell_of_template(record, options, console)
    speed = {name: options[name] for name in SPEED}

    loaded: list[OneEngine] = []  # rounds of --until-target share it

    def hands() -> OneEngine:
        from dino_pipeline.decoding.loading import load_decoder
        from dino_pipeline.generation.writer import OneEngine

        if not loaded:
            loaded.append(OneEngine(load_decoder(generator, device=device, **speed)))
        return loaded[0]

    return ChosenEngine(record, {"device": device, **speed}, hands)


def tell_of_template(record: Mapping[str, Any], options: Mapping[str, Any], reporter: Reporter) -> None:
    """Say that prompts go into a template, where nobody asked for that."""
    if record.get("chat") == "on" and options["chat"] == "auto":
        reporter.note("prompts go into the model's chat template (--chat off: as they are)")


def _served(options: Mapping[str, Any], before: Mapping[str, Any], console: Console) -> ChosenEngine:
    nowhere = dict.fromkeys(("revision", "fingerprint", "dtype"))
    record: dict[str, Any] = {"model": options["model"], **nowhere, "engine": "openai"}
    asked = {name: options[name] for name in ("base_url", "concurrency", "timeout")}
    settings = dict(asked)

    @functools.cache
    def server() -> Server:
        require_package("openai", "engine", "openai")
        from dino_pipeline.decoding.server import Server
        from dino_pipeline.stage_records import ServerPrices, ServerUsage

        console.note(
            "a server cannot debias: each text is written under its own instruction alone"
            + ("" if options["best_of"] > 1 else "; --best-of 4 --scorer MODEL keeps the most contrasting of four")
        )
        known = before.get("cost", {}).get("dollars_a_million_tokens", {})
        if options["prices"]:
            known = dict(zip(("prompt", "completion"), options["prices"], strict=True))
        prices, usage = ServerPrices(**known), ServerUsage(**before.get("usage", {}))
        return Server(options["model"], note=console.note, prices=prices, usage=usage, **asked)

    scorer: Callable[[], Scorer] | None = None
    if options["scorer"] == "server":
        record["scorer"] = "server"

        def scorer() -> Scorer:
            server().score([("Sentence 1: ", "A dog runs.")])  # whether it can, before anything is paid for
            return server()

    elif options["scorer"]:
        device, begun = pick_device(options["device"]), before.get("options", {}).get("scorer")
        named = {**options, "model": options["scorer"]}
        generator = chosen_generator(named, begun if isinstance(begun, dict) else {}, device)
        record["scorer"] = recorded(generator)
        settings["device"] = device

        @functools.cache
        def scorer() -> Scorer:
            from dino_pipeline.decoding.loading import load_decoder

            return load_decoder(generator, device=device)

    def hands() -> Hands:
        from dino_pipeline.generation.writer import OneEngine

        return OneEngine(server(), scorer)

    return ChosenEngine(record, settings, hands, debiases=False)
