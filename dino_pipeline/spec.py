"""`TaskSpec`: one instruction per label, and the labels that contrast with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    WithJsonSchema,
)

from dino_pipeline.text import as_number

X1 = "<X1>"
PLACEHOLDER = re.compile(r"<([A-Z][A-Z0-9_]*)>")
MIN_LONG_LINE = 20
"""Characters. Shorter lines of an instruction may occur in a text by chance."""
COMMENT = "//"
"""Keys of a spec file that begin with this are comments."""
FIELD = re.compile(r"[^\s:\"<][^:\"<]{0,29}:")
"""The field name that begins a line of an instruction, such as ``Sentence 1:``."""
OPENING = {"”": "“„", "“": "„", "’": "‘‚", "‘": "‚", "»": "«", "«": "»", "」": "「", "』": "『", "›": "‹", "‹": "›"}
"""The marks that can open a text that the key closes, where the two differ."""

Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]+$")]
Text = Annotated[str, Field(strict=True, min_length=1)]
Choices = Annotated[
    list[Text],
    Field(min_length=1),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}, {"type": "string"}]}
    ),
]
"""Values of a variable. A spec file may name a text file instead, with one value per line; `load_spec` reads it."""
LabelValue = float | str
"""A label in an example: a number in a similarity task, else the label's name."""


_COMMENTS: dict[str, Any] = {"patternProperties": {f"^{COMMENT}": {}}}


class _Closed(BaseModel):
    """Base of the parts of a spec: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_COMMENTS)


class Shot(_Closed):
    """A worked example of a label: values that fill its instruction, and an answer."""

    text: Text = Field(description="The answer.")
    input: Text | None = Field(default=None, description="Fills <X1>, if the instruction holds it.")
    variables: dict[StrictStr, Text] = Field(default_factory=dict, description="Fill the other placeholders.")


class LabelSpec(_Closed):
    """One label: the instruction for the model, and the labels whose texts it must not write."""

    instruction: StrictStr = Field(description="The prompt; ends with the opening quotation mark, e.g. 'Review: \"'.")
    counter_labels: tuple[StrictStr, ...] = Field(default=(), description="Labels whose texts must be unlikely here.")
    examples: tuple[Shot, ...] = Field(
        default=(), description="Shown before the instruction, in this order, each with the instruction as its own."
    )


class SpecSampling(_Closed):
    """Sampling defaults of a spec; options that the user gives override them."""

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
        """Return whether the instructions hold ``<X1>``, which makes the texts pairs."""
        return any(X1 in label.instruction for label in self.labels.values())

    @property
    def is_scored(self) -> bool:
        """Return whether labels are similarities (numbers) rather than class names."""
        return self.label_type != "class" and all(as_number(label) is not None for label in self.labels)

    def value(self, label: str) -> LabelValue:
        """Return a label as examples hold it."""
        return float(label) if self.is_scored else label

    @property
    def digest(self) -> str:
        """Return a hash of what decides the texts, apart from inputs and sampling, which a run records themselves."""
        parts = self.model_dump(mode="json", include={"labels", "stop", "variables", "label_type"})
        parts |= {"newlines": True} if self.newlines else {}
        for label in parts["labels"].values():
            if not label["examples"]:  # keeps the digest of specs from before examples existed
                del label["examples"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def prompt(self, label: str, text: str | None = None, values: Mapping[str, str] | None = None) -> str:
        """Return the label's worked examples and its instruction, with all placeholders filled.

        The text is inserted literally: a placeholder inside it is not filled. If the stop string is the straight
        quotation mark, such marks inside the text become apostrophes.

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
        """Return the beginning of an answer, for chat models: the instruction's last line, such as ``Sentence 2: "``.

        It is only the mark that opens a text if the instruction is a single line, or if its last line holds a
        placeholder.
        """
        instruction = self.labels[label].instruction
        _, several, line = instruction.rpartition("\n")
        if several and not PLACEHOLDER.search(line):
            return line
        marks = (self.stop, *OPENING.get(self.stop, ""))
        return next(mark for mark in marks if instruction.endswith(mark))

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the parts of the prompts that a good text does not repeat.

        These are field names such as ``Task:``, long lines of instructions without placeholders, and long examples.
        """
        names: list[str] = []
        phrases: list[str] = []
        for label in self.labels.values():
            for line in label.instruction.splitlines():
                if name := FIELD.match(line):
                    names.append(name[0])
                rest = FIELD.sub("", line, count=1).strip()
                if "<" not in rest:
                    phrases.append(rest)
        phrases += [shot.text for label in self.labels.values() for shot in label.examples]
        return tuple(dict.fromkeys([*names, *(text for text in phrases if len(text) >= MIN_LONG_LINE)]))

    def can_show(self, text: str) -> bool:
        """Return whether a text can be shown in a prompt: if its stop string is in it, that must be ``"``."""
        return self.stop == '"' or self.stop not in text


def _fill(template: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
