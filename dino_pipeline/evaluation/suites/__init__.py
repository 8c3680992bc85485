"""The suites that encoders are evaluated on, a module for each, and the sets of data that a user's options name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dino_pipeline import pocket
from dino_pipeline.dataset_tables import EVALUATION_SPLITS
from dino_pipeline.encoder_options import EvaluateOptions
from dino_pipeline.errors import OptionError
from dino_pipeline.evaluation.suites.probe import Probe
from dino_pipeline.evaluation.suites.retrieval import Retrieval
from dino_pipeline.evaluation.suites.sts import hub_folder, read_sts
from dino_pipeline.evaluation.suites.suite import EvaluationSet, ScoredPairs
from dino_pipeline.layout import is_data_folder, is_unpublished
from dino_pipeline.model_files import is_hub_id
from dino_pipeline.progress import Reporter
from dino_pipeline.readers import LabelType, split_of
from dino_pipeline.run import Run
from dino_pipeline.training.corpus import Source, evaluation_source

OF_DATA = ("probe", "retrieval", "pairs")
"""Suites that take a user's own data."""


def evaluation_sets(
    options: EvaluateOptions, runs: Sequence[Run], reporter: Reporter, *, of_pocket: bool
) -> list[EvaluationSet]:
    """Return the sets to evaluate on: those that the options name, else those that belong to the runs.

    By default these are the dev pairs of the runs and, if ``of_pocket``, the pocket encoder's gold pairs.

    Raises:
        OptionError: there is no data, or a set occurs twice.
        DataError: data is malformed.
    """
    sets: list[EvaluationSet] = []
    if "sts" in options.suite:
        sets += _sts_sets(options, reporter)
    data_suites = [suite for suite in options.suite if suite in OF_DATA]
    only_suite = data_suites[0] if len(data_suites) == 1 else None
    for name, suite, source in _sources(options.data):
        data = _read(name, suite or only_suite, source, options.column, reporter)
        if options.suite and data.suite not in options.suite:
            raise OptionError(
                f"is for suite {data.suite}, which is not evaluated",
                f"add {{suite={data.suite}}}, or leave the data out",
                option="data",
                value=source if isinstance(source, Path) else name,
            )
        sets.append(data)
    for suite in data_suites:
        if suite not in {data.suite for data in sets}:
            dev_sets = _dev_sets(runs) if suite == "pairs" else []
            if not dev_sets:
                raise OptionError("has no data", f"give {{data={suite}=PATH}}", option="suite", value=suite)
            sets += dev_sets
    is_default = not options.suite and not options.data
    if is_default:
        sets += _dev_sets(runs)
    if "pocket" in options.suite or (of_pocket and is_default):
        sets.append(ScoredPairs.read("pocket gold", pocket.GOLD_TEST, "pocket"))
    if not sets:
        raise OptionError("there is no data to evaluate on", "give {data=FILE}, or {suite=pocket}")
    _refuse_repeated(sets)
    return sets


def _refuse_repeated(sets: Sequence[EvaluationSet]) -> None:
    seen = set()
    for data in sets:
        if (data.suite, data.name) in seen:
            raise OptionError(f"{data.name}: occurs twice", "give each set once")
        seen.add((data.suite, data.name))


def _sts_sets(options: EvaluateOptions, reporter: Reporter) -> list[ScoredPairs]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HOME

    folder = options.data_dir or hub_folder(hf_hub_download, Path(HF_HOME) / "dino-pipeline" / "senteval")
    sets, notes = read_sts(folder, options)
    incomplete = [read.told for data in sets for read in data.rows_read if read.left_out]
    for note in (*incomplete, *notes):
        reporter.note(note)
    return sets


def _dev_sets(runs: Sequence[Run]) -> list[ScoredPairs]:
    """Return the dev pairs of the runs that have some."""
    sets = []
    for run, name in zip(runs, _short_names([run.path for run in runs]), strict=True):
        run.check(run.record().filter, run.dev)
        if run.held_out:
            sets.append(ScoredPairs.read(f"{name} dev (generated)", run.held_out))
    return sets


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or the whole path if several have the same last part."""
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _sources(data: Sequence[Any]) -> list[tuple[str, str | None, Any]]:
    """Return name, suite and source of each item in ``EvaluateOptions.data``.

    An item is a path, whatever `list_reader` takes, or either with a name as ``(name, source)``. Items without a name
    get one; the suite is None where a path does not name it.
    """
    sources = []
    unnamed_paths = []
    unnamed = 0
    for item in data:
        name, source = item if isinstance(item, tuple) else ("", item)
        suite = None
        if isinstance(source, str | Path):
            suite, source = _suite_and_path(str(source))
            if not name:
                unnamed_paths.append(source)
        elif not name:
            unnamed += 1
            name = "data" if unnamed == 1 else f"data {unnamed}"
        sources.append((name, suite, source))
    short_names = iter(_short_names(unnamed_paths))
    return [(name or next(short_names), suite, source) for name, suite, source in sources]


def _suite_and_path(given: str) -> tuple[str | None, Path]:
    """Return suite and path of ``[SUITE=]PATH``; the suite is None if it is not named.

    Raises:
        OptionError: there is no such path, and it cannot be a Hub id.
    """
    suite, _, rest = given.partition("=")
    is_named = suite in OF_DATA and bool(rest) and not Path(given).exists()
    path = Path(rest) if is_named else Path(given)
    if not given or not (path.exists() or is_hub_id(str(path))):
        raise OptionError("does not exist", "give a file, or a folder in BEIR's layout", option="data", value=given)
    return suite if is_named else None, path


def _read(name: str, suite: str | None, source: Any, columns: Mapping[str, str], reporter: Reporter) -> EvaluationSet:
    """Read data for a suite, or for the suite that fits its content."""
    is_folder = isinstance(source, Path) and is_unpublished(source)
    if suite == "retrieval" and not is_folder:
        raise OptionError("is read from a folder in BEIR's layout only", option="suite", value=suite)
    if suite is None and is_folder:
        is_beir = any((source / part).exists() for part in ("corpus.jsonl", "queries.jsonl", "qrels"))
        has_parts = all(any(source.glob(f"{part}.*")) for part in ("train", "test"))
        suite = "retrieval" if is_beir else "probe" if has_parts or not is_data_folder(source) else None
    data: EvaluationSet
    if suite == "retrieval":
        data = Retrieval.read(name, source)
    elif suite == "probe" and is_folder:
        data = Probe.read(name, source)
    else:
        data = _of_examples(name, suite, source, columns)
    for note in (*(read.told for read in data.rows_read), *data.notes):
        reporter.note(note)
    return data


def _of_examples(name: str, suite: str | None, source: Any, columns: Mapping[str, str]) -> ScoredPairs | Probe:
    """Return a set of examples for a suite; without one, pairs are scored if their labels are numbers."""
    if isinstance(source, Path):
        Run.check_file(source)
        texts = evaluation_source(source)
    else:
        texts = Source(name, memory=split_of(source, EVALUATION_SPLITS))
    label_types: dict[str | None, LabelType] = {"pairs": "score", "probe": "class"}
    corpus = replace(texts, columns=columns, label_type=label_types.get(suite)).corpus
    is_scored = suite == "pairs" or (suite is None and corpus.content in ("scored pairs", "pairs"))
    return ScoredPairs.of(name, corpus) if is_scored else Probe.of(name, corpus)
