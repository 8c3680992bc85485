"""Flags of commands, made from the options models."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from dino_pipeline.errors import OptionError
from dino_pipeline.options import Flag, Options, choices_of, default_of, flags_of, is_mapping, without_none

Command = Callable[..., Any]
METAVARS = {int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}


def flags(model: type[Options]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command a flag for each option of a model.

    The command is called with the options that its user gave, by name, as strings or what click makes of them; the
    model validates them. Put it right above the function, below ``@command``, which shows errors.
    """

    def decorate(function: Command) -> Command:
        names = [name for name, flag, _ in flags_of(model) if not flag.hidden]

        @wraps(function)
        def wrapped(**values: Any) -> Any:
            context = click.get_current_context()
            left_out = [name for name in names if context.get_parameter_source(name) == ParameterSource.DEFAULT]
            given = {name: value for name, value in values.items() if name not in left_out}
            _refuse_flags_as_values(given)
            return function(**given)

        parameters = [_option(name, flag, field) for name, flag, field in flags_of(model) if not flag.hidden]
        # click expects them last first, as decorators add them
        wrapped.__click_params__ = [*reversed(parameters), *getattr(function, "__click_params__", [])]  # type: ignore[attr-defined]
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
