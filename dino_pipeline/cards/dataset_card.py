"""What does the card of a dataset say: what it is, how it was made, how to load it, and what nobody has checked?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dino_pipeline.cards.card import GeneratorLicense
from dino_pipeline.cards.document import SampleTable, Section, render_markdown
from dino_pipeline.models import ModelRef
from dino_pipeline.stage_records import FilterRecord, GenerateRecord, GenerateSettings


@dataclass(frozen=True)
class Rebuild:
    """The commands that make a dataset again, in a folder that holds its published files."""

    script: str = ""
    """For a shell, a command a line; empty if the texts came from a file."""
    needs_inputs: bool = False
    """True if the commands read ``inputs.jsonl``."""
    missing: tuple[str, ...] = ()
    """What they need and the published folder does not hold, in words."""


@dataclass(frozen=True)
class DatasetCard:
    """What the card of a dataset shows."""

    repository: str
    """``user/name``."""
    description: str | None
    rows: Mapping[str, int]
    """The rows of each split, by ``configuration/split``."""
    encoder: str | None
    """The repository of the encoder that was trained on it, if that is published."""
    encoder_address: str
    generator_license: GeneratorLicense | None
    """None if no generator wrote the texts."""
    generated: GenerateRecord | None
    """None if the texts came from a file."""
    filtered: FilterRecord
    classes: bool
    """True if labels are classes, not scores."""
    random_pairs: int
    """Pairs that join texts at random."""
    flagged: int
    """Kept texts with personal data."""
    withheld: int
    """Dropped texts that are not published."""
    sections: Mapping[str, Section]
    """The report's sections, by id."""
    rebuild: Rebuild

    @property
    def title(self) -> str:
        return self.repository.rpartition("/")[2]

    @property
    def row_counts(self) -> list[list[str]]:
        """Return configuration, split and number of rows, for each split."""
        return [[*name.split("/"), str(count)] for name, count in self.rows.items()]

    @property
    def other_configurations(self) -> list[str]:
        """Return all configurations but the default one."""
        names = dict.fromkeys(name.split("/")[0] for name in self.rows)
        return [name for name in names if name != "default"]

    @property
    def smoothing(self) -> float:
        """Return by how much scores were pulled to the middle of their scale; 0 for other labels."""
        options = self.filtered.options
        return 0.0 if self.classes or options.labels != "smoothed" else options.smoothing

    @property
    def best_of(self) -> int | None:
        """Return from how many texts each was chosen by a scorer; None if nothing was chosen."""
        if self.generated is None or self.generated.options.scorer is None or self.generated.options.best_of == 1:
            return None
        return self.generated.options.best_of

    @property
    def samples(self) -> SampleTable:
        """Return the texts of the section with samples."""
        return next(block for block in self.sections["samples"].blocks if isinstance(block, SampleTable))

    @property
    def making(self) -> list[list[str]]:
        """Return how the texts were written, as rows of a table."""
        if self.generated is None:
            return []
        options, model = self.generated.options, self.generated.options.model
        values: dict[str, object] = {
            "generator": model.name,
            "revision": model.revision,
            "commit": self.generated.model_commit,
            "weights (digest)": model.fingerprint,
            "spec (digest)": options.spec,
            "inputs": self.generated.inputs,
            "texts per input and label": options.samples,
            **options.sampling.model_dump(),
            "seed": options.seed,
            "dtype": model.dtype,
            "chat": "on" if model.chat else None,
            "adapter": model.adapter,
            "quantize": model.quantize,
            "engine": options.engine if options.engine != "transformers" else None,
            "best_of": options.best_of if options.best_of != 1 else None,
            **(self.generated.server.model_dump() if self.generated.server else {}),
            "scorer": scorer_name(options),
        }
        return [[name.replace("_", " "), str(value)] for name, value in values.items() if value is not None]

    @property
    def filter_options(self) -> list[list[str]]:
        """Return the filter's options as rows of a table."""
        rows = []
        for name, value in self.filtered.options.recorded().items():
            if value not in (None, []):
                shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                rows.append([name.replace("_", " "), shown])
        return rows


def dataset_card_body(card: DatasetCard) -> str:
    """Return a card's text as Markdown, without front matter."""
    return render_markdown("dataset_card.md.j2", card=card, generated=card.generated, filtered=card.filtered)


def scorer_name(options: GenerateSettings) -> str | None:
    """Return what scored the texts that a server wrote: a model, or the server itself; None without scores."""
    return options.scorer.name if isinstance(options.scorer, ModelRef) else options.scorer
