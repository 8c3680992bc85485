"""Is a run what its stages have written, and a published folder what was published?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dino_pipeline import pocket
from dino_pipeline.cards.card import README, read_card, split_card
from dino_pipeline.cards.hub import Manifest, PublishedRecord, download, file_hashes
from dino_pipeline.damage import GONE, OTHER_CHECKSUM
from dino_pipeline.errors import PYTHON, DinoError, HubError, OptionError, Wording, first_line, stage_call, worded
from dino_pipeline.files import digest_files, file_digest
from dino_pipeline.layout import LINEAGE
from dino_pipeline.model_files import is_hub_id, model_fingerprint
from dino_pipeline.models import POCKET, model_path
from dino_pipeline.options import accepts
from dino_pipeline.publish_options import VerifyOptions
from dino_pipeline.record import RecordError, parse_record, versions
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec


@dataclass(frozen=True)
class Verification:
    """The result of comparing a published folder with its lineage.json."""

    target: str
    """Folder or repository."""
    manifest: Manifest
    problems: Sequence[str]
    """Differences from lineage.json; empty if the folder is as published."""
    rerun_differences: Sequence[str]
    """Why the card's commands may make another dataset here; empty if they make the same."""

    def worded(self, wording: Wording) -> str:
        """Return the whole result, which is the same for every kind of caller."""
        lines = [*self.problems]
        manifest = self.manifest
        if not self.problems:
            rows = f", {sum(manifest.rows.values())} rows" if manifest.rows else ""
            lines.append(f"{self.target}: {len(manifest.files)} files{rows}: all as published")
        if manifest.dataset:
            commit = f", commit {manifest.dataset.commit}" if manifest.dataset.commit else ""
            lines.append(f"trained on {manifest.dataset.repository}{commit}")
        if self.rerun_differences:
            lines.append(f"A rerun may differ: {'; '.join(self.rerun_differences)}")
        else:
            lines.append("A rerun with the same options, on the same kind of machine, is the same.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.worded(PYTHON)

    __repr__ = __str__


REPUBLISH = "run the same {publish()} again to write it anew"


@dataclass(frozen=True)
class RunVerification:
    """The result of comparing a run's files with its record."""

    target: str
    """The run's folder."""
    files: int
    """Files that have a checksum."""
    problems: Sequence[str]
    """Damaged files; empty if the run is whole."""
    remedies: Sequence[str]
    """What makes them anew: templates of `errors.worded`."""
    unfinished: Sequence[str]
    """Stages that are not finished, whose files are not checked."""
    unrecorded: Sequence[str]
    """Stages of an earlier version, which recorded no checksums: their files are there."""

    def worded(self, wording: Wording) -> str:
        """Return the whole result for one kind of caller."""
        lines = [*self.problems, *(worded(remedy, wording) for remedy in self.remedies)]
        if not self.problems:
            lines.append(f"{self.target}: {self.files} files: all as they were written")
        if self.unfinished:
            lines.append(f"not finished, and not checked: {', '.join(self.unfinished)}")
        if self.unrecorded:
            lines.append(f"written by a version that recorded no checksums: {', '.join(self.unrecorded)}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.worded(PYTHON)

    __repr__ = __str__


@accepts(VerifyOptions)
def verify(target: Run | Path | str, **options: Any) -> Verification | RunVerification:
    """Check a run, or the hashes and counts of a published dataset or model. Each byte is read.

    Args:
        target: a run, a published folder, or the name of a repository on the Hub.

    Raises:
        HubError: the target was not published by this package, or the Hub cannot be reached.
        OptionError: the target is neither a folder nor a repository.
        RunError: the run's record cannot be read, or another process works there.
    """
    chosen = VerifyOptions.of(options)
    if (run := Run.of(target)) is not None:
        for name, value in chosen.given().items():
            raise OptionError("is about the Hub, and this is a run", "leave it out", option=name, value=value)
        return verify_run(run)
    folder, name = Path(str(target)), str(target)
    if not folder.is_dir():
        if not is_hub_id(name):
            raise OptionError(f"{target}: is neither a folder here nor user/name", "give one of them")
        folder = download(name, "model" if chosen.model else "dataset", chosen.revision)
    return verify_folder(folder, name)


def verify_run(run: Run) -> RunVerification:
    """Compare the files of a run, of its folders for the Hub, and of its trainings to compare with their records."""
    with run.locked() if os.access(run.path, os.W_OK) else contextlib.nullcontext():
        stages = run.record().stages
        compared = [Run(file.parent) for file in sorted(run.comparison.glob("*/*/run.json"))]
        runs = [run, *compared]
        findings = [*_damage(run), *_hub_damage(run)]
        for each in compared:
            again = f"run the same {stage_call('compare', run.path)} again to make it anew"
            findings += [(problem, again) for problem, _ in _damage(each)]
        return RunVerification(
            target=str(run.path),
            files=sum(map(_count_files, runs)),
            problems=[problem for problem, _ in findings],
            remedies=list(dict.fromkeys(remedy for _, remedy in findings)),
            unfinished=[record.stage for record in stages if not record.is_done],
            unrecorded=[record.stage for record in stages if record.is_done and not record.files],
        )


def _count_files(run: Run) -> int:
    """Return how many files of a run have a checksum, its folders for the Hub included."""
    files = sum(len(record.files) for record in run.record().stages)
    return files + len(run.checksums.known) + sum(len(manifest.files) for _, manifest in _published(run))


def _damage(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is damaged of a run's stages, each with its remedy."""
    for record in run.record().stages:
        for found in run.damage(record, every_byte=True):
            yield str(found), f"{run.repair(record)} to make it anew"


def _published(run: Run) -> Iterator[tuple[Path, Manifest]]:
    """Yield the run's folders for the Hub whose lineage can be read."""
    for lineage in sorted(run.hub.glob(f"*/{LINEAGE}")):
        with contextlib.suppress(HubError, OSError):
            yield lineage.parent, Manifest.read(lineage, str(lineage.parent))


def _hub_damage(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is damaged in the run's folders for the Hub, each with its remedy."""
    for kind, digest in PublishedRecord.read(run.hub).sealed.items():
        lineage = run.hub / kind / LINEAGE
        if not lineage.exists() or file_digest(lineage) != digest:
            yield f"{lineage}: {OTHER_CHECKSUM if lineage.exists() else GONE}", REPUBLISH
    readable = dict(_published(run))
    for lineage in sorted(run.hub.glob(f"*/{LINEAGE}")):
        if lineage.parent not in readable:
            yield f"{lineage}: cannot be read", REPUBLISH
    for folder, manifest in readable.items():
        for problem in (*_changed_files(folder, manifest), *_changed_rows(folder, manifest)):
            yield f"{folder}/{problem}", REPUBLISH


def verify_folder(folder: Path, name: str = "") -> Verification:
    """Compare files and rows of a published folder with its lineage.json, and its versions with those here.

    ``name`` is that of the repository that the folder is a copy of.

    Raises:
        HubError: the folder was not published by this package.
    """
    try:
        manifest = Manifest.read(folder / LINEAGE, name or str(folder))
    except OSError as error:
        raise HubError(
            f"{folder}: holds neither run.json nor {LINEAGE}",
            "give a run in which a stage was begun, or a folder or repository that {publish()} made",
        ) from error
    problems = [*_changed_files(folder, manifest), *_changed_rows(folder, manifest)]
    return Verification(name or str(folder), manifest, problems, list(_rerun_differences(folder, manifest)))


def _changed_files(folder: Path, manifest: Manifest) -> list[str]:
    hashes = file_hashes(folder)
    missing = [f"{name}: is missing" for name in manifest.files if name not in hashes]
    changed = []
    for name, published in manifest.files.items():
        if name in hashes and hashes[name] != published:
            changed.append(f"{name}: is not the file that was published")
    added = [f"{name}: was not published" for name in hashes if name not in manifest.files]
    return [*missing, *changed, *added]


def _changed_rows(folder: Path, manifest: Manifest) -> list[str]:
    problems: list[str] = []
    claimed: dict[str, int] = {}
    try:
        claimed = _rows_in_card(split_card(read_card(folder / README))[0])
    except HubError as error:
        problems.append(str(error))
    except (OSError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"{README}: cannot be read ({first_line(error)})")
    for name, published in manifest.rows.items():
        rows = _rows_in_files(folder, name)
        if rows != published:
            problems.append(f"{name}: {rows} rows, {published} were published")
        if claimed.get(name, published) != published:
            problems.append(f"{README}: claims {claimed[name]} rows of {name}, {published} were published")
    return problems


def _rows_in_files(folder: Path, name: str) -> int:
    """Return the rows of a split, ``config/split``; damaged files count as empty."""
    config, _, split = name.partition("/")
    rows = 0
    for path in sorted((folder / ("data" if config == "default" else config)).glob(f"{split}-*.parquet")):
        with contextlib.suppress(OSError, pa.ArrowException), open(path, "rb") as file:
            rows += pq.read_metadata(file).num_rows
    return rows


def _rows_in_card(front: dict[str, Any]) -> dict[str, int]:
    """Return the rows of each split, by ``config/split``, that a card's front matter claims."""
    infos = front.get("dataset_info", [])
    rows: dict[str, int] = {}
    for info in infos if isinstance(infos, list) else [infos]:
        for split in info.get("splits", []):
            rows[f"{info.get('config_name', 'default')}/{split['name']}"] = split["num_examples"]
    return rows


def _rerun_differences(folder: Path, manifest: Manifest) -> Iterator[str]:
    here = versions()
    for library, version in manifest.made_with.items():
        if here.get(library) != version:
            yield f"{library} was {version}, here it is {here.get(library, 'missing')}"
    if manifest.spec is None:
        yield "the texts were brought as a file, which is not published"
        return
    if manifest.kind == "dataset":
        try:
            digest = load_spec(folder / "spec.json").digest
        except DinoError as error:
            yield f"spec.json cannot be read ({first_line(error)})"
            return
        if digest != manifest.spec:
            yield f"spec.json is {digest}, the texts were written from {manifest.spec}"
    yield from _embedded_differences(folder)
    for needed in manifest.lacks:
        yield f"{needed} is needed, too"


def _embedded_differences(folder: Path) -> Iterator[str]:
    """Yield what the run used of the models and data that come with the package, where this package has others."""
    try:
        record = parse_record((folder / "run.json").read_bytes())
    except (OSError, RecordError) as error:
        yield f"run.json cannot be read ({first_line(error)})"
        return
    origin = record.texts_origin()  # of a model that was trained on a published dataset
    generated, filtered = record.generate or origin.generate, record.filter or origin.filter
    if generated and generated.options.model.name == POCKET:
        generator = generated.options.model
        if generator.fingerprint != model_fingerprint(model_path(generator.name, "generator")):
            yield "the embedded generator is another one here"
    if filtered is None or set(filtered.options.exclude) != {POCKET}:
        return
    if filtered.inputs.excluded != digest_files([pocket.GOLD_TEST]):
        yield "the embedded evaluation data is other data here"
