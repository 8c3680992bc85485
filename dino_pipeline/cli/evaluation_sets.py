"""What encoders are evaluated on: the suites that are named, a user's data, or what belongs to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_pipeline.cli.base import HUB_ID
from dino_pipeline.console import Console
from dino_pipeline.errors import OptionError
from dino_pipeline.evaluation.suites import OF_DATA

if TYPE_CHECKING:
    from dino_pipeline.evaluation.suites.suite import EvaluationSet
    from dino_pipeline.evaluation.suites.pairs import ScoredPairs
    from dino_pipeline.run import Run


def evaluation_sets(
    runs: Sequence[Run], names: Sequence[str], options: Mapping[str, Any], *, of_pocket: bool
) -> list[EvaluationSet]:
    """Return what to evaluate on: what was asked for, else what belongs to the runs and to the pocket encoder.

    Raises:
        OptionError: there is nothing, or something twice.
    """
    from dino_pipeline import pocket
    from dino_pipeline.evaluation.suites.pairs import ScoredPairs

    given = [_suite_and_path(each) for each in options["data_files"]]
    found: list[EvaluationSet] = []
    if "sts" in names:
        found += _sts_sets(options)
    of_data = [name for name in OF_DATA if name in names]
    alone = of_data[0] if len(of_data) == 1 else None
    for (suite, path), name in zip(given, _shown([path for _, path in given]), strict=True):
        data = _read(suite or alone, name, path)
        if names and data.suite not in names:
            raise OptionError(
                f"--data {path}: is for suite {data.suite}, which --suite does not name; add it, or leave it out"
            )
        found.append(data)
    for suite in of_data:
        if suite in {each.suite for each in found}:
            continue
        if suite != "pairs" or not any(run.held_out for run in runs):
            raise OptionError(f"--suite {suite}: says nothing without data; give --data {suite}=PATH")
        found += _of_runs(runs)
    if not (names or given):
        found += _of_runs(runs)
    if "pocket" in names or (of_pocket and not (names or given)):
        found.append(ScoredPairs.read("pocket gold", pocket.GOLD_TEST, "pocket"))
    if not found:
        raise OptionError("nothing to evaluate on; give --data FILE, or --suite pocket")
    places = [(each.suite, each.name) for each in found]
    if twice := [name for at, (_, name) in enumerate(places) if places[at] in places[:at]]:
        raise OptionError(f"{twice[0]}: is there twice; a set counts once")
    return found


def _sts_sets(options: Mapping[str, Any]) -> Sequence[EvaluationSet]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HOME

    from dino_pipeline.evaluation.suites.sts import Protocol, hub_folder, read_sts

    folder = options["data_dir"] or hub_folder(hf_hub_download, Path(HF_HOME) / "dino-pipeline" / "senteval")
    sets, notes = read_sts(folder, Protocol(options["aggregate"], options["text"], options["sick"]))
    _say(notes)
    return sets


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        Console().note(note)


def _suite_and_path(given: str) -> tuple[str | None, Path]:
    """Return the suite that is named for data, and where the data is."""
    suite, _, rest = given.partition("=")
    named = suite in OF_DATA and bool(rest) and not Path(given).exists()
    path = Path(rest) if named else Path(given)
    if not given or not (path.exists() or HUB_ID.fullmatch(str(path))):
        raise OptionError(f"--data {given!r}: is not there; give a file, or a folder in BEIR's layout")
    return suite if named else None, path


def _read(suite: str | None, name: str, path: Path) -> EvaluationSet:
    """Read data for a suite, or for the one that it is for by what it holds."""
    from dino_pipeline.evaluation.suites.pairs import ScoredPairs
    from dino_pipeline.evaluation.suites.probe import Probe
    from dino_pipeline.layout import is_unpublished
    from dino_pipeline.training.corpus import to_evaluate_on

    if suite is None and is_unpublished(path):
        beir = any((path / part).exists() for part in ("corpus.jsonl", "queries.jsonl", "qrels"))
        suite = "retrieval" if beir else "probe"
    if suite in ("pairs", None):
        corpus = to_evaluate_on(path).corpus
        first = corpus.examples[0]
        if suite or (isinstance(first.label, float | None) and first.text_b is not None):
            return ScoredPairs.of(name, corpus)
    if suite != "retrieval":
        return Probe.read(name, path)
    from dino_pipeline.evaluation.suites.retrieval import Retrieval  # loads torch

    data = Retrieval.read(name, path)
    _say(data.notes)
    return data


def _shown(paths: Sequence[Path]) -> list[str]:
    """Return names of paths, with their folders where several have the same name."""
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _of_runs(runs: Sequence[Run]) -> list[ScoredPairs]:
    from dino_pipeline.evaluation.suites.pairs import ScoredPairs

    return [
        ScoredPairs.read(f"{name} dev (generated)", run.held_out)
        for run, name in zip(runs, _shown([run.path for run in runs]), strict=True)
        if run.held_out
    ]
