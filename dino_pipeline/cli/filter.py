"""dino filter: clean, de-duplicate, verify, balance and split."""

from __future__ import annotations

import math
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import FOLDER, HUB_ID, Grouped, command, given_parameters, under
from dino_pipeline.cli.cluster import RAY, cluster, spread_of
from dino_pipeline.cli.models import generator_of
from dino_pipeline.console import Console, table
from dino_pipeline.errors import OptionError, RunError
from dino_pipeline.layout import is_unpublished
from dino_pipeline.models import model_path, pick_device
from dino_pipeline.public import public

if TYPE_CHECKING:
    from dino_pipeline.filtering.rules import FilterOptions
    from dino_pipeline.filtering.sieve import Means
    from dino_pipeline.run import Run


class Finite(click.FloatRange):
    """A number that is one."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found = super().convert(value, param, ctx)
        return found if math.isfinite(found) else self.fail(f"{value} is not a finite number.", param, ctx)


@click.command("filter", cls=Grouped)
@click.argument("source", metavar="RUN|FILE", required=False, type=FOLDER)
@click.option("--run", "run_path", type=FOLDER, help="Folder to write, where the source is a file.")
@click.option("--list", "listed", is_flag=True, help="Show the rules and leave.")
@click.option("--dry-run", is_flag=True, help="Show the funnel, write nothing.")
@click.option("--ablate", is_flag=True, help="Show what each rule alone would drop, write nothing.")
@click.option("--fresh", is_flag=True, help="Filter again with other options.")
@under("What is dropped")
@click.option("--min-chars", type=click.IntRange(0), default=3, show_default=True, help="Shortest text.")
@click.option("--max-chars", type=click.IntRange(1), default=5000, show_default=True, help="Longest text.")
@click.option(
    "--max-symbols",
    type=Finite(0, 1),
    default=0.5,
    show_default=True,
    help="Most of a text that is neither letter nor digit.",
)
@click.option("--without", multiple=True, metavar="RULE", help="Switch a built-in rule off; --list names them.")
@click.option("--rule", "custom", multiple=True, metavar="MODULE:FUNCTION", help="A rule of your own.")
@click.option(
    "--pii",
    type=click.Choice(["flag", "drop", "keep"]),
    default="flag",
    show_default=True,
    help="E-mail addresses, phone and card numbers.",
)
@click.option(
    "--exclude", multiple=True, metavar="FILE|SET", help="Evaluation data to keep out: JSONL, TSV, text, or a name."
)
@click.option(
    "--near-duplicates",
    type=Finite(0, 1),
    default=0.8,
    show_default=True,
    help="Least Jaccard similarity; 0: off.",
)
@click.option("--semantic", metavar="MODEL", help="A sentence encoder that finds inputs of the same meaning.")
@click.option("--semantic-threshold", type=Finite(0, 1), default=0.95, show_default=True, help="Its least cosine.")
@click.option(
    "--max-per-text", type=click.IntRange(0), default=2, show_default=True, help="text_b per (text_a, label); 0: all."
)
@click.option(
    "--min-margin", multiple=True, metavar="[LABEL=]N|N%", help="Least margin, or share to drop.  [default: off]"
)
@click.option(
    "--min-logprob", multiple=True, metavar="[LABEL=]N|N%", help="Least log-probability, or share.  [default: off]"
)
@click.option("--verify", is_flag=True, help="Let the generator score each pair under every label; its own has to win.")
@click.option(
    "--verify-margin",
    type=Finite(0),
    default=0.0,
    show_default=True,
    help="With --verify: by how many nats a token another label must be likelier.",
)
@under("Labels, and what is added")
@click.option("--balance/--no-balance", default=True, show_default=True, help="Cap labels at the smallest one's count.")
@click.option(
    "--target-per-label", type=click.IntRange(1), metavar="N", help="Keep exactly so many; say what is missing."
)
@click.option(
    "--labels",
    type=click.Choice(["hard", "smoothed", "posterior"]),
    default="smoothed",
    show_default=True,
    help="posterior: the expected label by the generator's scores.",
)
@click.option(
    "--smoothing",
    type=Finite(0, 1),
    default=0.2,
    show_default=True,
    help="Label smoothing: 0.2 takes 0.1 from 1, and adds 0.1 to 0.",
)
@click.option(
    "--temperature",
    type=Finite(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the posterior; larger is softer.",
)
@click.option(
    "--random-pairs",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Unrelated pairs added for each text_a, with label 0.",
)
@click.option("--dev-share", type=Finite(0, 0.9), default=0.1, show_default=True, help="Share of the dev split.")
@click.option(
    "--label-type",
    type=click.Choice(["score", "class"]),
    help="class: labels of a FILE are names, whatever they spell.  [default: score, of a published one its own]",
)
@click.option("--seed", default=42, show_default=True, help="Of all random choices.")
@under("Speed")
@click.option("--workers", type=click.IntRange(1), help="Processes and threads.  [default: the CPUs]")
@RAY
@click.option(
    "--memory", metavar="SIZE", default="1400MB", show_default=True, help="What set operations take before spilling."
)
@click.option(
    "--device", metavar="DEVICE", help="For --verify, --labels posterior, --semantic.  [default: a GPU if any]"
)
@command
def filter_command(source: Path | None, run_path: Path | None, **options: Any) -> None:
    """Clean, de-duplicate, balance and split the texts of a RUN, or the examples of a JSONL FILE."""
    from dino_pipeline.filtering.filters import filter_run, look

    if options["listed"]:
        _list(filter_options(options))
        return
    if source is None:
        raise OptionError("nothing to filter; give a run's folder or a JSONL file")
    with ExitStack() as stack:
        looking = options["dry_run"] or options["ablate"]
        if looking and not is_unpublished(source):
            run_path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dino-filter-")))
        given = _to_filter(source, run_path)
        run, file = given.run, given.file
        if file is None and options["label_type"]:
            raise OptionError("--label-type: the labels of a RUN are what its spec says they are; leave it out")
        chosen = filter_options(_settled(options) if given.settled else options)
        stack.enter_context(run.locked())
        numeric = (options["label_type"] or given.label_type) == "score"
        if options["address"] is not None:
            stack.enter_context(cluster(options["address"]))
        means = filter_means(run, chosen, options, has_spec=file is None)
        results: dict[str, Any]
        if looking:
            funnel, results = look(run, chosen, means, source=file, numeric_labels=numeric, ablate=options["ablate"])
        else:
            state, funnel = filter_run(run, chosen, means, source=file, numeric_labels=numeric, fresh=options["fresh"])
            results = run.stage("filter")
            if state == "done":
                click.echo(f"{run.path}: filtered data is up to date")
    rows = funnel.rows()
    idle = [row[0][2:] for row in rows if row[0][0] == "-" and row[-1] == "0"]
    click.echo(table(funnel.header(), [row for row in rows if row[0][2:] not in idle]))
    if idle:
        click.echo(f"Nothing to drop for: {', '.join(idle)}.")
    for label, missing in results.get("missing", []):
        click.echo(f"label {label}: {missing} of {chosen.target_per_label} are missing: dino generate --until-target")


@dataclass(frozen=True)
class _ToFilter:
    """What a filter reads and writes."""

    run: Run
    file: Path | None = None
    """None: the run's own texts."""
    label_type: str = "score"
    """What its labels are, unless told: ``score`` or ``class``."""
    settled: bool = False
    """Whether it was filtered before: its labels are what they are to be."""


def _to_filter(source: Path, run_path: Path | None) -> _ToFilter:
    """Return what a filter is to read and write; a published dataset is put into a file."""
    from dino_pipeline.run import Run

    if is_unpublished(source):  # filtered where it is; published ones are files like others
        if run_path is not None and run_path.resolve() != source.resolve():
            raise OptionError(f"{source}: is a run itself, so --run {run_path} has no place; leave one out")
        return _ToFilter(Run(source), label_type=Run(source).stage("generate").get("label_type", "score"))
    on_hub = not source.exists() and HUB_ID.fullmatch(str(source))
    if not source.exists() and not (on_hub and run_path):
        more = ", or, if it is a dataset on the Hub, --run FOLDER as well" if on_hub else ""
        raise OptionError(f"{source}: is not there; give a run's folder or a JSONL file{more}")
    if run_path is None:
        kind = "dataset" if source.is_dir() else "file"
        raise OptionError(f"{source}: is a {kind}; say with --run which folder to write")
    return _published(str(source), Run(run_path)) if on_hub or source.is_dir() else _ToFilter(Run(run_path), source)


def _published(name: str, run: Run) -> _ToFilter:
    """Return a file with what was written for a published dataset or, where that is not there, what is to train on."""
    from datasets import load_dataset

    from dino_pipeline.examples import PROVENANCE, Example, write_examples
    from dino_pipeline.training.corpus import Source

    path = run.path / "source" / f"{public(name).strip('./').replace('/', '--')}.jsonl"
    settled = False
    try:
        rows = load_dataset(name, "raw", split="train")
        if not {"text_a", "label", *PROVENANCE} <= {*rows.column_names}:
            raise ValueError
        examples = [Example(**row) for row in rows]
    except (ValueError, OSError):  # there is no such configuration; what else is wrong is said in the next line
        examples = Source(name).corpus.examples
        settled = True
    write_examples(path, examples)
    return _ToFilter(run, path, "class" if isinstance(examples[0].label, str) else "score", settled)


def _settled(options: dict[str, Any]) -> dict[str, Any]:
    """Return options for what was filtered before: nothing is smoothed, drawn or split a second time unless asked."""
    found = {"labels": "hard", "random_pairs": 0, "dev_share": 0.0}
    asked = {each.name for each in given_parameters()}
    click.echo("This was filtered before: labels stay as they are, no random pairs, no dev split, unless asked for.")
    return {**options, **{name: value for name, value in found.items() if name not in asked}}


def filter_options(options: dict[str, Any]) -> FilterOptions:
    """Return what decides the result, from the command line's values."""
    from dino_pipeline.filtering.hygiene import HygieneOptions
    from dino_pipeline.filtering.rules import FilterOptions

    if options["verify_margin"] and not options["verify"]:
        raise OptionError("--verify-margin belongs to --verify; give both or neither")
    if options["temperature"] != 1 and options["labels"] != "posterior":
        raise OptionError("--temperature belongs to --labels posterior; give both or neither")
    hygiene = HygieneOptions(**{name: options[name] for name in ("min_chars", "max_chars", "max_symbols")})
    given = {each.name: options[each.name] for each in fields(FilterOptions) if each.name in options}
    return FilterOptions(**given, hygiene=hygiene)


def filter_means(run: Run, chosen: FilterOptions, options: dict[str, Any], *, has_spec: bool) -> Means:
    """Return what the filter works with: processes, evaluation data, models."""
    from dino_pipeline.filtering.contamination import exclusion_files
    from dino_pipeline.filtering.sieve import Means

    if chosen.needs_scores and not has_spec:
        raise OptionError("--verify and --labels posterior need a run's spec and generator; this is a file")
    return Means(
        workers=options.get("workers") or os.cpu_count() or 1,
        memory=options.get("memory") or Means.memory,
        scores=_scores(run, options.get("device")) if chosen.needs_scores else None,
        embed=_embed(chosen.semantic, options.get("device")) if chosen.semantic else None,
        cluster=spread_of(options, run.path) if options.get("address") else None,
        excluded=tuple(exclusion_files(chosen.exclude, run.path / "evaluation-data")),
    )


def _scores(run: Run, device: str | None) -> Any:
    from dino_pipeline.filtering.label_scores import LabelScores

    begun = run.stage("generate").get("options")
    if begun and begun.get("engine") == "openai":
        if not isinstance(begun.get("scorer"), dict):
            raise OptionError(
                "--verify and --labels posterior ask the generator, which ran on a server; generate with --scorer "
                "MODEL, a model that runs here, or leave them out"
            )
        begun = begun["scorer"]
    if not begun:
        raise RunError(f"{run.path}: no texts are written there; run dino generate first")

    def load() -> Any:
        from dino_pipeline.decoding.loading import load_decoder

        return load_decoder(generator_of(begun), device=pick_device(device))

    return LabelScores(run, begun, load, Console())


def _embed(name: str, device: str | None) -> Any:
    from dino_pipeline.encoders import embed, load_encoder

    return partial(embed, load_encoder(model_path(name, "encoder")).to(pick_device(device)))


def _list(chosen: FilterOptions) -> None:
    from dino_pipeline.filtering.filters import describe

    rules = describe(chosen)
    names, options = (max(len(rule[column]) for rule in rules) for column in (0, 2))
    for name, help, option in rules:
        click.echo(f"{name:{names}}  {option:{options}}  {help}")
