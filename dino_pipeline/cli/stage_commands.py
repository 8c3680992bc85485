"""A command for each stage, from preview to export."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import (
    COMMAND_LINE,
    FOLDER,
    GroupedCommand,
    command,
    console_of_command,
    flags,
    or_dash,
    watching,
)
from dino_pipeline.cli.spec_commands import SpecFile
from dino_pipeline.display import say, spelt
from dino_pipeline.encoder_options import OBJECTIVES, CompareOptions, EvaluateOptions, FinetuneOptions
from dino_pipeline.errors import OptionError, worded
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.generate_options import GenerateOptions, PreviewOptions
from dino_pipeline.layout import is_data_folder, is_unpublished
from dino_pipeline.progress import clock, table
from dino_pipeline.publish_options import ExportOptions, PublishOptions, ReportOptions, VerifyOptions
from dino_pipeline.run import Run

if TYPE_CHECKING:
    from dino_pipeline.generation.generate import GeneratedTexts
    from dino_pipeline.generation.preview import Preview
    from dino_pipeline.generation.preview_texts import PreviewText


def _default_run(spec: Path) -> Path:
    return Path("outputs") / spec.stem


@click.command("generate", cls=GroupedCommand)
@click.argument("spec", type=SpecFile())
@command
@flags(GenerateOptions)
def generate_command(spec: Path, **given: Any) -> None:
    """Write texts for every input and label of a task SPEC; continue where an earlier call stopped."""
    with watching("Finishing the shards begun") as console:
        from dino_pipeline.generation.generate import generate

        given = {"run": _default_run(spec), **given}
        texts = generate(spec, progress=console, **given)
    _print_counts(texts, given["run"])


def _print_counts(texts: GeneratedTexts, folder: Path) -> None:
    record, target = texts.record, texts.target
    if texts.yields and target:
        rows = []
        for label, found in texts.yields.items():
            rows.append([label, str(min(found.kept, target)), str(max(0, target - found.kept))])
        say(table(["label", "pairs", "missing"], rows))
    if texts.state == "done":
        say(f"{folder}: texts are up to date")
    rows = []
    for label, total in record.counts.items():
        rows.append([label, str(total.written), str(total.accepted), or_dash(record.mean_margins[label], "+.2f")])
    say(table(["label", "written", "accepted", "mean margin"], rows))


@click.command("preview", cls=GroupedCommand)
@click.argument("spec", type=SpecFile())
@command
@flags(PreviewOptions)
def preview_command(spec: Path, **given: Any) -> None:
    """Write a few texts of a task SPEC, with debiasing and without, and estimate time and memory of the whole run.

    The estimate comes from a trial that is cut to some seconds: about 6 to measure the speed, and 6 for as many texts
    as can be written in that time. dino generate notes if the run is much slower.
    """
    with closing(console_of_command()) as console:
        from dino_pipeline.generation.preview import preview as preview_run

        result = preview_run(spec, progress=console, **{"run": _default_run(spec), **given})
    for label, rule in result.spec.labels.items():
        counters = ", ".join(rule.counter_labels) or "none"
        say(f"--- label {label} (counter-labels: {counters})", bold=True)
        _print_texts([text for text in result.texts if text.label == label], has_counters=bool(rule.counter_labels))
    _print_estimate(result)


def _print_texts(texts: Sequence[PreviewText], *, has_counters: bool) -> None:
    for text in texts:
        if text.input is not None:
            say(f"    input       {text.input}")
        if has_counters:
            click.echo(f"    debiased    {marked(text)}")
        say(f"    {'undebiased' if has_counters else 'text':11} {text.plain.text.strip()}")
        if text.debiased.margin is not None and text.plain.margin is not None:
            say(f"    margins     {text.debiased.margin:+.2f}, undebiased {text.plain.margin:+.2f}")
        say()


def marked(text: PreviewText) -> str:
    """Return a debiased text with the tokens that debiasing chose in colour or, outside a terminal, in brackets."""
    is_coloured = sys.stdout.isatty()
    remaining, parts, is_marked = len(text.debiased.text), [], False
    for piece, is_changed in text.pieces:
        shown = piece[:remaining]  # without the string that closes the text
        remaining -= len(shown)
        shown = spelt(shown)
        is_marked |= is_changed
        if is_marked and shown.strip():
            parts.append(click.style(shown, fg="green", bold=True) if is_coloured else f"[{shown}]")
        else:
            parts.append(shown)
        is_marked &= not piece  # a token that ends within a character adds no text yet: the next shows its mark
    return "".join(parts).strip()


def _print_estimate(result: Preview) -> None:
    estimate, rows = result.estimate, []
    for label, share in estimate.accepted.items():
        margin, changed = or_dash(estimate.margins[label], "+.2f"), or_dash(result.changed_share(label), ".0%")
        rows.append([label, f"{share:.0%}", margin, changed])
    say(table(["label", "accepted", "mean margin", "tokens that debiasing chose"], rows))
    say(
        f"The whole job: {estimate.texts} texts of {estimate.tokens:.0f} tokens, {estimate.row_tokens / 1e6:.2g} "
        f"million row-tokens; {estimate.per_second:.1f} texts a second were measured here.\n"
        f"It would take about {clock(estimate.seconds)} and {estimate.memory / 2**30:.1f} GiB of memory."
    )
    if price := result.rejection_price:
        say(
            f"With --debias rejection, a server would take about {price.rounds:.3g} rounds for a text with "
            f"counter-labels, and {price.requests:,} requests in all."
        )


@click.command("filter", cls=GroupedCommand)
@click.argument("source", metavar="RUN|FILE", required=False, type=FOLDER)
@click.option("--list", "list_rules", is_flag=True, help="Show the rules with these options, and leave.")
@command
@flags(FilterOptions)
def filter_command(source: Path | None, list_rules: bool = False, **given: Any) -> None:
    """Clean, de-duplicate, balance and split the texts of a RUN, or the examples of a FILE or DATASET."""
    from dino_pipeline.filtering.filter import filter

    if list_rules:
        _list_rules(FilterOptions.of(given))
        return
    if source is None:
        raise OptionError("nothing to filter", "give a run's folder or a file")
    if not given.keys() & {"run", "dry_run", "ablate"}:
        _require_run(source)
    with closing(console_of_command()) as console:
        result = filter(source, progress=console, **given)
    if result.outcome == "done" and result.run:
        say(f"{given.get('run', source)}: filtered data is up to date")
    funnel = result.funnel
    say(table(funnel.header(), funnel.without_idle().rows(COMMAND_LINE)))
    if idle := funnel.idle_rules():
        say(f"Nothing to drop for: {', '.join(idle)}.")
    for label, missing in result.missing:
        target = result.record.options.target_per_label
        say(f"label {label}: {missing} of {target} are missing: dino generate --until-target")


def _require_run(source: Path) -> None:
    """Raise `OptionError` unless the source is a run, which is where the result is written."""
    if is_unpublished(source) and not is_data_folder(source):
        return
    if not source.exists():
        raise OptionError(
            f"{source}: is not there",
            "give a run's folder or a file or, for a dataset on the Hub, {run=FOLDER} as well",
        )
    kind = "dataset" if source.is_dir() else "file"
    raise OptionError(f"{source}: is a {kind}", "name the folder to write with {run}")


def _list_rules(options: FilterOptions) -> None:
    from dino_pipeline.filtering.filter import rules

    described = [
        (rule.name, worded(rule.option, COMMAND_LINE), rule.help if rule.is_on else f"(off) {rule.help}")
        for rule in rules(options)
    ]
    name_width = max(len(name) for name, _, _ in described)
    option_width = max(len(option) for _, option, _ in described)
    for name, option, help in described:
        say(f"{name:{name_width}}  {option:{option_width}}  {help}")


@click.command("finetune", cls=GroupedCommand)
@click.argument("source", metavar="[RUN|FILE|DATASET]", required=False)
@click.option("--list", "listing", is_flag=True, help="List the objectives with what they need and their defaults.")
@command
@flags(FinetuneOptions)
def finetune_command(source: str | None, listing: bool, **given: Any) -> None:
    """Train a bi-encoder on a RUN's filtered data, a FILE (a table, or a sentence or document a line), or a DATASET of
    the Hub. A stopped training goes on from its last checkpoint.

    Hyper-parameters are those of the objective's paper unless given.
    """
    from dino_pipeline.measures import measure_title
    from dino_pipeline.training.finetune import finetune

    if listing:
        _list_objectives()
        return
    if source is None:
        raise OptionError("nothing to train on", "give a RUN, a FILE or a DATASET, or --list")
    folder = _folder(source, given)
    with watching("Saving a checkpoint") as console:
        encoder = finetune(source, progress=console, **given)
    if os.environ.get("RANK", "0") == "0":
        info = encoder.dino
        made = "is trained" if info.record.steps else "is made without training"
        done = "is up to date" if info.state == "done" else made
        # whitening comes after the best checkpoint was chosen
        which = "best dev" if info.record.measured == "best" else "dev"
        chosen = info.record.selection
        say(f"{folder / 'model'}: {done}; {which} {measure_title(chosen.measure)}: {chosen.best:.2f}")


@click.command("compare", cls=GroupedCommand)
@click.argument("source", metavar="RUN|FILE|DATASET")
@command
@flags(CompareOptions)
def compare_command(source: str, **given: Any) -> None:
    """Train the same encoder by each objective on the same texts, evaluate it on the same sets, and print, save and
    draw one table. Finished trainings are not done again.

    Hyper-parameters given here are for all objectives, those that are not given each objective's own.
    """
    from dino_pipeline.evaluation.compare import compare

    _folder(source, given)
    with watching("Saving a checkpoint") as console:
        comparison = compare(source, progress=console, **given)
    say(comparison)
    seeds = f"{len(comparison.seeds)} seed{'s' * (len(comparison.seeds) > 1)}"
    files = ", ".join(map(str, comparison.files))
    say(f"Spearman x 100, mean and range of {seeds}; written: {files}")


def _folder(source: str, given: dict[str, Any]) -> Path:
    """Return the folder to write. A command keeps what it trains, so that it must have one."""
    if "run" not in given and Run.of(source) is None:
        raise OptionError(f"{source}: is not a run", "name the folder to write with {run=FOLDER}")
    return Path(given.get("run", source))


def _list_objectives() -> None:
    from dino_pipeline.training.objectives import get_objective

    objectives = [get_objective(name) for name in OBJECTIVES]
    rows = []
    for objective in objectives:
        defaults = objective.defaults
        numbers = [f"{defaults.epochs:g}", str(defaults.batch_size), f"{defaults.learning_rate:g}"]
        rows.append([objective.name, objective.needs, *numbers, defaults.pooling])
    say(table(["objective", "needs", "epochs", "batch", "rate", "pooling"], rows))
    for objective in objectives:
        say(f"\n{objective.name}: {objective.method}\n  {objective.citation}")
        for name, field in objective.options.model_fields.items():
            say(f"  --set {name}={field.default}: {field.description}")
        if not objective.options.model_fields:
            say("  no options of its own")
        authors = objective.faithful
        if isinstance(authors, str):
            say(f"  --faithful: refused; {objective.name} {authors}")
            continue
        settings = [f"{name}={value}" for name, value in {**authors.options, **authors.hyperparameters}.items()]
        say(f"  --faithful: {', '.join([*settings, authors.more])} ({authors.code})")


@click.command("evaluate", cls=GroupedCommand)
@click.argument("targets", metavar="[RUN|MODEL]...", nargs=-1)
@command
@flags(EvaluateOptions)
def evaluate_command(targets: tuple[str, ...], **given: Any) -> None:
    """Score encoders: MODELs by folder or Hub id (id@revision), or a RUN's encoder before and after training. With
    several, differences from the first are given with their own intervals.

    The scores are written to scores.json in the RUN, or here.
    """
    from dino_pipeline.evaluation.evaluate import evaluate

    if sum(Run.of(target) is not None for target in targets) != 1:
        given.setdefault("output", "scores.json")
    with closing(console_of_command()) as console:
        scores = evaluate(*targets, progress=console, **given)
    if scores.was_kept:
        say(f"{scores.path and scores.path.parent}: scores are up to date")
    say(scores)
    if "output" in given:
        say(f"written: {scores.path}")


@click.command("report", cls=GroupedCommand)
@click.argument("run", metavar="RUN", type=FOLDER)
@command
@flags(ReportOptions)
def report_command(run: Path, **given: Any) -> None:
    """Write report.html, a page that needs no other file: prompts, losses, funnel, balance, lengths, similarity,
    diversity, training, scores, samples and lineage of a RUN; and its pictures as PNG."""
    from dino_pipeline.publishing.report import report

    with closing(console_of_command()) as console:
        written = report(run, progress=console, **given)
    size = written.path.stat().st_size / 1e6
    pictures = written.path.parent / "pictures"
    say(f"{written.path}: {size:.1f} MB; {len(written.pictures)} pictures in {pictures}")
    for title, section in written.missing.items():
        say(f"left out: {title}: {section.worded(COMMAND_LINE)}")


@click.command("publish", cls=GroupedCommand)
@click.argument("run", metavar="RUN", type=FOLDER)
@command
@flags(PublishOptions)
def publish_command(run: Path, **given: Any) -> None:
    """Write a RUN's dataset and encoder, with cards that tell how they were made, to RUN/hub, and upload them, each in
    one commit. What people write into the cards is kept, outside of the two marks.

    The token is the one that `hf auth login` stored, or HF_TOKEN.
    """
    from dino_pipeline.publishing.publish import publish

    with closing(console_of_command()) as console:
        say(publish(run, progress=console, **given))


@click.command("verify", cls=GroupedCommand)
@click.argument("target", metavar="RUN|REPO|FOLDER")
@command
@flags(VerifyOptions)
def verify_command(target: str, **given: Any) -> None:
    """Check each byte of a run, or hashes and counts of a published dataset or model. Of what is published, say whether
    the same commands would make the same here. Exit code 1 if something is not as it was written."""
    from dino_pipeline.publishing.verify import verify

    verification = verify(target, **given)
    say(verification.worded(COMMAND_LINE))
    if verification.problems:
        sys.exit(1)


@click.command("export", cls=GroupedCommand)
@click.argument("source", metavar="RUN|FOLDER|REPO")
@command
@flags(ExportOptions)
def export_command(source: str, **given: Any) -> None:
    """Write a run's, or a published dataset's, examples as the original DINO's JSONL: text_a, text_b, label."""
    from dino_pipeline.publishing.export import export

    say(f"{export(source, **given)}")
