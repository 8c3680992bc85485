"""The generate stage: inputs x labels x samples, written by a language model into shards of examples."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from dino_pipeline.digests import Checksums
from dino_pipeline.diversity import Diversity, advice
from dino_pipeline.errors import ModelError, OptionError, RunError
from dino_pipeline.examples import Example, iter_examples, write_examples, write_json
from dino_pipeline.inputs import Seen, distinct
from dino_pipeline.plan import are_whole, input_shards, is_whole, plan, stored_inputs, unwritten
from dino_pipeline.progress import Progress, Unseen, Watch, no_counts
from dino_pipeline.run import Run, State
from dino_pipeline.signals import Stopped
from dino_pipeline.spec import TaskSpec
from dino_pipeline.writer import SHARD_SIZE, GenerateOptions, Hands, Job, More, Shard

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
    load: Callable[[int], Hands],
    options: GenerateOptions,
    watch: Watch,
    *,
    model: dict[str, Any],
    inputs: Iterable[str] | None = None,
    settings: dict[str, Any] | None = None,
    fresh: bool = False,
    more: Sequence[More] = (),
) -> State:
    """Write the spec's texts into the run's shards, going on where an earlier call was stopped.

    Args:
        run: where to write.
        spec: what to ask.
        load: makes ready who writes, being told about how many tokens, each counted once for every prompt that it is
            written under; called only if something is left to do.
        options: how much and how.
        watch: is told what happens.
        model: what identifies the model (name, revision, dtype ...); another model is another dataset.
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
    sums = run.checksums
    partial = [run.inputs, *itertools.chain.from_iterable(run.shard_folders), sums.file]
    recorded = {"spec": spec.digest, "labels": list(spec.labels), **model, **_options_record(spec, inputs, options)}
    outputs = [run.spec, run.shards]
    state = run.check("generate", recorded, outputs=outputs, partial=partial, fresh=fresh)
    more = [*([] if state == "new" else recorded_more(run)), *more]
    if state != "new":
        _drop_spoilt_inputs(run, sums, watch)
    has_inputs = run.inputs.exists() or not spec.needs_inputs
    shards = plan(run, spec, options, more)
    if state == "done" and has_inputs and all(is_whole(shard, sums, Unseen()) for shard in shards):
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
    state, sums = "new" if state == "new" else "resumed", run.checksums
    hands = load(_row_tokens(run, spec, inputs, options, more))
    _check_commit(run, before, hands.facts())
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    if spec.needs_inputs and not run.inputs.exists():
        _store_inputs(run, _new_inputs(run, spec, inputs, hands, options, watch, sums), options, watch)
        sums.add(run.inputs)
        _note_changes(run, hands)
    asked = _count(stored_inputs(run)) if spec.needs_inputs else None
    total = (1 if asked is None else asked) * (len(spec.labels) * options.samples + sum(each.samples for each in more))
    progress = Progress("texts", total, labels=no_counts(spec.labels))
    of = options.sampling
    diversity = Diversity(watch.note, advice(inputs=spec.needs_inputs, top_k=of.top_k, top_p=of.top_p))

    def stored(shard: Shard, accepted: Sequence[Example]) -> None:
        sums.add(shard.rejected, shard.path)
        _note_changes(run, hands)
        for label in spec.labels:
            of_label = (each for each in accepted if each.label == spec.value(label))
            diversity.add(label, [each.text_b or each.text_a for each in of_label])
        progress.extra = diversity.summary

    missing = unwritten(plan(run, spec, options, more), progress, spec, sums, watch)
    hands.write(Job(spec, options, of, scored=True), missing, watch, progress, stored)
    watch.progress(progress)
    if progress.done < progress.total:
        raise Stopped
    sums.tidy()
    if not any(count.accepted for count in progress.labels.values()):
        raise ModelError(f"{run.path}: no text was accepted; {run.rejected} holds each with its reason")
    counts = {label: {"written": count.written, "accepted": count.accepted} for label, count in progress.labels.items()}
    margins = {label: count.mean_margin and round(count.mean_margin, 6) for label, count in progress.labels.items()}
    run.finish(
        "generate",
        task=spec.task_name,
        label_type="score" if spec.is_scored else "class",
        **hands.facts(),
        inputs=asked,
        counts=counts,
        mean_margins=margins,
    )
    return state


def _check_commit(run: Run, before: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse a model that is another under the same name.

    Raises:
        RunError: the Hub's name stands for another commit than when the run began.
    """
    commit, now = before.get("model_commit"), facts.get("model_commit")
    if commit and now and commit != now:
        raise RunError(
            f"{run.path}: was begun with commit {commit} of {before['options']['model']}, which now is at {now}; "
            f"start over with --fresh, or for the texts as begun with --fresh --revision {commit}"
        )


def _drop_spoilt_inputs(run: Run, sums: Checksums, watch: Watch) -> None:
    """Remove inputs that are not as they were written, so that they are written anew."""
    if run.inputs.exists() and not are_whole([run.inputs], sums, watch):
        run.inputs.unlink()


def _note_changes(run: Run, hands: Hands) -> None:
    """Record what there is to tell of who writes, where that is not what is recorded."""
    before, facts = run.stage("generate"), hands.facts()
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
    for name, default in (("best_of", 1), ("shard_size", SHARD_SIZE)):
        if record[name] == default:
            del record[name]
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
        left = (shard.tasks for shard in plan(run, spec, options, more) if not shard.path.exists())
        return TOKENS * sum(prompts[task.label] for tasks in left for task in tasks)
    asked = options.num_inputs or _count(inputs or ())
    return TOKENS * asked * options.samples * sum(prompts.values())


def _store_inputs(run: Run, texts: Iterator[str], options: GenerateOptions, watch: Watch) -> None:
    """Store the inputs, brought or written, in the run."""
    chosen = enumerate(itertools.islice(texts, options.num_inputs))
    write_examples(run.inputs, (Example(text_a=text, input=number) for number, text in chosen))
    stored = _count(stored_inputs(run))
    if options.num_inputs and stored < options.num_inputs:
        watch.note(f"{stored} distinct inputs are there, {options.num_inputs} were asked for")


def _new_inputs(
    run: Run,
    spec: TaskSpec,
    inputs: Iterable[str] | None,
    hands: Hands,
    options: GenerateOptions,
    watch: Watch,
    sums: Checksums,
) -> Iterator[str]:
    if inputs is not None:
        return distinct(inputs)
    assert isinstance(spec.inputs, TaskSpec)
    return _write_inputs(run, spec.inputs, hands, options, watch, sums)


def _write_inputs(
    run: Run, spec: TaskSpec, hands: Hands, options: GenerateOptions, watch: Watch, sums: Checksums
) -> Iterator[str]:
    """Let the inputs spec write shard after shard until there are enough distinct texts; yield those."""
    if options.num_inputs is None:
        raise OptionError("how many inputs to write is not said; give --num-inputs")
    job = Job(spec, replace(options, keep_newlines=spec.newlines), options.input_sampling)
    progress = Progress("inputs", total=0, labels=no_counts(spec.labels))
    shards = input_shards(run, spec, min(max(options.num_inputs, LEAST_INPUT_SHARD), options.shard_size))
    found = 0
    with closing(Seen()) as seen:
        while found < options.num_inputs:
            some = [next(shards)]
            size = len(some[0].tasks)
            some += itertools.islice(shards, (options.num_inputs - found - 1) // size)  # all of these are needed
            progress.total = progress.done + size * len(some)
            missing = unwritten(some, progress, spec, sums, watch)
            hands.write(job, missing, watch, progress, lambda shard, _: sums.add(shard.rejected, shard.path))
            watch.progress(progress)
            if progress.done < progress.total:
                raise Stopped
            for shard in some:
                before = found
                for example in iter_examples(shard.path):
                    if seen.add(example.text_a):
                        found += 1
                        yield example.text_a
                if found < options.num_inputs and found - before < LEAST_NEW_INPUTS * size:
                    raise ModelError(
                        f"inputs spec {spec.task_name}: only {found - before} of {size} further texts were new, "
                        f"{found} of {options.num_inputs} inputs are there; sample more widely (top_k 0, top_p 0.95 in "
                        "the inputs spec's sampling), ask for fewer, or bring your own with --inputs"
                    )
