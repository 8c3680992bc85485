"""How a run's texts are written: what is there already, inputs, missing shards, the record, a watch on variety."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue

from dino_pipeline.damage import damaged_texts
from dino_pipeline.decoding.engine import EngineFacts
from dino_pipeline.errors import DinoError, ModelError, OptionError, RunError
from dino_pipeline.examples import Example, iter_examples, write_examples
from dino_pipeline.files import remove, shard_files, write_json
from dino_pipeline.generation.plan import GenerationJob, Plan, Shard, input_shards, is_intact, missing_shards
from dino_pipeline.generation.shard_writer import ShardWriter
from dino_pipeline.input_texts import DistinctTexts, InputTexts, distinct
from dino_pipeline.json_files import read_json_lines
from dino_pipeline.minhash import band_keys, jaccard, ngrams
from dino_pipeline.progress import Progress, Reporter, no_counts
from dino_pipeline.run import Run, State
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import ExtraSamples, GenerateRecord, GenerateSettings, LabelTotals
from dino_pipeline.stopping import Stopped
from dino_pipeline.text import distinct_n, normalise

if TYPE_CHECKING:
    from dino_pipeline.generation.storage import RemoteStorage

MIN_INPUT_SHARD = 64
"""Fewest inputs written at a time: fewer would not show whether the model still writes new ones."""
LEAST_NEW_INPUTS = 0.01
"""Writing inputs fails if a smaller share of a shard is new."""
WINDOW = 400
"""The latest texts of a label that are measured together. Always this many: fewer texts have higher figures."""
LEAST_DISTINCT = 0.75
"""Note a fall of distinct-2 below this share of its first value."""
SIMILARITY = 0.8
"""Jaccard similarity of character 5-grams at which texts are near-duplicates, as in the filter."""
MOST_REPEATED = 0.3
"""Note a larger share of near-duplicates than this."""


def write_texts(
    run: Run,
    spec: TaskSpec,
    load_writer: Callable[[], ShardWriter],
    settings: GenerateSettings,
    reporter: Reporter,
    *,
    inputs: Iterable[str] | None = None,
    speed: Mapping[str, JsonValue] | None = None,
    fresh: bool = False,
    extra_samples: Sequence[ExtraSamples] = (),
    storage: RemoteStorage | None = None,
) -> tuple[State, GenerateRecord]:
    """Write the spec's texts into the run's shards; continue what an earlier call left unfinished.

    Args:
        run: folder to write.
        spec: the instructions.
        load_writer: loads the writer of shards; called only if a shard is missing.
        settings: decide the texts.
        reporter: gets updates and notes.
        inputs: texts for ``<X1>``, iterated more than once; None lets the spec's own inputs spec write them.
        speed: settings that do not change the texts, for the record.
        fresh: start over.
        extra_samples: to write in addition to the settings' samples and to the extra samples of earlier calls.
        storage: gets a copy of the texts.

    Raises:
        RunError: the run was begun with other options.
        ModelError: the model cannot be loaded, or no text was accepted.
        Stopped: the user asked to stop before all was written.
    """
    requested = GenerateRecord(options=settings, settings=dict(speed or {}))
    state = run.state_of(requested, fresh=fresh)
    before = None if state == "new" else run.record().generate
    plan = Plan(run, spec, settings, (*(before.more if before else ()), *extra_samples))
    if before and run.inputs.exists() and not _inputs_are_whole(run, reporter):
        remove(run.inputs)
    if before and state == "done":
        if plan.is_done():
            return state, before
        run.save(before.updated(status="running"))
    writer = load_writer()  # before anything is deleted: a model that cannot be loaded loses no texts
    if storage and fresh:
        storage.clear(run)
    facts = writer.facts()
    _check_commit(run, before, facts)
    rows_read = before.rows_read if before else ()
    state = run.begin(requested.updated(more=plan.extra_samples, rows_read=rows_read, **facts), fresh=fresh)
    write_json(run.spec, spec.model_dump(mode="json", exclude_none=True))
    work = _Generation(plan, writer, reporter, storage)
    if not plan.has_inputs:
        plan.num_inputs = work.store_inputs(inputs)
    elif spec.needs_inputs:
        plan.num_inputs = sum(1 for _ in iter_examples(run.inputs))
    progress = work.write_shards()
    if not any(count.accepted for count in progress.labels.values()):
        remedy = "try another wording, another stop string, a larger {max_new_tokens}, or another model"
        raise ModelError(f"no text was accepted: {_rejection_reasons(run)}", remedy)
    return state, work.finish(progress)


def _inputs_are_whole(run: Run, reporter: Reporter) -> bool:
    """Return whether the inputs, and the shards that they were chosen from, are what was written."""
    folders = (run.input_shards, run.input_rejected)
    is_whole = is_intact([run.inputs], run.checksums, reporter)
    return is_whole and not any(damaged_texts(run.checksums, run.inputs, folders))


@dataclass
class _Generation:
    """The writing of a plan's missing shards."""

    plan: Plan
    writer: ShardWriter
    reporter: Reporter
    storage: RemoteStorage | None

    def __post_init__(self) -> None:
        self.checksums = self.plan.run.checksums
        record = self.plan.run.record().generate
        assert record is not None  # `begin` has written it
        self.record = record

    def store_inputs(self, inputs: Iterable[str] | None) -> int:
        """Store the distinct inputs, the user's or those that the inputs spec writes, and return their number."""
        run, wanted = self.plan.run, self.plan.settings.num_inputs
        texts = self._written_inputs() if inputs is None else distinct(inputs)
        count = 0

        def examples() -> Iterator[Example]:
            nonlocal count
            for text in itertools.islice(texts, wanted):
                yield Example(text_a=text, input=count)
                count += 1

        digest = write_examples(run.inputs, examples())
        if wanted and count < wanted:
            self.reporter.note(f"there are {count} distinct inputs; {wanted} were asked for")
        if isinstance(inputs, InputTexts) and inputs.rows_read:
            self.reporter.note(inputs.rows_read.told)
            self.record = self.record.updated(rows_read=(inputs.rows_read,))
        self.checksums.add_digests({run.inputs: digest})
        return count

    def _written_inputs(self) -> Iterator[str]:
        """Yield distinct inputs, while the inputs spec writes shard after shard until there are enough."""
        spec, settings = self.plan.spec.inputs, self.plan.settings
        assert isinstance(spec, TaskSpec)
        if (wanted := settings.num_inputs) is None:
            raise OptionError("the number of inputs to write is missing", "give {num_inputs}")
        own = {"keep_newlines": spec.newlines, "sampling": settings.input_sampling or settings.sampling}
        job = GenerationJob(spec, settings.model_copy(update=own))
        shards = input_shards(self.plan.run, spec, min(max(wanted, MIN_INPUT_SHARD), settings.shard_size))
        progress = Progress("inputs", total=0, labels=no_counts(spec.labels))
        num_distinct = 0
        with closing(DistinctTexts()) as known:
            while num_distinct < wanted:
                batch = [next(shards)]
                size = len(batch[0].tasks)
                # even if every text is accepted and new, all of these are needed
                batch += itertools.islice(shards, (wanted - num_distinct - 1) // size)
                progress.total = progress.done + size * len(batch)
                self._write_missing(job, batch, progress, lambda accepted: None)
                for shard in batch:
                    new = [example.text_a for example in iter_examples(shard.path) if known.add(example.text_a)]
                    yield from new
                    num_distinct += len(new)
                    if num_distinct < wanted and len(new) < LEAST_NEW_INPUTS * size:
                        raise ModelError(
                            f"inputs spec {spec.task_name}: only {len(new)} of {size} further texts were new, "
                            f"and there are {num_distinct} of {wanted} inputs",
                            "sample more widely (top_k 0, top_p 0.95 in the inputs spec's sampling), ask for fewer by "
                            "{num_inputs}, or bring your own by {inputs=FILE}",
                        )

    def write_shards(self) -> Progress:
        """Write the shards that are missing, and return the counts of all."""
        spec, sampling = self.plan.spec, self.plan.settings.sampling
        remedy = variety_remedy(needs_inputs=spec.needs_inputs, top_k=sampling.top_k, top_p=sampling.top_p)
        diversity = DiversityMonitor(self.reporter.note, remedy)
        progress = Progress("texts", self.plan.num_texts, labels=self.plan.counts())

        def measure(accepted: Sequence[Example]) -> None:
            for label in spec.labels:
                of_label = [example for example in accepted if example.label == spec.value(label)]
                diversity.add(label, [example.text_b or example.text_a for example in of_label])
            progress.extra = diversity.summary

        job = GenerationJob(spec, self.plan.settings, use_scorer=True)
        self._write_missing(job, self.plan.shards(), progress, measure)
        self.checksums.tidy()
        return progress

    def _write_missing(
        self,
        job: GenerationJob,
        shards: Iterable[Shard],
        progress: Progress,
        measure: Callable[[Sequence[Example]], None],
    ) -> None:
        """Write those of all shards that are not stored yet; ``measure`` receives the accepted texts of each.

        Raises:
            Stopped: the user asked to stop, and some are still missing.
        """

        def record(shard: Shard, accepted: Sequence[Example]) -> None:
            self.checksums.add_digests(shard.digests)
            self._record_facts()
            measure(accepted)
            if self.storage:
                self.storage.store(self.plan.run, shard.files)

        if self.storage:
            self.storage.store_record(self.plan.run)
        self.reporter.update(progress)
        missing = missing_shards(shards, progress, job.spec, self.checksums, self.reporter)
        try:
            self.writer.write(job, missing, self.reporter, progress, record)
        except BaseException:
            with suppress(DinoError):
                self._record_facts()  # what a server was paid for texts that no shard holds yet
            raise
        self.reporter.update(progress)
        if progress.done < progress.total:
            raise Stopped

    def _record_facts(self) -> None:
        """Record the writer's facts if they have changed, as a server's costs do."""
        record = self.record.updated(**self.writer.facts())
        if record != self.record:
            self.plan.run.save(record)
            self.record = record

    def finish(self, progress: Progress) -> GenerateRecord:
        """Record that all is written, with the counts of each label."""
        spec, counts, margins = self.plan.spec, {}, {}
        for label, count in progress.labels.items():
            counts[label] = LabelTotals(written=count.written, accepted=count.accepted)
            margins[label] = None if count.mean_margin is None else round(count.mean_margin, 6)
        done = self.record.updated(
            task=spec.task_name,
            label_type="score" if spec.is_scored else "class",
            inputs=self.plan.num_inputs if spec.needs_inputs else None,
            counts=counts,
            mean_margins=margins,
            **self.writer.facts(),
        )
        remove(self.plan.run.received)
        finished = self.plan.run.finish(done)
        assert isinstance(finished, GenerateRecord)
        return finished


def _rejection_reasons(run: Run) -> str:
    """Return the most frequent reasons for which texts were rejected, with an example for each; empty without any."""
    rows = [row for path in shard_files(run.rejected) for _, row in read_json_lines(path)]
    reasons = Counter(row["reason"] for row in rows)
    examples = {row["reason"]: str(row.get("text_b") or row["text_a"])[:80] for row in reversed(rows)}
    shown = (f"{count} {reason}, such as {examples[reason]!r}" for reason, count in reasons.most_common(3))
    return "; ".join(shown)


def _check_commit(run: Run, before: GenerateRecord | None, facts: EngineFacts) -> None:
    """Raise `RunError` if the model's name on the Hub stands for another commit than when the run began."""
    commit, now = before.model_commit if before else None, facts.get("model_commit")
    if before and commit and now and commit != now:
        raise RunError(
            f"{run.path}: was begun with commit {commit} of {before.options.model.name}, which now is at {now}",
            f"start over with {{fresh=True}}, or for the texts as begun with {{fresh=True}} {{revision={commit}}}",
        )


def forget_unwritten(run: Run) -> bool:
    """Forget a call that failed before it wrote any text; return whether there was one.

    The next call may then have other options.
    """
    record = run.record().generate
    has_texts = run.received.exists() or any(map(shard_files, run.text_folders))
    if record is None or record.status != "running" or has_texts:
        return False
    for path in run.partial("generate"):
        remove(path)
    run.forget("generate")
    return True


class Variety(NamedTuple):
    """Measures of a list of texts."""

    distinct_2: float
    """Distinct word bigrams / all word bigrams (Li et al. 2016); of characters in scripts without spaces."""
    repeated: float
    """Share of texts that are near-duplicates of an earlier text (MinHash, see `minhash`)."""


class DiversityMonitor:
    """Measures the latest texts of each label, and notes once per label if they become alike.

    Args:
        note: receives the note and its remedy; see `Reporter.note`.
        remedy: what makes the texts more varied; see `variety_remedy`.
    """

    def __init__(self, note: Callable[[str, str], None], remedy: str) -> None:
        self.note, self.remedy = note, remedy
        self.latest_texts: dict[str, deque[str]] = {}
        self.first: dict[str, Variety] = {}
        self.latest: dict[str, Variety] = {}
        self.noted: set[str] = set()

    def add(self, label: str, texts: Sequence[str]) -> None:
        """Add further texts of a label."""
        window = self.latest_texts.setdefault(label, deque(maxlen=WINDOW))
        window.extend(texts)
        if len(window) < WINDOW:
            return
        self.latest[label] = latest = variety(list(window))
        first = self.first.setdefault(label, latest)
        is_alike = latest.distinct_2 < LEAST_DISTINCT * first.distinct_2 or latest.repeated > MOST_REPEATED
        if is_alike and label not in self.noted:
            self.noted.add(label)
            fallen = f" (at first {first.distinct_2:.2f})" if latest.distinct_2 < first.distinct_2 else ""
            self.note(
                f'label "{label}": texts become alike: distinct-2 {latest.distinct_2:.2f}{fallen}, '
                f"{latest.repeated:.0%} are nearly the same as earlier ones",
                self.remedy,
            )

    @property
    def summary(self) -> str:
        """The mean figures of all labels in a few words; empty before there are any."""
        if not self.latest:
            return ""
        distinct = fmean(latest.distinct_2 for latest in self.latest.values())
        repeated = fmean(latest.repeated for latest in self.latest.values())
        return f"distinct-2 {distinct:.2f}, near-duplicates {repeated:.0%}"


def variety_remedy(*, needs_inputs: bool, top_k: int, top_p: float) -> str:
    """Return what makes texts more varied, given how they are sampled; a template of `errors.worded`."""
    remedy = (
        "more inputs ({num_inputs}) bring more than more {samples}"
        if needs_inputs
        else "variables or examples in the spec bring variety"
    )
    is_narrow = top_k or 0 < top_p < 0.9
    return f"{remedy}, and so does wider sampling ({{top_k=0}} {{top_p=0.95}})" if is_narrow else remedy


def variety(texts: Sequence[str]) -> Variety:
    """Measure how varied a list of texts is."""
    normalised = [normalise(text) for text in texts]
    latest_with_key: dict[int, int] = {}  # MinHash band key -> index of the latest text that has it
    repeated = 0
    for index, keys in enumerate(band_keys(normalised).tolist()):
        candidates = dict.fromkeys(latest_with_key[key] for key in keys if key in latest_with_key)
        own_ngrams = ngrams(normalised[index])
        repeated += any(jaccard(own_ngrams, ngrams(normalised[other])) >= SIMILARITY for other in candidates)
        latest_with_key.update(dict.fromkeys(keys, index))
    return Variety(distinct_n(texts, 2), repeated / max(len(texts), 1))
