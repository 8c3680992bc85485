"""dino generate: write texts for every input and label of a task spec."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import FOLDER, Grouped, command, options_of, or_dash, under, watching
from dino_pipeline.cli.cluster import STAFF, cluster, engine_there
from dino_pipeline.cli.engines import ChosenEngine, check_engine, chosen_engine, engine_here, engine_options
from dino_pipeline.cli.spec_commands import SpecFile
from dino_pipeline.cli.texts import text_options, text_settings
from dino_pipeline.console import Console, table
from dino_pipeline.errors import OptionError, RunError

if TYPE_CHECKING:
    from dino_pipeline.filtering.filter_pass import FilterRuntime
    from dino_pipeline.generation.plan import GenerateOptions, More
    from dino_pipeline.generation.storage import Storage
    from dino_pipeline.generation.until import Tally
    from dino_pipeline.generation.writer import Hands
    from dino_pipeline.readers import InputFile
    from dino_pipeline.run import Run
    from dino_pipeline.spec import TaskSpec


class Further(click.ParamType[tuple[str, int]]):
    """A label and how many texts."""

    name = "LABEL=N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        label, _, number = str(value).rpartition("=")
        if not label or not number.isdecimal() or int(number) < 1:
            self.fail(f"{value!r} is not LABEL=N with N of 1 or more.", param, ctx)
        return label, int(number)


@click.command(cls=Grouped)
@click.argument("spec_file", metavar="SPEC", type=SpecFile())
@click.option("--run", "run_path", type=FOLDER, help="Folder to write.  [default: outputs/SPEC]")
@click.option("--fresh", is_flag=True, help="Delete what the run has generated and start over.")
@text_options
@under("Until there is enough")
@click.option(
    "--until-target",
    "target",
    type=click.IntRange(1),
    metavar="N",
    help="Generate and filter in turn until the filter keeps N pairs of each label; then exactly N.",
)
@click.option(
    "--budget",
    type=click.IntRange(1),
    metavar="TEXTS",
    help="With --until-target: write no more.  [default: 20 N a label]",
)
@click.option(
    "--more",
    "further",
    type=Further(),
    multiple=True,
    metavar="LABEL=N",
    help="After all else, write N further texts of a label per input; of what was asked for so before, say all again.",
)
@engine_options
@under("Beyond one machine")
@options_of(STAFF)
@click.option("--storage", metavar="URL", help="Keep the texts there, too, and take from there what is finished.")
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    metavar="TEXTS",
    help="Texts of a shard, which is what a worker takes at a time, and loses if it is killed.",
)
@command
def generate(spec_file: Path, run_path: Path | None, **options: Any) -> None:
    """Write texts for every input and label of a task SPEC; goes on where an earlier call was stopped."""
    from dino_pipeline.generation.generate import forget_unwritten
    from dino_pipeline.generation.storage import Storage
    from dino_pipeline.run import Run
    from dino_pipeline.spec_file import load_spec

    spec = load_spec(spec_file)
    run = Run(run_path or Path("outputs") / spec_file.stem)
    texts, chosen = text_settings(spec, options)
    if options["budget"]:
        _check_budget(options, spec, texts, chosen)
    _check_further(spec, options)
    check_engine(options)
    fresh, storage = options["fresh"], Storage(options["storage"]) if options["storage"] else None
    on_cluster = _asks_for_cluster(options)
    with (
        cluster(options["address"]) if on_cluster else nullcontext(),
        watching("Finishing the shards begun") as console,
        run.locked(),
    ):
        if not fresh:
            forget_unwritten(run)
            if storage:
                storage.meet(run, console)  # what the run began with may be there alone
                if forget_unwritten(run):
                    storage.clear(run)
        further = _further(run, spec, options)
        engine = chosen_engine(run, options, console, engine_there if on_cluster else engine_here)
        if not engine.debiases:
            chosen = replace(chosen, sampling=chosen.sampling.model_copy(update={"decay": 0.0}))
        call = _Call(run, spec, texts, chosen, engine, storage, console)
        if options["target"]:
            state = call.write_until(options["target"], options["budget"], fresh=fresh)
        else:
            state = call.write(further, fresh=fresh)
        if storage:
            storage.put_state(run)
        _report_generated(run, state)


@dataclass(frozen=True)
class _Call:
    """What one call of the command writes, and with what."""

    run: Run
    spec: TaskSpec
    inputs: InputFile | None
    options: GenerateOptions
    engine: ChosenEngine
    storage: Storage | None
    console: Console

    def write(self, more: Sequence[More], *, fresh: bool) -> str:
        """Write what was asked for and more; return whether that was new."""
        from dino_pipeline.generation.estimate import Expected, job
        from dino_pipeline.generation.generate import generate as run_generate

        return run_generate(
            self.run,
            self.spec,
            functools.partial(self._hands, fresh),
            self.options,
            Expected(self.console, self.run, job(self.spec, self.engine.record, self.options)),
            model=self.engine.record,
            inputs=self.inputs,
            settings=self.engine.settings,
            fresh=fresh,
            more=more,
        )

    def _hands(self, fresh: bool) -> Hands:
        from dino_pipeline.generation.storage import StoredHands

        made = self.engine.hands()
        if self.storage and fresh:  # and not before there is who writes anew
            self.storage.clear(self.run)
        return StoredHands(made, self.storage, self.run) if self.storage else made

    def write_until(self, target: int, budget: int | None, *, fresh: bool) -> str:
        """Write and filter until there is enough of each label; return whether anything was to do."""
        from dino_pipeline.filtering.filter_stage import available, filter_run, open_runtime, recorded_options
        from dino_pipeline.generation.generate import recorded_more
        from dino_pipeline.generation.until import Tally, write_until

        run, spec, states = self.run, self.spec, list[str]()
        chosen = recorded_options(run).model_copy(update={"target_per_label": target})
        stack = contextlib.ExitStack()

        @functools.cache  # models stay loaded from round to round
        def runtime() -> FilterRuntime:
            return stack.enter_context(open_runtime(run, chosen, self.console, has_spec=True))

        def carry_out(more: list[More]) -> dict[str, Tally]:
            states.append(self.write(more, fresh=fresh and not states))
            kept = available(run, chosen, runtime(), numeric_labels=spec.is_scored)
            made = run.stage("generate")
            samples = dict.fromkeys(spec.labels, made["options"]["samples"])
            for each in recorded_more(run):
                samples[each.label] = each.first + each.samples
            return {
                label: Tally(made["counts"][label]["written"], kept.get(spec.value(label), 0), samples[label])
                for label in spec.labels
            }

        found = write_until(target, budget or 20 * target * len(spec.labels), carry_out, self.console.note)
        same = run.stage("filter").get("options", {}).get("target_per_label") == target
        filter_run(run, chosen, runtime(), numeric_labels=spec.is_scored, fresh=not same)
        rows = [[label, str(min(each.kept, target)), str(max(0, target - each.kept))] for label, each in found.items()]
        click.echo(table(["label", "pairs", "missing"], rows))
        return next((state for state in states if state != "done"), "done")


def _asks_for_cluster(options: dict[str, Any]) -> bool:
    """Say whether texts are to be written on a cluster.

    Raises:
        OptionError: options exclude each other.
    """
    if options["address"] is None:
        for name in ("workers", "worker_cpus", "worker_gpus"):
            if options[name] is not None:
                raise OptionError(f"--{name.replace('_', '-')} belongs to --ray; give both or neither")
        return False
    if options["engine"] != "transformers":
        raise OptionError("--ray runs models of its own; a server takes more requests at once by --concurrency")
    return True


def _check_budget(options: dict[str, Any], spec: TaskSpec, texts: InputFile | None, chosen: GenerateOptions) -> None:
    from dino_pipeline.generation.generate import num_inputs

    if not options["target"]:
        raise OptionError("--budget belongs to --until-target; give both or neither")
    asked = num_inputs(texts, chosen) if spec.needs_inputs else 1
    least = asked * len(spec.labels) * chosen.samples
    if options["budget"] < least:
        raise OptionError(
            f"--budget {options['budget']}: the first round alone writes {least} texts; raise it, or lower "
            "--num-inputs or --samples"
        )


def _check_further(spec: TaskSpec, options: dict[str, Any]) -> None:
    """Raise `OptionError` where --more names no label, or --until-target says how many."""
    if options["further"] and options["target"]:
        raise OptionError("--more and --until-target exclude each other; leave one out")
    if unknown := [label for label, _ in options["further"] if label not in spec.labels]:
        raise OptionError(f"--more {unknown[0]}: there is no such label; choose from {', '.join(spec.labels)}")


def _further(run: Run, spec: TaskSpec, options: dict[str, Any]) -> list[More]:
    """Return what --more asks for beyond what the run was told before.

    Raises:
        RunError: the run was told something else before.
    """
    from dino_pipeline.generation.generate import recorded_more
    from dino_pipeline.generation.plan import More

    asked: list[tuple[str, int]] = list(options["further"])
    before = [] if options["fresh"] else [(each.label, each.samples) for each in recorded_more(run)]
    shared = min(len(asked), len(before))
    if asked[:shared] != before[:shared]:
        told = " ".join(f"--more {label}={number}" for label, number in before)
        raise RunError(f"{run.path}: was told {told} before; say that first, or --fresh")
    told_of = dict.fromkeys(spec.labels, options["samples"])
    found = []
    for label, number in asked:
        found.append(More(label, told_of[label], number))
        told_of[label] += number
    return found[len(before) :]


def _report_generated(run: Run, state: str) -> None:
    record = run.stage("generate")
    if state == "done":
        click.echo(f"{run.path}: texts are up to date")
    rows = [
        [label, str(count["written"]), str(count["accepted"]), or_dash(record["mean_margins"][label], "+.2f")]
        for label, count in record["counts"].items()
    ]
    click.echo(table(["label", "written", "accepted", "mean margin"], rows))
