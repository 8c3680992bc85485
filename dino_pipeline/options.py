"""The definition of an option, from which its flag, Python argument, validation and docs are made.

An options model lists what a stage takes. Each field is one option:

    class FilterOptions(Options):
        near_duplicates: Annotated[float, Flag(WHAT_IS_DROPPED)] = Field(
            0.8, ge=0, le=1, description="Least Jaccard similarity; 0: off."
        )

`Options.of` validates values from anywhere and names what is wrong. `accepts` gives a Python function the options as
keyword arguments; ``cli.base`` gives a command the same options as flags.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dino_pipeline.errors import OptionError, short
from dino_pipeline.examples import COLUMN_NAMES

PLAIN_WORDS = {
    "bool": "must be True or False",
    "date": "must be a day, such as 2026-12-31",
    "dict": "must be a mapping, or NAME=VALUE",
    "float": "must be a number",
    "int": "must be a whole number",
    "list": "must be a list",
    "path": "must be a path",
    "string": "must be a string",
    "tuple": "must be a list",
}
"""What to say for pydantic's findings about types, by the first word of their names."""

Function = TypeVar("Function", bound=Callable[..., Any])
RunFolder = Annotated[Path | None, BeforeValidator(lambda given: getattr(given, "path", given))]
"""The folder of a run, given as a path or as a `run.Run`."""


def _known_roles(columns: dict[str, str]) -> dict[str, str]:
    if unknown := [role for role in columns if role not in COLUMN_NAMES]:
        raise ValueError(f"there is no role {unknown[0]}; choose from {', '.join(COLUMN_NAMES)}")
    return columns


ColumnNames = Annotated[dict[str, str], AfterValidator(_known_roles)]
"""Columns of a table that are text_a, text_b and label."""
COLUMN_HELP = "Column that is text_a, text_b or label, where the names do not say."


@dataclass(frozen=True)
class Flag:
    """What the command line and the record need to know about an option: all but its type, default and help."""

    group: str = "Options"
    """Title in the command's help under which it is listed."""
    metavar: str | None = None
    """Name of its value in the help; by default made from the type."""
    data: bool = True
    """Whether it changes the result. Such options are recorded and compared when a run goes on; others are not."""
    default: str | None = None
    """Words for the default in the help, if it is not simply the field's."""
    aliases: tuple[str, ...] = ()
    """Further names of the flag, such as ``lr``."""
    optional_value: str | None = None
    """Value of the flag if it is given without one."""
    hidden: bool = False
    """Whether it is a Python argument only."""


class Options(BaseModel):
    """Base of the options of a stage: immutable, validated, without unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """Return the options with some given by name, the others at their defaults.

        Raises:
            OptionError: a name or a value is wrong; it names option, value and what is right.
        """
        for name, value in given.items():  # pydantic would take True for the number 1
            if isinstance(value, bool) and name in cls.model_fields and not _takes_bool(cls.model_fields[name]):
                raise OptionError("must not be true or false", option=name, value=value)
        try:
            return cls(**{name: _mapped(cls, name, value) for name, value in given.items()})
        except ValidationError as error:
            problems = error.errors()
            unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
            # first an unknown name: misspelling an option also makes the right one missing
            raise _option_error(cls, (unknown or problems)[0]) from error

    def given(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def recorded(self) -> dict[str, JsonValue]:
        """Return the options that change the result, by name, as JSON values."""
        names = {name for name, flag, _ in flags_of(type(self)) if flag.data}
        return self.model_dump(mode="json", include=names)


class Sampling(Options):
    """How tokens are drawn. The defaults are those of the DINO paper (Schick & Schuetze 2021, section 4)."""

    top_k: int = Field(5, ge=0, description="Sample from the K likeliest tokens; 0 keeps all.")
    top_p: float = Field(
        0.9, ge=0, le=1, description="Sample from the likeliest tokens of this total probability; 0 or 1 keeps all."
    )
    decay: float = Field(100.0, ge=0, description="Sharpness of debiasing (lambda in the paper); 0: off.")
    floor: float = Field(0.01, ge=0, le=1, description="Least factor by which debiasing scales a probability.")
    max_new_tokens: int = Field(40, ge=1, description="Longest text, in tokens.")


def flags_of(model: type[Options]) -> Iterator[tuple[str, Flag, FieldInfo]]:
    """Yield name, flag and field of each option, in order."""
    for name, field in model.model_fields.items():
        flag = next((note for note in field.metadata if isinstance(note, Flag)), Flag())
        yield name, flag, field


def accepts(model: type[Options]) -> Callable[[Function], Function]:
    """Return a decorator for a function that takes ``**options`` of a model.

    It lists the options in the function's signature and docstring, and keeps the model as ``function.options``.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = {
            name: parameter
            for name, parameter in signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        lines = []
        for name, _, field in flags_of(model):
            if name in parameters:  # the function documents it itself
                continue
            default = inspect.Parameter.empty if field.is_required() else default_of(field)
            parameters[name] = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_bare(field.annotation)
            )
            lines.append(f"    {name}: {field.description}")
        function.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        function.options = model  # type: ignore[attr-defined]
        return function

    return decorate


def _bare(annotation: Any) -> Any:
    """Return a type for a signature: without ``Annotated``, and without it in its parts."""
    if typing.get_origin(annotation) is Annotated:
        return _bare(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (tuple, list, dict):
        inner = tuple(part if part is Ellipsis else _bare(part) for part in typing.get_args(annotation))
        return typing.get_origin(annotation)[inner]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_bare(part) for part in typing.get_args(annotation))]  # noqa: UP007
    return annotation


def default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the words to choose from if an option is a ``Literal``, else none."""
    inner = without_none(annotation)
    return tuple(map(str, typing.get_args(inner))) if typing.get_origin(inner) is Literal else ()


def without_none(annotation: Any) -> Any:
    """Return the type of an option without ``None`` and without ``Annotated``."""
    if typing.get_origin(annotation) is Annotated:
        return without_none(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return without_none(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _takes_bool(field: FieldInfo) -> bool:
    """Return whether true and false are values of an option."""
    kind = without_none(field.annotation)
    return kind in (bool, Any, object) or bool in typing.get_args(kind)


def is_mapping(annotation: Any) -> bool:
    """Return whether an option is a mapping, which may also be given as NAME=VALUE strings."""
    return typing.get_origin(without_none(annotation)) in (dict, Mapping)


def _mapped(model: type[Options], name: str, value: object) -> object:
    """Return the value of an option; for a mapping, NAME=VALUE strings become one.

    Raises:
        OptionError: a string has no equals sign.
    """
    texts = (value,) if isinstance(value, str) else value
    if name not in model.model_fields or not is_mapping(model.model_fields[name].annotation):
        return value
    if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
        return value
    mapping = {}
    for text in texts:
        key, equals, inner = text.partition("=")
        if not equals:
            raise OptionError("must be NAME=VALUE", option=name, value=text)
        mapping[key.strip()] = inner.strip()
    return mapping


def _option_error(model: type[Options], problem: ErrorDetails) -> OptionError:
    """Return the error for one finding of pydantic."""
    name, kind, context = str(problem["loc"][0]), problem["type"], problem.get("ctx", {})
    remedy = ""
    if kind == "extra_forbidden":
        aliased = [option for option, flag, _ in flags_of(model) if name.replace("_", "-") in flag.aliases]
        near = aliased or difflib.get_close_matches(name, model.model_fields, n=1)
        remedy = f"did you mean {{{near[0]}}}?" if near else f"choose from {', '.join(model.model_fields)}"
        return OptionError("there is no such option", remedy, option=name)
    bounds = {
        "greater_than_equal": ("must be at least", "ge"),
        "greater_than": ("must be more than", "gt"),
        "less_than_equal": ("must be at most", "le"),
        "less_than": ("must be less than", "lt"),
    }
    if kind in bounds:
        words, bound = bounds[kind]
        limit = context[bound]
        message = f"{words} {limit}" if isinstance(limit, int) else f"{words} {limit:g}"
    elif kind == "literal_error":
        message = f"must be one of {context['expected'].replace(' or ', ', ')}".replace("'", "")
    elif kind == "missing":
        return OptionError("is missing", option=name)
    elif kind == "value_error":  # raised by a validator of ours: ValueError(message) or ValueError(message, remedy)
        message, *more = context["error"].args
        remedy = more[0] if more else ""
    elif kind.endswith(("_type", "_parsing", "_from_float", "_inexact")) and kind.partition("_")[0] in PLAIN_WORDS:
        message = PLAIN_WORDS[kind.partition("_")[0]]
    else:
        message = problem["msg"].replace("Input should be", "must be")
    value = problem["input"]
    if value is None:
        return OptionError("must not be None", option=name)
    shown = value if isinstance(value, str | int | float) else short(value)
    return OptionError(message, remedy, option=name, value=shown)
