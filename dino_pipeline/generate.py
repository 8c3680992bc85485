"""The generate stage: inputs x labels x samples, written by a language model into shards of examples."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from dino_pipeline.diversity import Diversity, advice
from dino_pipeline.engine import Engine, Scorer
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import Example, iter_examples, write_examples, write_json
from dino_pipeline.inputs import Seen, distinct
from dino_pipeline.progress import LabelCount, Progress, Watch
from dino_pipeline.run import Run, State
from dino_pipeline.spec import TaskSpec
from dino_pipeline.writer import GenerateOptions, More, Shard, Task, Writer, count_text

SHARD_SAMPLES = 1024
"""About so many texts make a shard: what a killed run loses at most."""
LEAST_INPUT_SHARD = 64
"""Inputs are written so many at a time at least: fewer would not show whether a model still writes new ones."""
LEAST_NEW_INPUTS = 0.01
"""Writing inputs stops with an error when less of a shard than this is new."""
USED = ("usage", "cost")
"""What an engine took, summed up over all calls."""
TOKENS = 20
"""About so many tokens make a text."""


def generate(
    run: Run,
    spec: TaskSpec,
    load: Callable[[int], Engine],
    options: GenerateOptions,
    watch: Watch,
    *,
    model: dict[str, Any],
    scorer: Callable[[], Scorer] | None = None,
    inputs: Iterable[str] | None = None,
    settings: dict[str, Any] | None = None,
    fresh: bool = False,
    more: Sequence[More] = (),
) -> State:
    """Write the spec's texts into the run's shards, going on where an earlier call was stopped.

    Args:
        run: where to write.
        spec: what to ask.
        load: loads the engine, being told about how many tokens it will write, each counted once for every prompt
            that it is written under; called only if something is left to do.
        options: how much and how.
        watch: is told what happens.
        model: what identifies the model (name, revision, dtype ...); another model is another dataset.
        scorer: loads what tells margins, where the engine does not.
        inputs: texts for ``<X1>``, read more than once; None lets the spec's own inputs spec write them.
        settings: what only changes speed, for the record.
        fresh: start over.
        more: samples to write beyond those asked for, and those that earlier calls were told to.

    Returns:
        Whether the work was new, resumed, or done before.

    Raises:
        OptionError: the spec needs inputs and none are there, or has no place for those given.
        RunError: the run was begun with other options.
    """
    _check_inputs(spec, inputs)
    partial = [run.inputs, run.shards, run.rejected, run.input_shards, run.input_rejected]
    recorded = {"spec": spec.digest, "labels": list(spec.labels), **model, **_options_record(spec, inputs, options)}
    outputs = [run.spec, run.shards]
    state = run.check("generate", recorded, outputs=outputs, partial=partial, fresh=fresh)
    more = [*([] if state == "new" else recorded_more(run)), *more]
    if state == "done" and all(shard.path.exists() for shard in _plan(run, spec, options, more)):
        return state
    if state == "done":
        run.note("generate", status="running")
    before = {} if state == "new" else run.stage("generate")
    used = {name: before[name] for name in USED if name in before}
    run.begin(
        "generate",
        recorded,
        outputs=outputs,
        partial=partial,
        settings=settings,
        fresh=fresh,
        more=[asdict(each) for each in more],
        **used,
    )
    state = "new" if state == "new" else "resumed"
    engine = load(_row_tokens(run, spec, inputs, options, more))
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    if spec.needs_inputs and not run.inputs.exists():
        _store_inputs(run, _new_inputs(run, spec, inputs, engine, options, watch), options, watch)
        _note_changes(run, engine)
    asked = _count(_stored_inputs(run)) if spec.needs_inputs else None
    total = (1 if asked is None else asked) * (len(spec.labels) * options.samples + sum(each.samples for each in more))
    progress = Progress("texts", total, labels={label: LabelCount() for label in spec.labels})
    of = options.sampling
    diversity = Diversity(watch.note, advice(inputs=spec.needs_inputs, top_k=of.top_k, top_p=of.top_p))

    def stored(shard: Shard) -> None:
        _note_changes(run, engine)
        for label in spec.labels:
            kept = [each for at, each in shard.kept.items() if shard.tasks[at].label == label]
            diversity.add(label, [each.text_b or each.text_a for each in kept])
        progress.extra = diversity.summary

    writer = Writer(spec, engine, options, of, watch, progress, scorer() if scorer else None, stored)
    writer.write(_unwritten(_plan(run, spec, options, more), progress, spec))
    watch.progress(progress)
    if not any(count.accepted for count in progress.labels.values()):
        raise ModelError(f"{run.path}: no text was accepted; {run.rejected} holds each with its reason")
    counts = {label: {"written": count.written, "accepted": count.accepted} for label, count in progress.labels.items()}
    margins = {label: count.mean_margin for label, count in progress.labels.items()}
    run.finish(
        "generate",
        task=spec.task_name,
        label_type="score" if spec.is_scored else "class",
        **engine.facts(),
        inputs=asked,
        counts=counts,
        mean_margins=margins,
    )
    return state


def _note_changes(run: Run, engine: Engine) -> None:
    """Record what an engine has to tell, where that is not what is recorded."""
    before, facts = run.stage("generate"), engine.facts()
    if any(before.get(name) != value for name, value in facts.items()):
        run.note("generate", **facts)


def _check_inputs(spec: TaskSpec, inputs: Iterable[str] | None) -> None:
    if spec.needs_inputs and inputs is None and spec.inputs is None:
        raise OptionError(
            f"spec {spec.task_name}: its instructions hold <X1>, but there are no inputs; "
            'give --inputs FILE, or name a spec that writes them under "inputs"'
        )
    if not spec.needs_inputs and inputs is not None:
        raise OptionError(f"spec {spec.task_name}: its instructions lack <X1>, so --inputs has no place; leave it out")


def _options_record(spec: TaskSpec, inputs: Iterable[str] | None, options: GenerateOptions) -> dict[str, Any]:
    record = asdict(options)
    if options.best_of == 1:
        del record["best_of"]
    if not spec.needs_inputs:
        del record["num_inputs"]
    if isinstance(spec.inputs, TaskSpec) and inputs is None:
        record["inputs"] = {"spec": spec.inputs.digest}
    else:
        del record["input_sampling"]
        if inputs is not None:
            record["inputs"] = {"texts": _digest(inputs)}
    return record


def _digest(texts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()[:16]


def _count(things: Iterable[Any]) -> int:
    return sum(1 for _ in things)


def recorded_more(run: Run) -> list[More]:
    """Return the samples that earlier calls were told to write beyond those asked for."""
    return [More(**each) for each in run.stage("generate").get("more", [])]


def _row_tokens(
    run: Run, spec: TaskSpec, inputs: Iterable[str] | None, options: GenerateOptions, more: Sequence[More]
) -> int:
    """Return about how many tokens all prompts together have still to be stepped by."""
    prompts = {label: 1 + len(of_label.counter_labels) for label, of_label in spec.labels.items()}
    if run.inputs.exists() or not spec.needs_inputs:
        left = (shard.tasks for shard in _plan(run, spec, options, more) if not shard.path.exists())
        return TOKENS * sum(prompts[task.label] for tasks in left for task in tasks)
    asked = options.num_inputs or _count(inputs or ())
    return TOKENS * asked * options.samples * sum(prompts.values())


def _plan(run: Run, spec: TaskSpec, options: GenerateOptions, more: Sequence[More]) -> Iterator[Shard]:
    """Yield the shards; the plan depends on nothing but inputs, labels and samples."""
    asked = [(label, range(options.samples)) for label in spec.labels]
    yield from _shards(run, spec, asked, "")
    for number, each in enumerate(more, start=1):
        yield from _shards(
            run, spec, [(each.label, range(each.first, each.first + each.samples))], f"more{number:03d}-"
        )


def _shards(run: Run, spec: TaskSpec, asked: Sequence[tuple[str, range]], prefix: str) -> Iterator[Shard]:
    lists = _about_inputs(run, asked) if spec.needs_inputs else _without_inputs(asked)
    for number, tasks in enumerate(lists):
        name = f"{prefix}{number:05d}.jsonl"
        yield Shard(run.shards / name, run.rejected / name, tasks)


def _unwritten(plan: Iterable[Shard], progress: Progress, spec: TaskSpec) -> Iterator[Shard]:
    """Yield the shards that are not there yet, and count the others."""
    for shard in plan:
        if shard.path.exists():
            _count_stored(progress, spec, shard)
        else:
            yield shard


def _without_inputs(asked: Sequence[tuple[str, range]]) -> Iterator[list[Task]]:
    size = max(1, SHARD_SAMPLES // len(asked))
    samples = asked[0][1]
    for first in range(0, len(samples), size):
        yield [Task(None, None, label, sample) for label, samples in asked for sample in samples[first : first + size]]


def _about_inputs(run: Run, asked: Sequence[tuple[str, range]]) -> Iterator[list[Task]]:
    size = max(1, SHARD_SAMPLES // sum(len(samples) for _, samples in asked))
    texts = enumerate(_stored_inputs(run))
    while some := list(itertools.islice(texts, size)):
        yield [
            Task(number, text, label, sample) for number, text in some for label, samples in asked for sample in samples
        ]


def _stored_inputs(run: Run) -> Iterator[str]:
    if run.inputs.exists():
        yield from (example.text_a for example in iter_examples(run.inputs))


def _store_inputs(run: Run, texts: Iterator[str], options: GenerateOptions, watch: Watch) -> None:
    """Store the inputs, brought or written, in the run."""
    chosen = enumerate(itertools.islice(texts, options.num_inputs))
    write_examples(run.inputs, (Example(text_a=text, input=number) for number, text in chosen))
    stored = _count(_stored_inputs(run))
    if options.num_inputs and stored < options.num_inputs:
        watch.note(f"{stored} distinct inputs are there, {options.num_inputs} were asked for")


def _new_inputs(
    run: Run,
    spec: TaskSpec,
    inputs: Iterable[str] | None,
    engine: Engine,
    options: GenerateOptions,
    watch: Watch,
) -> Iterator[str]:
    if inputs is not None:
        return distinct(inputs)
    assert isinstance(spec.inputs, TaskSpec)
    return _write_inputs(run, spec.inputs, engine, options, watch)


def _write_inputs(run: Run, spec: TaskSpec, engine: Engine, options: GenerateOptions, watch: Watch) -> Iterator[str]:
    """Let the inputs spec write shard after shard until there are enough distinct texts; yield those."""
    if options.num_inputs is None:
        raise OptionError("how many inputs to write is not said; give --num-inputs")
    progress = Progress("inputs", total=0, labels={label: LabelCount() for label in spec.labels})
    writer = Writer(
        spec, engine, replace(options, keep_newlines=spec.newlines), options.input_sampling, watch, progress
    )
    size = min(max(options.num_inputs, LEAST_INPUT_SHARD), SHARD_SAMPLES)
    per_label = -(-size // len(spec.labels))
    found = 0
    with closing(Seen()) as seen:
        for number in itertools.count():
            first, name = number * per_label, f"{number:05d}.jsonl"
            tasks = [Task(None, None, label, first + sample) for sample in range(per_label) for label in spec.labels]
            progress.total = progress.done + len(tasks)
            shard = Shard(run.input_shards / name, run.input_rejected / name, tasks)
            if shard.path.exists():
                progress.done = progress.total
                progress.resumed += len(tasks)
            else:
                writer.write([shard])
            watch.progress(progress)
            before = found
            for example in iter_examples(shard.path):
                if seen.add(example.text_a):
                    found += 1
                    yield example.text_a
            if found >= options.num_inputs:
                return
            if found - before < LEAST_NEW_INPUTS * len(tasks):
                raise ModelError(
                    f"inputs spec {spec.task_name}: only {found - before} of {len(tasks)} further texts were new, "
                    f"{found} of {options.num_inputs} inputs are there; sample more widely (top_k 0, top_p 0.95 in "
                    "the inputs spec's sampling), ask for fewer, or bring your own with --inputs"
                )


def _count_stored(progress: Progress, spec: TaskSpec, shard: Shard) -> None:
    """Count the texts of a shard that an earlier call finished."""
    names = {spec.value(label): label for label in spec.labels}
    before = progress.done
    for path, reason in ((shard.path, None), (shard.rejected, "rejected")):
        for example in iter_examples(path, numeric_labels=spec.is_scored):
            if example.label is not None:
                count_text(progress, names[example.label], example, reason)
        for count in progress.labels.values():
            count.rejected_in_a_row = 0  # the files do not hold the order in which texts were written
    progress.done = before + len(shard.tasks)
    progress.resumed += len(shard.tasks)
