"""Reads a task spec and names all mistakes in it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dino_pipeline.errors import SpecError, first_line, system_reason
from dino_pipeline.spec import COMMENT, OPENING, PLACEHOLDER, X1, TaskSpec
from dino_pipeline.text import as_number, excess, has_lone_surrogate

MAX_BYTES = 16 * 2**20
"""Size limit of a spec file."""
PACKAGE = Path(__file__).parent

Place = tuple[str | int, ...]
"""Keys and indices that lead from the top of a spec to a value."""


def load_spec(source: str | Path | Mapping[str, object] | TaskSpec) -> TaskSpec:
    """Return a validated task spec, with the spec that its ``inputs`` names.

    Args:
        source: a file, the name of a shipped spec (see `shipped_specs`), or the spec's fields as a dict. Files that a
            dict names are looked for in the working directory. A `TaskSpec` is returned as it is.

    Raises:
        SpecError: the spec cannot be read or is wrong. The error lists every mistake.
    """
    if isinstance(source, TaskSpec):
        return source
    if isinstance(source, Mapping):
        path = Path("spec")
        try:
            content = json.dumps(source)
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(str(path), [f"top level: cannot be written as JSON: {first_line(error)}"]) from error
        return _load(content, path, ())
    path = spec_path(Path(source))
    return _load(_read(path), path, ())


def shipped_specs() -> dict[str, Path]:
    """Return the files of the specs that come with the package, by name."""
    installed = PACKAGE / "task_specs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "task_specs"  # in a checkout
    return {path.stem: path for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)}


def spec_path(path: Path) -> Path:
    """Return the file of a shipped spec if the path is its name, else the path itself."""
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    shipped = shipped_specs()
    if path.name not in shipped:
        raise SpecError(
            str(path),
            [f"top level: is neither a file nor the name of a shipped spec; choose from {', '.join(shipped)}"],
        )
    return shipped[path.name]


def _load(content: str, path: Path, parents: tuple[Path, ...]) -> TaskSpec:
    """Return the spec in a file's content.

    Args:
        content: JSON.
        path: where it was read. Files that it names are relative to this file's folder.
        parents: the files that led here by their ``inputs``.
    """
    raw = _parse(content, path)
    parents = (*parents, path.resolve())
    problems = [
        *(f'{_named(place)}: key "{key}" occurs twice; keep one' for place, key in _repeated_keys(raw, ())),
        *(f"{_named(place)}: {problem}; is this a text of a spec?" for place, problem in _long_texts(raw, ())),
        *_inline_variables(raw, path),
        *_problems(raw, path, parents),
    ]
    if problems:
        raise SpecError(str(path), list(dict.fromkeys(problems)))
    spec = TaskSpec.model_validate(raw)
    if isinstance(spec.inputs, str):
        inputs = path.parent / spec.inputs
        return spec.model_copy(update={"inputs": _load(_read(inputs), inputs, parents)})
    return spec


def _read(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise SpecError(str(path), [f"top level: is larger than {MAX_BYTES >> 20} MiB; is this a spec?"])
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {system_reason(error)}"]) from error
    except UnicodeDecodeError as error:
        raise SpecError(str(path), [f"byte {error.start} is not UTF-8; save the file as UTF-8"]) from error


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given more than once."""

    repeated_keys: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    """Return a JSON object without its comments."""
    pairs = [(key, value) for key, value in pairs if not key.startswith(COMMENT)]
    keys = [key for key, _ in pairs]
    result = _Object(pairs)
    result.repeated_keys = tuple(dict.fromkeys(key for key in keys if keys.count(key) > 1))
    return result


def _parse(content: str, path: Path) -> Any:
    try:
        raw = json.loads(content, object_pairs_hook=_object)
        whole = json.dumps(raw, ensure_ascii=False)
    except RecursionError as error:
        raise SpecError(str(path), ["top level: nested too deeply; a spec is a few levels deep"]) from error
    except json.JSONDecodeError as error:
        raise SpecError(str(path), [f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"]) from error
    except ValueError as error:
        raise SpecError(str(path), [f"top level: cannot be read: {first_line(error)}"]) from error
    if has_lone_surrogate(whole):
        raise SpecError(str(path), ["top level: holds half of a surrogate pair; write the whole character"])
    return raw


def _repeated_keys(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Yield each key that an object has more than once, with the object's place."""
    if isinstance(value, _Object):
        yield from ((place, key) for key in value.repeated_keys)
        for key, child in value.items():
            yield from _repeated_keys(child, (*place, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _repeated_keys(child, (*place, index))


def _long_texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Yield the place of each text that is too long, and what is wrong with it."""
    if isinstance(value, str) and (problem := excess(value)):
        yield place, problem
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _long_texts(child, (*place, key))


def _inline_variables(raw: Any, path: Path) -> Iterator[str]:
    """Replace file names among the variables by the files' lines; yield the mistakes of these files."""
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
                reason = system_reason(error)
                yield f"variables, {name}: {file} cannot be read: {reason}; give a file, or a list of values"
            except UnicodeDecodeError as error:
                yield f"variables, {name}: {file}, byte {error.start} is not UTF-8; save the file as UTF-8"


def _misplaced(path: Path, name: str) -> str | None:
    """Return the mistake if a file that a spec names lies outside the spec's folder, None if it lies inside.

    A spec from a stranger must not read any file of the user.
    """
    folder = path.parent.resolve()
    try:
        inside = (folder / name).resolve().is_relative_to(folder)
    except ValueError:
        return f"{name!r} is not the name of a file; give one"
    return None if inside else f"{name} lies outside the spec's folder; put it next to the spec"


def _named(place: Place) -> str:
    """Return a place in words: ``label "0.5", counter_labels, item 1``."""
    if not place:
        return "top level"
    parts = list(place)
    if parts[0] == "labels" and len(parts) > 1:
        parts[:2] = [f'label "{parts[1]}"']
    return ", ".join(f"item {part + 1}" if isinstance(part, int) else str(part) for part in parts)


def _problems(raw: Any, path: Path, parents: tuple[Path, ...]) -> Iterator[str]:
    """Yield all mistakes: first wrong types and keys, then wrong content of the parts whose types are right."""
    try:
        TaskSpec.model_validate(raw)
    except ValidationError as error:
        yield from (_described(mistake) for mistake in error.errors())
    if not isinstance(raw, dict):
        return
    yield from _label_problems(raw)
    yield from _instruction_problems(raw)
    yield from _variable_problems(raw)
    yield from _input_problems(raw, path, parents)


MESSAGES = {
    "extra_forbidden": "unknown key; remove it or correct its spelling",
    "missing": "missing; add it",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}
"""Messages for pydantic's kinds of mistakes; other kinds keep pydantic's own."""
_NOT_A_PLACE = {"TaskSpec", "constrained-str", "str", "[key]"}
"""Names of types that pydantic puts into places."""


def _described(mistake: Any) -> str:
    """Return one of pydantic's mistakes as a sentence with its place."""
    place = tuple(part for part in mistake["loc"] if part not in _NOT_A_PLACE)
    message = MESSAGES.get(mistake["type"], mistake["msg"])
    value = mistake["input"]
    if isinstance(value, str | int | float | None) and mistake["type"] not in {"missing", "extra_forbidden"}:
        message += f" (it is {json.dumps(value, ensure_ascii=False)})"
    return f"{_named(place)}: {message}"


def _instructions(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (label, its object, its instruction) of each label whose types are right."""
    labels = raw.get("labels")
    for name, label in labels.items() if isinstance(labels, dict) else ():
        if isinstance(label, dict) and isinstance(label.get("instruction"), str):
            yield name, label, label["instruction"]


def _label_names(raw: dict[str, Any]) -> list[str]:
    return list(raw["labels"]) if isinstance(raw.get("labels"), dict) else []


def _quoted_names(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _label_problems(raw: dict[str, Any]) -> Iterator[str]:
    names = _label_names(raw)
    numbers = [number for name in names if (number := as_number(name)) is not None]
    if raw.get("label_type") == "score" and len(numbers) < len(names):
        yield f"label_type: 'score' needs labels that are numbers; these are {_quoted_names(names)}"
    if raw.get("label_type") != "class" and len(numbers) == len(names):
        for name, number in zip(names, numbers, strict=True):
            if not 0 <= number <= 1:
                yield f'label "{name}": a similarity lies between 0 and 1; scale it, or set "label_type": "class"'
        if len(set(numbers)) < len(numbers):
            yield f"labels: two of {_quoted_names(names)} are the same number; keep one"
    if any(not name.strip() for name in names):
        yield "labels: a label has no name; name it"


def _instruction_problems(raw: dict[str, Any]) -> Iterator[str]:
    """Yield the mistakes in each label's instruction, counter-labels and examples."""
    stop = raw.get("stop", '"')
    if isinstance(stop, str) and "\n" in stop[:-1] and not raw.get("newlines"):
        yield f'stop: a newline ends a text before {stop!r} can come; add "newlines": true, or choose another'
    any_takes_input = any(X1 in instruction for _, _, instruction in _instructions(raw))
    for name, label, instruction in _instructions(raw):
        where = f'label "{name}"'
        if isinstance(stop, str) and stop and not instruction.endswith((stop, *OPENING.get(stop, ""))):
            shown = stop if stop.isprintable() else repr(stop)
            yield f"{where}: the instruction must end with the opening {shown} (it ends with {instruction[-12:]!r})"
        if instruction.count(X1) > 1:
            yield f"{where}: the instruction holds {X1} {instruction.count(X1)} times; keep one"
        if any_takes_input and X1 not in instruction:
            yield f"{where}: the instruction lacks {X1}, which other labels have; add it"
        yield from _counter_label_problems(name, label, _label_names(raw), where)
        yield from _shot_problems(label, instruction, stop, where)


def _counter_label_problems(name: str, label: dict[str, Any], names: list[str], where: str) -> Iterator[str]:
    counters = label.get("counter_labels", [])
    if not isinstance(counters, list):
        return
    for counter in counters:
        if counter == name:
            yield f'{where}: counter label "{counter}" is the label itself; remove it'
        elif isinstance(counter, str) and counter not in names:
            yield f'{where}: counter label "{counter}" is not a label; choose from {_quoted_names(names)}'
    if len(counters) > len(dict.fromkeys(map(str, counters))):
        yield f"{where}: a counter label occurs twice; keep one"


def _shot_problems(label: dict[str, Any], instruction: str, stop: Any, where: str) -> Iterator[str]:
    shots = label.get("examples")
    placeholders = set(PLACEHOLDER.findall(instruction))
    for number, shot in enumerate(shots if isinstance(shots, list) else (), start=1):
        if not isinstance(shot, dict):
            continue
        filled = set(shot["variables"]) if isinstance(shot.get("variables"), dict) else set()
        if shot.get("input") is not None:
            filled.add("X1")
        place = f"{where}, examples, item {number}"
        for name in sorted(placeholders - filled):
            yield f'{place}: nothing fills <{name}>; add "{"input" if name == "X1" else "variables"}"'
        for name in sorted(filled - placeholders):
            yield f"{place}: the instruction lacks <{name}>; remove its value"
        for text in (shot.get("text"), shot.get("input")):
            if isinstance(text, str) and isinstance(stop, str) and stop != '"' and stop and stop in text:
                yield f"{place}: {text!r} holds the stop string {stop}; write it otherwise"


def _variable_problems(raw: dict[str, Any]) -> Iterator[str]:
    """Yield the mistakes in the variables: undefined, unused, or with a value that would end a text."""
    variables = raw["variables"] if isinstance(raw.get("variables"), dict) else {}
    used: set[str] = set()
    for name, _, instruction in _instructions(raw):
        for variable in dict.fromkeys(PLACEHOLDER.findall(instruction.replace(X1, ""))):
            used.add(variable)
            if variable not in variables:
                yield f'label "{name}": variable <{variable}> is not defined; add "{variable}" to "variables"'
    for variable in variables:
        if variable == "X1":
            yield "variables, X1: the name is taken by the input; choose another"
        elif variable not in used:
            yield f"variables, {variable}: no instruction holds <{variable}>; use it or remove it"
    stop = raw.get("stop", '"')
    if not isinstance(stop, str) or not stop:
        return
    for variable, values in variables.items():
        for value in values if isinstance(values, list) else ():
            if isinstance(value, str) and stop in value:
                yield f"variables, {variable}: {value!r} holds the stop string {stop}; write it otherwise"


def _input_problems(raw: dict[str, Any], path: Path, parents: tuple[Path, ...]) -> Iterator[str]:
    inputs = raw.get("inputs")
    if inputs is None:
        return
    if not any(X1 in instruction for _, _, instruction in _instructions(raw)):
        yield f"inputs: given, but no instruction holds {X1}; add it or remove inputs"
    if isinstance(inputs, str):
        file = path.parent / inputs
        if problem := _misplaced(path, inputs):
            yield f"inputs: {problem}"
            return
        if file.resolve() in parents:
            yield f"inputs: {inputs} leads back to this spec; name a spec that writes single texts"
            return
        try:
            takes_input = _load(_read(file), file, parents).needs_inputs
        except SpecError as error:
            yield from (f"inputs ({error.path}), {problem}" for problem in error.problems)
            return
    elif isinstance(inputs, dict):
        for problem in (*_label_problems(inputs), *_instruction_problems(inputs), *_variable_problems(inputs)):
            yield f"inputs, {problem}"
        takes_input = any(X1 in instruction for _, _, instruction in _instructions(inputs))
    else:
        return
    if takes_input:
        yield f"inputs: its instructions hold {X1}, but nothing writes inputs for them; give single texts"
