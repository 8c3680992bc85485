"""Every error a user can cause, and how a remedy names options.

The library does not know who calls it, so a remedy names options and stages as data: ``"give {inputs=FILE}, or run
{filter()} first"``. Python users read "give inputs=FILE, or run dino.filter() first". The command line writes the same
with its flags and commands. See `worded`.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import traceback
from typing import Any, Protocol
from urllib.parse import unquote

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_REFERENCE = re.compile(r'\{(?:"([^{}"]*)"|([a-z_]+)(?:=([^{}]*)|\(([^{}]*)\))?)\}')
_ESCAPED = str.maketrans({sign: f"%{ord(sign):02X}" for sign in '%{}"'})


class Wording(Protocol):
    """How one kind of caller writes options and stages."""

    def option(self, name: str, value: object = None) -> str:
        """Return an option, with the value to give it unless that is None."""

    def stage(self, name: str, target: str) -> str:
        """Return a call of a stage, ``target`` being what it works on (may be empty)."""


class PythonWording:
    """Options as keyword arguments, stages as functions of `dino_pipeline`."""

    def option(self, name: str, value: object = None) -> str:
        return name if value is None else f"{name}={value!r}"

    def stage(self, name: str, target: str) -> str:
        return f"dino.{name}({target!r})" if target else f"dino.{name}()"


PYTHON = PythonWording()


def worded(template: str, wording: Wording) -> str:
    """Return a text with its references to options and stages written out.

    Args:
        template: holds ``{option}``, ``{option=value}``, ``{stage()}`` and ``{stage(target)}``; other braces stay. A
            value in capitals, such as FILE, is a placeholder. What users name is put in by `option_given`,
            `stage_call` and `as_it_is`: it may hold any characters.
        wording: writes the references.
    """

    def written(match: re.Match[str]) -> str:
        text, name, value, target = (None if part is None else unquote(part) for part in match.groups())
        if text is not None:
            return text
        if target is not None:
            return wording.stage(str(name), target)
        return wording.option(str(name), None if value is None else _Literal(value))

    return _REFERENCE.sub(written, template)


def stage_call(stage: str, target: object = "") -> str:
    """Return a template's reference to a call of a stage that works on a target, such as a path."""
    return f"{{{stage}({str(target).translate(_ESCAPED)})}}"


def option_given(option: str, value: object) -> str:
    """Return a template's reference to an option with a value."""
    return f"{{{option}={str(value).translate(_ESCAPED)}}}"


def as_it_is(text: object) -> str:
    """Return a text that a template holds, and that is written as it is."""
    return f'{{"{str(text).translate(_ESCAPED)}"}}' if "{" in str(text) else str(text)


class _Literal(str):
    """A value in a template. Its ``repr`` is what a Python user would write: ``True``, ``3``, ``FILE``, ``'hard'``."""

    def __repr__(self) -> str:
        bare = self in ("True", "False", "None") or self.isupper() or _NUMBER.fullmatch(self)
        return str(self) if bare else repr(str(self))


class DinoError(Exception):
    """Base of all errors that a user can fix. The command line shows one as a message, and exits with code 2.

    Args:
        message: what is wrong: file, place and value. It is shown as it is, braces included.
        remedy: what to do about it; a template for `worded`.
        option: the option that is wrong, if it is one. It is written before the message.
        value: what was given for that option.
    """

    def __init__(self, message: str, remedy: str = "", *, option: str | None = None, value: object = None) -> None:
        super().__init__(message, remedy)
        self.message, self.remedy, self.option, self.value = message, remedy, option, value

    def worded(self, wording: Wording) -> str:
        """Return the whole message for one kind of caller."""
        remedy = f"; {worded(self.remedy, wording)}" if self.remedy else ""
        if self.option is None:
            return f"{self.message}{remedy}"
        return f"{wording.option(self.option, self.value)}: {self.message}{remedy}"

    def __str__(self) -> str:
        return self.worded(PYTHON)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send errors by pickle, which would call the class with ``args``; `SpecError` takes others.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[DinoError], args: tuple[Any, ...], state: dict[str, Any]) -> DinoError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SpecError(DinoError):
    """A task spec is wrong; ``problems`` lists every finding, place by place."""

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path}, {problem}" for problem in problems))
        self.path = path
        self.problems = problems


class DataError(DinoError):
    """A data file (JSONL, TSV, text) is wrong."""


class OptionError(DinoError):
    """An option, or a combination of options, is wrong."""


class ModelError(DinoError):
    """A model cannot be loaded or cannot do what is asked."""


class RunError(DinoError):
    """A run folder does not allow what is asked: other options, a missing stage, in use."""


class HubError(DinoError):
    """The Hub, or what is there, does not allow what is asked."""


class OutputError(DinoError):
    """A result could not be written: the disk is full, or there is no permission."""


_MEMORY_IS_FULL = re.compile(r"failed to map segment|can(no|')t allocate memory|bad_alloc|out of memory", re.IGNORECASE)
_NO_PROCESS = re.compile(r"can't start new thread|cannot create thread|pthread_create", re.IGNORECASE)
_STARTERS = {"subprocess", "multiprocessing.util", "multiprocessing.popen_fork"}
"""Modules that start processes."""
MAKE_ROOM = "make room and run again"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_REMEDIES = {
    errno.EFBIG: "raise the limit of a file's size, or choose another file system",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder, or make this one writable",
    errno.EPERM: "choose another folder, or make this one writable",
    errno.EEXIST: "move what is there away, or choose another name",
    errno.ENOTEMPTY: "move what is there away, or choose another name",
    errno.ENOTDIR: "move what is there away, or choose another name",
    errno.EISDIR: "move what is there away, or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "close other programs, or raise the limit",
    errno.ENFILE: "close other programs, or raise the limit",
}
"""What to do where a file cannot be written and room would not help, by the system's number for the reason."""
_NUMBER_IN_MESSAGE = re.compile(r"(?:\[Errno|\(os error) (\d+)[\])]")


def write_remedy(error: BaseException, room: str = MAKE_ROOM) -> str:
    """Return what to do where a file cannot be written, a template of `worded`.

    Args:
        error: the system's, or a library's whose message has the system's number or words.
        room: what to do if there is no room, or if the error does not tell its reason.
    """
    number = error.errno if isinstance(error, OSError) else None
    message = "" if number else str(error)
    if found := _NUMBER_IN_MESSAGE.search(message):
        number = int(found[1])
    number = number or next((each for each in _REMEDIES if os.strerror(each) in message), None)
    if number is None or number in _NO_ROOM:
        return room
    return _REMEDIES.get(number, "choose another folder, or mend this one")


def _starts_process(error: OSError) -> bool:
    """Return whether the system refused a process, and not, by the same number, a full pipe that does not wait."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") in _STARTERS for frame in frames)


_TOO_MANY_FILES = os.strerror(errno.EMFILE)
"""What databases and native libraries quote, in errors of their own."""


def limit_of_machine(error: BaseException) -> DinoError | None:
    """Return which limit of the machine an exception tells of: memory, disk, open files or processes; None: of none.

    Libraries raise anything there: a library that does not fit into memory is an `ImportError`.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _MEMORY_IS_FULL.search(str(error)):
        return DinoError("memory is full", "end other programs, or work with less at once ({rows}, {workers})")
    is_refused = isinstance(error, OSError) and number == errno.EAGAIN and _starts_process(error)
    if is_refused or (isinstance(error, RuntimeError) and _NO_PROCESS.search(str(error))):
        return DinoError("no further process or thread can be started", "end other programs, or raise the limit")
    if isinstance(error, BlockingIOError) and hasattr(error, "characters_written"):
        return OutputError("what is printed goes to a full pipe that does not wait", "print to a file")
    file = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    if number in (errno.EMFILE, errno.ENFILE) or _TOO_MANY_FILES in str(error):
        return DinoError(f"{file}too many open files", "close other programs, or raise the limit")
    if number == errno.ENAMETOOLONG:
        return DinoError(f"{file}the name is too long", write_remedy(error))
    if number in (*_NO_ROOM, errno.EFBIG, errno.EROFS) and isinstance(error, OSError):
        return OutputError(
            f"{file or 'a file, or what is printed, '}cannot be written: {error.strerror}", write_remedy(error)
        )
    return None


def require_package(package: str, option: str, value: object = None, *, extra: str = "") -> None:
    """Raise `OptionError` if the package that an option needs is not installed.

    The message says to install the package, or the extra of this project that includes it.
    """
    if importlib.util.find_spec(package) is None:
        wanted = f"dino-pipeline[{extra}]" if extra else package
        raise OptionError(f"needs {package}, which is not installed: pip install {wanted}", option=option, value=value)


def short(value: Any) -> str:
    """Return a value as JSON, cut to 60 characters."""
    try:
        shown = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has none of, or a value that holds itself
        shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def system_reason(error: OSError) -> str:
    """Return why a file could not be read or written; libraries raise errors of the system without its words."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):  # of a folder's files
        return str(error.args[0][0][-1])
    return error.strerror or first_line(error)


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, and the second if the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return first_line(error)
