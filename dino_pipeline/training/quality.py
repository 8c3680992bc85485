"""Whether a training is worth anything: what is checked before it begins, and what chooses its best checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.spatial.distance import pdist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.losses import has_static_embedding_input
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import WordWeights
from torch import nn

from dino_pipeline.encoder_check import position_limit
from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import DataError, ModelError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.models import BATCH_SIZE, Vectors, embed, mean_cosine
from dino_pipeline.progress import Reporter
from dino_pipeline.stage_records import FinetuneRecord
from dino_pipeline.text import joined, normalise, units
from dino_pipeline.training.adapters import contrast_classes
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.health import COLLAPSED, longest_prompt
from dino_pipeline.training.objectives import Objective, reads_token_states

SAMPLED_ROWS = 1000
"""Rows whose texts are measured to estimate the share that is cut."""
FEW_ROWS = 32
"""Batches with fewer rows leave few negatives."""
MIN_STEPS = 20
"""Default batches are made smaller until there are that many steps."""
FILLED = 0.8
"""Share of the largest duplicate-free batch found in one order. Other orders may find a smaller one."""
WORTH_A_NOTE = 0.01
"""Share of cut or repeated texts from which it is worth a note."""
MAX_TEXTS = 2000
"""Texts that uniformity compares with one another."""


def check_encoder(model: SentenceTransformer, objective: Objective, hyperparameters: Hyperparameters) -> None:
    """Refuse an encoder that an objective cannot train.

    Raises:
        ModelError: it has no dropout and needs it, or cannot cache gradients.
        OptionError: it takes fewer tokens, or has fewer dimensions, than the options ask for.
    """
    if isinstance(model[0], Router):
        raise ModelError(
            "the encoder has layers of their own for queries and for documents, and texts of both kinds are trained on",
            "take one that encodes all texts alike",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("the encoder has nothing that could be trained", "take one with layers")
    same_views = objective.needs_dropout or hyperparameters.options.get("mask") == "none"
    if same_views and not has_dropout(model):
        raise ModelError(
            f"{objective.name}: the encoder has no dropout, so that both views of a text would be the same",
            "take one with dropout, or mirror-bert, whose views differ by masks",
        )
    if hyperparameters.mini_batch_size and has_static_embedding_input(model):
        raise ModelError(
            f"{objective.name}: the encoder is a table of word vectors; its inputs cannot be parted into mini-batches",
            "take one with layers",
        )
    if model.transformers_model is None:
        if objective.reads_token_states:
            raise ModelError(
                f"{objective.name}: the encoder has no layers, and so no token states", "take one with layers"
            )
        for option in ("freeze_embeddings", "lora"):
            if value := getattr(hyperparameters, option):
                raise OptionError("needs an encoder with layers", "leave it out", option=option, value=value)
    if objective.reads_token_states and any(
        getattr(module, "module_output_name", "") == "token_embeddings" for module in list(model)[1:]
    ):
        raise ModelError(f"{objective.name}: the encoder changes its layers' token states", "take another encoder")
    weighs_tokens = any(isinstance(module, WordWeights) for module in model)
    if weighs_tokens and reads_token_states(objective, hyperparameters):
        raise OptionError(f"{objective.name} needs token states without weights", "leave it out", option="whiten")
    if hyperparameters.matryoshka and hyperparameters.whiten == "end":
        raise OptionError("turns the trained leading dimensions away", "whiten at the start", option="whiten")
    positions = None if model.transformers_model is None else position_limit(model.transformers_model)[0]
    max_length = hyperparameters.max_length
    authors = objective.followed(hyperparameters)
    is_authors = authors is not None and max_length == authors.hyperparameters.get("max_length")
    if max_length and positions and max_length > positions and not is_authors:
        raise OptionError(f"the encoder takes at most {positions} tokens", option="max_length", value=max_length)
    dimension = model.get_embedding_dimension()
    for size in hyperparameters.matryoshka:
        if size >= dimension:
            raise OptionError(
                f"must be smaller than the encoder's {dimension} dimensions", option="matryoshka", value=size
            )


def has_dropout(model: SentenceTransformer) -> bool:
    """Return whether an encoder computes something else each time it is trained on a text."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    configuration = getattr(model.transformers_model, "config", None)
    rates = {name: rate for name, rate in vars(configuration).items() if "drop" in name} if configuration else {}
    return any(isinstance(rate, float) and rate > 0 for rate in rates.values())


def fit_batch_size(
    objective: Objective, hyperparameters: Hyperparameters, dataset: Dataset, processes: int
) -> Hyperparameters:
    """Return hyper-parameters with a batch size that the dataset can fill and the processes can share.

    An objective's default batch is for millions of rows. With few rows it is made smaller until there are `MIN_STEPS`
    steps. A batch size that a user chose stays, and so does that of the authors' code. If no two rows of a batch may
    share a text, it is at most the size of the batches that can be filled.
    """
    batch_size = hyperparameters.batch_size
    is_default = batch_size == objective.defaults.batch_size and not hyperparameters.faithful
    if objective.in_batch_negatives and hyperparameters.steps is None and is_default:
        batch_size = min(batch_size, max(int(len(dataset) * hyperparameters.epochs / MIN_STEPS), FEW_ROWS))
    if objective.keeps_apart(hyperparameters):
        batch_size = min(
            batch_size, max(int(FILLED * _duplicate_free_rows(dataset, math.ceil(batch_size / FILLED))), 2)
        )
    return hyperparameters.updated(batch_size=max(batch_size // processes * processes, processes))


def _duplicate_free_rows(dataset: Dataset, limit: int) -> int:
    """Return how many rows, up to a limit, can be taken in order so that no two of them share a text."""
    taken: set[str] = set()
    count = 0
    for row in zip(*(dataset[name] for name in dataset.column_names), strict=True):
        if count == limit:
            break
        if taken.isdisjoint(row):
            taken.update(row)
            count += 1
    return count


def inspect_data(
    record: FinetuneRecord,
    model: SentenceTransformer,
    objective: Objective,
    dataset: Dataset,
    batch_size: int,
    reporter: Reporter,
) -> FinetuneRecord:
    """Return the record with what is worth knowing of the dataset that an objective built, and note it.

    The record says how many rows there were before the objective left some out, and which batch size was asked for.
    ``batch_size`` is what `fit_batch_size` made of it.

    Raises:
        DataError: there are too few rows for in-batch negatives.
        OptionError: the batches are too small for them.
    """
    rows, batch, wanted_rows = len(dataset), min(batch_size, len(dataset)), record.train or 0
    notes: list[str] = []

    def note(message: str, remedy: str = "") -> None:
        notes.append(message)
        reporter.note(message, remedy)

    if rows < wanted_rows:
        note(f"{wanted_rows - rows} of {wanted_rows} {objective.needs} are too short")
    if objective.in_batch_negatives:
        if batch_size < 2:
            raise OptionError(
                f"{objective.name} needs the other rows of a batch", option="batch_size", value=batch_size
            )
        if rows < 2:
            raise DataError(f"{objective.name}: one row is too few; the others of a batch are what it learns from")
        if batch < FEW_ROWS:
            few = f"batches of {batch} rows leave {batch - 1} other rows to tell a text from"
            note(f"{few}; {FEW_ROWS} and more are usual")
    cut = share_cut(model, objective, dataset)
    if cut >= WORTH_A_NOTE:
        note(
            f"{cut:.0%} of the texts are longer than {model.max_seq_length} tokens and are cut",
            "raise {max_length}, or train on their sentences with {split_sentences=True}",
        )
    repeated = share_repeated(dataset) if objective.in_batch_negatives else 0.0
    if repeated >= WORTH_A_NOTE:
        effect = (
            "batches keep them apart"
            if objective.keeps_apart(record.options)
            else "in one batch they are false negatives"
        )
        note(f"{repeated:.0%} of the rows share a first text with another row; {effect}")
    wanted_batch = record.options.batch_size
    if batch < min(wanted_batch, rows):
        note(f"batches are of {batch} rows, not {wanted_batch}: there are {rows} rows to fill them from")
    return record.updated(batch=batch, cut=round(cut, 4), repeated=round(repeated, 4), notes=tuple(notes))


def share_cut(model: SentenceTransformer, objective: Objective, dataset: Dataset) -> float:
    """Return the share of texts, in the first rows, that have more tokens than the encoder takes."""
    length = model.max_seq_length
    if not length or model.transformers_model is None:
        return 0.0
    prompt = longest_prompt(model, objective)
    texts = []
    for column in dataset[:SAMPLED_ROWS].values():
        texts += [prompt + text for text in column if isinstance(text, str)]
    token_ids = model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    return sum(len(ids) > length for ids in token_ids) / max(len(token_ids), 1)


def share_repeated(dataset: Dataset) -> float:
    """Return the share of rows whose first text, in normal form, is also another row's."""
    raw = dataset.with_format(None)  # the rows themselves, not the views drawn from them
    counts = Counter(map(normalise, raw[raw.column_names[0]]))
    return sum(count for count in counts.values() if count > 1) / max(len(dataset), 1)


# The best checkpoint: chosen by held-out texts, without labels made by people.


@dataclass(frozen=True)
class SelectionCriterion:
    """Chooses the best checkpoint: the one with the highest measure on held-out texts."""

    evaluator: BaseEvaluator
    measure: str
    """Name of the measure, as it is shown."""
    scale: float
    """Factor by which the measure is multiplied where it is shown."""
    rows: int
    """Number of pairs or texts that it is computed on."""
    keeps_last: bool = False
    """Whether the last checkpoint is kept all the same, and only measured."""

    @property
    def metric(self) -> str:
        """Return the measure's name among the trainer's metrics."""
        return f"eval_{self.evaluator.primary_metric}"

    def measured(self, model: SentenceTransformer) -> float:
        """Return the measure of an encoder as it is, unscaled."""
        measures = self.evaluator(model)
        assert isinstance(measures, dict)
        return float(measures[self.evaluator.primary_metric])


def selection_criterion(held_out: Corpus) -> SelectionCriterion:
    """Return the criterion for held-out texts: Spearman for scored pairs, else alignment and uniformity.

    Raises:
        DataError: all scores are the same.
    """
    if held_out.content != "scored pairs":
        views = AlignmentUniformity(held_out.examples[:MAX_TEXTS], paired=held_out.content == "pairs")
        return SelectionCriterion(views, "alignment and uniformity", 1, len(views.first))
    scores = [example.label for example in held_out.examples]
    if len(dict.fromkeys(scores)) < 2:
        raise DataError(
            f"{held_out.name}: must hold scored pairs with at least two different scores", "filter a larger dataset"
        )
    evaluator: Any = EmbeddingSimilarityEvaluator(
        sentences1=[example.text_a for example in held_out.examples],
        sentences2=[example.text_b for example in held_out.examples],
        scores=scores,
        batch_size=BATCH_SIZE,
        name="dev",
        similarity_fn_names=["cosine"],
        write_csv=False,
    )
    evaluator.primary_metric = "dev_spearman_cosine"
    return SelectionCriterion(evaluator, "Spearman", 100, len(scores))


def criterion_for(held_out: Corpus, objective: Objective, *, learns_classes: bool) -> SelectionCriterion:
    """Return the criterion for an objective.

    If it learns from pairs within and between classes, such pairs of the held-out texts choose.
    """
    of_classes = learns_classes and held_out.content == "classified texts"
    if of_classes and objective.needs in ("scored pairs", "triplets"):
        pairs = contrast_classes(held_out.examples)
        if len({pair.label for pair in pairs}) > 1:  # a few texts may all be of one class
            return selection_criterion(Corpus(held_out.name, pairs))
    return selection_criterion(held_out)


def with_quality(
    record: FinetuneRecord,
    model: SentenceTransformer,
    criterion: SelectionCriterion,
    best: float | None,
    probe: Sequence[str],
) -> FinetuneRecord:
    """Return the record with the best checkpoint's measure, and whether its embeddings have collapsed.

    Raises:
        ModelError: the measure is not a number.
    """
    if best is None or not math.isfinite(best):
        raise ModelError(
            f"{record.options.objective}: no checkpoint can be told from another after {record.steps} steps "
            "(embeddings that are not numbers, or all the same)",
            "train with a lower {learning_rate}",
        )
    cosine = mean_cosine(model, probe)
    assert record.selection is not None
    return record.updated(
        selection=record.selection.updated(best=round(criterion.scale * best, 2)),
        mean_cosine=round(cosine, 4),
        collapsed=cosine >= COLLAPSED,
    )


class AlignmentUniformity(BaseEvaluator):
    """Alignment of pairs and uniformity of embeddings (Wang & Isola 2020, section 4).

    A pair is two texts that belong together, as those of an example do if it is ``paired``, or a text and itself with
    one word left out.
    """

    def __init__(self, examples: Sequence[Example], *, paired: bool) -> None:
        super().__init__()
        self.primary_metric = "dev_alignment_uniformity"
        random = Random(0)
        self.first: list[str] = []
        self.second: list[str] = []
        for example in examples:
            self.first.append(example.text_a)
            view = example.text_b if paired else None
            self.second.append(view or _drop_a_word(example.text_a, random))

    def __call__(self, model: SentenceTransformer, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return minus the sum of alignment and uniformity; each is better the lower it is."""
        first, second = embed(model, self.first), embed(model, self.second)
        return {self.primary_metric: -alignment(first, second) - uniformity(first)}


def alignment(first: Vectors, second: Vectors) -> float:
    """Return the mean squared distance of pairs of vectors of length 1, each ``(pairs, dimension)``."""
    return float(((first - second) ** 2).sum(axis=1).mean())


def uniformity(vectors: Vectors) -> float:
    """Return the logarithm of the mean of ``exp(-2 d^2)`` over all pairs of ``(texts, dimension)`` of length 1."""
    if len(vectors) < 2:
        return 0.0
    return float(np.log(np.exp(-2 * pdist(vectors, "sqeuclidean")).mean()))


def _drop_a_word(text: str, random: Random) -> str:
    words = units(text)
    if len(words) > 1:
        del words[random.randrange(len(words))]
    return joined(words)
