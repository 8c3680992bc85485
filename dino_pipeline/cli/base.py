"""What all commands share: errors as messages, quiet libraries, types of arguments."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from dino_pipeline.errors import DinoError
from dino_pipeline.processes import Stopped, StopRequest, signals_handled, stop_at_once
from dino_pipeline.progress import Console

Command = Callable[..., Any]


class CommandLineWording:
    """Options as flags, stages as commands."""

    def option(self, name: str, value: object = None) -> str:
        """Return the flag of an option, with a value if it takes one."""
        flag = name.replace("_", "-")
        if str(value) == "False":
            return f"--no-{flag}"
        if str(value) in ("None", "True"):
            return f"--{flag}"
        return f"--{flag} '{value}'" if " " in str(value) else f"--{flag} {value}"

    def stage(self, name: str, target: str) -> str:
        """Return the command of a stage."""
        return f"dino {name.replace('_', ' ')} {target}".rstrip()


COMMAND_LINE = CommandLineWording()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn errors into messages and exit codes: 2 for what a user can fix, 130 for Ctrl-C."""
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
    """Give a console. The first Ctrl-C or SIGTERM only asks the work to stop where that loses nothing.

    Args:
        finishing: what is still done before the stop, for the message.

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


class Place(click.Path):
    """A path, named in help as a file or a folder."""

    def __init__(self, name: str) -> None:
        super().__init__(path_type=Path)
        self.name = name


FILE, FOLDER = Place("file"), Place("folder")


def parts_of(given: str) -> list[str]:
    """Return the parts of a list with commas, each once."""
    return list(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))


def or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
