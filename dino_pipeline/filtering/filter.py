"""What a user calls to filter. Texts come from a run, a file, a dataset or a list; it returns the pairs to train on."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dino_pipeline.errors import OptionError, option_given
from dino_pipeline.examples import Example, ExampleList, iter_examples, write_examples
from dino_pipeline.files import write_json
from dino_pipeline.filter_options import FilterOptions, rule_name
from dino_pipeline.filtering.brought_examples import BroughtExamples, open_examples
from dino_pipeline.filtering.contamination import LEAKED, WORDS, exclusion_files, rows_excluded
from dino_pipeline.filtering.dataset_rules import FilterRuntime, dataset_rules
from dino_pipeline.filtering.filter_source import FilterSource
from dino_pipeline.filtering.filter_stage import filter_run, look
from dino_pipeline.filtering.losses import note_losses
from dino_pipeline.filtering.postprocessed import note_processing
from dino_pipeline.filtering.text_rules import PERSONAL_DATA, PromptParts, text_rules
from dino_pipeline.funnel import Funnel
from dino_pipeline.json_files import read_json_lines
from dino_pipeline.layout import is_data_folder, is_unpublished
from dino_pipeline.models import embed, load_encoder, model_path, pick_device
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import FilterRecord, GenerateRecord, LabelCounts, TextsOrigin

FINAL_LABELS = {"labels": "hard", "random_pairs": 0, "dev_share": 0.0}
"""Options for data that was filtered before, unless the user gives others: labels and splits are not made twice."""


class DroppedExample(NamedTuple):
    """An example that was not kept, or that was kept and flagged, and why."""

    example: Example
    reason: str
    evidence: str | None = None
    duplicate_of: Example | None = None
    """The example that it repeats."""


class FilteredPairs(ExampleList):
    """What a filter kept, dropped and flagged. It is a list of the examples to train on.

    Args:
        folder: the run that holds the result; its files are read when they are first looked at.
        outcome: ``new``; ``done`` if it was filtered with these options before; ``dry run`` if nothing was written.
    """

    def __init__(self, folder: Run, record: FilterRecord, outcome: Literal["new", "done", "dry run"]) -> None:
        self.run: Run | None = Run(folder.path.resolve())
        """The run on disk; None if everything is in memory."""
        self.record, self.outcome = record, outcome
        self._folder = self.run
        self._read: dict[Path, list[Any]] = {}

    @property
    def examples(self) -> list[Example]:  # type: ignore[override]
        """The examples to train on. `RunError` if the run is gone, lacks files, or holds other examples by now."""
        return self._examples(self._folder.train)

    @property
    def train(self) -> ExampleList:
        """The examples to train on."""
        return ExampleList(self.examples)

    @property
    def dev(self) -> ExampleList:
        """The examples to choose the best checkpoint on."""
        return ExampleList(self._examples(self._folder.dev))

    @property
    def dropped(self) -> list[DroppedExample]:
        """The examples that were dropped, each with its reason."""
        return self._explained(self._folder.dropped)

    @property
    def flagged(self) -> list[DroppedExample]:
        """The examples that were kept but may hold personal data."""
        return self._explained(self._folder.flagged)

    @property
    def funnel(self) -> Funnel:
        """The number of examples that each step read, dropped, kept or added."""
        return Funnel.of(self.record)

    @property
    def missing(self) -> LabelCounts:
        """The number of examples of each label that the target lacks."""
        return self.record.missing

    @property
    def summary(self) -> str:
        """Return what was kept and dropped, in a line."""
        funnel = self.funnel
        dropped = sum(step.total for step in funnel if step.kind == "dropped")
        counts = f"train: {funnel.total('train')}, dev: {funnel.total('dev')}, dropped: {dropped}"
        if self.outcome != "dry run":
            return counts
        return f"dry run without examples; read: {funnel.total('read')}, dropped: {dropped}"

    @cached_property
    def origin(self) -> TextsOrigin:
        """The records of the texts: how they were generated, if they were, and filtered."""
        if self.outcome != "dry run":
            self._folder.require(self.record)
        return self._folder.origin().updated(filter=self.record)

    def in_memory(self) -> FilteredPairs:
        """Read all files now, because the run's folder is about to be deleted."""
        _ = self.examples, self.dev, self.dropped, self.flagged, self.origin
        self.run = None
        return self

    def _examples(self, path: Path) -> list[Example]:
        if path not in self._read and self.outcome != "dry run":
            self._folder.require(self.record)
            self._read[path] = list(iter_examples(path, numeric_labels=self.record.inputs.numeric_labels))
        return self._read.get(path, [])

    def _explained(self, path: Path) -> list[DroppedExample]:
        if path not in self._read and self.outcome != "dry run":
            self._folder.require(self.record)
            self._read[path] = [_dropped_example(row) for _, row in read_json_lines(path)]
        return self._read.get(path, [])


def _dropped_example(row: dict[str, Any]) -> DroppedExample:
    reason, evidence, original = row.pop("reason"), row.pop("evidence"), row.pop("duplicate_of", None)
    return DroppedExample(Example(**row), reason, evidence, Example(**original) if original else None)


@accepts(FilterOptions)
def filter(
    source: Any,
    *,
    spec: TaskSpec | str | Path | Mapping[str, object] | None = None,
    progress: bool | Callable[[Progress | str], object] | Reporter = True,
    **options: Any,
) -> FilteredPairs:
    """Clean, de-duplicate, verify, balance and split texts.

    Args:
        source: a run (its folder or `Run`), the result of `dino.generate`, a JSONL file, a published dataset (folder or
            Hub id), a list of examples, dicts or ``(text_a, text_b, label)`` tuples, a `datasets.Dataset`, or a frame.
        spec: the task spec of a list or file, by name, path or content. It says whether labels are scores or classes,
            and which parts of prompts texts must not repeat.
        progress: True shows progress, False shows nothing; a function is called with each progress and note.

    Returns:
        The examples to train on, with ``.dev``, ``.dropped``, ``.flagged`` and ``.funnel``.

    Raises:
        OptionError: an option is wrong.
        DataError: the data cannot be used.
        RunError: the run was filtered with other options before.
    """
    chosen = FilterOptions.of(options)
    task = None if spec is None else load_spec(spec)
    writes = not (chosen.dry_run or chosen.ablate)
    with ExitStack() as stack:
        reporter = stack.enter_context(reporter_for(progress))
        run = _run_of(source)
        is_temporary = run is None and (chosen.run is None or not writes)  # a dry run leaves the named folder alone
        if is_temporary:
            run = Run(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dino-filter-"))))
        elif run is None and chosen.run is not None:
            run = Run(chosen.run)
        elif run and chosen.run and chosen.run.resolve() != run.path.resolve():
            raise OptionError(
                f"{run.path} is a run and keeps its own results", "leave it out", option="run", value=chosen.run
            )
        assert run is not None
        brought = _open_source(source, run, task, chosen)
        if brought and brought.is_final:
            chosen = FilterOptions.of({**FINAL_LABELS, **chosen.given()})
        stack.enter_context(run.locked())
        texts = stack.enter_context(brought.written(run)) if isinstance(brought, BroughtExamples) else brought
        if _is_generated(source) and source.run is None:
            _write_run(run, source)
        runtime = stack.enter_context(open_runtime(run, chosen, reporter, has_spec=texts is None))
        if not writes:
            result = FilteredPairs(run, look(run, chosen, runtime, texts), "dry run")
        else:
            state, record = filter_run(run, chosen, runtime, texts)
            result = FilteredPairs(run, record, "done" if state == "done" else "new")
        _note_source(texts, result.record, reporter)
        if not chosen.ablate:
            note_losses(run, result.record, reporter)
            note_processing(result.record, reporter)
        return result.in_memory() if is_temporary else result


def _note_source(texts: FilterSource | None, record: FilterRecord, reporter: Reporter) -> None:
    """Tell what was read of a user's data, that its scores are on another scale, and that it was filtered before."""
    if texts is None:
        return
    if record.rows_read:
        reporter.note(record.rows_read[0].told)
    scores = [label for label in Funnel.of(record).counts("read") or {} if isinstance(label, float)]
    if scores and not (min(scores) >= 0 and max(scores) <= 1):
        reporter.note(
            f"the scores lie between {min(scores):g} and {max(scores):g}; training takes those between 0 and 1",
            f"divide them by {math.ceil(max(scores))}, say; if the numbers are classes, give {{label_type=class}}",
        )
    if texts.is_final:
        reporter.note(
            "This was filtered before: labels stay as they are, no random pairs, no dev split, unless asked for."
        )


def _run_of(source: Any) -> Run | None:
    """Return the run on disk that a source is, or whose generated texts it is; None if it is neither."""
    if isinstance(source, str | Path) and is_unpublished(Path(source)):
        return None if is_data_folder(Path(source)) else Run.of(source) or Run(Path(source))
    run = source.run if _is_generated(source) else source
    return run if isinstance(run, Run) else None


def _is_generated(source: Any) -> bool:
    """Return whether a source is the result of `dino.generate`."""
    return isinstance(getattr(source, "record", None), GenerateRecord)


def _open_source(
    source: Any, run: Run, spec: TaskSpec | None, chosen: FilterOptions
) -> FilterSource | BroughtExamples | None:
    """Return the texts that the user brings; None for the run's own texts, and for generated ones in memory.

    Raises:
        DataError: the source holds no examples, or wrong ones.
        OptionError: ``label_type``, ``column`` or ``spec`` is given for a run, which has its own.
        RunError: the run holds other texts.
    """
    in_memory = _is_generated(source) and source.run is None
    if _is_generated(source) and source.run is not None:
        source.run.require(source.record)
    if not in_memory and _run_of(source) is None:
        before = source.record if isinstance(source, FilteredPairs) else None
        return open_examples(source, spec, chosen.label_type, before, chosen.column)
    for option, what in (("label_type", "labels"), ("column", "columns")):
        if value := getattr(chosen, option):
            raise OptionError(f"the {what} of a run are what its spec says", "leave it out", option=option, value=value)
    if spec is not None and spec.digest != (source.spec if in_memory else load_spec(run.spec)).digest:
        raise OptionError("a run has a spec of its own", "leave it out", option="spec", value=spec.task_name)
    return None


def _write_run(run: Run, texts: Any) -> None:
    """Write texts that were generated in memory into a run's folder, as if they had been generated there.

    Raises:
        RunError: the run holds other texts.
    """
    if run.state_of(texts.record) != "done":
        write_json(run.spec, texts.spec.model_dump(mode="json", exclude_none=True))
        shard = run.shards / "00000.jsonl"
        run.checksums.add_digests({shard: write_examples(shard, texts)})
        run.save(texts.record)


@contextmanager
def open_runtime(run: Run, options: FilterOptions, reporter: Reporter, *, has_spec: bool) -> Iterator[FilterRuntime]:
    """Give the workers, models and evaluation data that options ask for.

    With ``has_spec``, the texts are the run's own: its generator can score them under its spec.

    Raises:
        OptionError: scores are wanted of texts without a generator, or evaluation data is not there.
    """
    scorer = embed_inputs = cluster = None
    if options.needs_scores:
        if not has_spec:
            name, value = ("verify", True) if options.verify else ("labels", "posterior")
            raise OptionError("needs a run's spec and generator; these texts have none", option=name, value=value)
        from dino_pipeline.filtering.label_scores import open_label_scores

        scorer = open_label_scores(run, options.device, reporter)
    if options.semantic:
        encoder = load_encoder(model_path(options.semantic, "encoder"))
        embed_inputs = partial(embed, encoder.to(pick_device(options.device)))
    with ExitStack() as stack:
        if scorer is not None:
            stack.callback(scorer.close)
        fetch_into = None
        if options.exclude and (options.dry_run or options.ablate):  # nothing stays in the run
            fetch_into = stack.enter_context(run.scratch("evaluation-data"))
        excluded = tuple(exclusion_files(options.exclude, run.path / "evaluation-data", fetch_into))
        if options.ray:
            from dino_pipeline.cluster import RayPool, choose_resources, connected

            stack.enter_context(connected(options.ray))
            cluster = RayPool(choose_resources(options.workers, worker_cpus=None, worker_gpus=0.0), run.path).spread
        workers = options.workers or os.cpu_count() or 1
        read = tuple(map(rows_excluded, excluded))
        for each in read:
            reporter.note(f"{each.told}, to keep their texts out")
        yield FilterRuntime(workers, options.memory, scorer, embed_inputs, excluded, read, cluster, reporter)


class RuleDescription(NamedTuple):
    """A rule as users see it."""

    name: str
    help: str
    """What it drops with the chosen options."""
    option: str
    """The option that sets it, or turns it on or off: a template of `errors.worded`."""
    is_on: bool


def rules(options: FilterOptions) -> list[RuleDescription]:
    """Return all rules in the order in which they run."""
    contamination_help = f"a text of evaluation data: the same, nearly, or {WORDS} words of it"
    described = [RuleDescription(LEAKED, contamination_help, "{exclude}", bool(options.exclude))]
    for rule in text_rules(options, PromptParts()):
        option = rule.option or option_given("without", rule.name)
        is_on = rule.is_on and rule.name not in options.without
        described.append(RuleDescription(rule.name, rule.help, option, is_on))
    described.append(
        RuleDescription(PERSONAL_DATA.name, PERSONAL_DATA.help, PERSONAL_DATA.option, options.pii == "drop")
    )
    described += [RuleDescription(rule_name(own), "your own", "{rule}", True) for own in options.rule]
    return described + [
        RuleDescription(rule.name, rule.help, rule.option, rule.is_on) for rule in dataset_rules(options)
    ]
