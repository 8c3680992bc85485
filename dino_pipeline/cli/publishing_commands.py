"""The commands that show and publish what was made: report, publish, verify and export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import COMMAND_LINE, FOLDER, command
from dino_pipeline.cli.flags import GroupedCommand, flags
from dino_pipeline.progress import Console
from dino_pipeline.publish_options import ExportOptions, PublishOptions, ReportOptions, VerifyOptions


@click.command("report", cls=GroupedCommand)
@click.argument("run", metavar="RUN", type=FOLDER)
@command
@flags(ReportOptions)
def report_command(run: Path, **given: Any) -> None:
    """Write report.html, a page that needs no other file: prompts, funnel, balance, lengths, similarity, diversity,
    training, scores, samples and lineage of a RUN; and its pictures as PNG."""
    from dino_pipeline.publishing.report import report

    written = report(run, progress=Console(wording=COMMAND_LINE), **given)
    size = written.path.stat().st_size / 1e6
    pictures = written.path.parent / "pictures"
    click.echo(f"{written.path}: {size:.1f} MB; {len(written.pictures)} pictures in {pictures}")
    for title, section in written.missing.items():
        click.echo(f"left out: {title}: {section.worded(COMMAND_LINE)}")


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

    click.echo(publish(run, progress=Console(wording=COMMAND_LINE), **given))


@click.command("verify", cls=GroupedCommand)
@click.argument("target", metavar="REPO|FOLDER")
@command
@flags(VerifyOptions)
def verify_command(target: str, **given: Any) -> None:
    """Check hashes and counts of a published dataset or model, and say whether the same commands would make the same
    dataset here. Exit code 1 if something is not as it was published."""
    from dino_pipeline.publishing.verify import verify

    verification = verify(target, **given)
    click.echo(f"{verification}")
    if verification.problems:
        sys.exit(1)


@click.command("export", cls=GroupedCommand)
@click.argument("source", metavar="RUN|FOLDER|REPO")
@command
@flags(ExportOptions)
def export_command(source: str, **given: Any) -> None:
    """Write a run's, or a published dataset's, examples as the original DINO's JSONL: text_a, text_b, label."""
    from dino_pipeline.publishing.verify import export

    click.echo(f"{export(source, **given)}")
