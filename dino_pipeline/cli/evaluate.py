"""dino evaluate: encoders against gold scores, generators against the pocket grammar."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import command, model_path, or_dash
from dino_pipeline.cli.fidelity import SUITE, evaluate_generators
from dino_pipeline.errors import OptionError

if TYPE_CHECKING:
    from dino_pipeline.evaluate import Score
    from dino_pipeline.run import Run


@click.command()
@click.argument("targets", metavar="[RUN|MODEL]...", nargs=-1)
@click.option("--data", "data_files", multiple=True, type=click.Path(path_type=Path), help="JSONL of scored pairs.")
@click.option(
    "--suite",
    type=click.Choice(["pocket", SUITE]),
    help=f"pocket: held-out pairs of the grammar. {SUITE}: what generators (MODELs; pocket if none is named) write, "
    "graded by the grammar, at several strengths of debiasing.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write.  [default: scores.json of the one RUN]"
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Speed only.")
@click.option("--num-inputs", type=click.IntRange(1), default=200, show_default=True, help=f"{SUITE}: inputs to write.")
@click.option(
    "--samples", type=click.IntRange(1), default=3, show_default=True, help=f"{SUITE}: texts per input and label."
)
@click.option("--seed", multiple=True, default=(42,), show_default=True, help=f"{SUITE}: give several for a spread.")
@click.pass_context
@command
def evaluate(
    context: click.Context,
    targets: Sequence[str],
    data_files: Sequence[Path],
    suite: str | None,
    output: Path | None,
    batch_size: int,
    num_inputs: int,
    samples: int,
    seed: Sequence[int],
) -> None:
    """Correlate cosines with gold scores, for MODELs or for a RUN's encoder before and after training; or grade what
    generators write."""
    _refuse_idle_options(context, suite)
    if suite == SUITE:
        evaluate_generators(targets or ["pocket"], output, seeds=seed, num_inputs=num_inputs, samples=samples)
    elif targets:
        _evaluate_encoders(targets, data_files, suite, output, batch_size)
    else:
        raise OptionError("nothing to evaluate; give a RUN, or encoders by folder or Hub id")


def _refuse_idle_options(context: click.Context, suite: str | None) -> None:
    """Refuse options that the suite would not look at."""
    idle = ("data_files", "batch_size") if suite == SUITE else ("num_inputs", "samples", "seed")
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in idle and source != click.core.ParameterSource.DEFAULT:
            where = f"with --suite {SUITE}" if suite == SUITE else f"without --suite {SUITE}"
            raise OptionError(f"{option.opts[0]}: has no meaning {where}; leave it out")


def _evaluate_encoders(
    targets: Sequence[str], data_files: Sequence[Path], suite: str | None, output: Path | None, batch_size: int
) -> None:
    from dino_pipeline.run import Run, digest_files, model_fingerprint

    runs = [Run(Path(target)) for target in targets if (Path(target) / "run.json").exists()]
    models = list(dict.fromkeys(model for target in targets for model in _models_of(target, alone=len(runs) == 1)))
    of_pocket = any(run.stage("finetune")["options"]["encoder"] == "pocket" for run in runs)
    data = evaluation_data(runs, data_files, suite, of_pocket=of_pocket)
    sources = "+".join(
        [digest_files([path for _, path in data]), *(f"{n}:{model_fingerprint(p) or p}" for n, p in models)]
    )
    run = runs[0] if len(runs) == 1 and output is None else None
    with run.locked() if run else contextlib.nullcontext():
        if run and run.begin("evaluate", {}, outputs=[run.scores], sources=sources) == "done":
            click.echo(f"{run.path}: scores are up to date")
            found = json.loads(run.scores.read_text())
            _print_scores(found["scores"], found.get("chosen_on_human_labels", {}))
            return
        chosen_on = {name: label for name, path in models if (label := _human_labels(Path(path)))}
        scores = _evaluate(models, data, batch_size, run.scores if run else output, chosen_on)
        if run:
            run.finish("evaluate")
        _print_scores([vars(score) for score in scores], chosen_on)


def _human_labels(model: Path) -> str | None:
    """Return the human labels that a run's model was chosen on, None if it was chosen without."""
    from dino_pipeline.run import Run

    run = Run(model.parent)
    chosen = run.stage("finetune").get("selection", {}) if model == run.model else {}
    return chosen["on"] if chosen.get("human_labels") else None


def _evaluate(
    models: list[tuple[str, str]],
    data: list[tuple[str, Path]],
    batch_size: int,
    output: Path | None,
    chosen_on: dict[str, str],
) -> list[Score]:
    from dino_pipeline.evaluate import ScoredPairs, write_scores
    from dino_pipeline.evaluate import evaluate as run_evaluate

    scores = run_evaluate(models, [ScoredPairs.read(name, path) for name, path in data], batch_size=batch_size)
    if output:
        write_scores(output, scores, chosen_on)
    return scores


def _models_of(target: str, *, alone: bool) -> list[tuple[str, str]]:
    """Return (name to show, path) of a run's encoder before and after training, or of the model itself.

    A run is named where it is not the only one.
    """
    from dino_pipeline.run import Run

    run = Run(Path(target))
    if not run.record_file.exists():
        return [(target, model_path(target, "ENCODER"))]
    if run.stage("finetune").get("status") != "done":
        raise OptionError(f"{target}: no encoder is trained there; run dino finetune {target} first")
    encoder = run.stage("finetune")["options"]["encoder"]
    finetuned = f"{encoder} finetuned" if alone else f"{encoder} finetuned on {run.path.name}"
    return [(f"{encoder} before", model_path(encoder, "ENCODER")), (finetuned, str(run.model))]


def evaluation_data(
    runs: Sequence[Run], files: Sequence[Path], suite: str | None, *, of_pocket: bool
) -> list[tuple[str, Path]]:
    """Return what to evaluate on: what was asked for, else what belongs to the runs and to the pocket encoder."""
    from dino_pipeline import pocket

    gold = ("pocket gold", pocket.GOLD_TEST)
    if files or suite:
        return [*((file.name, file) for file in files), *([gold] if suite else [])]
    found = [(f"{run.path.name} dev (generated)", run.dev) for run in runs if run.dev.exists()]
    if of_pocket:
        found.append(gold)
    if not found:
        raise OptionError("nothing to evaluate on; give --data FILE, or --suite pocket")
    return found


def _print_scores(scores: Sequence[dict[str, Any]], chosen_on: dict[str, str]) -> None:
    from dino_pipeline.console import table

    rows = [
        [
            score["data"],
            score["model"] + "*" * (score["model"] in chosen_on),
            str(score["pairs"]),
            or_dash(score["spearman"], ".2f"),
            "-" if score["low"] is None else f"{score['low']:.2f} .. {score['high']:.2f}",
            or_dash(score["pearson"], ".2f"),
        ]
        for score in scores
    ]
    click.echo(table(["data", "model", "pairs", "Spearman x 100", "95 % interval", "Pearson x 100"], rows))
    for model, labels in chosen_on.items():
        click.echo(f"* {model}: its checkpoint was chosen on human labels ({labels})")
