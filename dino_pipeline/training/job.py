"""What is to be trained: by which objective, with which settings, from which encoder and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random

from sentence_transformers import SentenceTransformer

from dino_pipeline.encoder_check import first_token_is_blind
from dino_pipeline.encoder_options import FinetuneOptions, Hyperparameters, TrainingOptions, WhitenTime
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.models import (
    STATIC,
    ModelRef,
    default_prompt,
    has_adapters,
    has_own_pooling,
    load_encoder,
    model_path,
    pooling_of,
    set_pooling,
)
from dino_pipeline.progress import Reporter, SilentReporter
from dino_pipeline.stage_records import TrainingSettings
from dino_pipeline.training.adapters import sentences_of, suited_objective
from dino_pipeline.training.corpus import distinct_texts
from dino_pipeline.training.lora import check_lora, merge_adapters
from dino_pipeline.training.objectives import Objective, get_objective, resolve_hyperparameters
from dino_pipeline.training.training_texts import TrainingTexts
from dino_pipeline.training.whitening import MAX_FITTED, MIN_TEXTS, can_be_weighed, static_student, weigh, whiten

BLIND = "the first token of a text, whose state would be its embedding, sees none of the others"
"""So it is in decoders."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides an encoder."""

    objective: Objective
    hyperparameters: Hyperparameters
    encoder: ModelRef
    """The encoder to start from."""
    load: Callable[[], SentenceTransformer]
    """Loads that encoder. It is called only if something is left to do."""
    texts: TrainingTexts
    seed: int = 42
    """Seed of head initialisation, dropout, views and data order."""

    @classmethod
    def of(
        cls,
        objective: Objective,
        hyperparameters: Hyperparameters,
        options: TrainingOptions,
        texts: TrainingTexts,
        seed: int,
    ) -> TrainingJob:
        """Return the training of the encoder that the options name."""
        name = options.encoder.removeprefix(STATIC)
        encoder = ModelRef(
            name=name,
            revision=options.revision,
            fingerprint=model_fingerprint(model_path(name, "encoder")),
            static=options.encoder.startswith(STATIC),
        )
        load = partial(_load_to_train, options, hyperparameters)
        return cls(objective, hyperparameters, encoder, load, texts, seed)

    @property
    def learns_from(self) -> TrainingTexts:
        """Return the texts that its rows are made of, and those that choose its best checkpoint."""
        sentences = self.texts.sentences
        return sentences if sentences and self.objective.needs == "sentences" else self.texts

    def start(self, reporter: Reporter | None = None) -> tuple[SentenceTransformer, WhitenTime]:
        """Return the encoder as it is before the first step, and when it is whitened."""
        model = self.load().float()  # weights stored in half precision are fitted and trained in single precision
        self._adapt(model, reporter or SilentReporter())
        when = self._whiten_time(model)
        if self.encoder.static:
            model = static_student(model, self.fitting_texts)
        if when != "no":
            model = weigh(model, self.fitting_texts)
        return whiten(model, self.fitting_texts) if when == "start" else model, when

    def _adapt(self, model: SentenceTransformer, reporter: Reporter) -> None:
        """Change what of an encoder's settings does not go with its training, and tell so.

        Raises:
            ModelError: its own pooling takes the first token, which sees none of the others.
        """
        if pooling_of(model) == "cls" and first_token_is_blind(model):
            if self._brings_pooling:
                raise ModelError(f"{self.encoder.name}: {BLIND}", "give an encoder with another pooling")
            reporter.note(f"{self.encoder.name}: {BLIND}; the last token's is taken")
            set_pooling(model, "lasttoken")
        if model.transformers_model is None and self.hyperparameters.max_length != self.objective.defaults.max_length:
            reporter.note(f"{self.encoder.name} has no layers and reads texts whole", "leave out {max_length}")
        if model.truncate_dim is not None:
            reporter.note(
                f"{self.encoder.name} cuts its embeddings to {model.truncate_dim} dimensions; all are trained"
            )
            model.truncate_dim = None
        if model.similarity_fn_name != "cosine":
            reporter.note(f"{self.encoder.name} compares by {model.similarity_fn_name}; it is trained by the cosine")
            model.similarity_fn_name = "cosine"
        if not self.objective.prompts:
            self._note_prompts(model, reporter)

    def _note_prompts(self, model: SentenceTransformer, reporter: Reporter) -> None:
        """Tell with which of an encoder's prompts it is trained."""
        if prompt := default_prompt(model):
            reporter.note(f"texts are trained as they are encoded, after the encoder's prompt {prompt!r}")
        elif names := [name for name, prompt in model.prompts.items() if prompt]:
            named = ", ".join(names)
            reporter.note(f"the encoder puts its prompts ({named}) before no text by default: none is trained")

    @cached_property
    def _brings_pooling(self) -> bool:
        return has_own_pooling(self.encoder.path("encoder"), self.encoder.revision)

    def _whiten_time(self, model: SentenceTransformer) -> WhitenTime:
        """Return when to whiten: as asked for or, if that is left open, at the end if it suits encoder and texts."""
        if self.hyperparameters.whiten != "auto":
            return self.hyperparameters.whiten
        if self.hyperparameters.matryoshka:  # it would turn the leading dimensions away
            return "no"
        is_raw = not self.encoder.static and not self._brings_pooling
        return "end" if is_raw and can_be_weighed(model) and len(self.fitting_texts) >= MIN_TEXTS else "no"

    @cached_property
    def fitting_texts(self) -> list[str]:
        """Return the texts that weights and whitening are fitted to: sentences, if some were given.

        Of scored pairs these are the first texts, if they are enough: the second ones are often written by a model.
        """
        corpus = self.texts.sentences.train.corpus if self.texts.sentences else self.texts.parts[0]
        examples = sentences_of(corpus, self.texts.language) if self.texts.split_sentences else corpus.examples
        texts = distinct_texts(examples)
        if corpus.content == "scored pairs":
            first_texts = distinct_texts([Example(example.text_a) for example in examples])
            texts = first_texts if len(first_texts) >= MIN_TEXTS else texts
        return Random(0).sample(texts, MAX_FITTED) if len(texts) > MAX_FITTED else texts

    def settings(self) -> TrainingSettings:
        """Return the job as the run's record holds it."""
        return TrainingSettings(
            **dict(self.hyperparameters),
            **dict(self.texts.settings()),
            objective=self.objective.name,
            encoder=self.encoder,
            seed=self.seed,
        )


def _load_to_train(options: TrainingOptions, hyperparameters: Hyperparameters) -> SentenceTransformer:
    """Load the encoder to start from. Adapters that it has are merged into its layers.

    Raises:
        OptionError: a pooling was asked for, and the encoder has another one of its own, or adapters are impossible.
    """
    check_lora(hyperparameters, options.revision)
    path = model_path(options.encoder.removeprefix(STATIC), "encoder")
    model = load_encoder(path, options.revision, hyperparameters.pooling)
    pooling = "mean" if options.encoder.startswith(STATIC) else pooling_of(model)
    if options.pooling is not None and pooling != hyperparameters.pooling:
        raise OptionError(
            f"{options.encoder} brings its own pooling ({pooling})",
            "leave it out",
            option="pooling",
            value=options.pooling,
        )
    if options.pooling == "cls" and first_token_is_blind(model):
        raise OptionError(
            f"{options.encoder}: {BLIND}", "give {pooling=lasttoken} or {pooling=mean}", option="pooling", value="cls"
        )
    if has_adapters(model):
        merge_adapters(model, loaded=True)
    return model


def finetune_job(options: FinetuneOptions, texts: TrainingTexts) -> TrainingJob:
    """Return the training that options ask for. If they name no objective, the texts choose it.

    Raises:
        OptionError: an option does not apply to the objective, or nothing takes the sentences.
    """
    name: str | None = options.objective
    if name is None and "loss" in options.own_options:  # which dino alone has
        name = "dino"
    objective = get_objective(name or suited_objective(texts.parts[0], faithful=bool(options.faithful)))
    hyperparameters = resolve_hyperparameters(objective, options.hyperparameters, options.own_options)
    job = TrainingJob.of(objective, hyperparameters, options, texts, options.seed)
    check_sentences([job])
    if job.encoder.static and objective.needs == "sentences":
        raise OptionError(
            f"a table of token vectors gives both views of a sentence the same embedding, and {objective.name} learns "
            "from their difference",
            "give pairs, such as a run's",
            option="encoder",
            value=options.encoder,
        )
    return job


def check_sentences(jobs: Sequence[TrainingJob]) -> None:
    """Raise `OptionError` if sentences were given, and none of some trainings takes them.

    Objectives that need sentences learn from them; whitening and static students are fitted to them.
    """
    sentences = jobs[0].texts.sentences
    if sentences is None or jobs[0].encoder.static:
        return
    if all(job.objective.needs != "sentences" and job.hyperparameters.whiten == "no" for job in jobs):
        names = ", ".join(job.objective.name for job in jobs)
        raise OptionError(
            f"{names} does not learn from them, and nothing is whitened",
            "leave them out, or give {whiten=end}",
            option="sentences",
            value=sentences.train.label,
        )
