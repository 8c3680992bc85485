"""The data that encoders are evaluated on: a user's data, the suites that are named, or what belongs to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_pipeline import pocket
from dino_pipeline.encoder_options import EvaluateOptions
from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.evaluation.suites import OF_DATA
from dino_pipeline.evaluation.suites.pairs import ScoredPairs
from dino_pipeline.evaluation.suites.probe import Probe, with_classes
from dino_pipeline.evaluation.suites.retrieval import Retrieval
from dino_pipeline.evaluation.suites.sts import hub_folder, read_sts
from dino_pipeline.evaluation.suites.suite import EvaluationSet
from dino_pipeline.examples import Example
from dino_pipeline.in_memory import as_examples
from dino_pipeline.models import is_hub_id
from dino_pipeline.progress import Reporter
from dino_pipeline.run import Run, is_unpublished
from dino_pipeline.training.corpus import Corpus, evaluation_source


@dataclass(frozen=True)
class EvaluationSource:
    """A user's data: a file, a folder, a dataset on the Hub, or examples in memory."""

    name: str
    """Name in tables."""
    path: Path | None
    """File, folder or Hub id; None for examples in memory."""
    examples: Sequence[Example] = ()
    suite: str | None = None
    """Suite that the user named for it."""


def evaluation_sets(
    options: EvaluateOptions, runs: Sequence[Run], reporter: Reporter, *, of_pocket: bool
) -> list[EvaluationSet]:
    """Return the sets to evaluate on: those that the options name, else those that belong to the runs.

    Args:
        options: the suites and the user's data.
        runs: the runs that are evaluated.
        reporter: takes notes on the data.
        of_pocket: whether an encoder was trained from the pocket encoder, for which there are gold pairs.

    Raises:
        OptionError: there is no data, or a set occurs twice.
        DataError: data is malformed.
    """
    sets: list[EvaluationSet] = []
    if "sts" in options.suite:
        sets += _sts_sets(options, reporter)
    data_suites = [suite for suite in options.suite if suite in OF_DATA]
    only_suite = data_suites[0] if len(data_suites) == 1 else None
    for source in _sources(options.data):
        data = _read(source, source.suite or only_suite, reporter)
        if options.suite and data.suite not in options.suite:
            raise OptionError(
                f"is for suite {data.suite}, which is not evaluated",
                f"add {{suite={data.suite}}}, or leave the data out",
                option="data",
                value=source.path or source.name,
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
    for note in notes:
        reporter.note(note)
    return sets


def _dev_sets(runs: Sequence[Run]) -> list[ScoredPairs]:
    """Return the dev pairs of the runs that have some."""
    names = _short_names([run.path for run in runs])
    return [
        ScoredPairs.read(f"{name} dev (generated)", run.held_out)
        for run, name in zip(runs, names, strict=True)
        if run.held_out
    ]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or the whole path if several have the same last part."""
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _sources(data: Sequence[Any]) -> list[EvaluationSource]:
    """Return the sources of ``EvaluateOptions.data``: paths, examples, or either with a name as ``(name, source)``."""
    sources: list[EvaluationSource] = []
    unnamed = 0
    for item in data:
        name, value = item if isinstance(item, tuple) else ("", item)
        if isinstance(value, str | Path):
            suite, path = _suite_and_path(str(value))
            sources.append(EvaluationSource(name, path, suite=suite))
        else:
            if not name:
                unnamed += 1
                name = "data" if unnamed == 1 else f"data {unnamed}"
            sources.append(EvaluationSource(name, None, as_examples(value)))
    paths = [source.path for source in sources if source.path and not source.name]
    short_names = iter(_short_names(paths))
    return [
        source if source.name else EvaluationSource(next(short_names), source.path, suite=source.suite)
        for source in sources
    ]


def _suite_and_path(given: str) -> tuple[str | None, Path]:
    """Return suite and path of ``[SUITE=]PATH``; the suite is None if it is not named."""
    suite, _, rest = given.partition("=")
    is_named = suite in OF_DATA and bool(rest) and not Path(given).exists()
    path = Path(rest) if is_named else Path(given)
    if not given or not (path.exists() or is_hub_id(str(path))):
        raise OptionError("does not exist", "give a file, or a folder in BEIR's layout", option="data", value=given)
    return suite if is_named else None, path


def _read(source: EvaluationSource, suite: str | None, reporter: Reporter) -> EvaluationSet:
    """Read data for a suite, or for the suite that fits its content."""
    if source.path is None:
        return _set_of_examples(source, suite)
    if suite is None and is_unpublished(source.path):
        is_beir = any((source.path / part).exists() for part in ("corpus.jsonl", "queries.jsonl", "qrels"))
        suite = "retrieval" if is_beir else "probe"
    if suite == "retrieval":
        data = Retrieval.read(source.name, source.path)
        for note in data.notes:
            reporter.note(note)
        return data
    if suite in ("pairs", None):
        corpus = evaluation_source(source.path).corpus
        if suite or _are_scored_pairs(corpus.examples):
            return ScoredPairs.of(source.name, corpus)
    return Probe.read(source.name, source.path)


def _set_of_examples(source: EvaluationSource, suite: str | None) -> EvaluationSet:
    """Return the set of examples in memory: scored pairs, or texts with classes."""
    if not source.examples:
        raise DataError(f"{source.name}: holds no examples")
    if suite == "retrieval":
        raise OptionError("is read from a folder in BEIR's layout only", option="suite", value=suite)
    if suite == "pairs" or (suite is None and _are_scored_pairs(source.examples)):
        return ScoredPairs.of(source.name, Corpus(source.name, list(source.examples)))
    return Probe.of(source.name, with_classes(source.examples, source.name), source.name)


def _are_scored_pairs(examples: Sequence[Example]) -> bool:
    first = examples[0]
    return first.text_b is not None and isinstance(first.label, float | None)
