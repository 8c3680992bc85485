"""The command line: flags, wiring and messages, a file a command. Heavy imports stay inside the commands."""

from __future__ import annotations

import os

import click

from dino_pipeline import __version__
from dino_pipeline.cli.evaluation_command import evaluate_command
from dino_pipeline.cli.filter_command import filter_command
from dino_pipeline.cli.generation_commands import generate, preview
from dino_pipeline.cli.publishing_commands import export, publish, report, verify
from dino_pipeline.cli.spec_commands import spec
from dino_pipeline.cli.training_commands import compare_command, finetune_command
from dino_pipeline.models import ALLOW_PICKLE


class InOrder(click.Group):
    """Lists commands in the order in which they are used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dino")
@click.option(
    "--allow-pickle",
    is_flag=True,
    envvar=ALLOW_PICKLE,
    show_envvar=True,
    help="Read models that have no safetensors; pickled weights can run code: only from those you trust.",
)
def main(allow_pickle: bool) -> None:
    """Datasets from instructions: generate labelled text pairs, filter them, train a sentence encoder, evaluate it."""
    os.environ[ALLOW_PICKLE] = str(int(allow_pickle))


for _command, _said in (
    (spec, "List, check, show and write task specs."),
    (preview, "Write a few texts, and say what a job takes."),
    (generate, "Write texts for every input and label."),
    (filter_command, "Decide what is trained on, and say why not."),
    (finetune_command, "Train an encoder."),
    (compare_command, "Train by several objectives, on one table."),
    (evaluate_command, "Score encoders."),
    (report, "Put a run on one page."),
    (publish, "Put dataset and encoder on the Hub."),
    (verify, "Check what is published."),
    (export, "Write pairs in the original's format."),
):
    _command.short_help = _said
    main.add_command(_command)
