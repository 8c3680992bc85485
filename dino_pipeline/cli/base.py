"""What all commands share: flags made from the options models, errors as messages, quiet libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from dino_pipeline.display import say
from dino_pipeline.errors import DinoError, OptionError, limit_of_machine
from dino_pipeline.options import Flag, Options, choices_of, default_of, flags_of, is_mapping, without_none
from dino_pipeline.processes import check_address_space
from dino_pipeline.progress import PLAIN_EVERY, Console
from dino_pipeline.stopping import StopRequest, end_said_stop, signals_handled

_LOADED = time.monotonic()
Command = Callable[..., Any]
METAVARS = {int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}


class CommandLineWording:
    """Options as flags, stages as commands."""

    def option(self, name: str, value: object = None) -> str:
        """Return the flag of an option, with a value if it takes one."""
        flag = name.replace("_", "-")
        if str(value) == "False":
            return f"--no-{flag}"
        if str(value) in ("None", "True"):
            return f"--{flag}"
        return f"--{flag} {shlex.quote(str(value))}" if " " in str(value) else f"--{flag} {value}"

    def stage(self, name: str, target: str) -> str:
        command = f"dino {name.replace('_', ' ')}"
        if not target:
            return command
        return f"{command} {'-- ' if target.startswith('-') else ''}{shlex.quote(target)}"


COMMAND_LINE = CommandLineWording()


def _report(error: BaseException, request: StopRequest) -> int:
    """Say what was raised; return the exit code: 2 for what a user can fix, 130 for Ctrl-C, 143 for SIGTERM.

    Whatever is raised after a signal to stop at once comes from it: an interrupted query, a worker that ended.

    Raises:
        BaseException: the error itself, if there is no message for users.
    """
    if isinstance(error, KeyboardInterrupt) or request.raised:
        keeps_nothing = click.get_current_context().info_name == "preview"
        kept = "" if keeps_nothing else " What is finished is kept; the same command goes on from there."
        say(f"\nStopped.{kept}", err=True)
        exit_code = 128 + request.signal if request.signal else int(getattr(error, "exit_code", 130))
        end_said_stop(exit_code)
        return exit_code
    named = error if isinstance(error, DinoError) else limit_of_machine(error)
    if named is None:
        raise error
    _drop_unprinted()
    say(f"error: {named.worded(COMMAND_LINE)}", err=True)
    return 2


def _drop_unprinted() -> None:
    """Let what cannot be printed go nowhere: the interpreter would fail on it at its end."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        pass  # a reader that has gone, as in ``| head``, which click knows
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(function: Command) -> Command:
    """Wrap a command so that its errors are reported and libraries keep quiet."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning)
        request = StopRequest()
        try:
            with signals_handled(request):
                result = function(*args, **kwargs)
                if sys.stdout:
                    sys.stdout.flush()
                return result
        except (Exception, KeyboardInterrupt) as error:
            exit_code = _report(error, request)
        sys.exit(exit_code)  # here, where the error and what it holds are gone

    return wrapped


def console_of_command(should_stop: Callable[[], bool] = lambda: False) -> Console:
    """Return a console for a command that works long: its first sign comes some seconds after the process has begun.

    Raises:
        DinoError: the process has too little address space for such work.
    """
    check_address_space()
    running = time.monotonic() - _LOADED
    return Console(should_stop, COMMAND_LINE, running=running if running < PLAIN_EVERY else 0.0)


@contextlib.contextmanager
def watching(finishing: str) -> Iterator[Console]:
    """Give a console. The first signal only asks the work to stop where that loses nothing.

    Args:
        finishing: what is still done before the stop, for the message.

    Raises:
        Stopped: with the signal that asked for it.
    """
    said = f"\n{finishing} before stopping; the same again stops at once\n".encode()
    request = StopRequest(lambda: os.write(2, said))  # print() might be interrupted printing
    with contextlib.closing(console_of_command(request)) as console, signals_handled(request):
        try:
            yield console
        except (Exception, KeyboardInterrupt) as error:  # `Stopped`, or what a library makes of it
            if request.raised or isinstance(error, KeyboardInterrupt):
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


def flags(model: type[Options]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command a flag for each option of a model.

    The command is called with the options that its user gave, by name, as strings or what click makes of them; the
    model validates them. Put it right above the function, below ``@command``, which shows errors.
    """

    def decorate(function: Command) -> Command:
        parameters = {name: _option(name, flag, field) for name, flag, field in flags_of(model) if not flag.hidden}

        @wraps(function)
        def wrapped(**values: Any) -> Any:
            context = click.get_current_context()
            left_out = [name for name in parameters if context.get_parameter_source(name) == ParameterSource.DEFAULT]
            given = {name: value for name, value in values.items() if name not in left_out}
            _refuse_flags_as_values({name: value for name, value in given.items() if name in parameters})
            return function(**given)

        # click expects them last first, as decorators add them
        wrapped.__click_params__ = [*reversed(parameters.values()), *getattr(function, "__click_params__", [])]  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _refuse_flags_as_values(given: Mapping[str, object]) -> None:
    """Raise `OptionError` if an option has no value, so that click took the flag after it for one."""
    for name, value in given.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str) and part.startswith("--"):
                raise OptionError("needs a value, which cannot begin with --", "give one", option=name, value=part)


class GroupedOption(click.Option):
    """An option that is listed under a title in the command's help."""

    group = "Options"


def _option(name: str, flag: Flag, field: FieldInfo) -> GroupedOption:
    """Return the flag for an option of a model. Its value stays a string, which the model validates."""
    kind = without_none(field.annotation)
    flag_name = f"--{name.replace('_', '-')}"
    default = default_of(field)
    settings: dict[str, Any] = {"help": _help(flag, field), "metavar": flag.metavar, "default": None}
    names = [flag_name, *(f"--{alias}" for alias in flag.aliases), name]  # the last is the Python argument's
    if kind is bool:
        if default is False:
            settings["is_flag"] = True
        else:
            names[0] = f"{flag_name}/--no-{name.replace('_', '-')}"
        settings["metavar"] = None
    elif _is_repeated(kind):
        settings |= {"multiple": True, "type": str}
    elif choices := choices_of(field.annotation):
        settings["metavar"] = flag.metavar or f"[{'|'.join(choices)}]"
        settings["type"] = str
    else:
        settings["type"] = str
        settings["metavar"] = flag.metavar or METAVARS.get(kind, "TEXT")
    if size := _tuple_size(kind):
        settings |= {"nargs": size, "multiple": False}
    if flag.optional_value is not None:
        settings |= {"is_flag": False, "flag_value": flag.optional_value}
    option = GroupedOption(names, **settings)
    option.group = flag.group
    return option


def _is_repeated(kind: Any) -> bool:
    """Return whether an option is given several times: tuples of any length, and mappings as NAME=VALUE."""
    return (typing.get_origin(kind) is tuple and _tuple_size(kind) is None) or is_mapping(kind)


def _tuple_size(kind: Any) -> int | None:
    """Return the number of values of a tuple of fixed length, None for everything else."""
    inner = typing.get_args(kind)
    return len(inner) if typing.get_origin(kind) is tuple and Ellipsis not in inner else None


def _help(flag: Flag, field: FieldInfo) -> str:
    """Return the help of an option with its default at the end."""
    default = flag.default
    value = default_of(field)
    if default is None and value is not False and value not in (None, ()) and not isinstance(value, Mapping):
        default = "on" if value is True else f"{value}"
    if field.is_required():
        return f"{field.description}  [required]"
    return f"{field.description}  [default: {default}]" if default else field.description or ""


class GroupedCommand(click.Command):
    """A command whose help lists its options under their titles."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options, those without a title first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(context):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
                sections.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
