"""What a model reads for one text: the label's own prompt, its counter-labels' prompts, and the random numbers' key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dino_pipeline.decoding.sampling import uniforms
from dino_pipeline.spec import TaskSpec


@dataclass(frozen=True)
class Task:
    """One text to write."""

    input: int | None
    """Index of the input; None if the spec needs no inputs."""
    text: str | None
    """The input, which fills ``<X1>``; None if the spec needs no inputs."""
    label: str
    sample: int
    """Index of the text among those of the same input and label."""


def task_key(spec: TaskSpec, seed: int, task: Task) -> tuple[str | int, ...]:
    """Return the key of a task's random numbers.

    The input counts by its text, not by its index: a text does not depend on the order of the inputs.
    """
    return (seed, spec.digest, task.text or "", task.label, task.sample)


def drawn_values(spec: TaskSpec, seed: int, task: Task) -> dict[str, str]:
    """Return a value for each of the spec's variables, drawn by the task's key."""
    variables = sorted(spec.variables.items())
    draws = uniforms((*task_key(spec, seed, task), "variables"), len(variables))
    return {name: values[int(draw * len(values))] for (name, values), draw in zip(variables, draws, strict=True)}


def task_prompts(spec: TaskSpec, seed: int, task: Task, render: Callable[[str, str], str]) -> list[str]:
    """Return the label's own prompt, then one for each counter-label.

    Args:
        spec: the instructions.
        seed: of all random choices.
        task: the text to write.
        render: makes of a prompt, and of the part that begins an answer, the text that the model reads
            (`Engine.render`).
    """
    values = drawn_values(spec, seed, task)
    labels = (task.label, *spec.labels[task.label].counter_labels)
    return [render(spec.prompt(label, task.text, values), spec.opening(label)) for label in labels]
