"""The task spec: one instruction per label, and which labels contrast with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
)

from dino_pipeline.errors import SpecError, first_line
from dino_pipeline.labels import as_number

X1 = "<X1>"
PLACEHOLDER = re.compile(r"<([A-Z][A-Z0-9_]*)>")
LONG_LINE = 20
LARGEST = 16 * 2**20
"""In bytes."""
COMMENT = "//"
"""What keys begin with that are left out, for people's own words."""
FIELD = re.compile(r"[^\s:\"<][^:\"<]{0,29}:")
OPENING = {"”": "“„", "“": "„", "’": "‘‚", "‘": "‚", "»": "«", "«": "»", "」": "「", "』": "『", "›": "‹", "‹": "›"}
"""What may open a text that the key closes, where the two differ."""

Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]+$")]
Text = Annotated[str, Field(strict=True, min_length=1)]
Choices = Annotated[
    list[Text],
    Field(min_length=1),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}, {"type": "string"}]}
    ),
]
"""In a file, the name of one with a value a line as well, which reading it puts in its place."""
Value = float | str
"""A label as records hold it: a number in a similarity task, else the label's name."""


_COMMENTS: dict[str, Any] = {"patternProperties": {f"^{COMMENT}": {}}}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_COMMENTS)


class Shot(_Closed):
    """A worked example of a label: its instruction, filled and answered."""

    text: Text = Field(description="What is to be written.")
    input: Text | None = Field(default=None, description="What fills <X1>, if the instruction holds it.")
    variables: dict[StrictStr, Text] = Field(default_factory=dict, description="What fills the other placeholders.")


class LabelSpec(_Closed):
    """One label: what the model is asked, and which labels' texts it must not write."""

    instruction: StrictStr = Field(description="The prompt; ends with the opening quotation mark, e.g. 'Review: \"'.")
    counter_labels: tuple[StrictStr, ...] = Field(default=(), description="Labels whose texts must be unlikely here.")
    examples: tuple[Shot, ...] = Field(
        default=(), description="Shown before the instruction, in this order, each with the instruction as its own."
    )


class SpecSampling(_Closed):
    """Sampling defaults of a spec; the command line overrides them."""

    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    top_p: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] | None = None
    decay: Annotated[StrictFloat | StrictInt, Field(ge=0)] | None = None
    floor: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] | None = None
    max_new_tokens: Annotated[StrictInt, Field(ge=1)] | None = None


class TaskSpec(_Closed):
    """A task spec. The format of the original DINO is valid as it is; every other key is optional."""

    model_config = ConfigDict(title="dino_pipeline task spec")

    task_name: Name = Field(description="Names the dataset; letters, digits, '-', '_' and '.'.")
    labels: Annotated[dict[StrictStr, LabelSpec], Field(min_length=1)]
    inputs: TaskSpec | StrictStr | None = Field(
        default=None,
        description="The spec that writes the inputs <X1>: a path relative to this file, or the spec itself.",
    )
    variables: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], Choices] = Field(
        default_factory=dict,
        description="Values for placeholders, e.g. TOPIC fills <TOPIC>, drawn per sample: a list, or a file that holds "
        "one a line, its path relative to this file.",
    )
    stop: Text = Field(
        default='"', description="The string that closes a text; instructions end with its opening form."
    )
    newlines: StrictBool = Field(default=False, description="Texts may hold newlines; else they end at one.")
    label_type: Literal["score", "class"] | None = Field(
        default=None,
        description="'score': labels are similarities; 'class': labels are names. Default: score if all are numbers.",
    )
    sampling: SpecSampling = Field(default_factory=SpecSampling)
    description: StrictStr | None = None
    language: StrictStr | None = None
    license: StrictStr | None = None

    @property
    def needs_inputs(self) -> bool:
        """Whether the instructions hold ``<X1>``, so that texts come in pairs."""
        return any(X1 in label.instruction for label in self.labels.values())

    @property
    def is_scored(self) -> bool:
        """Whether labels are similarities (numbers) rather than class names."""
        return self.label_type != "class" and all(as_number(label) is not None for label in self.labels)

    def value(self, label: str) -> Value:
        """Return the label as records hold it."""
        return float(label) if self.is_scored else label

    @property
    def digest(self) -> str:
        """Hash of all that decides what is written: labels, stop string, variables ... Descriptions do not count."""
        parts = self.model_dump(mode="json", include={"labels", "stop", "variables", "label_type"})
        parts |= {"newlines": True} if self.newlines else {}
        for label in parts["labels"].values():
            if not label["examples"]:  # as it was before there were any
                del label["examples"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def prompt(self, label: str, text: str | None = None, values: Mapping[str, str] | None = None) -> str:
        """Return the label's examples and its instruction with its placeholders filled.

        The text is inserted literally: what looks like a placeholder in it stays as it is. Where the stop string is
        the straight quotation mark, such marks inside the text are shown to the model as apostrophes.

        Args:
            label: the label's name.
            text: the input that fills ``<X1>``.
            values: a value for each variable.
        """
        shots = "".join(
            f"{self._filled(label, shot.input, shot.variables)}{self._shown(shot.text)}{self.stop}\n\n"
            for shot in self.labels[label].examples
        )
        return shots + self._filled(label, text, values or {})

    def _filled(self, label: str, text: str | None, values: Mapping[str, str]) -> str:
        before, has_text, after = self.labels[label].instruction.partition(X1)
        if not has_text:
            return _fill(before, values)
        if text is None:
            raise ValueError("an instruction with <X1> needs a text")
        return _fill(before, values) + self._shown(text) + _fill(after, values)

    def _shown(self, text: str) -> str:
        return text.replace('"', "'") if self.stop == '"' else text

    def opening(self, label: str) -> str:
        """Return what an answer begins with: the instruction's last line, or the mark that opens a text.

        It is the mark alone where that line is the only one, or holds a placeholder.
        """
        instruction = self.labels[label].instruction
        _, several, line = instruction.rpartition("\n")
        if several and not PLACEHOLDER.search(line):
            return line
        marks = (self.stop, *OPENING.get(self.stop, ""))
        return next(mark for mark in marks if instruction.endswith(mark))

    @property
    def fields(self) -> tuple[str, ...]:
        """What no text repeats: how the instructions' lines begin, such as ``Task:``, and long lines without inputs,
        and the examples."""
        lines = [line for label in self.labels.values() for line in label.instruction.splitlines()]
        heads = [found[0] for line in lines if (found := FIELD.match(line))]
        rests = [FIELD.sub("", line, count=1).strip() for line in lines]
        rests = [rest for rest in rests if "<" not in rest]
        shots = [shot.text for label in self.labels.values() for shot in label.examples]
        return tuple(dict.fromkeys([*heads, *(text for text in [*rests, *shots] if len(text) >= LONG_LINE)]))

    def can_show(self, text: str) -> bool:
        """Whether the text may stand between quotes: a stop string that cannot be softened would end it early."""
        return self.stop == '"' or self.stop not in text


def _fill(template: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def load_spec(path: str | Path, _parents: tuple[Path, ...] = ()) -> TaskSpec:
    """Read and validate a spec file, and the one that its ``inputs`` names.

    Raises:
        SpecError: the file is unreadable or wrong; the error lists everything that is wrong with it.
    """
    raw, problems = _read(Path(path))
    problems += list(_inline_variables(raw, Path(path)))
    parents = (*_parents, Path(path).resolve())
    problems += list(_find_problems(raw, Path(path), parents))
    if problems:
        raise SpecError(str(path), list(dict.fromkeys(problems)))
    spec = TaskSpec.model_validate(raw)
    if isinstance(spec.inputs, str):
        return spec.model_copy(update={"inputs": load_spec(Path(path).parent / spec.inputs, parents)})
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
    if "\\ud" in json.dumps(raw).lower() and not _encodable(raw):
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
