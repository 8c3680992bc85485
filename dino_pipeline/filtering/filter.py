"""What a user calls to filter: texts from a run, a file, a data set or a list in, the pairs to train on out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.examples import PROVENANCE, Example, iter_examples, write_examples
from dino_pipeline.files import write_json
from dino_pipeline.filter_options import FilterOptions, rule_name
from dino_pipeline.filtering.contamination import LEAKED
from dino_pipeline.filtering.dataset_rules import dataset_rules
from dino_pipeline.filtering.filter_stage import filter_run, look, open_runtime
from dino_pipeline.filtering.text_rules import PERSONAL_DATA, PromptParts, text_rules
from dino_pipeline.funnel import Funnel
from dino_pipeline.in_memory import ExampleList, as_examples
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.readers import load_table, read_json_lines
from dino_pipeline.record import public
from dino_pipeline.run import Run, is_unpublished
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
        folder: the run that was filtered; its files are read when they are first looked at.
        record: the record of the filter.
        outcome: ``new``; ``done`` if it was filtered with these options before; ``dry run`` if nothing was written.
    """

    def __init__(self, folder: Run, record: FilterRecord, outcome: Literal["new", "done", "dry run"]) -> None:
        self.run: Run | None = folder
        """The run on disk; None if everything is in memory."""
        self.record, self.outcome = record, outcome
        self._folder = folder
        self._read: dict[Path, list[Any]] = {}

    @property
    def examples(self) -> list[Example]:  # type: ignore[override]
        """The examples to train on."""
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
        counts = {"train": funnel.total("train"), "dev": funnel.total("dev")}
        counts["dropped"] = sum(step.total for step in funnel if step.kind == "dropped")
        return ", ".join(f"{name}: {count}" for name, count in counts.items())

    @cached_property
    def origin(self) -> TextsOrigin:
        """The records of the texts: how they were generated, if they were, and filtered."""
        return self._folder.origin().updated(filter=self.record)

    def in_memory(self) -> FilteredPairs:
        """Return this after reading all files, because they are about to be deleted."""
        _ = self.examples, self.dev, self.dropped, self.flagged, self.origin
        self.run = None
        return self

    def _examples(self, path: Path) -> list[Example]:
        if self.outcome == "dry run":
            return []
        if path not in self._read:
            self._read[path] = list(iter_examples(path, numeric_labels=self.record.inputs.numeric_labels))
        return self._read[path]

    def _explained(self, path: Path) -> list[DroppedExample]:
        if self.outcome == "dry run":
            return []
        if path not in self._read:
            self._read[path] = [_dropped_example(row) for _, row in read_json_lines(path)]
        return self._read[path]


def _dropped_example(row: dict[str, Any]) -> DroppedExample:
    reason, evidence, original = row.pop("reason"), row.pop("evidence"), row.pop("duplicate_of", None)
    return DroppedExample(Example(**row), reason, evidence, Example(**original) if original else None)


@dataclass(frozen=True)
class _Texts:
    """The texts to filter, and the run that the result is written to."""

    run: Run
    file: Path | None = None
    """A file to read; None: the run's own texts."""
    numeric_labels: bool | None = None
    prompt: PromptParts | None = None
    is_final: bool = False
    """They were filtered before, so that their labels are final."""


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
        folder = chosen.run
        is_temporary = _run_of(source) is None and (folder is None or not writes)
        if is_temporary:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dino-filter-")))
        texts = _open_texts(source, folder, task, chosen)
        if texts.is_final:
            chosen = FilterOptions.of({**FINAL_LABELS, **chosen.given()})
            reporter.note(
                "This was filtered before: labels stay as they are, no random pairs, no dev split, unless asked for."
            )
        run = texts.run
        stack.enter_context(run.locked())
        runtime = stack.enter_context(open_runtime(run, chosen, reporter, has_spec=texts.file is None))
        data = (texts.file, texts.numeric_labels, texts.prompt)
        if writes:
            state, record = filter_run(run, chosen, runtime, *data, fresh=chosen.fresh)
            result = FilteredPairs(run, record, "done" if state == "done" else "new")
        else:
            record = look(run, chosen, runtime, *data, ablate=chosen.ablate)
            result = FilteredPairs(run, record, "dry run")
        return result.in_memory() if is_temporary else result


def _run_of(source: Any) -> Run | None:
    """Return the run on disk that a source is or was generated in, None if it is something else."""
    if isinstance(source, str | Path) and is_unpublished(Path(source)):
        return Run(Path(source))
    run = source.run if _is_generated(source) else source
    return run if isinstance(run, Run) else None


def _is_generated(source: Any) -> bool:
    """Return whether a source is the result of `dino.generate`."""
    return isinstance(getattr(source, "record", None), GenerateRecord)


def _open_texts(source: Any, folder: Path | None, spec: TaskSpec | None, options: FilterOptions) -> _Texts:
    """Return the texts of a source, written into the folder unless they are a run's own or a file's.

    Raises:
        OptionError: an option contradicts what a run says.
    """
    run = _run_of(source)
    if run is None and not _is_generated(source):
        assert folder is not None
        return _write_texts(source, Run(folder), spec, options.label_type)
    if run is None:
        assert folder is not None
        run = Run(folder)
        _write_run(run, source)
    elif options.run is not None and options.run.resolve() != run.path.resolve():
        raise OptionError(
            f"{run.path} is a run and keeps its own results", "leave it out", option="run", value=options.run
        )
    if options.label_type is not None:
        raise OptionError(
            "the labels of a run are what its spec says", "leave it out", option="label_type", value=options.label_type
        )
    if spec is not None and spec.digest != load_spec(run.spec).digest:
        raise OptionError("a run has a spec of its own", "leave it out", option="spec", value=spec.task_name)
    return _Texts(run)


def _write_run(run: Run, texts: Any) -> None:
    """Write texts that were generated in memory into a run's folder, as if they had been generated there.

    Raises:
        RunError: the run holds other texts.
    """
    if run.state_of(texts.record) != "done":
        write_json(run.spec, texts.spec.model_dump(mode="json", exclude_none=True))
        write_examples(run.shards / "00000.jsonl", texts)
        run.save(texts.record)


def _write_texts(source: Any, run: Run, spec: TaskSpec | None, label_type: str | None) -> _Texts:
    """Return the texts of a file or, of any other source, of a file that is written into the run's folder."""
    prompt = PromptParts(spec.stop, spec.fields) if spec else None
    is_final = isinstance(source, FilteredPairs)
    if isinstance(source, str | Path) and (path := Path(source)).exists() and not path.is_dir():
        file, has_names = path, False
    else:
        if isinstance(source, str | Path):
            name, examples, is_final = _published_examples(str(source))
        else:
            name, examples = "examples", as_examples(source)
        if not examples:
            raise DataError(f"{name}: holds no examples")
        file = run.path / "source" / f"{name}.jsonl"
        write_examples(file, examples)
        has_names = any(isinstance(example.label, str) for example in examples)
    if is_final and isinstance(source, FilteredPairs):
        inputs = source.record.inputs
        prompt = prompt or PromptParts(inputs.stop, inputs.fields)
    numeric_labels = spec.is_scored if spec else not has_names
    if label_type is not None:
        numeric_labels = label_type == "score"
    return _Texts(run, file, numeric_labels, prompt, is_final)


def _published_examples(source: str) -> tuple[str, list[Example], bool]:
    """Return the file name for a published dataset, its examples, and whether they were filtered before.

    The configuration ``raw`` holds the texts as they were written. A dataset without it holds the filtered ones.

    Raises:
        DataError: there is no such file or dataset, or it holds no texts.
    """
    name = public(source).strip("./").replace("/", "--")
    try:
        raw = load_table(source, "raw")
        if {"text_a", "label", *PROVENANCE} <= {*raw.column_names}:
            return name, as_examples(raw), False
    except DataError:
        pass  # there is no such configuration; the next line says if anything else is wrong
    return name, as_examples(load_table(source)), True


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
    contamination_help = "a text of evaluation data: the same, nearly, or 13 words of it"
    described = [RuleDescription(LEAKED, contamination_help, "{exclude}", bool(options.exclude))]
    for rule in text_rules(options, PromptParts()):
        option = rule.option or "{without='" + rule.name + "'}"
        described.append(RuleDescription(rule.name, rule.help, option, rule.name not in options.without))
    personal = PERSONAL_DATA
    described.append(RuleDescription(personal.name, personal.help, personal.option, options.pii == "drop"))
    for own in options.rule:
        described.append(RuleDescription(rule_name(own), "your own", "{rule}", True))
    for dataset_rule in dataset_rules(options):
        described.append(RuleDescription(dataset_rule.name, dataset_rule.help, dataset_rule.option, dataset_rule.is_on))
    return described
