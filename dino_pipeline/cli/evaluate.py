"""dino evaluate: encoders on suites of data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import FILE, FOLDER, Grouped, command, given_parameters, parts_of, under
from dino_pipeline.cli.candidates import candidates_of
from dino_pipeline.cli.evaluation_sets import evaluation_sets
from dino_pipeline.cli.scores import print_evaluation, print_published
from dino_pipeline.console import Console
from dino_pipeline.errors import OptionError
from dino_pipeline.evaluation.suites import NAMES

STS_OPTIONS = ("data_dir", "aggregate", "text", "sick", "published")


def suites(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> list[str]:
    """Return the suites that were named, each once."""
    names = parts_of(",".join(given))
    if unknown := [name for name in names if name not in NAMES]:
        raise click.BadParameter(f"{unknown[0]}: is none; choose from {', '.join(NAMES)}")
    return names


@click.command(cls=Grouped)
@click.argument("targets", metavar="[RUN|MODEL]...", nargs=-1)
@click.option(
    "--suite",
    "names",
    multiple=True,
    callback=suites,
    metavar="NAME",
    help="What to evaluate on; several times, or with commas. sts: the seven sets of the papers. probe: logistic "
    "regression on --data texts with classes. retrieval: --data in BEIR's layout. pairs: --data of scored pairs. "
    "pocket: held-out pairs of the pocket grammar.  [default: a run's dev pairs; what --data holds]",
)
@click.option(
    "--data",
    "data_files",
    multiple=True,
    metavar="[SUITE=]PATH",
    help="Scored pairs or classified texts (JSONL, CSV, Parquet), a folder with train.jsonl and test.jsonl, or one in "
    "BEIR's layout. The suite, probe, retrieval or pairs, is told by what it holds, or by SUITE=.",
)
@click.option("--output", type=FILE, help="Where to write.  [default: scores.json in the RUN, or here]")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Speed only.")
@under("With --suite sts")
@click.option(
    "--data-dir",
    type=FOLDER,
    help="Folder in SentEval's layout (STS/, SICK/), or with files such as STS12.MSRpar.tsv.  [default: the Hub]",
)
@click.option(
    "--aggregate",
    type=click.Choice(["all", "mean", "wmean"]),
    default="all",
    show_default=True,
    help="One correlation over all subsets of a year, or the mean of theirs, weighted by size or not.",
)
@click.option(
    "--text",
    type=click.Choice(["raw", "tokenized"]),
    default="raw",
    show_default=True,
    help="As in the files, or tokenized and in lower case as SentEval prepares it (not SICK).",
)
@click.option(
    "--sick", type=click.Choice(["test", "full"]), default="test", show_default=True, help="Which part of SICK-R."
)
@click.option("--published", is_flag=True, help="Print the papers' figures too, if they are of the same protocol.")
@command
def evaluate(targets: Sequence[str], names: list[str], output: Path | None, **options: Any) -> None:
    """Say what encoders are worth: MODELs by folder or Hub id (id@revision), or a RUN's encoder before and after
    training. With several, differences from the first are given with their own intervals.
    """
    _refuse_idle_options(names)
    if not targets:
        raise OptionError("nothing to evaluate; give a RUN, or encoders by folder or Hub id")
    _evaluate_encoders(targets, names, output, options)


def _refuse_idle_options(names: Sequence[str]) -> None:
    """Raise `OptionError` if an option was given that only suite sts reads, and sts is not evaluated."""
    if "sts" in names:
        return
    for option in given_parameters():
        if option.name in STS_OPTIONS:
            raise OptionError(f"{option.opts[0]}: has no meaning without --suite sts; leave it out")


def _evaluate_encoders(
    targets: Sequence[str], names: Sequence[str], output: Path | None, options: dict[str, Any]
) -> None:
    from dino_pipeline.evaluation.evaluate import evaluate as run_evaluate
    from dino_pipeline.evaluation.evaluate import evaluate_run
    from dino_pipeline.evaluation.suites.sts import unlike_papers
    from dino_pipeline.files import write_json
    from dino_pipeline.run import Run

    runs = [Run(Path(target)) for target in targets if Run(Path(target)).is_run]
    found = [each for target in targets for each in candidates_of(target, alone=len(runs) == 1)]
    candidates = list(dict.fromkeys(found))
    if alike := [each.name for at, each in enumerate(candidates) if each.name in [one.name for one in candidates[:at]]]:
        raise OptionError(f"{alike[0]}: two different encoders have this name; evaluate them one by one")
    of_pocket = any(run.stage("finetune")["options"]["encoder"] == "pocket" for run in runs)
    with contextlib.closing(Console()) as console:
        sets = evaluation_sets(runs, names, options, of_pocket=of_pocket)
        differing = unlike_papers(sets) if options["published"] else []
        asked = {"candidates": candidates, "sets": sets, "reporter": console, "batch_size": options["batch_size"]}
        if run := runs[0] if len(runs) == 1 and output is None else None:
            with run.locked():
                shown, done = evaluate_run(run, **asked)
            if done:
                click.echo(f"{run.path}: scores are up to date")
        else:
            written = _writable(output or Path("scores.json"))
            shown = run_evaluate(**asked).to_json()
            write_json(written, shown)
    print_evaluation(shown)
    if not run:
        click.echo(f"written: {written}")
    if options["published"]:
        print_published(differing)


def _writable(path: Path) -> Path:
    """Return where to write, unless it is clear before any work that this will fail, or take a stranger's place."""
    from dino_pipeline.evaluation.scores import read_scores

    if path.exists() and read_scores(path) is None:
        raise OptionError(f"{path}: is there and holds no scores of this version; move it, or give another --output")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"{path}: {path.parent} is no folder that can be written to; give another --output")
    return path
