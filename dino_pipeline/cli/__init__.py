"""The command line: flags, wiring and messages. Each command is imported when it is called."""

from __future__ import annotations

import os
from importlib import import_module

import click

from dino_pipeline import __version__
from dino_pipeline.model_files import ALLOW_PICKLE

COMMANDS = {
    "spec": ("spec_commands", "List, check, show and write task specs."),
    "preview": ("stage_commands", "Write a few texts, and estimate what a job takes."),
    "generate": ("stage_commands", "Write texts for every input and label."),
    "filter": ("stage_commands", "Decide what is trained on, and say why not."),
    "finetune": ("stage_commands", "Train an encoder."),
    "compare": ("stage_commands", "Train by several objectives, on one table."),
    "evaluate": ("stage_commands", "Score encoders."),
    "report": ("stage_commands", "Put a run on one page."),
    "publish": ("stage_commands", "Put dataset and encoder on the Hub."),
    "verify": ("stage_commands", "Check a run, or what is published."),
    "export": ("stage_commands", "Write pairs in the original's format."),
}
"""Module and short help of each command, in the order in which they are used."""


class LazyGroup(click.Group):
    """Imports a command when it is called, so that the help of all is fast."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{COMMANDS[name][0]}"), f"{name}_command")
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
