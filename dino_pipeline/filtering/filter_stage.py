"""How a run is filtered: what is read, whether it was done before, and the files and the record that it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dino_pipeline.errors import DataError, OptionError, RunError
from dino_pipeline.files import combined_digest, digest_files, file_digest, shard_files
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.contamination import exclusion_files
from dino_pipeline.filtering.dataset_rules import LabelScorer
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.filtering.filter_pass import FilterPass, FilterRuntime
from dino_pipeline.filtering.ingest import rules_digest
from dino_pipeline.filtering.near_duplicates import Embed
from dino_pipeline.filtering.split import write_files
from dino_pipeline.filtering.text_rules import PromptParts
from dino_pipeline.funnel import Counts
from dino_pipeline.models import model_fingerprint, model_path, pick_device
from dino_pipeline.processes import OpenPool
from dino_pipeline.progress import Reporter, SilentReporter
from dino_pipeline.record import now, versions
from dino_pipeline.run import Run, State
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import FilterInputs, FilterRecord

if TYPE_CHECKING:
    from dino_pipeline.decoding.decoder import Decoder


@dataclass(frozen=True)
class FilterSource:
    """The files that a filter reads, and what is known of their texts."""

    files: list[Path]
    place: str
    """Where they are, for errors."""
    name: str
    """``shards``, or the file's name; recorded."""
    numeric_labels: bool
    """Labels that spell a number are numbers."""
    prompt: PromptParts


def filter_run(
    run: Run,
    options: FilterOptions,
    runtime: FilterRuntime | None = None,
    source: Path | None = None,
    numeric_labels: bool | None = None,
    prompt: PromptParts | None = None,
    *,
    fresh: bool = False,
) -> tuple[State, FilterRecord]:
    """Filter a run's shards, or a JSONL file, into the run's train, dev, dropped and flagged files.

    Killed at any moment, it leaves the files as they were before, or all of the new ones.

    Args:
        run: where to write, and to read unless ``source`` is given.
        options: decide the result.
        runtime: workers and models; nothing there changes the result.
        source: a JSONL file of examples to read instead of the run's shards.
        numeric_labels: read labels that spell a number as numbers; None: yes, unless the run's spec has classes.
        prompt: parts of the prompts that wrote a file's texts.
        fresh: filter again with other options than before.

    Returns:
        Whether it was done before, and the record.

    Raises:
        DataError: the data cannot be used.
        RunError: the run was filtered with other options, or its texts are not all written.
    """
    runtime = runtime or FilterRuntime()
    if source is not None and run.record().generate:
        raise OptionError(f"{run.path}: has texts of its own", f"name another folder with {{run}} for {source}")
    data = _open_source(run, source, numeric_labels, prompt)
    digests = {file: file_digest(file) for file in data.files}
    if source is None:
        run.checksums.check(digests)
    record = FilterRecord(
        options=options,
        inputs=_record_inputs(options, data, runtime),
        sources=combined_digest(digests),
        versions=versions(),
        started=now(),
    )
    _refuse_to_overwrite(run, data.files, fresh)
    state = run.state_of(record, fresh=fresh)
    if state == "done" and (before := run.record().filter):
        return state, before
    with _filter_pass(run, options, runtime, data) as (filter_pass, folder):
        filter_pass.run()
        ready = folder / "ready"
        ready.mkdir()
        write_files(filter_pass.table, ready)
        record = filter_pass.add_results(record)
        filter_pass.table.close()
        done = run.replace(record, ready)
    assert isinstance(done, FilterRecord)
    return state, done


def look(
    run: Run,
    options: FilterOptions,
    runtime: FilterRuntime | None = None,
    source: Path | None = None,
    numeric_labels: bool | None = None,
    prompt: PromptParts | None = None,
    *,
    ablate: bool = False,
) -> FilterRecord:
    """Return the record that `filter_run` would make, and write nothing.

    With ``ablate``, its funnel counts what each rule alone would drop.
    """
    runtime = runtime or FilterRuntime()
    data = _open_source(run, source, numeric_labels, prompt)
    record = FilterRecord(options=options, inputs=_record_inputs(options, data, runtime))
    with _filter_pass(run, options, runtime, data) as (filter_pass, _):
        if ablate:
            filter_pass.ablate()
            return record.updated(funnel=tuple(filter_pass.steps))
        filter_pass.run()
        return filter_pass.add_results(record)


def available(run: Run, options: FilterOptions, runtime: FilterRuntime, *, numeric_labels: bool) -> Counts:
    """Return the number of a run's texts of each label that a filter would keep before label counts are evened out."""
    data = _open_source(run, None, numeric_labels, strict=False)
    with _filter_pass(run, options, runtime, data) as (filter_pass, _):
        filter_pass.drop(strict=False)
        return filter_pass.available or {}


def recorded_options(run: Run) -> FilterOptions:
    """Return the options that the run was last filtered with, the defaults if it never was."""
    record = run.record().filter
    return record.options if record else FilterOptions()


def _open_source(
    run: Run,
    source: Path | None,
    numeric_labels: bool | None,
    prompt: PromptParts | None = None,
    *,
    strict: bool = True,
) -> FilterSource:
    """Return what to read: a file, or the run's shards.

    Args:
        strict: raise an error if no text of a label was accepted.
    """
    if source is not None:
        if not source.is_file():
            raise DataError(f"{source}: is not a file that can be read twice; save it to one first")
        is_numeric = True if numeric_labels is None else numeric_labels
        return FilterSource([source], str(source), source.name, is_numeric, prompt or PromptParts())
    generated = run.record().generate
    if generated is None or not generated.is_done:
        raise RunError(f"{run.path}: its texts are not all written", "finish with {generate()}, or name a JSONL file")
    empty = [label for label, count in generated.counts.items() if not count.accepted]
    if empty and strict:
        raise DataError(f"{run.shards}: no text of label {', '.join(empty)} was accepted; {run.rejected} says why")
    spec = load_spec(run.spec)
    is_numeric = generated.label_type != "class" if numeric_labels is None else numeric_labels
    prompt = PromptParts(spec.stop, spec.fields)
    return FilterSource(shard_files(run.shards), str(run.shards), "shards", is_numeric, prompt)


def _record_inputs(options: FilterOptions, data: FilterSource, runtime: FilterRuntime) -> FilterInputs:
    semantic = options.semantic
    return FilterInputs(
        source=data.name,
        numeric_labels=data.numeric_labels,
        stop=data.prompt.stop,
        fields=data.prompt.fields,
        excluded=digest_files(list(map(Path, runtime.excluded))),
        rule_digest=rules_digest(options.rule),
        semantic_fingerprint=model_fingerprint(semantic) if semantic else None,
    )


def _refuse_to_overwrite(run: Run, files: Sequence[Path], fresh: bool) -> None:
    """Raise an error if the run's files are read at the same time, or were not made by a filter."""
    existing = [path for path in run.outputs("filter") if path.exists()]
    for path in existing:
        if any(path.samefile(file) for file in files):
            raise OptionError(f"{path}: is what the filter would write, too", "name another folder with {run}")
    if existing and not fresh and run.record().filter is None:
        raise RunError(
            f"{existing[0]}: was not made by a recorded filter", "move it away, or replace it with {fresh=True}"
        )


@contextmanager
def _filter_pass(
    run: Run, options: FilterOptions, runtime: FilterRuntime, data: FilterSource
) -> Iterator[tuple[FilterPass, Path]]:
    """Give a pass whose examples are read, and the folder that holds its table."""
    with (
        run.scratch("filter") as folder,
        closing(ExampleTable(folder / "filter.duckdb", runtime.workers, runtime.memory)) as table,
    ):
        filter_pass = FilterPass(table, options, runtime, data.place, data.prompt)
        filter_pass.read(data.files, data.numeric_labels)
        yield filter_pass, folder


@contextmanager
def open_runtime(
    run: Run, options: FilterOptions, reporter: Reporter | None = None, *, has_spec: bool
) -> Iterator[FilterRuntime]:
    """Give the workers, models and evaluation data that options ask for.

    Args:
        run: the run that is filtered.
        options: of the filter.
        reporter: follows the scoring.
        has_spec: the texts are the run's own, so that its generator can score them.

    Raises:
        OptionError: scores are wanted of texts without a generator, or evaluation data is not there.
    """
    if options.needs_scores and not has_spec:
        name, value = ("verify", True) if options.verify else ("labels", "posterior")
        raise OptionError("needs a run's spec and generator; these texts have none", option=name, value=value)
    with ExitStack() as stack:
        yield FilterRuntime(
            workers=options.workers or os.cpu_count() or 1,
            memory=options.memory,
            scorer=_scorer(run, options.device, reporter or SilentReporter()) if options.needs_scores else None,
            embed=_embed(options.semantic, options.device) if options.semantic else None,
            excluded=tuple(exclusion_files(options.exclude, run.path / "evaluation-data")),
            cluster=stack.enter_context(_ray_cluster(options, run.path)) if options.ray else None,
        )


def _scorer(run: Run, device: str | None, reporter: Reporter) -> LabelScorer:
    from dino_pipeline.filtering.label_scores import LabelScores, scoring_model

    generated = run.record().generate
    model = scoring_model(run, generated)
    assert generated is not None  # else it has no model

    def load() -> Decoder:
        from dino_pipeline.decoding.loading import load_decoder

        return load_decoder(model, device=pick_device(device))

    return LabelScores(run, generated, model, load, reporter)


def _embed(name: str, device: str | None) -> Embed:
    from dino_pipeline.encoders import embed, load_encoder

    return partial(embed, load_encoder(model_path(name, "encoder")).to(pick_device(device)))


@contextmanager
def _ray_cluster(options: FilterOptions, folder: Path) -> Iterator[OpenPool]:
    from dino_pipeline.cluster import RayPool, choose_resources, connected

    assert options.ray is not None
    with connected(options.ray):
        yield RayPool(choose_resources(options.workers, None, 0.0), folder).spread
