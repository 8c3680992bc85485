"""What is to be trained: by which objectives one after another, with which settings, from which encoder and texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from random import Random

from sentence_transformers import SentenceTransformer

from dino_pipeline.encoder_options import (
    HYPERPARAMETERS,
    FinetuneOptions,
    Hyperparameters,
    OptionValue,
    TrainingOptions,
    WhitenTime,
)
from dino_pipeline.errors import OptionError
from dino_pipeline.examples import Example
from dino_pipeline.models import (
    STATIC,
    ModelRef,
    has_adapters,
    has_own_pooling,
    load_encoder,
    model_fingerprint,
    model_path,
    pooling_of,
)
from dino_pipeline.stage_records import TrainingSettings
from dino_pipeline.training.adapters import sentences_of, suited_objective
from dino_pipeline.training.corpus import distinct_texts
from dino_pipeline.training.lora import check_lora, merge_adapters
from dino_pipeline.training.objectives import (
    Objective,
    get_objective,
    resolve_hyperparameters,
    rows_are_independent,
)
from dino_pipeline.training.training_texts import TrainingTexts
from dino_pipeline.training.whitening import MAX_FITTED, MIN_TEXTS, can_be_weighed, static_student, weigh, whiten

SENTENCES_FIRST: dict[str, float] = {"batch_size": 40, "learning_rate": 5e-5, "steps": 70}
"""Settings of mirror-bert where the texts chose it to come first, measured on real text (docs/results.md)."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides an encoder: a training, or the last of several that go on from one another."""

    objective: Objective
    hyperparameters: Hyperparameters
    encoder: ModelRef
    """The encoder that the first training starts from."""
    load: Callable[[], SentenceTransformer]
    """Loads the encoder that this one starts from. It is called only if something is left to do."""
    texts: TrainingTexts
    seed: int = 42
    """Seed of head initialisation, dropout, views and data order."""
    before: TrainingJob | None = None
    """The training that this one goes on from."""
    is_last: bool = True
    """Whether no other training goes on from it."""

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
        load = partial(_load_to_train, options, hyperparameters)
        return cls(objective, hyperparameters, _encoder(options), load, texts, seed)

    @property
    def learns_from(self) -> TrainingTexts:
        """Return the texts that its rows are made of, and those that choose its best checkpoint."""
        sentences = self.texts.sentences
        return sentences if sentences and self.objective.needs == "sentences" else self.texts

    @property
    def reads_sentences(self) -> bool:
        """Return whether it, or one before it, learns from texts without labels."""
        return self.objective.needs == "sentences" or bool(self.before and self.before.reads_sentences)

    def with_seed(self, seed: int) -> TrainingJob:
        """Return the same trainings with another seed."""
        return replace(self, seed=seed, before=self.before and self.before.with_seed(seed))

    def start(self) -> tuple[SentenceTransformer, WhitenTime]:
        """Return the encoder as it is before the first step, and when it is whitened."""
        model = self.load().float()  # weights stored in half precision are fitted and trained in single precision
        when = self._when_to_whiten(model)
        if self.before is not None:  # which has done the rest
            return model, when
        if self.encoder.static:
            model = static_student(model, self.fitting_texts)
        if when != "no":
            model = weigh(model, self.fitting_texts)
        return whiten(model, self.fitting_texts) if when == "start" else model, when

    def _when_to_whiten(self, model: SentenceTransformer) -> WhitenTime:
        """Return when to whiten an encoder, which decides it if it was left open."""
        if self.hyperparameters.whiten != "auto":
            return self.hyperparameters.whiten
        if self.hyperparameters.matryoshka:  # it would turn the leading dimensions away
            return "no"
        fits = _is_raw(self.encoder) and can_be_weighed(model) and len(self.fitting_texts) >= MIN_TEXTS
        return "end" if fits else "no"

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
            before=self.before.settings() if self.before else None,
        )


def _encoder(options: TrainingOptions) -> ModelRef:
    """Return the encoder that options name."""
    name = options.encoder.removeprefix(STATIC)
    return ModelRef(
        name=name,
        revision=options.revision,
        fingerprint=model_fingerprint(model_path(name, "encoder")),
        static=options.encoder.startswith(STATIC),
    )


def _is_raw(encoder: ModelRef) -> bool:
    """Return whether an encoder brings no pooling of its own, as one that was never trained on pairs."""
    return not encoder.static and not has_own_pooling(encoder.path("encoder"), encoder.revision)


def _load_to_train(options: TrainingOptions, hyperparameters: Hyperparameters) -> SentenceTransformer:
    """Load the encoder to start from.

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
    if has_adapters(model):
        merge_adapters(model, loaded=True)
    return model


def finetune_job(options: FinetuneOptions, texts: TrainingTexts) -> TrainingJob:
    """Return the training that options ask for: by one objective, or by several that go on from one another.

    Raises:
        OptionError: an option does not apply to an objective, or nothing learns from the sentences.
    """
    objectives = [get_objective(name) for name in _objective_names(options, texts)]
    names = [objective.name for objective in objectives]
    given = dict(options.objective_options)
    if len(names) > 1 and not options.then:  # the texts chose both
        given = _measured_settings(options) | given
    if options.loss:
        given["dino:loss" if "dino" in names else f"{names[-1]}:loss"] = options.loss
    if len(objectives) == 1:
        given = {name if ":" in name else f"{names[0]}:{name}": value for name, value in given.items()}
        for_it, own = _options_for(names[0], given, names)
        hyperparameters = [resolve_hyperparameters(objectives[0], {**options.hyperparameters, **for_it}, own)]
    else:
        _check_several(names, given, options)
        hyperparameters = [for_one_of_several(objective, options, given, names) for objective in objectives]
    check_sentences(texts, objectives, hyperparameters)
    job: TrainingJob | None = None
    for objective, own_hyperparameters in zip(objectives, hyperparameters, strict=True):
        # there is one encoder: the last objective says how it pools, and when it is whitened
        of_encoder = {"pooling": hyperparameters[-1].pooling, "whiten": hyperparameters[-1].whiten}
        before = replace(job, is_last=False) if job else None
        job = TrainingJob.of(objective, own_hyperparameters.updated(**of_encoder), options, texts, options.seed)
        job = replace(job, before=before)
    assert job is not None
    return job


def _objective_names(options: FinetuneOptions, texts: TrainingTexts) -> list[str]:
    """Return the objectives that were asked for, or those that suit the texts and the encoder."""
    if options.objective is not None:
        return [options.objective, *options.then]
    if options.loss or "loss" in options.objective_options:  # which dino alone has
        return ["dino", *options.then]
    suited = suited_objective(texts.parts[0], faithful=bool(options.faithful))
    if suited == "triplets" and texts.sentences and not options.then and _is_raw(_encoder(options)):
        return ["mirror-bert", suited]
    return [suited, *options.then]


def _measured_settings(options: TrainingOptions) -> dict[str, OptionValue]:
    """Return `SENTENCES_FIRST` as options of mirror-bert, without what was given for all objectives."""
    given = {"steps" if name == "epochs" else name for name in options.hyperparameters}
    return {f"mirror-bert:{name}": value for name, value in SENTENCES_FIRST.items() if name not in given}


def _check_several(names: Sequence[str], given: Mapping[str, OptionValue], options: FinetuneOptions) -> None:
    """Refuse options that several trainings of one encoder do not allow.

    Raises:
        OptionError: adapters are to be saved apart, or a training that is not the last one chooses for the encoder.
    """
    if options.lora_save == "adapter":
        raise OptionError("each training merges its adapters for the next one", "leave it out", option="lora_save")
    for name in names[:-1]:
        for option in ("pooling", "whiten"):
            if f"{name}:{option}" in given:
                raise OptionError(
                    f"{option} is the encoder's, not one objective's",
                    f"give {{{option}}} for all",
                    option="objective_options",
                    value=f"{name}:{option}",
                )


def for_one_of_several(
    objective: Objective, options: TrainingOptions, given: Mapping[str, OptionValue], names: Collection[str]
) -> Hyperparameters:
    """Return the hyper-parameters of an objective: those for all, as far as it has them, and those for it alone.

    Args:
        given: options of single objectives, as ``OBJECTIVE:NAME``.
        names: the objectives that there may be options for.

    Raises:
        OptionError: a name is not OBJECTIVE:NAME, or a value is wrong.
    """
    for_all = options.hyperparameters
    if not (objective.caches_gradients or rows_are_independent(objective, objective.defaults)):
        for_all.pop("mini_batch_size", None)
    if not objective.faithful:
        for_all.pop("faithful", None)
    for_it, own = _options_for(objective.name, given, names)
    return resolve_hyperparameters(objective, {**for_all, **for_it}, own)


def _options_for(
    name: str, given: Mapping[str, OptionValue], names: Collection[str]
) -> tuple[dict[str, object], dict[str, OptionValue]]:
    """Return the hyper-parameters and the own options that were given for one objective alone."""
    hyperparameters: dict[str, object] = {}
    own: dict[str, OptionValue] = {}
    for key, value in given.items():
        objective, colon, option = key.partition(":")
        if not colon or objective not in names:
            raise OptionError(
                f"must be OBJECTIVE:NAME=VALUE with one of the objectives {', '.join(names)}",
                option="objective_options",
                value=f"{key}={value}",
            )
        if objective == name and option in HYPERPARAMETERS:
            hyperparameters[option] = getattr(Hyperparameters.of({option: value}), option)
        elif objective == name:
            own[option] = value
    return hyperparameters, own


def check_sentences(
    texts: TrainingTexts, objectives: Sequence[Objective], hyperparameters: Sequence[Hyperparameters]
) -> None:
    """Raise `OptionError` if sentences were given, and neither an objective nor whitening takes them."""
    learnt_from = any(objective.needs == "sentences" for objective in objectives)
    if texts.sentences and not learnt_from and all(each.whiten == "no" for each in hyperparameters):
        names = ", ".join(objective.name for objective in objectives)
        raise OptionError(
            f"{names} does not learn from them, and nothing is whitened",
            "leave them out, or give {whiten=end}",
            option="sentences",
            value=texts.sentences.train.label,
        )
