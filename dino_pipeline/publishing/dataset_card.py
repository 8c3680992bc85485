"""What does a dataset's repository hold: the data, its card, and the commands that make it again?"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCardData

from dino_pipeline.cards.card import README, FrontMatter, GeneratorLicense, HandWritten, card_text
from dino_pipeline.cards.document import document_wording, render_markdown
from dino_pipeline.cards.hub import address, run_manifest, seal
from dino_pipeline.filtering.contamination import HUB_SETS
from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.funnel import Funnel
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.models import POCKET, ModelRef
from dino_pipeline.options import Options, default_of, flags_of
from dino_pipeline.publishing.dataset_files import DataShape, WrittenSplit, shape_of, splits_of, write_split
from dino_pipeline.publishing.report import Report
from dino_pipeline.publishing.report_source import OpenedRun
from dino_pipeline.record import RunRecord, public_record
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import FilterRecord, GenerateRecord

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
FOLDER = "../again"
"""The run that the card's commands write, seen from the published folder."""
SERVER = "http://127.0.0.1:8000/v1"
"""A usual address of a server of one's own; the address of the run's server is private."""


@dataclass(frozen=True)
class Rebuild:
    """The commands that make a dataset again, in a folder that holds its published files."""

    script: str = ""
    """For a shell, a command a line; empty if the texts came from a file."""
    needs_inputs: bool = False
    """True if the commands read ``inputs.jsonl``."""
    missing: tuple[str, ...] = ()
    """What they need and the published folder does not hold, in words."""


def write_dataset(
    opened: OpenedRun,
    report: Report,
    folder: Path,
    hand_written: HandWritten,
    *,
    repository: str,
    license: str | None,
    generator: GeneratorLicense | None,
    encoder: str | None,
    raw: bool,
) -> None:
    """Write a dataset's repository into an empty folder: Parquet, card, spec, report and lineage.

    Args:
        opened: the run that is published.
        report: of the run, as it was just written.
        folder: where to write.
        hand_written: parts of the earlier card that are kept.
        repository: ``user/name``.
        license: of the dataset, if known.
        generator: the license of the model that wrote the texts; None if none did.
        encoder: the repository of the encoder that was trained on it, if that is or was published.
        raw: publish written and dropped texts, too.

    Raises:
        DataError: there is nothing to publish, or it cannot be read.
        OutputError: the folder cannot be written.
    """
    run, record, spec = opened.run, public_record(opened.record), opened.spec
    generated, filtered = record.generate, record.filter
    assert filtered is not None  # nothing is published that was not filtered
    shape, rebuild = shape_of(opened), rebuild_of(record)
    with run.scratch("publish") as scratch:
        written = [write_split(split, folder, scratch) for split in splits_of(run, shape, raw=raw)]
    _copy_files(opened, folder, with_inputs=rebuild.needs_inputs)
    title = repository.rpartition("/")[2]
    body = _body(
        generated,
        filtered,
        written,
        raw=raw,
        title=title,
        repository=repository,
        spec=spec,
        shape=shape,
        encoder=encoder,
        generator_license=generator,
        sections=report.sections,
        rebuild=rebuild,
    )
    front = _front_matter(written, shape, spec, title=title, license=license, generated=generated is not None)
    (folder / README).write_text(card_text(front, body, hand_written), encoding="utf-8")
    manifest = run_manifest(record, "dataset", repository).updated(
        rows={f"{part.split.config}/{part.split.name}": part.rows for part in written},
        made_with=(generated or filtered).versions,
        lacks=rebuild.missing,
    )
    seal(folder, record, manifest)


def _copy_files(opened: OpenedRun, folder: Path, *, with_inputs: bool) -> None:
    """Copy those files of a run that are published as they are."""
    run = opened.run
    shutil.copy(run.report, folder / "report.html")
    shutil.copytree(run.pictures, folder / "pictures")
    if opened.spec:
        shutil.copy(run.spec, folder / "spec.json")
    if with_inputs:
        shutil.copy(run.inputs, folder / "inputs.jsonl")


def _body(
    generated: GenerateRecord | None,
    filtered: FilterRecord,
    written: Sequence[WrittenSplit],
    *,
    raw: bool,
    encoder: str | None,
    **facts: Any,
) -> str:
    """Return the generated text of a card; the template shows other facts as they are."""
    funnel = Funnel.of(filtered)
    return render_markdown(
        "dataset_card.md.j2",
        row_counts=[(part.split.config, part.split.name, part.rows) for part in written],
        encoder=encoder,
        encoder_address=address(encoder, "model") if encoder else "",
        generated=generated,
        making=_making(generated) if generated else (),
        filtered=filtered,
        filter_options=_filter_options(filtered),
        funnel=funnel,
        withheld=sum(funnel.total("dropped", reason) for reason in WITHHELD_REASONS) if raw else 0,
        **facts,
    )


def _making(generated: GenerateRecord) -> list[list[str]]:
    """Return how the texts were written, as rows of a table."""
    options, model = generated.options, generated.options.model
    values: dict[str, object] = {
        "generator": model.name,
        "revision": model.revision,
        "commit": generated.model_commit,
        "weights (digest)": model.fingerprint,
        "spec (digest)": options.spec,
        "inputs": generated.inputs,
        "texts per input and label": options.samples,
        **options.sampling.model_dump(),
        "seed": options.seed,
        "dtype": model.dtype,
        "chat": "on" if model.chat else None,
        "adapter": model.adapter,
        "quantize": model.quantize,
        "engine": options.engine if options.engine != "transformers" else None,
        "best_of": options.best_of if options.best_of != 1 else None,
        **(generated.server.model_dump() if generated.server else {}),
        "scorer": options.scorer.name if isinstance(options.scorer, ModelRef) else options.scorer,
    }
    return [[name.replace("_", " "), str(value)] for name, value in values.items() if value is not None]


def _filter_options(filtered: FilterRecord) -> list[list[str]]:
    """Return the filter's options as rows of a table."""
    rows = []
    for name, value in filtered.options.recorded().items():
        if value not in (None, []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append([name.replace("_", " "), shown])
    return rows


def _front_matter(
    written: Sequence[WrittenSplit],
    shape: DataShape,
    spec: TaskSpec | None,
    *,
    title: str,
    license: str | None,
    generated: bool,
) -> FrontMatter:
    """Return the fields of the front matter that the Hub and `datasets` read; splits are ordered by configuration."""
    by_config = {config: list(parts) for config, parts in groupby(written, key=lambda part: part.split.config)}
    data = DatasetCardData(
        language=spec.language if spec else None,
        license=license,
        pretty_name=title,
        size_categories=size_category(sum(part.rows for part in by_config["default"])),
        task_categories=["sentence-similarity" if shape.paired else "text-classification"],
        annotations_creators=["machine-generated"] if generated else None,
        language_creators=["machine-generated"] if generated else None,
        source_datasets=["original"] if generated else None,
        tags=[*(["synthetic", "dino"] if generated else []), "sentence-transformers"],
        configs=[_config(config, parts) for config, parts in by_config.items()],
    )
    infos = {config: _info(config, parts) for config, parts in by_config.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return dict(data.to_dict())


def _config(name: str, written: Sequence[WrittenSplit]) -> FrontMatter:
    data_files = []
    for part in written:
        paths = [f"{part.split.folder}/{file.name}" for file in part.files]
        data_files.append({"split": part.split.name, "path": paths})
    return {"config_name": name, "data_files": data_files, **({"default": True} if name == "default" else {})}


def _info(name: str, written: Sequence[WrittenSplit]) -> DatasetInfo:
    features = Features.from_dict({column.name: column.feature for column in written[0].split.columns})
    splits = SplitDict()
    for part in written:
        size = sum(file.stat().st_size for file in part.files)
        splits.add(SplitInfo(part.split.name, num_bytes=size, num_examples=part.rows))
    total = sum(info.num_bytes for info in splits.values())
    return DatasetInfo(features=features, splits=splits, download_size=total, dataset_size=total, config_name=name)


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows, for example ``1K<n<10K``."""
    if rows < 1000:
        return "n<1K"
    lower = max(index for index in range(len(SIZES)) if rows >= 10 ** (index + 3))
    return f"{SIZES[lower]}<n<{SIZES[lower + 1]}" if lower + 1 < len(SIZES) else "n>1T"


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
        values |= {"decay": None, "floor": None}  # a server cannot debias
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
        yield f"a server of the model {options.model.name} under the address that is given, with seeds that hold"
    if isinstance(options.scorer, ModelRef) and _is_folder(options.scorer):
        yield f"the scorer {options.scorer.name}, a folder"
    if filtered.inputs.semantic_fingerprint and chosen.semantic != POCKET:
        yield f"the encoder {chosen.semantic}, a folder"


def _is_folder(model: ModelRef) -> bool:
    return model.name != POCKET and model.fingerprint is not None
