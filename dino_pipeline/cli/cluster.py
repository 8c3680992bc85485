"""Options of commands that can work on a Ray cluster, and who writes texts there."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.engines import SPEED, ChosenEngine, check_devices, tell_of_template
from dino_pipeline.cli.models import chosen_generator, generator_of, recorded
from dino_pipeline.errors import OptionError
from dino_pipeline.models import model_fingerprint, pick_device

if TYPE_CHECKING:
    from dino_pipeline.cluster import Staff, Surroundings
    from dino_pipeline.decoding.decoder import Decoder
    from dino_pipeline.generation.crew import Crew
    from dino_pipeline.processes import OpenPool
    from dino_pipeline.progress import Reporter

RAY = click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="auto",
    metavar="[ADDRESS]",
    help="Work on a Ray cluster: at ADDRESS, else at $RAY_ADDRESS, else on one that is started here (needs ray).",
)
STAFF = (
    RAY,
    click.option("--workers", type=click.IntRange(1), help="With --ray: how many at most.  [default: what it has]"),
    click.option("--worker-cpus", type=click.FloatRange(0, min_open=True), help="With --ray: of each.  [default: 1]"),
    click.option("--worker-gpus", type=click.FloatRange(0), help="With --ray: of each.  [default: 1, if it has any]"),
)


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connect to a cluster, and leave it in the end; one that was started here ends.

    Raises:
        OptionError: Ray is not installed, or there is no such cluster.
    """
    if Path(address).exists():
        raise OptionError(f"--ray {address}: was taken for a cluster's address; put --ray last, or write --ray=auto")
    from dino_pipeline.cluster import connect, leave

    connect(None if address == "auto" else address)
    try:
        yield
    finally:
        leave()


def staff_of(options: Mapping[str, Any]) -> Staff:
    """Return how many workers options ask for, and of what size; what they leave open is as the cluster is."""
    from dino_pipeline.cluster import Staff, resources

    cpus, gpus = resources()
    each_cpus, each_gpus = options["worker_cpus"] or 1.0, options["worker_gpus"]
    if each_gpus is None:
        each_gpus = 1.0 if gpus and options["device"] in (None, "cuda") else 0.0
    room = gpus / each_gpus if each_gpus else cpus / each_cpus
    return Staff(options["workers"] or max(1, int(room)), each_cpus, each_gpus)


def engine_there(options: Mapping[str, Any], begun: Mapping[str, Any], reporter: Reporter) -> ChosenEngine:
    """Return the model that runs on the cluster, as options name it and, where they leave it open, as a run began.

    In what dtype, and what is in its folder, is found out where it is to run: this machine may have neither GPU nor
    model.

    Raises:
        OptionError: options exclude each other.
    """
    from dino_pipeline.cluster import Surroundings
    from dino_pipeline.generation.crew import Crew

    check_devices(options)
    staff = staff_of(options)
    device = options["device"] or ("cuda" if staff.gpus else "cpu")
    crew = Crew(staff, reporter)
    record = crew.ask(_found, dict(options), dict(begun), device, Surroundings.here())
    tell_of_template(record, options, reporter)
    speed = {name: options[name] for name in SPEED}
    settings = {"device": device, **speed, "ray": True, "workers": staff.workers}

    def hands() -> Crew:
        if not crew.load:  # rounds of --until-target share it
            each = {"device": device, **speed}
            crew.begin(functools.partial(_load, record, each, Surroundings.here()), record["fingerprint"])
        return crew

    return ChosenEngine(record, settings, hands)


def spread_of(options: Mapping[str, Any], folder: Path) -> OpenPool:
    """Return what spreads work on texts in a folder over the cluster."""
    from dino_pipeline.cluster import Doers

    return Doers(staff_of({**options, "worker_cpus": None, "worker_gpus": 0.0}), folder).spread


def _found(options: Mapping[str, Any], begun: Mapping[str, Any], device: str, there: Surroundings) -> dict[str, Any]:
    """Return what run.json holds of a generator, as it is on this machine."""
    there.enter()
    return recorded(chosen_generator(options, begun, pick_device(device)))


def _load(record: Mapping[str, Any], how: Mapping[str, Any], there: Surroundings) -> tuple[Decoder, str | None]:
    """Load a generator on a worker, and return it with its fingerprint there."""
    from dino_pipeline.decoding.loading import load_decoder

    there.enter()
    generator = generator_of(record)
    return load_decoder(generator, **how), model_fingerprint(generator.path("generator"))
