"""What does the card of a trained bi-encoder say: what it is, how it was made, and what nobody has checked?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dino_pipeline.cards.card import GeneratorLicense
from dino_pipeline.cards.document import render_markdown
from dino_pipeline.errors import RunError
from dino_pipeline.funnel import Funnel
from dino_pipeline.measures import measure_title
from dino_pipeline.record import RunRecord, public_record
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import (
    FilterRecord,
    FinetuneRecord,
    GenerateRecord,
    PublishedDataset,
    SelectionRecord,
    TextsOrigin,
    TrainingSettings,
)

LOCAL = "path/to/this/folder"
"""The address of a model that is not published."""
HYPER_PARAMETERS = (
    *("objective", "epochs", "steps", "batch_size", "learning_rate", "weight_decay", "warmup", "schedule"),
    *("max_length", "mini_batch_size", "bf16", "faithful", "seed"),
)
"""Options that every objective has."""


@dataclass(frozen=True)
class Lineage:
    """Everything a model was made from and with; its records hold no paths of this machine."""

    name: str
    dimension: int
    """Length of an embedding."""
    max_length: int
    """In tokens."""
    finetuned: FinetuneRecord
    origin: TextsOrigin
    citation: str
    prompts: bool
    """True if queries and documents are encoded differently."""
    license: str | None
    address: str = LOCAL
    """The name from which the model loads."""

    @property
    def is_published(self) -> bool:
        """Return True if the address is a repository on the Hub."""
        return self.address != LOCAL

    @property
    def generated(self) -> GenerateRecord | None:
        """Return the record of the texts; None if no generator wrote them."""
        return self.origin.generate

    @property
    def filtered(self) -> FilterRecord | None:
        """Return the record of the filter; None if the model was trained on other data."""
        return self.origin.filter

    @property
    def selection(self) -> SelectionRecord:
        """Return how the checkpoint was chosen.

        Raises:
            RunError: the training has not ended.
        """
        if self.finetuned.selection is None:
            raise RunError(f"{self.name}: the training has not ended", "run {finetune()} again")
        return self.finetuned.selection


@dataclass(frozen=True)
class ModelPublication:
    """What a published model's card says besides its lineage."""

    dataset: PublishedDataset | None = None
    """The dataset that it was trained on, if that is published."""
    dataset_address: str = ""
    generator_license: GeneratorLicense | None = None
    """None if no generator wrote the texts."""
    score_columns: Sequence[str] = ()
    scores: Sequence[Sequence[str]] = ()
    """Rows of the table of scores."""
    remarks: Sequence[str] = ()


def lineage(
    finetuned: FinetuneRecord,
    origin: TextsOrigin,
    *,
    name: str,
    dimension: int,
    max_length: int,
    citation: str,
    prompts: bool,
) -> Lineage:
    """Return the lineage of a trained encoder, without paths of this machine.

    Args:
        finetuned: the record of its training.
        origin: of the texts; see `texts_origin`.
        name: title of the card.
        dimension: length of an embedding.
        max_length: of a text, in tokens.
        citation: of the objective's paper.
        prompts: True if queries and documents are encoded differently.
    """
    return Lineage(
        name=name,
        dimension=dimension,
        max_length=max_length,
        finetuned=public_record(finetuned),
        origin=public_record(origin),
        citation=citation,
        prompts=prompts,
        license=origin.license,
    )


def texts_origin(record: RunRecord, spec: TaskSpec | None) -> TextsOrigin:
    """Return the origin of the texts that a run's encoder was trained on.

    Args:
        record: of the run.
        spec: of the run; it knows language and license of the run's own texts.
    """
    origin = record.texts_origin()
    return origin.updated(language=spec.language, license=spec.license) if origin.own and spec else origin


def model_card(lineage: Lineage) -> str:
    """Return a card as Markdown, with front matter, for a model folder that is not published yet."""
    fields = model_front_matter(lineage)
    front = [f"{key}: {json.dumps(value)}\n" for key, value in fields.items()]  # JSON values are YAML values
    return f"---\n{''.join(front)}---\n\n{model_card_body(lineage)}\n"


def model_front_matter(lineage: Lineage) -> dict[str, object]:
    """Return the fields of the front matter that the Hub reads."""
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction"]
    fields: dict[str, object] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [*tags, "dino", "synthetic"] if lineage.generated else tags,
        "language": lineage.origin.language,
        "license": lineage.license,
    }
    return {key: value for key, value in fields.items() if value is not None}


def model_card_body(lineage: Lineage, publication: ModelPublication | None = None) -> str:
    """Return a card's text as Markdown, without front matter."""
    return render_markdown(
        "model_card.md.j2",
        lineage=lineage,
        publication=publication or ModelPublication(),
        finetuned=lineage.finetuned,
        options=lineage.finetuned.options,
        head=lineage.finetuned.head,
        generated=lineage.generated,
        training=_training_table(lineage),
        filtered=lineage.filtered,
        funnel=Funnel.of(lineage.filtered).brief(),
    )


def effective(options: TrainingSettings, names: Sequence[str]) -> list[str]:
    """Return the names of the hyper-parameters that took effect: not the epochs, if steps were given."""
    return [name for name in names if name != "epochs" or not options.steps]


def _training_table(lineage: Lineage) -> list[tuple[str, object]]:
    finetuned, options, selection = lineage.finetuned, lineage.finetuned.options, lineage.selection
    values = {name: getattr(options, name) for name in effective(options, HYPER_PARAMETERS)}
    values |= {"pooling": finetuned.pooling, **options.options}
    shown = {name: value for name, value in values.items() if value is not None and value is not False}
    return [
        *((name.replace("_", " "), value) for name, value in shown.items()),
        ("rows", f"{finetuned.train} to train on, {finetuned.dev} held out"),
        (f"best {measure_title(selection.measure)}, on {selection.on}", selection.best),
        ("versions", ", ".join(f"{name} {version}" for name, version in finetuned.versions.items())),
    ]
