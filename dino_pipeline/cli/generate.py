"""dino generate: write texts for every input and label of a task spec."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import command, or_dash
from dino_pipeline.cli.engines import chosen_engine, engine_options
from dino_pipeline.errors import OptionError, RunError

if TYPE_CHECKING:
    from dino_pipeline.console import Console
    from dino_pipeline.inputs import InputFile
    from dino_pipeline.run import Run
    from dino_pipeline.sampling import Sampling
    from dino_pipeline.sieve import Means
    from dino_pipeline.spec import SpecSampling, TaskSpec
    from dino_pipeline.until import Tally
    from dino_pipeline.writer import More

WRITTEN_INPUTS = 500
"""Inputs to write where neither a file nor --num-inputs says how many."""


class Further(click.ParamType[tuple[str, int]]):
    """A label and how many texts."""

    name = "LABEL=N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        """Return both."""
        label, _, number = str(value).rpartition("=")
        if not label or not number.isdecimal() or int(number) < 1:
            self.fail(f"{value!r} is not LABEL=N with N of 1 or more.", param, ctx)
        return label, int(number)


@click.command()
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder to write.  [default: outputs/SPEC]")
@engine_options
@click.option(
    "--inputs", "inputs_file", type=click.Path(path_type=Path), help="Texts for <X1>, instead of writing them."
)
@click.option("--input-format", type=click.Choice(["auto", "text", "jsonl", "sts"]), default="auto", show_default=True)
@click.option(
    "--num-inputs", type=click.IntRange(1), help=f"How many inputs.  [default: all of a file, else {WRITTEN_INPUTS}]"
)
@click.option(
    "--samples", type=click.IntRange(1), default=5, show_default=True, help="Texts per input and label, or per label."
)
@click.option("--top-k", type=click.IntRange(0), help="0 keeps all tokens.  [default: the spec's, else 5]")
@click.option("--top-p", type=click.FloatRange(0, 1), help="0 or 1 keeps all.  [default: the spec's, else 0.9]")
@click.option(
    "--decay", type=click.FloatRange(0), help="Sharpness of debiasing; 0: off.  [default: the spec's, else 100]"
)
@click.option(
    "--floor", type=click.FloatRange(0, 1), help="Least factor of debiasing.  [default: the spec's, else 0.01]"
)
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest text.  [default: the spec's, else 40]")
@click.option("--seed", default=42, show_default=True)
@click.option("--keep-unfinished", is_flag=True, help="Keep texts without the closing stop string.")
@click.option("--keep-newlines", is_flag=True, help="Let texts hold newlines.")
@click.option("--min-words", type=click.IntRange(0), default=0, help="Reject texts of fewer words.")
@click.option("--min-tokens", type=click.IntRange(0), default=0, help="Reject texts of fewer tokens.")
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
@click.option("--fresh", is_flag=True, help="Delete what the run has generated and start over.")
@command
def generate(spec_file: Path, run_path: Path | None, **options: Any) -> None:
    """Write texts for every input and label of a task SPEC; goes on where an earlier call was stopped."""
    from dino_pipeline.run import Run
    from dino_pipeline.spec import load_spec

    found = load_spec(spec_file)
    run = Run(run_path or Path("outputs") / spec_file.stem)
    texts = _inputs(options["inputs_file"], options["input_format"])
    chosen = _generate_options(found, options, written=texts is None and found.needs_inputs)

    from dino_pipeline.console import Console
    from dino_pipeline.generate import generate as run_generate

    if options["budget"]:
        _check_budget(options, found, texts, chosen)
    further = _further(run, found, options)
    console = Console()
    engine = chosen_engine(run, options, console)
    if not engine.debiases:
        chosen = replace(chosen, sampling=replace(chosen.sampling, decay=0.0))
    fresh = options["fresh"]

    def write(more: Sequence[More]) -> str:
        nonlocal fresh
        state = run_generate(
            run,
            found,
            engine.load,
            chosen,
            console,
            model=engine.record,
            scorer=engine.scorer,
            inputs=texts,
            settings=engine.settings,
            fresh=fresh,
            more=more,
        )
        fresh = False
        return state

    with run.locked():
        try:
            if options["target"]:
                state = _write_until(run, found, options["target"], options["budget"], write, console)
            else:
                state = write(further)
        finally:
            console.close()
        _report_generated(run, state)


def _check_budget(options: dict[str, Any], spec: TaskSpec, texts: InputFile | None, chosen: Any) -> None:
    if not options["target"]:
        raise OptionError("--budget belongs to --until-target; give both or neither")
    least = (chosen.num_inputs or (sum(1 for _ in texts) if texts else 1)) * len(spec.labels) * chosen.samples
    if options["budget"] < least:
        raise OptionError(
            f"--budget {options['budget']}: the first round alone writes {least} texts; raise it, or lower "
            "--num-inputs or --samples"
        )


def _further(run: Run, spec: TaskSpec, options: dict[str, Any]) -> list[More]:
    """Return what --more asks for beyond what the run was told before.

    Raises:
        OptionError: there is no such label, or --until-target says how many.
        RunError: the run was told something else before.
    """
    from dino_pipeline.generate import recorded_more
    from dino_pipeline.writer import More

    asked: list[tuple[str, int]] = list(options["further"])
    if asked and options["target"]:
        raise OptionError("--more and --until-target exclude each other; leave one out")
    if unknown := [label for label, _ in asked if label not in spec.labels]:
        raise OptionError(f"--more {unknown[0]}: there is no such label; choose from {', '.join(spec.labels)}")
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


def _write_until(
    run: Run, spec: TaskSpec, target: int, budget: int | None, write: Callable[[Sequence[More]], str], console: Console
) -> str:
    """Write and filter until there is enough of each label; return what the first round was."""
    from dino_pipeline.cli.filter import filter_means
    from dino_pipeline.console import table
    from dino_pipeline.filters import available, filter_run, recorded_options
    from dino_pipeline.generate import recorded_more
    from dino_pipeline.until import Tally, write_until

    states: list[str] = []
    chosen = replace(recorded_options(run), target_per_label=target)

    @functools.cache  # models stay loaded from round to round
    def means() -> Means:
        return filter_means(run, chosen, {}, has_spec=True)

    def carry_out(more: list[More]) -> dict[str, Tally]:
        states.append(write(more))
        kept = available(run, chosen, means(), numeric_labels=spec.is_scored)
        made = run.stage("generate")
        samples = dict.fromkeys(spec.labels, made["options"]["samples"])
        for each in recorded_more(run):
            samples[each.label] = each.first + each.samples
        return {
            label: Tally(made["counts"][label]["written"], kept.get(spec.value(label), 0), samples[label])
            for label in spec.labels
        }

    found = write_until(target, budget or 20 * target * len(spec.labels), carry_out, console.note)
    same = run.stage("filter").get("options", {}).get("target_per_label") == target
    filter_run(run, chosen, means(), numeric_labels=spec.is_scored, fresh=not same)
    rows = [[label, str(min(tally.kept, target)), str(max(0, target - tally.kept))] for label, tally in found.items()]
    click.echo(table(["label", "pairs", "missing"], rows))
    return states[0]


def _inputs(file: Path | None, input_format: str) -> InputFile | None:
    from dino_pipeline.inputs import input_file

    return None if file is None else input_file(file, input_format)


def _generate_options(found: TaskSpec, options: dict[str, Any], *, written: bool) -> Any:
    """Return what decides the texts: the command line before the spec before the paper."""
    from dino_pipeline.sampling import Sampling
    from dino_pipeline.spec import TaskSpec
    from dino_pipeline.writer import GenerateOptions

    given = {name: options[name] for name in ("top_k", "top_p", "decay", "floor", "max_new_tokens")}
    flags = {
        name: options[name]
        for name in (
            *("samples", "num_inputs", "seed", "keep_unfinished", "keep_newlines", "min_words", "min_tokens"),
            "best_of",
        )
    }
    flags["keep_newlines"] = flags["keep_newlines"] or found.newlines
    inputs = found.inputs if isinstance(found.inputs, TaskSpec) else None
    chosen = GenerateOptions(
        **flags,
        sampling=_override(_of_spec(Sampling(), found.sampling), given),
        # how inputs are sampled is the inputs spec's own affair: flags speak of the texts
        input_sampling=_of_spec(Sampling(), inputs.sampling) if inputs else Sampling(),
    )
    return replace(chosen, num_inputs=chosen.num_inputs or WRITTEN_INPUTS) if written else chosen


def _of_spec(base: Sampling, sampling: SpecSampling) -> Sampling:
    return _override(base, sampling.model_dump())


def _override(base: Sampling, values: dict[str, Any]) -> Sampling:
    return replace(base, **{name: value for name, value in values.items() if value is not None})


def _report_generated(run: Run, state: str) -> None:
    from dino_pipeline.console import table

    record = run.stage("generate")
    if state == "done":
        click.echo(f"{run.path}: texts are up to date")
    rows = [
        [label, str(count["written"]), str(count["accepted"]), or_dash(record["mean_margins"][label], "+.2f")]
        for label, count in record["counts"].items()
    ]
    click.echo(table(["label", "written", "accepted", "mean margin"], rows))
