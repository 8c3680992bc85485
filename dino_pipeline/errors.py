"""Every error a user can cause.

DinoError                 shown as one message, exit code 2
├── SpecError             a task spec file is wrong
├── DataError             a data file (JSONL, TSV, text) is wrong
├── OptionError           an option, or a combination of options, is wrong
├── ModelError            a model cannot be loaded or cannot do what is asked
├── RunError              a run folder does not allow what is asked (other options, missing stage, in use)
├── HubError              the Hub, or what is there, does not allow what is asked
└── OutputError           something could not be written (disk full, no permission)
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any


class DinoError(Exception):
    """Base of all errors that a user can mend; the message names file, place, value and remedy."""


class SpecError(DinoError):
    """A task spec is wrong; ``problems`` lists every finding, place by place."""

    def __init__(self, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        super().__init__("\n".join(f"{path}, {problem}" for problem in problems))


class DataError(DinoError):
    """A data file is wrong."""


class OptionError(DinoError):
    """An option, or a combination of options, is wrong."""


class ModelError(DinoError):
    """A model cannot be loaded or cannot do what is asked."""


class RunError(DinoError):
    """A run folder does not allow what is asked."""


class HubError(DinoError):
    """The Hub, or what is there, does not allow what is asked."""


class OutputError(DinoError):
    """A result could not be written."""


def need(package: str, option: str) -> None:
    """Raise `OptionError` where the package that an option needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise OptionError(f"{option} needs {package}, which is not installed: pip install {package}")


def short(value: Any) -> str:
    """Return a value as JSON, cut where it is long."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def first_line(error: BaseException) -> str:
    """Return what an error says first; its kind, if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
