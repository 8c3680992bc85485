"""The commands that write texts: ``dino preview`` and ``dino generate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import COMMAND_LINE, command, or_dash, watching
from dino_pipeline.cli.flags import GroupedCommand, flags
from dino_pipeline.cli.spec_commands import SpecFile
from dino_pipeline.console import Console, table
from dino_pipeline.generate_options import GenerateOptions, PreviewOptions
from dino_pipeline.progress import clock

if TYPE_CHECKING:
    from dino_pipeline.generation.generate import GeneratedTexts
    from dino_pipeline.generation.preview import Preview, PreviewText


def _default_run(spec: Path) -> Path:
    return Path("outputs") / spec.stem


@click.command(cls=GroupedCommand)
@click.argument("spec", type=SpecFile())
@command
@flags(GenerateOptions)
def generate(spec: Path, **given: Any) -> None:
    """Write texts for every input and label of a task SPEC; continue where an earlier call stopped."""
    from dino_pipeline.generation.generate import generate as generate_texts

    with watching("Finishing the shards begun") as console:
        texts = generate_texts(spec, progress=console, **{"run": _default_run(spec), **given})
    _print_counts(texts)


def _print_counts(texts: GeneratedTexts) -> None:
    record, target = texts.record, texts.target
    if texts.yields and target:
        rows = []
        for label, state in texts.yields.items():
            rows.append([label, str(min(state.kept, target)), str(max(0, target - state.kept))])
        click.echo(table(["label", "pairs", "missing"], rows))
    if texts.state == "done" and texts.run:
        click.echo(f"{texts.run.path}: texts are up to date")
    rows = []
    for label, total in record.counts.items():
        rows.append([label, str(total.written), str(total.accepted), or_dash(record.mean_margins[label], "+.2f")])
    click.echo(table(["label", "written", "accepted", "mean margin"], rows))


@click.command(cls=GroupedCommand)
@click.argument("spec", type=SpecFile())
@command
@flags(PreviewOptions)
def preview(spec: Path, **given: Any) -> None:
    """Write a few texts of a task SPEC, with debiasing and without, and estimate time and memory of the whole run.

    The estimate comes from a short trial. dino generate notes if the run is much slower.
    """
    from dino_pipeline.generation.preview import preview as preview_run

    with closing(Console(wording=COMMAND_LINE)) as console:
        result = preview_run(spec, progress=console, **{"run": _default_run(spec), **given})
    for label, rule in result.spec.labels.items():
        counters = ", ".join(rule.counter_labels) or "none"
        click.secho(f"--- label {label} (counter-labels: {counters})", bold=True)
        _print_texts([text for text in result.texts if text.label == label], has_counters=bool(rule.counter_labels))
    _print_estimate(result)


def _print_texts(texts: Sequence[PreviewText], *, has_counters: bool) -> None:
    for text in texts:
        if text.input is not None:
            click.echo(f"    input       {text.input}")
        if has_counters:
            click.echo(f"    debiased    {marked(text)}")
        click.echo(f"    {'undebiased' if has_counters else 'text':11} {text.plain.text.strip()}")
        if text.debiased.margin is not None and text.plain.margin is not None:
            click.echo(f"    margins     {text.debiased.margin:+.2f}, undebiased {text.plain.margin:+.2f}")
        click.echo()


def marked(text: PreviewText) -> str:
    """Return a debiased text with marks around the tokens that debiasing changed."""
    is_coloured = sys.stdout.isatty()
    left, parts, is_marked = len(text.debiased.text), [], False
    for piece, is_changed in text.pieces:
        shown = piece[:left]  # without the string that closes the text
        left -= len(shown)
        is_marked |= is_changed
        if is_marked and shown.strip():
            parts.append(click.style(shown, fg="green", bold=True) if is_coloured else f"[{shown}]")
        else:
            parts.append(shown)
        is_marked &= not piece  # the first token of a character of several adds nothing yet
    return "".join(parts).strip()


def _print_estimate(result: Preview) -> None:
    estimate, rows = result.estimate, []
    for label, share in estimate.accepted.items():
        margin, changed = or_dash(estimate.margins[label], "+.2f"), or_dash(result.changed_share(label), ".0%")
        rows.append([label, f"{share:.0%}", margin, changed])
    click.echo(table(["label", "accepted", "mean margin", "tokens that debiasing chose"], rows))
    click.echo(
        f"The whole job: {estimate.texts} texts of {estimate.tokens:.0f} tokens, {estimate.row_tokens / 1e6:.2g} "
        f"million row-tokens; {estimate.per_second:.1f} texts a second were measured here.\n"
        f"It would take about {clock(estimate.seconds)} and {estimate.memory / 2**30:.1f} GiB of memory."
    )
