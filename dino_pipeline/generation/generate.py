"""The generate stage: inputs x labels x samples, written by a language model into shards of examples."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dino_pipeline.errors import ModelError, OptionError, RunError
from dino_pipeline.examples import Example, iter_examples, write_examples
from dino_pipeline.files import Checksums, remove, shard_files, write_json
from dino_pipeline.generation.diversity import Diversity, advice
from dino_pipeline.generation.plan import (
    SHARD_SIZE,
    GenerateOptions,
    Job,
    More,
    Plan,
    Shard,
    are_whole,
    input_shards,
    unwritten,
)
from dino_pipeline.generation.writer import Hands
from dino_pipeline.processes import Stopped
from dino_pipeline.progress import Progress, Reporter, no_counts
from dino_pipeline.readers import DistinctTexts, distinct
from dino_pipeline.run import Run, Stage, State
from dino_pipeline.spec import TaskSpec

LEAST_INPUT_SHARD = 64
"""Inputs are written so many at a time at least: fewer would not show whether a model still writes new ones."""
LEAST_NEW_INPUTS = 0.01
"""Writing inputs stops with an error when less of a shard than this is new."""


def generate(
    run: Run,
    spec: TaskSpec,
    load: Callable[[], Hands],
    options: GenerateOptions,
    reporter: Reporter,
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
        load: makes ready who writes; called only if something is left to do.
        options: how much and how.
        reporter: is told what happens.
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
        Stopped: somebody wanted to stop before all was written.
    """
    _check_inputs(spec, inputs)
    recorded = {"spec": spec.digest, "labels": list(spec.labels), **model, **_options_record(spec, inputs, options)}
    stage = Stage("generate", recorded, outputs=[run.spec, run.shards], partial=_partial(run))
    state = run.check(stage, fresh=fresh)
    before: dict[str, Any] = {}
    told = list(more)
    if state != "new":
        before, told = run.stage("generate"), [*recorded_more(run), *more]
        if run.inputs.exists() and not are_whole([run.inputs], run.checksums, reporter):
            run.inputs.unlink()
    plan = Plan(run, spec, options, told)
    if state == "done":
        if plan.is_done():
            return state
        run.note("generate", status="running")
    hands = load()  # before anything is deleted
    facts = hands.facts()
    _check_commit(run, before, facts)
    state = run.begin(stage, fresh=fresh, settings=settings, more=[asdict(each) for each in told], **facts)
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    work = _Work(plan, hands, reporter, run.checksums, facts)
    if not plan.has_inputs:
        work.store_inputs(inputs)
    progress = work.write_texts()
    if not any(count.accepted for count in progress.labels.values()):
        raise ModelError(f"{run.path}: no text was accepted; {run.rejected} holds each with its reason")
    counts = {label: {"written": count.written, "accepted": count.accepted} for label, count in progress.labels.items()}
    margins = {label: count.mean_margin and round(count.mean_margin, 6) for label, count in progress.labels.items()}
    run.finish(
        "generate",
        task=spec.task_name,
        label_type="score" if spec.is_scored else "class",
        **hands.facts(),
        inputs=plan.num_inputs if spec.needs_inputs else None,
        counts=counts,
        mean_margins=margins,
    )
    return state


@dataclass
class _Work:
    """Has written what is planned."""

    plan: Plan
    hands: Hands
    reporter: Reporter
    sums: Checksums
    facts: Mapping[str, Any]
    """What run.json holds of the hands."""

    def write_texts(self) -> Progress:
        """Have the shards written that are not there yet, and return what all hold."""
        spec, options = self.plan.spec, self.plan.options
        progress = Progress("texts", self.plan.texts, labels=no_counts(spec.labels))
        found = advice(inputs=spec.needs_inputs, top_k=options.sampling.top_k, top_p=options.sampling.top_p)
        diversity = Diversity(self.reporter.note, found)

        def look(accepted: Sequence[Example]) -> None:
            for label in spec.labels:
                of_label = (each for each in accepted if each.label == spec.value(label))
                diversity.add(label, [each.text_b or each.text_a for each in of_label])
            progress.extra = diversity.summary

        self._have_written(Job(spec, options, scored=True), self.plan.shards(), progress, look)
        self.sums.tidy()
        return progress

    def _have_written(
        self, job: Job, shards: Iterable[Shard], progress: Progress, look: Callable[[Sequence[Example]], None]
    ) -> None:
        """Have those shards written that are not there yet; ``look`` at what each holds."""

        def stored(shard: Shard, accepted: Sequence[Example]) -> None:
            self.sums.add(*shard.files)
            self._note_facts()
            look(accepted)

        missing = unwritten(shards, progress, job.spec, self.sums, self.reporter)
        self.hands.write(job, missing, self.reporter, progress, stored)
        self.reporter.update(progress)
        if progress.done < progress.total:
            raise Stopped

    def _note_facts(self) -> None:
        """Record what there is to tell of who writes, where that has changed."""
        if (facts := self.hands.facts()) != self.facts:
            self.plan.run.note("generate", **facts)
            self.facts = facts

    def store_inputs(self, inputs: Iterable[str] | None) -> None:
        """Store the inputs, brought or written."""
        run, wanted = self.plan.run, self.plan.options.num_inputs
        texts = self._written_inputs() if inputs is None else distinct(inputs)
        chosen = enumerate(itertools.islice(texts, wanted))
        write_examples(run.inputs, (Example(text_a=text, input=number) for number, text in chosen))
        if wanted and self.plan.num_inputs < wanted:
            self.reporter.note(f"{self.plan.num_inputs} distinct inputs are there, {wanted} were asked for")
        self.sums.add(run.inputs)

    def _written_inputs(self) -> Iterator[str]:
        """Let the inputs spec write shard after shard until there are enough distinct texts; yield those."""
        spec, options = self.plan.spec.inputs, self.plan.options
        assert isinstance(spec, TaskSpec)
        if (wanted := options.num_inputs) is None:
            raise OptionError("how many inputs to write is not said; give --num-inputs")
        job = Job(spec, replace(options, keep_newlines=spec.newlines, sampling=options.input_sampling))
        progress = Progress("inputs", total=0, labels=no_counts(spec.labels))
        shards = input_shards(self.plan.run, spec, min(max(wanted, LEAST_INPUT_SHARD), options.shard_size))
        found = 0
        with closing(DistinctTexts()) as seen:
            while found < wanted:
                some = [next(shards)]
                size = len(some[0].tasks)
                some += itertools.islice(shards, (wanted - found - 1) // size)  # all of these are needed
                progress.total = progress.done + size * len(some)
                self._have_written(job, some, progress, lambda accepted: None)
                for shard in some:
                    new = [each.text_a for each in iter_examples(shard.path) if seen.add(each.text_a)]
                    yield from new
                    found += len(new)
                    if found < wanted and len(new) < LEAST_NEW_INPUTS * size:
                        raise ModelError(
                            f"inputs spec {spec.task_name}: only {len(new)} of {size} further texts were new, "
                            f"{found} of {wanted} inputs are there; sample more widely (top_k 0, top_p 0.95 in the "
                            "inputs spec's sampling), ask for fewer, or bring your own with --inputs"
                        )


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


def forget_unwritten(run: Run) -> bool:
    """Forget what a call was asked for that failed before any text was there: the next may be asked for other.

    Returns:
        Whether there was such a call.
    """
    if run.stage("generate").get("status") != "running" or any(map(shard_files, run.text_folders)):
        return False
    for path in _partial(run):
        remove(path)
    run.forget("generate")
    return True


def _partial(run: Run) -> list[Path]:
    return [run.inputs, *run.text_folders, run.checksums.file]


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
    for name in ("sampling", "input_sampling"):
        record[name] = record[name].model_dump()
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


def num_inputs(inputs: Iterable[str] | None, options: GenerateOptions) -> int:
    """Return how many inputs a job is about: those brought, or to be written."""
    if inputs is None:
        return options.num_inputs or 0
    return sum(1 for _ in itertools.islice(inputs, options.num_inputs))


def recorded_more(run: Run) -> list[More]:
    """Return the samples that earlier calls were told to write beyond those asked for."""
    return [More(**each) for each in run.stage("generate").get("more", [])]
