"""A task spec's file: reading it, and naming all that is wrong with it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dino_pipeline.errors import SpecError, first_line
from dino_pipeline.spec import COMMENT, OPENING, PLACEHOLDER, X1, TaskSpec
from dino_pipeline.text import as_number

LARGEST = 16 * 2**20
"""In bytes."""


def load_spec(path: str | Path, _parents: tuple[Path, ...] = ()) -> TaskSpec:
    """Read and validate a spec file, and the one that its ``inputs`` names.

    Raises:
        SpecError: the file is unreadable or wrong; the error lists everything that is wrong with it.
    """
    path = Path(path)
    raw, problems = _read(path)
    problems += _inline_variables(raw, path)
    parents = (*_parents, path.resolve())
    problems += _find_problems(raw, path, parents)
    if problems:
        raise SpecError(str(path), list(dict.fromkeys(problems)))
    spec = TaskSpec.model_validate(raw)
    if isinstance(spec.inputs, str):
        return spec.model_copy(update={"inputs": load_spec(path.parent / spec.inputs, parents)})
    return spec


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys it was given twice."""

    doubled: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    pairs = [(key, value) for key, value in pairs if not key.startswith(COMMENT)]
    keys = [key for key, _ in pairs]
    found = _Object(pairs)
    found.doubled = tuple(dict.fromkeys(key for key in keys if keys.count(key) > 1))
    return found


def _misplaced(path: Path, name: str) -> str | None:
    """Say what is wrong with the place of a file that a spec names: who wrote it shall not choose among all files."""
    folder = path.parent.resolve()
    try:
        inside = (folder / name).resolve().is_relative_to(folder)
    except ValueError:
        return f"{name!r} is no name of a file; give one"
    return None if inside else f"{name} lies outside the spec's folder; put it beside the spec"


def _read(path: Path) -> tuple[Any, list[str]]:
    """Return the file's JSON value and what is wrong with it as JSON."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise SpecError(str(path), [f"top level: is larger than {LARGEST >> 20} MiB; is this a spec?"])
        raw = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SpecError(str(path), [f"byte {error.start} is not UTF-8; save the file as UTF-8"]) from error
    except RecursionError as error:
        raise SpecError(str(path), ["top level: nested too deeply; a spec is a few levels deep"]) from error
    except json.JSONDecodeError as error:
        raise SpecError(str(path), [f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"]) from error
    except ValueError as error:
        raise SpecError(str(path), [f"top level: cannot be read: {first_line(error)}"]) from error
    if not _encodable(raw):
        raise SpecError(str(path), ["top level: holds half of a surrogate pair; write the whole character"])
    return raw, [f'{_place(place)}: key "{key}" stands twice; keep one' for place, key in _doubled(raw, ())]


def _encodable(raw: Any) -> bool:
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _inline_variables(raw: Any, path: Path) -> Iterator[str]:
    """Put the lines of files in the places where variables name them; yield what is wrong with the files."""
    for spec in (raw, raw.get("inputs")) if isinstance(raw, dict) else ():
        variables = spec.get("variables") if isinstance(spec, dict) else None
        if not isinstance(variables, dict):
            continue
        for name, file in [(name, value) for name, value in variables.items() if isinstance(value, str)]:
            variables[name] = [file]
            if problem := _misplaced(path, file):
                yield f"variables, {name}: {problem}"
                continue
            try:
                lines = (path.parent / file).read_bytes().decode("utf-8-sig").splitlines()
                variables[name] = [line.strip() for line in lines if line.strip()]
            except OSError as error:
                yield f"variables, {name}: {file} cannot be read: {error.strerror}; give a file, or a list of values"
            except UnicodeDecodeError as error:
                yield f"variables, {name}: {file}, byte {error.start} is not UTF-8; save the file as UTF-8"


def _doubled(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, _Object):
        yield from ((place, key) for key in value.doubled)
        for key, child in value.items():
            yield from _doubled(child, (*place, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _doubled(child, (*place, index))


def _place(location: tuple[str | int, ...]) -> str:
    """Name a place in the file as a person would: ``label "0.5", counter_labels 1``."""
    if not location:
        return "top level"
    parts = list(location)
    if parts[0] == "labels" and len(parts) > 1:
        parts[:2] = [f'label "{parts[1]}"']
    return ", ".join(f"item {part + 1}" if isinstance(part, int) else str(part) for part in parts)


def _find_problems(raw: Any, path: Path, parents: tuple[Path, ...]) -> Iterator[str]:
    """Yield everything that is wrong: first the shape, then what the well-shaped parts say."""
    try:
        TaskSpec.model_validate(raw)
    except ValidationError as error:
        yield from (_describe(found) for found in error.errors())
    if not isinstance(raw, dict):
        return
    yield from _label_problems(raw)
    yield from _variable_problems(raw)
    yield from _input_problems(raw, path, parents)


KINDS = {
    "extra_forbidden": "unknown key; remove it or mend its spelling",
    "missing": "missing; add it",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def _describe(found: Any) -> str:
    location = tuple(part for part in found["loc"] if part not in {"TaskSpec", "constrained-str", "str", "[key]"})
    message = KINDS.get(found["type"], found["msg"])
    value = found["input"]
    shown = f" (it is {json.dumps(value, ensure_ascii=False)})" if isinstance(value, str | int | float | None) else ""
    return f"{_place(location)}: {message}{'' if found['type'] in {'missing', 'extra_forbidden'} else shown}"


def _instructions(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (label, its object, its instruction) where the shape is right."""
    labels = raw.get("labels")
    for name, label in labels.items() if isinstance(labels, dict) else ():
        if isinstance(label, dict) and isinstance(label.get("instruction"), str):
            yield name, label, label["instruction"]


def _label_problems(raw: dict[str, Any]) -> Iterator[str]:
    labels = raw["labels"] if isinstance(raw.get("labels"), dict) else {}
    choices = ", ".join(f'"{name}"' for name in labels)
    numbers = [number for name in labels if (number := as_number(name)) is not None]
    if raw.get("label_type") == "score" and len(numbers) < len(labels):
        yield f"label_type: 'score' needs labels that are numbers; these are {choices}"
    if raw.get("label_type") != "class" and len(numbers) == len(labels):
        for name, number in zip(labels, numbers, strict=True):
            if not 0 <= number <= 1:
                yield f'label "{name}": a similarity lies between 0 and 1; scale it, or set "label_type": "class"'
        if len(set(numbers)) < len(numbers):
            yield f"labels: two of {choices} are the same number; keep one"
    if any(not name.strip() for name in labels):
        yield "labels: a label has no name; name it"
    stop = raw.get("stop", '"')
    with_text = [name for name, _, text in _instructions(raw) if X1 in text]
    for name, label, text in _instructions(raw):
        where = f'label "{name}"'
        if isinstance(stop, str) and stop and not text.endswith((stop, *OPENING.get(stop, ""))):
            yield f"{where}: the instruction must end with the opening {stop} (it ends with {text[-12:]!r})"
        if text.count(X1) > 1:
            yield f"{where}: the instruction holds {X1} {text.count(X1)} times; keep one"
        if with_text and X1 not in text:
            yield f"{where}: the instruction lacks {X1}, which other labels have; add it"
        counters = label.get("counter_labels", [])
        for counter in counters if isinstance(counters, list) else ():
            if counter == name:
                yield f'{where}: counter label "{counter}" is the label itself; remove it'
            elif isinstance(counter, str) and counter not in labels:
                yield f'{where}: counter label "{counter}" is not a label; choose from {choices}'
        if isinstance(counters, list) and len(counters) > len(dict.fromkeys(map(str, counters))):
            yield f"{where}: a counter label stands twice; keep one"
        yield from _shot_problems(label, text, stop, where)


def _shot_problems(label: dict[str, Any], instruction: str, stop: Any, where: str) -> Iterator[str]:
    shots = label.get("examples")
    wanted = set(PLACEHOLDER.findall(instruction))
    for number, shot in enumerate(shots if isinstance(shots, list) else (), start=1):
        if not isinstance(shot, dict):
            continue
        given = {*(shot["variables"] if isinstance(shot.get("variables"), dict) else ())}
        given |= {"X1"} if shot.get("input") is not None else set()
        place = f"{where}, examples, item {number}"
        for name in sorted(wanted - given):
            yield f'{place}: nothing fills <{name}>; add "{"input" if name == "X1" else "variables"}"'
        for name in sorted(given - wanted):
            yield f"{place}: the instruction lacks <{name}>; remove its value"
        for text in (shot.get("text"), shot.get("input")):
            if isinstance(text, str) and isinstance(stop, str) and stop != '"' and stop and stop in text:
                yield f"{place}: {text!r} holds the stop string {stop}; write it otherwise"


def _variable_problems(raw: dict[str, Any]) -> Iterator[str]:
    variables = raw["variables"] if isinstance(raw.get("variables"), dict) else {}
    used: list[str] = []
    for name, _, text in _instructions(raw):
        for variable in dict.fromkeys(PLACEHOLDER.findall(text.replace(X1, ""))):
            used.append(variable)
            if variable not in variables:
                yield f'label "{name}": variable <{variable}> is not defined; add "{variable}" to "variables"'
    for variable in variables:
        if variable == "X1":
            yield "variables, X1: the name is taken by the input; choose another"
        elif variable not in used:
            yield f"variables, {variable}: no instruction holds <{variable}>; use it or remove it"
    stop = raw.get("stop", '"')
    for variable, values in variables.items():
        for value in values if isinstance(values, list) and isinstance(stop, str) and stop else ():
            if isinstance(value, str) and stop in value:
                yield f"variables, {variable}: {value!r} holds the stop string {stop}; write it otherwise"


def _input_problems(raw: dict[str, Any], path: Path, parents: tuple[Path, ...]) -> Iterator[str]:
    inputs = raw.get("inputs")
    if inputs is None:
        return
    if not any(X1 in text for _, _, text in _instructions(raw)):
        yield f"inputs: given, but no instruction holds {X1}; add it or remove inputs"
    if isinstance(inputs, str):
        if problem := _misplaced(path, inputs):
            yield f"inputs: {problem}"
            return
        if (path.parent / inputs).resolve() in parents:
            yield f"inputs: {inputs} leads back to this spec; name a spec that writes single texts"
            return
        try:
            inputs_needed = load_spec(path.parent / inputs, parents).needs_inputs
        except SpecError as error:
            yield from (f"inputs ({error.path}), {problem}" for problem in error.problems)
            return
    elif isinstance(inputs, dict):
        yield from (f"inputs, {problem}" for problem in (*_label_problems(inputs), *_variable_problems(inputs)))
        inputs_needed = any(X1 in text for _, _, text in _instructions(inputs))
    else:
        return
    if inputs_needed:
        yield f"inputs: its instructions hold {X1}, but nothing writes inputs for them; give single texts"
