"""The command line: flags, wiring and messages. Heavy imports stay inside the commands."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline import __version__
from dino_pipeline.errors import DinoError, OptionError

if TYPE_CHECKING:
    from dino_pipeline.evaluate import Score
    from dino_pipeline.run import Run
    from dino_pipeline.sampling import Sampling
    from dino_pipeline.spec import SpecSampling, TaskSpec

WRITTEN_INPUTS = 500
"""Inputs to write where neither a file nor --num-inputs says how many."""

Command = Callable[..., Any]


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn errors into messages and exit codes: 2 for what a user can mend, 130 for Ctrl-C."""
    try:
        yield
    except DinoError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("\nStopped. What is finished is kept; the same command goes on from there.", err=True)
        sys.exit(130)


def command(function: Command) -> Command:
    """Wrap a command so that its errors are reported and libraries keep quiet."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        warnings.filterwarnings("ignore", category=FutureWarning)
        with _reported():
            return function(*args, **kwargs)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dino")
def main() -> None:
    """Datasets from instructions: generate labelled text pairs, filter them, train a sentence encoder, evaluate it."""


@main.group()
def spec() -> None:
    """Check, show and describe task specs."""


@spec.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@command
def spec_check(files: Sequence[Path]) -> None:
    """Say everything that is wrong with task spec FILES; exit code 2 if anything is."""
    from dino_pipeline.errors import SpecError
    from dino_pipeline.spec import load_spec

    wrong = 0
    for file in files:
        try:
            found = load_spec(file)
        except SpecError as error:
            wrong += 1
            click.echo(str(error), err=True)
        else:
            kind = "pairs" if found.needs_inputs else "single texts"
            click.echo(f"{file}: fine ({kind}, labels {', '.join(found.labels)})")
    if wrong:
        sys.exit(2)


@spec.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--input", "text", help="The text that fills <X1>.")
@command
def spec_show(file: Path, text: str | None) -> None:
    """Print the exact prompts of a task spec FILE, label by label."""
    from dino_pipeline.spec import load_spec

    found = load_spec(file)
    if found.needs_inputs and text is None:
        raise OptionError(f'{file}: its instructions hold <X1>; give a text with --input "..."')
    if text is not None and not found.needs_inputs:
        raise OptionError(f"{file}: its instructions lack <X1>, so --input has no place; leave it out")
    values = {name: choices[0] for name, choices in found.variables.items()}
    for label, rule in found.labels.items():
        counters = ", ".join(rule.counter_labels) or "none"
        click.secho(f"--- label {label} (counter-labels: {counters})", bold=True)
        click.echo(found.prompt(label, text, values))


@spec.command("schema")
@command
def spec_schema() -> None:
    """Print the JSON Schema of task specs, for editors."""
    from dino_pipeline.spec import TaskSpec

    click.echo(json.dumps(TaskSpec.model_json_schema(), indent=2, ensure_ascii=False))


@main.command()
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder to write.  [default: outputs/SPEC]")
@click.option("--model", default="pocket", show_default=True, help="Folder or Hub id of a causal language model.")
@click.option("--revision", help="The model's revision on the Hub.")
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
    "--rows", type=click.IntRange(1), default=128, show_default=True, help="Prompts side by side; speed only."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto: float32 on a CPU, bfloat16 elsewhere.",
)
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")
@click.option("--fresh", is_flag=True, help="Delete what the run has generated and start over.")
@command
def generate(spec_file: Path, run_path: Path | None, **options: Any) -> None:
    """Write texts for every input and label of a task SPEC; goes on where an earlier call was stopped."""
    from dino_pipeline.run import Run, model_fingerprint
    from dino_pipeline.spec import load_spec

    found = load_spec(spec_file)
    run = Run(run_path or Path("outputs") / spec_file.stem)
    texts = _read_inputs(options["inputs_file"], options["input_format"])
    chosen = _generate_options(found, options, written=texts is None and found.needs_inputs)

    from dino_pipeline.console import Console
    from dino_pipeline.decoder import load_decoder, resolve_dtype
    from dino_pipeline.generate import generate as run_generate

    device = options["device"] or _best_device()
    dtype = resolve_dtype(options["dtype"], device)
    path = _model_path(options["model"], "GENERATOR")
    console = Console()
    with run.locked():
        try:
            state = run_generate(
                run,
                found,
                lambda: load_decoder(
                    path, revision=options["revision"], dtype=dtype, device=device, rows=options["rows"]
                ),
                chosen,
                console,
                model={
                    "model": options["model"],
                    "revision": options["revision"],
                    "fingerprint": model_fingerprint(path),
                    "dtype": dtype,
                },
                inputs=texts,
                settings={"device": device, "rows": options["rows"]},
                fresh=options["fresh"],
            )
        finally:
            console.close()
        _report_generated(run, state)


def _read_inputs(file: Path | None, input_format: str) -> list[str] | None:
    from dino_pipeline.inputs import read_inputs

    return None if file is None else read_inputs(file, input_format)


def _generate_options(found: TaskSpec, options: dict[str, Any], *, written: bool) -> Any:
    """Return what decides the texts: the command line before the spec before the paper."""
    from dino_pipeline.generate import GenerateOptions
    from dino_pipeline.sampling import Sampling
    from dino_pipeline.spec import TaskSpec

    given = {name: options[name] for name in ("top_k", "top_p", "decay", "floor", "max_new_tokens")}
    flags = {
        name: options[name]
        for name in ("samples", "num_inputs", "seed", "keep_unfinished", "keep_newlines", "min_words", "min_tokens")
    }
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


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _model_path(name: str, pocket_name: str) -> str:
    """Return the folder of an embedded model, any other name as it is."""
    from dino_pipeline import pocket

    return str(getattr(pocket, pocket_name)) if name == "pocket" else name


def _report_generated(run: Run, state: str) -> None:
    from dino_pipeline.console import table

    record = run.stage("generate")
    if state == "done":
        click.echo(f"{run.path}: texts are up to date")
    rows = [
        [label, str(count["written"]), str(count["accepted"]), _or_dash(record["mean_margins"][label], "+.2f")]
        for label, count in record["counts"].items()
    ]
    click.echo(table(["label", "written", "accepted", "mean margin"], rows))


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


@main.command("filter")
@click.argument("source", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder to write, where the source is a file.")
@click.option(
    "--max-per-text", type=click.IntRange(0), default=2, show_default=True, help="text_b per (text_a, label)."
)
@click.option("--balance/--no-balance", default=True, show_default=True, help="Cap labels at the smallest one's count.")
@click.option("--smoothing", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Label smoothing.")
@click.option("--random-pairs", type=click.IntRange(0), default=2, show_default=True, help="Added per text_a, label 0.")
@click.option(
    "--dev-share", type=click.FloatRange(0, 0.9), default=0.1, show_default=True, help="Share of the dev split."
)
@click.option("--seed", default=42, show_default=True)
@click.option("--fresh", is_flag=True, help="Filter again with other options.")
@command
def filter_command(source: Path, run_path: Path | None, fresh: bool, **options: Any) -> None:
    """Clean, de-duplicate, balance and split the texts of a RUN, or the examples of a JSONL FILE."""
    from dino_pipeline.console import table
    from dino_pipeline.filters import FilterOptions, filter_run

    run, file = _run_or_file(source, run_path)
    with run.locked():
        numeric = run.stage("generate").get("label_type") != "class" if file is None else True
        chosen = FilterOptions(**options)
        state, funnel = filter_run(run, chosen, source=file, numeric_labels=numeric, fresh=fresh)
    if state == "done":
        click.echo(f"{run.path}: filtered data is up to date")
    click.echo(table(funnel.header(), funnel.rows()))


def _run_or_file(source: Path, run_path: Path | None) -> tuple[Run, Path | None]:
    """Return the run to write and, where the source is a file, that file."""
    from dino_pipeline.run import Run

    if source.is_dir():
        return Run(run_path or source), None
    if not source.exists():
        raise OptionError(f"{source}: is not there; give a run's folder or a JSONL file")
    if run_path is None:
        raise OptionError(f"{source}: is a file; say with --run which folder to write")
    return Run(run_path), source


@main.command()
@click.argument("data", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--dev", "dev_file", type=click.Path(path_type=Path), help="Held-out JSONL, where DATA is a file.")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder to write, where DATA is a file.")
@click.option("--encoder", default="pocket", show_default=True, help="Folder or Hub id of the encoder to start from.")
@click.option("--revision", help="The encoder's revision on the Hub.")
@click.option("--objective", type=click.Choice(["dino"]), default="dino", show_default=True)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="[default: the objective's paper; dino 1]")
@click.option("--batch-size", type=click.IntRange(1), help="Over all processes.  [default: dino 32]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: dino 2e-5]")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: dino 0.01]")
@click.option("--warmup", type=click.FloatRange(0, 1), help="Share of the steps.  [default: dino 0.1]")
@click.option("--max-length", type=click.IntRange(1), help="Tokens a text is cut at.  [default: the encoder's]")
@click.option("--seed", default=42, show_default=True)
@click.option("--fresh", is_flag=True, help="Train again from the start.")
@command
def finetune(data: Path, dev_file: Path | None, run_path: Path | None, **options: Any) -> None:
    """Train a bi-encoder on a RUN's filtered data, or on a JSONL FILE; goes on from the last checkpoint."""
    from dino_pipeline.console import Console
    from dino_pipeline.encoders import load_encoder
    from dino_pipeline.finetune import finetune as run_finetune
    from dino_pipeline.objectives import get_objective
    from dino_pipeline.run import model_fingerprint

    run, file = _run_or_file(data, run_path)
    if file is not None and dev_file is None:
        raise OptionError(f"{file}: is a file; say with --dev which pairs choose the best checkpoint")
    objective = get_objective(options["objective"])
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup", "max_length")
    given = {name: options[name] for name in names if options[name] is not None}
    path = _model_path(options["encoder"], "ENCODER")
    console = Console()
    first_process = os.environ.get("RANK", "0") == "0"
    with run.locked() if first_process else contextlib.nullcontext():
        found = run_finetune(
            run,
            objective,
            replace(objective.defaults, **given),
            encoder={
                "encoder": options["encoder"],
                "revision": options["revision"],
                "fingerprint": model_fingerprint(path),
            },
            load=lambda: load_encoder(path, options["revision"]),
            train=file or run.train,
            dev=dev_file or run.dev,
            watch=console,
            seed=options["seed"],
            fresh=options["fresh"],
        )
    console.close()
    if first_process:
        said = "is up to date" if found.state == "done" else "is trained"
        click.echo(f"{run.model}: {said}; best dev Spearman x 100: {_or_dash(found.dev_spearman, '.2f')}")


@main.command()
@click.argument("targets", metavar="RUN|MODEL...", nargs=-1, required=True)
@click.option("--data", "data_files", multiple=True, type=click.Path(path_type=Path), help="JSONL of scored pairs.")
@click.option("--suite", type=click.Choice(["pocket"]), help="A built-in set: pocket, held-out pairs of the grammar.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write.  [default: scores.json of the one RUN]"
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Speed only.")
@command
def evaluate(
    targets: Sequence[str], data_files: Sequence[Path], suite: str | None, output: Path | None, batch_size: int
) -> None:
    """Correlate cosines with gold scores, for MODELs or for a RUN's encoder before and after training."""
    from dino_pipeline.run import Run, digest_files, model_fingerprint

    runs = [Run(Path(target)) for target in targets if (Path(target) / "run.json").exists()]
    models = [model for target in targets for model in _models_of(target)]
    data = _evaluation_data(runs, data_files, suite)
    sources = "+".join(
        [digest_files([path for _, path in data]), *(f"{n}:{model_fingerprint(p) or p}" for n, p in models)]
    )
    run = runs[0] if len(runs) == 1 and output is None else None
    with run.locked() if run else contextlib.nullcontext():
        if run and run.begin("evaluate", {}, outputs=[run.scores], sources=sources) == "done":
            click.echo(f"{run.path}: scores are up to date")
            _print_scores(json.loads(run.scores.read_text())["scores"])
            return
        scores = _evaluate(models, data, batch_size, run.scores if run else output)
        if run:
            run.finish("evaluate")
        _print_scores([vars(score) for score in scores])


def _evaluate(
    models: list[tuple[str, str]], data: list[tuple[str, Path]], batch_size: int, output: Path | None
) -> list[Score]:
    from dino_pipeline.evaluate import ScoredPairs, write_scores
    from dino_pipeline.evaluate import evaluate as run_evaluate

    scores = run_evaluate(models, [ScoredPairs.read(name, path) for name, path in data], batch_size=batch_size)
    if output:
        write_scores(output, scores)
    return scores


def _models_of(target: str) -> list[tuple[str, str]]:
    """Return (name to show, path) of a run's encoder before and after training, or of the model itself."""
    from dino_pipeline.run import Run

    run = Run(Path(target))
    if not run.record_file.exists():
        return [(target, _model_path(target, "ENCODER"))]
    if run.stage("finetune").get("status") != "done":
        raise OptionError(f"{target}: no encoder is trained there; run dino finetune {target} first")
    encoder = run.stage("finetune")["options"]["encoder"]
    return [(f"{encoder} before", _model_path(encoder, "ENCODER")), (f"{encoder} finetuned", str(run.model))]


def _evaluation_data(runs: Sequence[Run], files: Sequence[Path], suite: str | None) -> list[tuple[str, Path]]:
    """Return what to evaluate on: what was asked for, else what belongs to the runs."""
    from dino_pipeline import pocket

    gold = ("pocket gold", pocket.GOLD_TEST)
    if files or suite:
        return [*((file.name, file) for file in files), *([gold] if suite else [])]
    found = [(f"{run.path.name} dev (generated)", run.dev) for run in runs if run.dev.exists()]
    if any(run.stage("finetune")["options"]["encoder"] == "pocket" for run in runs):
        found.append(gold)
    if not found:
        raise OptionError("nothing to evaluate on; give --data FILE, or --suite pocket")
    return found


def _print_scores(scores: Sequence[dict[str, Any]]) -> None:
    from dino_pipeline.console import table

    rows = [
        [
            score["data"],
            score["model"],
            str(score["pairs"]),
            _or_dash(score["spearman"], ".2f"),
            "-" if score["low"] is None else f"{score['low']:.2f} .. {score['high']:.2f}",
            _or_dash(score["pearson"], ".2f"),
        ]
        for score in scores
    ]
    click.echo(table(["data", "model", "pairs", "Spearman x 100", "95 % interval", "Pearson x 100"], rows))
