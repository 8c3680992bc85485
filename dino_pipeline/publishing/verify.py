"""Is a published folder what was published, how is it made again, and how are pairs exported in DINO's format?"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dino_pipeline import pocket
from dino_pipeline.cards.card import README, read_card, split_card
from dino_pipeline.cards.document import document_wording
from dino_pipeline.cards.hub import Manifest, download, file_hashes
from dino_pipeline.errors import DataError, DinoError, HubError, OptionError, first_line
from dino_pipeline.files import digest_files, write_json_lines
from dino_pipeline.filtering.contamination import HUB_SETS
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.model_files import is_hub_id, model_fingerprint
from dino_pipeline.models import POCKET, ModelRef, model_path
from dino_pipeline.options import Options, accepts, default_of, flags_of
from dino_pipeline.publish_options import ExportOptions, VerifyOptions
from dino_pipeline.record import RecordError, RunRecord, parse_record, versions
from dino_pipeline.run import LINEAGE, Run
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import FilterRecord, GenerateRecord
from dino_pipeline.training.corpus import Source

FOLDER = "../again"
"""The run that the card's commands write, seen from the published folder."""
SERVER = "http://127.0.0.1:8000/v1"
"""A usual address of a server of one's own; the address of the run's server is private."""


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

    def __str__(self) -> str:
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

    __repr__ = __str__


@accepts(VerifyOptions)
def verify(target: Path | str, **options: Any) -> Verification:
    """Check hashes and counts of a published dataset or model.

    Args:
        target: a published folder, or the name of a repository on the Hub.

    Raises:
        HubError: the target was not published by this package, or the Hub cannot be reached.
        OptionError: the target is neither a folder nor a repository.
    """
    chosen = VerifyOptions.of(options)
    folder = Path(target)
    if not folder.is_dir():
        if not is_hub_id(str(target)):
            raise OptionError(f"{target}: is neither a folder here nor user/name", "give one of them")
        folder = download(str(target), "model" if chosen.model else "dataset", chosen.revision)
    return verify_folder(folder, str(target))


def verify_folder(folder: Path, name: str = "") -> Verification:
    """Compare files and rows of a published folder with its lineage.json, and its versions with those here.

    ``name`` is that of the repository that the folder is a copy of.

    Raises:
        HubError: the folder was not published by this package.
    """
    try:
        manifest = Manifest.read(folder / LINEAGE, name or str(folder))
    except OSError as error:
        raise HubError(f"{folder}: holds no {LINEAGE}", "give a folder or repository that {publish()} made") from error
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
        with contextlib.suppress(OSError, pa.ArrowException):
            rows += pq.read_metadata(path).num_rows
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


@dataclass(frozen=True)
class Rebuild:
    """The commands that make a dataset again, in a folder that holds its published files."""

    script: str = ""
    """For a shell, a command a line; empty if the texts came from a file."""
    needs_inputs: bool = False
    """True if the commands read ``inputs.jsonl``."""
    missing: tuple[str, ...] = ()
    """What they need and the published folder does not hold, in words."""


def rebuild_of(record: RunRecord) -> Rebuild:
    """Return the commands that make a run's dataset again; its record holds no paths of this machine."""
    generated, filtered = record.generate, record.filter
    if generated is None or filtered is None or not filtered.is_done:
        return Rebuild()
    commands = [
        _command("generate", "spec.json", {"run": FOLDER, **_chosen(GenerateOptions, _generate_values(generated))}),
        _command("filter", FOLDER, _chosen(type(filtered.options), filtered.options.recorded())),
    ]
    return Rebuild("\n".join(commands), _inputs_are_brought(generated), tuple(_missing(generated, filtered)))


def _command(stage: str, target: str, options: Mapping[str, object]) -> str:
    """Return a command as a line for a shell."""
    wording = document_wording()
    words = [wording.stage(stage, target)]
    for name, value in options.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            words.append(wording.option(name, shlex.quote(str(item))))
    return " ".join(words)


def _chosen(model: type[Options], values: Mapping[str, object]) -> dict[str, object]:
    """Return those values that are not the defaults of a stage's options, in the order of the options."""
    chosen = {}
    for name, _, field in flags_of(model):
        value = values.get(name)
        default = default_of(field)
        if value is not None and value != (list(default) if isinstance(default, tuple) else default):
            chosen[name] = value
    return chosen


def _generate_values(generated: GenerateRecord) -> dict[str, object]:
    """Return the options of the generate stage by name, as a user gives them."""
    options, model = generated.options, generated.options.model
    values: dict[str, object] = {name: getattr(options, name) for name in GenerateOptions.model_fields if name in _OWN}
    values |= options.sampling.model_dump()
    values |= {"model": model.name, "revision": model.revision or generated.model_commit, "adapter": model.adapter}
    values["more"] = [f"{extra.label}={extra.samples}" for extra in generated.more]
    if options.engine == "openai":
        scorer = options.scorer
        values |= {"base_url": SERVER, "scorer": scorer.name if isinstance(scorer, ModelRef) else scorer}
        values["debias"] = "auto" if options.debias == "plugin" else options.debias or "off"
        if options.debias is None:
            values |= {"decay": None, "floor": None}
    else:
        values |= {"quantize": model.quantize, "trust_remote_code": model.trust_remote_code, "dtype": model.dtype}
        if model.name != POCKET:
            values["chat"] = "on" if model.chat else "off"
    if _inputs_are_brought(generated):
        values |= {"inputs": "inputs.jsonl", "input_format": "jsonl", "num_inputs": None}
    return values


_OWN = (
    *("num_inputs", "samples", "seed", "keep_unfinished", "keep_newlines", "min_words", "min_tokens"),
    *("best_of", "shard_size", "engine"),
)
"""Options that the record holds under the same name."""


def _inputs_are_brought(generated: GenerateRecord) -> bool:
    inputs = generated.options.inputs
    return inputs is not None and inputs.texts is not None


def _missing(generated: GenerateRecord, filtered: FilterRecord) -> Iterator[str]:
    """Yield, in words, what the commands need and the published folder does not hold."""
    options, chosen = generated.options, filtered.options
    for rule in chosen.rule:
        yield f"the rule {rule}"
    for name in chosen.exclude:
        if name not in {POCKET, *HUB_SETS}:
            yield f"the file {name}"
    if _is_folder(options.model):
        yield f"the generator {options.model.name}, a folder"
    if options.model.adapter_fingerprint:
        yield f"the adapter {options.model.adapter}, a folder"
    if options.engine == "openai":
        needs = "the plug-in that debiases" if options.debias == "plugin" else "seeds that hold"
        yield f"a server of the model {options.model.name} under the address that is given, with {needs}"
    if isinstance(options.scorer, ModelRef) and _is_folder(options.scorer):
        yield f"the scorer {options.scorer.name}, a folder"
    if filtered.inputs.semantic_fingerprint and chosen.semantic != POCKET:
        yield f"the encoder {chosen.semantic}, a folder"


def _is_folder(model: ModelRef) -> bool:
    return model.name != POCKET and model.fingerprint is not None


@dataclass(frozen=True)
class Export:
    """A file that was exported."""

    path: Path
    examples: int

    def __str__(self) -> str:
        return f"{self.path}: {self.examples} examples"


@accepts(ExportOptions)
def export(source: Run | Path | str, **options: Any) -> Export:
    """Write examples as the original DINO's JSONL, with the fields text_a, text_b and label.

    Args:
        source: a run, a data file, or a published dataset, as a folder or a repository on the Hub.

    Raises:
        DataError: the source is missing or cannot be read.
        OptionError: an option is wrong.
    """
    chosen = ExportOptions.of(options)
    name = str(source.path if isinstance(source, Run) else source)
    run, output = Run(Path(name)), chosen.output
    path = run.train if chosen.split == "train" else run.dev
    if run.is_run and not path.exists():
        raise DataError(f"{path}: is not there", f"run {{filter({name})}} first")
    if run.path.is_file() and chosen.split != "train":
        raise OptionError(f"{name} is a file and has no splits", "leave it out", option="split", value=chosen.split)
    if output.exists() and (Run(output.parent).is_run or (run.path.is_file() and output.samefile(run.path))):
        raise OptionError("is read, or is a file of a run", "give another", option="output", value=output)
    filtered = run.record().filter if run.is_run else None
    label_type = filtered.inputs.label_type if filtered else None
    examples = Source(str(path) if run.is_run else name, split=chosen.split, label_type=label_type).corpus.examples
    write_json_lines(output, ({"text_a": each.text_a, "text_b": each.text_b, "label": each.label} for each in examples))
    return Export(output, len(examples))
