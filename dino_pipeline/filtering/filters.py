"""The filter stage: from a run's texts, or a file, to train, dev, dropped and flagged examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dino_pipeline.errors import DataError, OptionError, RunError
from dino_pipeline.files import combined_digest, digest_files, file_digest, shard_files
from dino_pipeline.filtering.contamination import REASON as LEAKED
from dino_pipeline.filtering.funnel import Counts, Funnel
from dino_pipeline.filtering.hygiene import HygieneOptions, hygiene_rules
from dino_pipeline.filtering.parts import write
from dino_pipeline.filtering.rules import PERSONAL_DATA, FilterOptions, custom_digest, record_rules
from dino_pipeline.filtering.sets import Table
from dino_pipeline.filtering.sieve import Means, Sieve, set_rules
from dino_pipeline.models import model_fingerprint
from dino_pipeline.run import Run, Stage, State
from dino_pipeline.spec_file import load_spec


def filter_run(
    run: Run,
    options: FilterOptions,
    means: Means | None = None,
    *,
    source: Path | None = None,
    numeric_labels: bool = True,
    fresh: bool = False,
) -> tuple[State, Funnel]:
    """Filter a run's shards, or a JSONL file, into the run's train, dev, dropped and flagged files.

    Killed at any moment, it leaves the files as they were before, or all of the new ones.

    Args:
        run: where to write, and to read unless ``source`` is given.
        options: the rules' settings.
        means: what it works with; nothing there changes the result.
        source: a JSONL file of examples to read instead of the run's shards.
        numeric_labels: read labels that spell a number as numbers.
        fresh: redo it with other options than before.

    Raises:
        DataError: the data cannot be used.
        RunError: the run was filtered with other options, or its texts are not all written.
    """
    means = means or Means()
    if source is not None and run.stage("generate"):
        raise OptionError(f"{run.path}: has texts of its own; name another folder with --run for what is in {source}")
    files, options = _sources(run, options, source)
    name = "shards" if source is None else source.name
    excluded = digest_files(list(map(Path, means.excluded)))
    recorded = {**asdict(options), "numeric_labels": numeric_labels, "source": name, "excluded": excluded}
    recorded["custom_digest"] = custom_digest(options.custom)
    recorded["semantic_fingerprint"] = model_fingerprint(options.semantic) if options.semantic else None
    digests = {file: file_digest(file) for file in files}
    if source is None:
        run.checksums.check(digests)
    digest = combined_digest(digests)
    outputs = [run.train, run.dev, run.dropped, run.flagged]
    _keep_strangers(run, outputs, files, fresh)
    stage = Stage("filter", recorded, outputs=outputs, sources=digest)
    state = run.check(stage, fresh=fresh)
    if state == "done":
        return state, load_funnel(run)
    started = stage.record()
    with _sieve(run, options, means, source, files, numeric_labels) as (sieve, scratch):
        funnel = sieve.carry_out()
        ready = scratch / "ready"
        ready.mkdir()
        write(sieve.table, ready)
        results = {"funnel": funnel.to_json(), **sieve.results(funnel)}
        sieve.table.close()
        run.replace("filter", ready, {**started, **results})
    return state, funnel


def look(
    run: Run,
    options: FilterOptions,
    means: Means | None = None,
    *,
    source: Path | None = None,
    numeric_labels: bool = True,
    ablate: bool = False,
) -> tuple[Funnel, dict[str, Any]]:
    """Return the funnel and results that `filter_run` would make, and write nothing.

    With ``ablate``, the funnel counts what each rule alone would drop.
    """
    files, options = _sources(run, options, source)
    with _sieve(run, options, means or Means(), source, files, numeric_labels) as (sieve, _):
        if ablate:
            return sieve.alone(), {}
        funnel = sieve.carry_out()
        return funnel, sieve.results(funnel)


def available(run: Run, options: FilterOptions, means: Means, *, numeric_labels: bool) -> Counts:
    """Count what the filter would keep of each label, before labels are brought to a target or to the same number."""
    files, options = _sources(run, options, None, strict=False)
    with _sieve(run, options, means, None, files, numeric_labels) as (sieve, _):
        return sieve.thin(strict=False).available


def _keep_strangers(run: Run, outputs: Sequence[Path], files: Sequence[Path], fresh: bool) -> None:
    """Refuse to overwrite what is read, or what no filter made."""
    there = [path for path in outputs if path.exists()]
    if read := [path for path in there if any(path.samefile(file) for file in files)]:
        raise OptionError(f"{read[0]}: is what the filter would write, too; name another folder with --run")
    if there and not fresh and not run.stage("filter"):
        raise RunError(f"{there[0]}: made by no recorded filter; move it away, or --fresh to replace it")


def _sources(
    run: Run, options: FilterOptions, source: Path | None, strict: bool = True
) -> tuple[list[Path], FilterOptions]:
    """Return the files to read, and the options with what the run's spec says of its texts."""
    if source is not None and not source.is_file():
        raise DataError(f"{source}: is no file that can be read twice; save it to one first")
    if source is not None:
        return [source], options
    generated = run.stage("generate")
    if generated.get("status") != "done":
        raise RunError(f"{run.path}: its texts are not all written; finish with dino generate, or name a JSONL file")
    empty = [label for label, count in generated.get("counts", {}).items() if not count["accepted"]]
    if empty and strict:
        raise DataError(f"{run.shards}: no text of label {', '.join(empty)} was accepted; {run.rejected} says why")
    spec = load_spec(run.spec)
    hygiene = replace(options.hygiene, stop=spec.stop, fields=spec.fields)
    return shard_files(run.shards), replace(options, hygiene=hygiene)


@contextmanager
def _sieve(
    run: Run,
    options: FilterOptions,
    means: Means,
    source: Path | None,
    files: Sequence[Path],
    numeric_labels: bool,
) -> Iterator[tuple[Sieve, Path]]:
    """Give the loaded dataset, and the scratch folder that holds it."""
    rules = record_rules(options, means.excluded)
    with (
        run.scratch("filter") as scratch,
        closing(Table(scratch / "filter.duckdb", means.workers, means.memory)) as table,
    ):
        sieve = Sieve(table, options, means, str(source or run.shards), rules)
        sieve.load(files, numeric_labels)
        yield sieve, scratch


def recorded_options(run: Run) -> FilterOptions:
    """Return what the run was last filtered with, the defaults if it never was."""
    before = run.stage("filter").get("options", {})
    given: dict[str, Any] = {name: before[name] for name in asdict(FilterOptions()) if name in before}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if "hygiene" in given:
        given["hygiene"] = HygieneOptions(**{**given["hygiene"], "fields": tuple(given["hygiene"]["fields"])})
    return FilterOptions(**given)


def describe(options: FilterOptions) -> list[tuple[str, str, str]]:
    """Return all rules in order: name, what it drops with these options, and the option that sets it or turns it on."""
    settings = {"too short": "--min-chars", "too long": "--max-chars", "not text": "--max-symbols"}
    found = [
        (LEAKED, "a text of evaluation data: the same, nearly, or 13 words of it", "--exclude", bool(options.exclude))
    ]
    for rule in hygiene_rules(options.hygiene):
        option = settings.get(rule.name, f"--without '{rule.name}'")
        found.append((rule.name, rule.help, option, rule.name not in options.without))
    found.append((PERSONAL_DATA.name, PERSONAL_DATA.help, "--pii drop", options.pii == "drop"))
    found += [(name, "your own", "--rule", True) for name in options.custom]
    found += [(rule.name, rule.help, rule.option, rule.on) for rule in set_rules(options)]
    return [(name, help if on else f"(off) {help}", option) for name, help, option, on in found]


def load_funnel(run: Run) -> Funnel:
    """Return the funnel that run.json holds."""
    return Funnel.of_json(run.stage("filter")["funnel"])
