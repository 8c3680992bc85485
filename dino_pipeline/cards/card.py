"""What do cards hold: front matter that the Hub reads, the text of this package, and what people wrote around it?

A card is Markdown under YAML. Two marks enclose the generated text, which each publication writes again. Everything
outside of the marks belongs to people and is kept, and so are fields of the front matter that are not generated.

A trained encoder has a card before it is published; publishing adds what is known then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dino_pipeline.cards.document import render_markdown
from dino_pipeline.display import yaml_text
from dino_pipeline.errors import HubError, RunError, first_line
from dino_pipeline.funnel import Funnel
from dino_pipeline.measures import measure_title
from dino_pipeline.record import RunRecord
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import FinetuneRecord, PublishedDataset, SelectionRecord, TextsOrigin, TrainingSettings

FrontMatter = dict[str, Any]
"""The fields of a card's YAML."""
README = "README.md"
"""The file name of a card."""
BEGIN, END = "<!-- written by dino_pipeline: begin -->", "<!-- written by dino_pipeline: end -->"
HINT = "<!-- what people write outside of the two marks is kept; publishing again replaces what is between them -->"
GENERATED_FIELDS = frozenset(
    (
        *("pretty_name", "size_categories", "task_categories", "annotations_creators", "language_creators"),
        *("source_datasets", "configs", "dataset_info", "library_name", "pipeline_tag", "datasets", "base_model"),
        *("model-index", "widget", "tags"),
    )
)
"""Fields that describe what is published: older values are dropped. License and language stay if none is known now."""
FREE_LICENSES = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "unlicense"),
    *("isc", "zlib", "artistic-2.0", "ecl-2.0", "afl-3.0", "postgresql", "wtfpl", "mpl-2.0", "bsl-1.0", "odc-by"),
)
"""Licenses that do not restrict what a model writes. Any other may, and people have to read it."""
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)
HYPER_PARAMETERS = (
    *("objective", "epochs", "steps", "batch_size", "learning_rate", "weight_decay", "warmup", "schedule"),
    *("max_length", "freeze_embeddings", "lora", "mini_batch_size", "bf16", "faithful", "seed"),
)
"""Options that every objective has."""


@dataclass(frozen=True)
class GeneratorLicense:
    """The license of the model that wrote the texts."""

    name: str | None
    """As the Hub spells it, such as ``apache-2.0``; None if it is not known."""

    @property
    def restricts(self) -> bool:
        """Return True if the license may restrict the use of the model's texts; an unknown license may."""
        return self.name not in FREE_LICENSES


@dataclass(frozen=True)
class HandWritten:
    """The parts of a card that people wrote."""

    front: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are not generated, and all tags: nobody can tell who added a tag."""
    above: str = ""
    below: str = ""

    @classmethod
    def of(cls, text: str) -> HandWritten:
        """Read the hand-written parts of a card.

        Raises:
            HubError: the front matter is not valid YAML.
        """
        front, body = split_card(text)
        kept = {key: value for key, value in front.items() if key not in GENERATED_FIELDS or key == "tags"}
        if BEGIN in body and END in body:
            above, _, rest = body.partition(BEGIN)
            return cls(kept, above, rest.rpartition(END)[2])
        return cls(kept, "", f"\n\n{body.strip()}\n" if body.strip() else "")

    def or_newer(self, on_hub: HandWritten, published: HandWritten) -> HandWritten:
        """Return these parts or those of the card on the Hub, whichever people changed since the last publication.

        Raises:
            HubError: both were changed, and neither has all lines of the other.
        """
        if on_hub in (self, published) or self._lines() >= on_hub._lines():
            return self
        if self == published or on_hub._lines() >= self._lines():
            return on_hub
        raise HubError(f"{README}: people changed it here and on the Hub; bring both together here, and run again")

    def _lines(self) -> set[str]:
        fields = [f"{key}: {value}" for key, value in self.front.items() if key != "tags"]
        tags = [f"tag: {tag}" for tag in self.front.get("tags") or ()]
        return {*fields, *tags, *self.above.split("\n"), *self.below.split("\n")}


def read_card(path: Path) -> str:
    """Return a card's text.

    Raises:
        HubError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HubError(f"{README}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def card_text(front: Mapping[str, object], body: str, hand_written: HandWritten) -> str:
    """Return a whole card of generated fields and Markdown, and of the parts of the earlier card that are kept.

    A field that is None is left out.
    """
    generated = {key: value for key, value in front.items() if value is not None}
    merged: FrontMatter = {**generated}
    merged |= {key: value for key, value in hand_written.front.items() if key not in generated}
    if isinstance(tags := hand_written.front.get("tags"), list):
        merged["tags"] = list(dict.fromkeys([*merged.get("tags", []), *map(str, tags)]))
    marked = f"{BEGIN}\n{HINT}\n\n{body.strip()}\n\n{END}"
    return f"---\n{yaml_text(merged)}---\n{hand_written.above}{marked}{hand_written.below or chr(10)}"


def split_card(text: str) -> tuple[FrontMatter, str]:
    """Return a card's front matter and its body; without front matter, the whole text is the body.

    Raises:
        HubError: the front matter is not valid YAML.
    """
    parts = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    if not parts:
        return {}, text
    try:
        front = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise HubError(
            f"{README}: the front matter is not valid YAML ({first_line(error)})", "correct it, and run again"
        ) from error
    return (front if isinstance(front, dict) else {}), parts[2]


def texts_origin(record: RunRecord, spec: TaskSpec | None) -> TextsOrigin:
    """Return the origin of the texts that a run's encoder was trained on.

    The run's spec knows language and license of the run's own texts.
    """
    origin = record.texts_origin()
    return origin.updated(language=spec.language, license=spec.license) if origin.own and spec else origin


@dataclass(frozen=True)
class ModelCard:
    """The card of a trained encoder; its records hold no paths of this machine."""

    title: str
    dimension: int
    """Length of an embedding."""
    max_length: int | None
    """The most tokens that the encoder reads of a text. None means no limit."""
    finetuned: FinetuneRecord
    origin: TextsOrigin
    citation: str
    """Of the objective's paper."""
    prompts: bool
    """True if queries and documents are encoded differently."""

    # what is known once the encoder is published
    repository: str | None = None
    """``user/name``."""
    license: str | None = None
    """None: the license of the texts."""
    dataset: PublishedDataset | None = None
    """The dataset that it was trained on, if that is published."""
    dataset_address: str = ""
    generator_license: GeneratorLicense | None = None
    """None if no generator wrote the texts."""
    score_columns: Sequence[str] = ()
    scores: Sequence[Sequence[str]] = ()
    """Rows of the table of scores."""
    remarks: Sequence[str] = ()

    @property
    def selection(self) -> SelectionRecord:
        """Return how the checkpoint was chosen.

        Raises:
            RunError: the training has not ended.
        """
        if self.finetuned.selection is None:
            raise RunError(f"{self.title}: the training has not ended", "run {finetune()} again")
        return self.finetuned.selection

    def text(self) -> str:
        """Return the whole card for a model folder that is not published yet."""
        return f"---\n{yaml_text(self.front_matter())}---\n\n{self.body()}\n"

    def front_matter(self) -> FrontMatter:
        """Return the generated fields that every card of an encoder has."""
        tags = ["sentence-transformers", "sentence-similarity", "feature-extraction"]
        fields = {
            "library_name": "sentence-transformers",
            "pipeline_tag": "sentence-similarity",
            "tags": [*tags, "dino", "synthetic"] if self.origin.generate else tags,
            "language": self.origin.language,
            "license": self.license or self.origin.license,
        }
        return {key: value for key, value in fields.items() if value is not None}

    def body(self) -> str:
        """Return the generated text as Markdown."""
        return render_markdown(
            "model_card.md.j2",
            card=self,
            finetuned=self.finetuned,
            options=self.finetuned.options,
            head=self.finetuned.head,
            generated=self.origin.generate,
            filtered=self.origin.filter,
            training=self._training(),
            funnel=Funnel.of(self.origin.filter).brief(),
        )

    def _training(self) -> list[tuple[str, object]]:
        """Return the rows of the table on training."""
        finetuned, options, selection = self.finetuned, self.finetuned.options, self.selection
        values = {name: getattr(options, name) for name in effective(options, HYPER_PARAMETERS)}
        values |= {"pooling": finetuned.pooling, "whitened": finetuned.whitened, "sentences": options.sentences}
        values |= options.options
        shown = {name: value for name, value in values.items() if value is not None and value is not False}
        return [
            *((name.replace("_", " "), value) for name, value in shown.items()),
            ("rows", f"{finetuned.train} to train on, {finetuned.dev} held out"),
            (f"{finetuned.measured} {measure_title(selection.measure)}, on {selection.on}", selection.best),
            ("versions", ", ".join(f"{name} {version}" for name, version in finetuned.versions.items())),
        ]


def effective(options: TrainingSettings, names: Sequence[str]) -> list[str]:
    """Return the names of the hyper-parameters that took effect: not the epochs, if steps were given."""
    return [name for name in names if name != "epochs" or options.steps is None]
