"""What all commands share: errors as messages, quiet libraries, what a path or a name stands for."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dino_pipeline.console import Console
from dino_pipeline.errors import DinoError
from dino_pipeline.processes import Stopped, StopRequest, signals_handled, stop_at_once

Command = Callable[..., Any]


class CommandLineWording:
    """Options as flags, stages as commands."""

    def option(self, name: str, value: object = None) -> str:
        flag = name.replace("_", "-")
        if str(value) == "False":
            return f"--no-{flag}"
        return f"--{flag}" if str(value) in ("None", "True") else f"--{flag} {value}"

    def stage(self, name: str, target: str) -> str:
        return f"dino {name.replace('_', ' ')} {target}".rstrip()


COMMAND_LINE = CommandLineWording()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn errors into messages and exit codes: 2 for what a user can mend, 130 for Ctrl-C."""
    try:
        yield
    except DinoError as error:
        click.echo(f"error: {error.worded(COMMAND_LINE)}", err=True)
        sys.exit(2)
    except MemoryError:
        click.echo("error: memory is full; end other programs, or work with less at once (--rows, --workers)", err=True)
        sys.exit(2)
    except KeyboardInterrupt as error:
        click.echo("\nStopped. What is finished is kept; the same command goes on from there.", err=True)
        sys.exit(getattr(error, "exit_code", 130))


def command(function: Command) -> Command:
    """Wrap a command so that its errors are reported and libraries keep quiet."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning)
        with _reported(), signals_handled(stop_at_once):
            return function(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def watching(finishing: str) -> Iterator[Console]:
    """Give a console that, at the first Ctrl-C or SIGTERM, only says what is still being finished.

    Args:
        finishing: what.

    Raises:
        Stopped: with the signal that asked for it.
    """
    said = f"\n{finishing} before stopping; the same again stops at once\n".encode()
    request = StopRequest(lambda: os.write(2, said))  # print() might be interrupted printing
    with contextlib.closing(Console(request, COMMAND_LINE)) as console, signals_handled(request.receive):
        try:
            yield console
        except Stopped:
            request.raise_if_requested()
            raise


def options_of(given: Sequence[Command]) -> Command:
    """Return a decorator that adds options in their order."""

    def add(function: Command) -> Command:
        for option in reversed(given):
            function = option(function)
        return function

    return add


def under(title: str) -> Command:
    """Return a decorator that puts the options below it, up to the next such title, under a title of the help."""

    def add(function: Command) -> Command:
        for parameter in function.__click_params__:  # type: ignore[attr-defined]  # where click's decorators collect them
            if not hasattr(parameter, "title"):
                parameter.title = title
        return function

    return add


class Place(click.Path):
    """A path, by what help calls it."""

    def __init__(self, name: str) -> None:
        super().__init__(path_type=Path)
        self.name = name


FILE, FOLDER = Place("file"), Place("folder")


class Grouped(click.Command):
    """A command whose help shows its options under their titles."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options, those without a title first."""
        found: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(context):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
                names, said = record
                named = names.replace(" RANGE", "")  # which the default's brackets tell
                found.setdefault(getattr(parameter, "title", "Options"), []).append((named, said))
        for title, records in found.items():
            with formatter.section(title):
                formatter.write_dl(records)


def parts_of(given: str) -> list[str]:
    """Return what a list with commas holds, each part once."""
    return list(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))


def given_parameters() -> list[click.Parameter]:
    """Return those parameters of the command that runs which its user gave."""
    context = click.get_current_context()
    sources = {each: context.get_parameter_source(each.name or "") for each in context.command.params}
    return [each for each, source in sources.items() if source != ParameterSource.DEFAULT]


def or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
