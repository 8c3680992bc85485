"""The record of each stage as types: what it was made with, and what came of it."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, field_validator

from dino_pipeline.encoder_options import Hyperparameters, WhitenTime
from dino_pipeline.filter_options import FilterOptions, PostProcessing
from dino_pipeline.generate_options import Debiasing, EngineName, ShardSettings, TextSettings
from dino_pipeline.models import ModelRef
from dino_pipeline.options import Sampling
from dino_pipeline.record_base import Record, StageRecord

Label = float | str


# generate


class InputsRef(Record):
    """Which inputs a run has: texts that a user brought, or texts written from another spec."""

    spec: str | None = None
    """Digest of the inputs spec."""
    texts: str | None = None
    """Digest of the texts."""


class GenerateSettings(TextSettings, ShardSettings, Record):
    """What decides the texts of a run: spec, inputs, model and options. What the user left open is filled in."""

    spec: str
    """Digest of the task spec."""
    labels: tuple[str, ...]
    engine: EngineName = "transformers"
    engine_arg: dict[str, JsonValue] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Arguments of vLLM's engine."""
    model: ModelRef
    scorer: ModelRef | Literal["server"] | None = None
    """Model that measures the margins of a server's texts."""
    debias: Debiasing | None = Field(default=None, exclude_if=lambda value: value is None)
    """How a server's texts are debiased; None: they are not, or no server writes them."""
    sampling: Sampling
    input_sampling: Sampling | None = None
    """None where the inputs are brought or the spec has none."""
    inputs: InputsRef | None = None


class ExtraSamples(Record):
    """Samples of one label beyond those of the options."""

    label: str
    first: int
    """Number of the first one."""
    samples: int
    """Per input, or in all where there are no inputs."""


class LabelTotals(Record):
    """Texts of one label."""

    written: int
    accepted: int


class Counts(Record):
    """Base of records whose fields are all counts."""

    def plus(self, other: Self) -> Self:
        """Return the sums."""
        return self.updated(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})


class ServerUsage(Counts):
    """Requests and tokens that a server was asked for."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ServerDebiasing(Counts):
    """What debiasing the texts of a server took."""

    texts: int = 0
    """That were debiased."""
    torn: int = 0
    """Groups of prompts that the plug-in did not have in one step, and that were asked for again."""
    rounds: int = 0
    """Proposals, by rejection."""


class ServerPrices(Record):
    """Dollars per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0


class ServerCost(Record):
    """What a server's texts cost."""

    dollars: float
    dollars_a_million_tokens: ServerPrices


Dialect = Literal["fields", "generation_config", "plain"]
"""How a server takes top-k: as a field (vLLM, SGLang, llama.cpp, TGI), in a configuration (transformers), or not."""
Seeds = Literal["hold", "hold one at a time", "do not hold"]
"""Whether a seed gives the same text again, with some servers only while no other request runs."""


class ServerAbilities(Record):
    """What a server was found to support."""

    dialect: Dialect
    seeds: Seeds
    logprobs: bool
    """Whether it reports the log-probabilities of tokens."""
    tells_ends: bool
    """Whether it tells the stop string from the model's end of text."""


class GenerateRecord(StageRecord):
    """The generate stage."""

    stage: ClassVar[str] = "generate"

    options: GenerateSettings
    more: tuple[ExtraSamples, ...] = ()
    model_commit: str | None = None
    """Commit of a model from the Hub."""
    torn: int = Field(default=0, exclude_if=lambda value: not value)
    """Texts of the latest call that vLLM was asked for again, as their prompts fell out of step."""
    usage: ServerUsage | None = None
    server: ServerAbilities | None = None
    cost: ServerCost | None = None
    debiasing: ServerDebiasing | None = None
    task: str | None = None
    label_type: Literal["score", "class"] | None = None
    inputs: int | None = None
    """Number of inputs; None for a task without."""
    counts: dict[str, LabelTotals] = Field(default_factory=dict)
    mean_margins: dict[str, float | None] = Field(default_factory=dict)


# filter


SHARDS = "shards"
"""Name of a run's own texts as the source of its filter."""


class FilterInputs(Record):
    """What decides the result of a filter apart from its options. It is found when the filter starts."""

    source: str
    """``shards``, or the name of the file that was filtered."""
    numeric_labels: bool
    """Whether labels that spell a number are numbers. Else all labels are names."""
    stop: str | None = None
    """The spec's stop string."""
    fields: tuple[str, ...] = ()
    """Parts of the prompts that a text must not repeat; see `TaskSpec.fields`."""
    excluded: str
    """Digest of the evaluation data to keep out."""
    rule_digest: str
    """Digest of the source of the user's own rules."""
    semantic_fingerprint: str | None = None
    """Fingerprint of the encoder that finds inputs of the same meaning."""

    @property
    def label_type(self) -> Literal["score", "class"]:
        """Return what the labels are."""
        return "score" if self.numeric_labels else "class"


LabelCounts = tuple[tuple[Label, int], ...]
"""A count for each label; pairs, because JSON objects have no numbers as keys."""
StepKind = Literal["read", "dropped", "kept", "would_drop", "flagged", "added", "train", "dev"]


class FunnelStep(Record):
    """Examples of each label that one step of the filter read, dropped, kept or added."""

    kind: StepKind
    rule: str = ""
    """Name of the rule; of a step that would drop, ``option=value``; empty if the kind says it all."""
    counts: LabelCounts = ()

    @property
    def total(self) -> int:
        return sum(count for _, count in self.counts)


class FilterRecord(StageRecord):
    """The filter stage."""

    stage: ClassVar[str] = "filter"

    options: FilterOptions
    inputs: FilterInputs
    processed: PostProcessing = Field(default=PostProcessing(), exclude_if=lambda value: not value.labels)
    funnel: tuple[FunnelStep, ...] = ()
    available: LabelCounts = ()
    """Examples left before labels are capped at a target or balanced."""
    missing: LabelCounts = ()
    """Examples that the target lacks."""
    margin_quantiles: tuple[tuple[Label, dict[str, float]], ...] = ()
    logprob_quantiles: tuple[tuple[Label, dict[str, float]], ...] = ()

    def compared(self) -> dict[str, JsonValue]:
        """Return the options, and what was found for them when the stage started."""
        return {**super().compared(), **self.inputs.model_dump(mode="json")}


# finetune


class TextsSettings(Record):
    """What decides which texts an encoder is trained on."""

    data: str
    """Name of the texts."""
    columns: dict[str, str] = Field(default_factory=dict)
    class_labels: bool
    score_labels: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether the user says that labels are scores."""
    select_on: str | None = None
    """Name of the pairs, scored by people, on which the best checkpoint is chosen."""
    sentences: str | None = None
    """Name of the texts without labels."""
    language: str
    split_sentences: bool


class TrainingSettings(TextsSettings, Hyperparameters):
    """What decides an encoder: its hyper-parameters, its texts, and the encoder that it starts from."""

    objective: str
    encoder: ModelRef
    seed: int


class SelectionRecord(Record):
    """How the best checkpoint was chosen."""

    measure: str
    best: float | None
    on: str
    """Name of the data that it was chosen on."""
    human_labels: bool = False
    kept: Literal["best", "last"] = Field(default="best", exclude_if=lambda value: value == "best")
    """Which checkpoint was kept; the last is measured on the same data."""


class HistoryPoint(Record):
    """Loss or dev score after a step."""

    step: int
    loss: float | None = None
    dev: float | None = None


class HeadRecord(Record):
    """The linear classifier that was fitted on the encoder."""

    classes: tuple[str, ...]
    accuracy: float | None = None
    macro_f1: float | None = None


class PublishedDataset(Record):
    """A dataset on the Hub."""

    repository: str | None = None
    commit: str | None = None


class TextsOrigin(Record):
    """Where the texts that an encoder learnt from come from."""

    own: bool = False
    """Whether they are the filtered texts of the same run."""
    generate: GenerateRecord | None = None
    filter: FilterRecord | None = None
    language: str | None = None
    license: str | None = None
    dataset: PublishedDataset | None = None

    @field_validator("generate", "filter")
    @classmethod
    def _without_files(cls, record: StageRecord | None) -> StageRecord | None:
        """Forget the files, which are in another run."""
        return record.updated(files={}) if record and record.files else record


class FinetuneRecord(StageRecord):
    """The finetune stage."""

    stage: ClassVar[str] = "finetune"

    options: TrainingSettings
    batch: int | None = None
    """Rows a step, after the batch was fitted to the data."""
    cut: float | None = None
    """Share of texts longer than the encoder's limit."""
    repeated: float | None = None
    """Share of rows whose first text is in another row, too."""
    notes: tuple[str, ...] = ()
    selection: SelectionRecord | None = None
    train: int | None = None
    dev: int | None = None
    made: tuple[str, ...] = ()
    """How the rows were made of the texts."""
    pooling: str | None = None
    prompt: str = Field(default="", exclude_if=lambda value: not value)
    """What stands before each text, in training as in `encode`."""
    whitened: WhitenTime = "no"
    steps: int | None = None
    history: tuple[HistoryPoint, ...] = ()
    rows_seen: int | None = None
    seconds: float | None = None
    mean_cosine: float | None = None
    collapsed: bool | None = None
    head: HeadRecord | None = None
    origin: TextsOrigin = TextsOrigin()

    @property
    def measured(self) -> Literal["best", "dev"]:
        """Return what the measure on held-out texts is: the best of several checkpoints, or that of the one encoder."""
        chosen = self.selection is None or self.selection.kept == "best"
        return "best" if self.steps and self.whitened != "end" and chosen else "dev"


# evaluate


class EvaluateSettings(Record):
    """No options: an evaluation is kept or made again by its sources alone."""


class EvaluateRecord(StageRecord):
    """The evaluate stage. What it found is in scores.json."""

    stage: ClassVar[str] = "evaluate"

    options: EvaluateSettings = EvaluateSettings()
