"""dino preview: a look at a job before hours are spent on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from dino_pipeline.cli.base import FOLDER, Grouped, command, or_dash
from dino_pipeline.cli.engines import engine_here, here_options
from dino_pipeline.cli.spec_commands import SpecFile
from dino_pipeline.cli.texts import text_options, text_settings
from dino_pipeline.console import Console, table
from dino_pipeline.progress import clock

if TYPE_CHECKING:
    from dino_pipeline.generation.estimate import Estimate
    from dino_pipeline.generation.preview import Drawn


@click.command(cls=Grouped)
@click.argument("spec_file", metavar="SPEC", type=SpecFile())
@click.option(
    "--run",
    "run_path",
    type=FOLDER,
    help="Folder of the run to come; the estimate is kept there.  [default: outputs/SPEC]",
)
@click.option("--texts", "count", type=click.IntRange(1), default=3, show_default=True, help="Shown of each label.")
@here_options
@text_options
@command
def preview(spec_file: Path, run_path: Path | None, count: int, **options: Any) -> None:
    """Write a few texts of a task SPEC, with debiasing and without from the same random numbers, and say what the whole
    job would take, by a small part of it done now. dino generate says if it comes otherwise."""
    import psutil

    from dino_pipeline.decoding.decoder import Decoder
    from dino_pipeline.generation.estimate import job
    from dino_pipeline.generation.preview import draw, measure
    from dino_pipeline.generation.writer import OneEngine
    from dino_pipeline.run import Run
    from dino_pipeline.spec_file import load_spec

    spec = load_spec(spec_file)
    run = Run(run_path or Path("outputs") / spec_file.stem)
    texts, chosen = text_settings(spec, options)
    with closing(Console()) as console:
        engine = engine_here(options, {}, console)
        decoder = cast(Decoder, cast(OneEngine, engine.hands()).engine)
        loading = time.time() - psutil.Process().create_time()  # a run begins like this, too
        found, inputs = measure(decoder, spec, texts, chosen, console, loading=loading)
        drawn = draw(decoder, spec, inputs, chosen, count)
    for label, of_label in spec.labels.items():
        against = ", ".join(of_label.counter_labels) or "none"
        click.secho(f"--- label {label} (counter-labels: {against})", bold=True)
        _show([each for each in drawn if each.label == label], contrasted=bool(of_label.counter_labels))
    _say(found, drawn)
    found.write(run, job(spec, engine.record, chosen))


def _show(drawn: Sequence[Drawn], *, contrasted: bool) -> None:
    for each in drawn:
        if each.input is not None:
            click.echo(f"    input       {each.input}")
        if contrasted:
            click.echo(f"    debiased    {_marked(each)}")
        click.echo(f"    {'undebiased' if contrasted else 'text':11} {each.plain.text.strip()}")
        if each.debiased.margin is not None and each.plain.margin is not None:
            click.echo(f"    margins     {each.debiased.margin:+.2f}, undebiased {each.plain.margin:+.2f}")
        click.echo()


def _marked(drawn: Drawn) -> str:
    """Return a debiased text in which tokens that debiasing chose stand out."""
    coloured = sys.stdout.isatty()
    left, parts, chosen = len(drawn.debiased.text), [], False
    for piece, changed in drawn.pieces:  # what closes a text is not shown
        shown, left = piece[:left], left - len(piece[:left])
        chosen |= changed
        if chosen and shown.strip():
            parts.append(click.style(shown, fg="green", bold=True) if coloured else f"[{shown}]")
        else:
            parts.append(shown)
        chosen &= not piece  # the first of a character's tokens adds nothing yet
    return "".join(parts).strip()


def _say(found: Estimate, drawn: Sequence[Drawn]) -> None:
    rows = [
        [label, f"{share:.0%}", or_dash(found.margins[label], "+.2f"), _changed(label, drawn)]
        for label, share in found.accepted.items()
    ]
    click.echo(table(["label", "accepted", "mean margin", "tokens that debiasing chose"], rows))
    click.echo(
        f"The whole job: {found.texts} texts of {found.tokens:.0f} tokens, {found.row_tokens / 1e6:.2g} million "
        f"row-tokens; {found.per_second:.1f} texts a second were measured here.\n"
        f"It would take about {clock(found.seconds)} and {found.memory / 2**30:.1f} GiB of memory."
    )


def _changed(label: str, drawn: Sequence[Drawn]) -> str:
    flags = [changed for each in drawn if each.label == label for _, changed in each.pieces]
    contrasted = any(each.debiased.margin is not None for each in drawn if each.label == label)
    return f"{sum(flags) / max(len(flags), 1):.0%}" if contrasted else "-"
