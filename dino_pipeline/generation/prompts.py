"""What an engine is asked for a task: its prompts, and what its random numbers depend on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from dino_pipeline.decoding.engine import Engine, Request
from dino_pipeline.decoding.sampling import uniforms
from dino_pipeline.examples import Dropped, Example
from dino_pipeline.generation.plan import Job, Task
from dino_pipeline.spec import TaskSpec

LONGEST_INPUT = 1_000_000
"""In characters: what is longer is not even cut into tokens."""


def task_key(spec: TaskSpec, seed: int, task: Task) -> tuple[str | int, ...]:
    """Return what a task's random numbers depend on: its input by its text, so that order does not matter."""
    return (seed, spec.digest, task.text or "", task.label, task.sample)


def drawn_values(spec: TaskSpec, seed: int, task: Task) -> dict[str, str]:
    """Return a value for each of the spec's variables, drawn by the task's key."""
    choices = sorted(spec.variables.items())
    draws = uniforms((*task_key(spec, seed, task), "variables"), len(choices))
    return {name: of[int(draw * len(of))] for (name, of), draw in zip(choices, draws, strict=True)}


def prompts(spec: TaskSpec, seed: int, task: Task, render: Callable[[str, str], str]) -> list[str]:
    """Return the own prompt, then those of the counter-labels, as ``render`` makes them for who reads them."""
    values = drawn_values(spec, seed, task)
    labels = (task.label, *spec.labels[task.label].counter_labels)
    return [render(spec.prompt(label, task.text, values), spec.opening(label)) for label in labels]


def requests(job: Job, engine: Engine, tasks: Sequence[Task]) -> tuple[dict[int, Request], list[Dropped]]:
    """Return the request of each task by its number, shortest inputs first, and what cannot be asked about.

    That is an input with all its tasks or, where there are no inputs, a single task.
    """
    spec, seed = job.spec, job.options.seed
    of_tasks = [
        prompts(spec, seed, task, engine.render) if len(task.text or "") <= LONGEST_INPUT else [""] for task in tasks
    ]
    texts = list(dict.fromkeys(itertools.chain.from_iterable(of_tasks)))
    encoded = dict(zip(texts, engine.encode(texts), strict=True))
    found: dict[int, Request] = {}
    left_out: dict[int | Task | None, Dropped] = {}
    for at, task in enumerate(tasks):
        found[at] = Request(tuple(encoded[prompt] for prompt in of_tasks[at]), task_key(spec, seed, task))
        if reason := _defect(job, engine, task, found[at]):
            sample = task.sample if task.text is None else None
            left_out.setdefault(
                _about(task), Dropped(Example(task.text or "", input=task.input, sample=sample), reason)
            )
    askable = (at for at in found if _about(tasks[at]) not in left_out)
    by_length = sorted(askable, key=lambda at: (len(tasks[at].text or ""), at))
    return {at: found[at] for at in by_length}, list(left_out.values())


def _about(task: Task) -> int | Task | None:
    return task if task.text is None else task.input


def _defect(job: Job, engine: Engine, task: Task, request: Request) -> str | None:
    """Return why a task's input cannot be asked about, None if it can."""
    text, longest = task.text or "", job.options.sampling.max_new_tokens
    if task.text is not None and not job.spec.can_show(task.text):
        return f"the input holds the stop string {job.spec.stop}"
    if mark := next((mark for mark in engine.marks if mark in text), None):
        return f"the input holds {mark} of the model's chat template"
    if len(text) > LONGEST_INPUT:
        return f"the input is longer than {LONGEST_INPUT:,} characters"
    if not engine.fits(request.prompts, longest):
        return f"the prompt leaves less than {longest} tokens of the model's context"
    return None
