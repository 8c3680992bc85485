"""A user's own rules about single examples: the function that a name stands for, and what its source is."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from dino_pipeline.errors import OptionError
from dino_pipeline.filter_options import Check, rule_name


def resolve_rule(rule: str | Check) -> Check:
    """Return the function of a user's own rule; modules are looked for in the current folder, too.

    Raises:
        OptionError: it cannot be imported, or is not a function.
    """
    if not isinstance(rule, str):
        return rule
    module, colon, function = rule.partition(":")
    if not (module and colon and function):  # checked first, because importing runs the module
        raise OptionError("must be module:function", option="rule", value=rule)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        check = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the user's code
        raise OptionError(
            f"cannot be imported ({type(error).__name__}: {error}); write module:function", option="rule", value=rule
        ) from error
    if not callable(check):
        raise OptionError("is not a function of an Example that returns None or a reason", option="rule", value=rule)
    return check  # type: ignore[no-any-return]


def rules_digest(rules: Iterable[str | Check]) -> str:
    """Return a hash of the source of the user's own rules: a changed rule counts as a changed option."""
    digest = hashlib.sha256()
    for rule in rules:
        resolve_rule(rule)
        digest.update(_source_of(rule))
    return digest.hexdigest()[:16]


def _source_of(rule: str | Check) -> bytes:
    """Return the content of the module that a rule is named in, or the source of a function itself."""
    if isinstance(rule, str):
        file = sys.modules[rule.partition(":")[0]].__file__
        return Path(file).read_bytes() if file else b""
    try:
        return inspect.getsource(rule).encode()
    except (OSError, TypeError):  # entered at a prompt, or not a plain function
        code = getattr(rule, "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names) if code else rule_name(rule)).encode()
