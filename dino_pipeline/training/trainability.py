"""Looks, before a training begins, for what would make it worthless: refuses it, or says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import has_static_embedding_input
from torch import nn

from dino_pipeline.errors import DataError, ModelError, OptionError
from dino_pipeline.texts import normalise
from dino_pipeline.training.objectives import Objective, Training

LOOKED_AT = 2000
"""Texts whose length is looked at."""
FEW = 32
"""Batches under this leave few negatives."""
LEAST_STEPS = 20
FILLED = 0.8
"""Of the rows that fit side by side in one order; in another there may be fewer."""
MUCH = 0.01
"""A share of cut or repeated texts from here on is said."""


def check_model(model: SentenceTransformer, objective: Objective, training: Training) -> None:
    """Refuse an encoder that an objective cannot train.

    Raises:
        ModelError: it has no dropout and needs it, or cannot cache gradients.
        OptionError: it has fewer dimensions than asked for.
    """
    same_views = objective.needs_dropout or training.options.get("mask") == "none"
    if same_views and not has_dropout(model):
        raise ModelError(
            f"{objective.name}: the encoder has no dropout, so that both views of a text would be the same; "
            "take one with dropout, or mirror-bert, whose views differ by masks"
        )
    if training.mini_batch_size and has_static_embedding_input(model):
        raise ModelError(
            f"{objective.name}: the encoder is a table of word vectors; its inputs cannot be parted into mini-batches, "
            "take one with layers"
        )
    positions = getattr(getattr(model.transformers_model, "config", None), "max_position_embeddings", None)
    if training.max_length and positions and training.max_length > positions:
        raise OptionError(f"--max-length {training.max_length}: the encoder takes at most {positions} tokens")
    size = model.get_embedding_dimension()
    if too_large := [each for each in training.matryoshka if each >= size]:
        raise OptionError(f"--matryoshka {too_large[0]}: must be smaller than the encoder's {size} dimensions")


def has_dropout(model: SentenceTransformer) -> bool:
    """Say whether an encoder computes something else each time it is trained on a text."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    configuration = getattr(model.transformers_model, "config", None)
    rates = {name: rate for name, rate in vars(configuration).items() if "drop" in name} if configuration else {}
    return any(isinstance(rate, float) and rate > 0 for rate in rates.values())


def fitted(objective: Objective, training: Training, dataset: Dataset, processes: int) -> Training:
    """Return hyper-parameters whose batches can be filled, and are not so large that hardly a step is taken.

    A paper's batch for millions of rows is made smaller on few, until there are `LEAST_STEPS`; a batch that a user asks
    for is not. Where no two rows of a batch may share a text, it is no larger than what can be filled.
    """
    batch = training.batch_size
    if objective.in_batch and training.steps is None and batch == objective.defaults.batch_size:
        batch = min(batch, max(int(len(dataset) * training.epochs / LEAST_STEPS), FEW))
    if objective.distinct:
        batch = min(batch, max(int(FILLED * _side_by_side(dataset, batch)), 2))
    return replace(training, batch_size=max(batch // processes * processes, processes))


def _side_by_side(dataset: Dataset, most: int) -> int:
    """Return how many rows, up to ``most``, are found that share no text with one another."""
    taken: set[str] = set()
    found = 0
    for row in zip(*(dataset[name] for name in dataset.column_names), strict=True):
        if found == most:
            break
        if taken.isdisjoint(row):
            taken.update(row)
            found += 1
    return found


def notes(
    model: SentenceTransformer, objective: Objective, training: Training, dataset: Dataset, asked: int
) -> dict[str, Any]:
    """Return what is worth knowing of a training: figures for the record, and ``notes`` for the user.

    Args:
        model: the encoder.
        objective: how it learns.
        training: hyper-parameters, `fitted`.
        dataset: as the objective built it.
        asked: the batch size before it was fitted.

    Raises:
        DataError: there are too few rows for in-batch negatives.
        OptionError: the batches are too small for them.
    """
    rows, batch = len(dataset), min(training.batch_size, len(dataset))
    said = []
    if objective.in_batch:
        if training.batch_size < 2:
            raise OptionError(f"--batch-size {training.batch_size}: {objective.name} needs the other rows of a batch")
        if rows < 2:
            raise DataError(f"{objective.name}: one row is too few; the others of a batch are what it learns from")
        if batch < FEW:
            said.append(
                f"batches of {batch} rows leave {batch - 1} other rows to tell a text from; {FEW} and more are usual"
            )
    cut = share_cut(model, objective, dataset)
    if cut >= MUCH:
        said.append(
            f"{cut:.0%} of the texts are longer than {model.max_seq_length} tokens and are cut (--max-length); "
            "sentences of them can be had with --split-sentences"
        )
    repeated = share_repeated(dataset) if objective.in_batch else 0.0
    if repeated >= MUCH:
        kept_apart = "batches keep them apart" if objective.distinct else "in one batch they are false negatives"
        said.append(f"{repeated:.0%} of the rows share a first text with another row; {kept_apart}")
    if batch < min(asked, rows):
        said.append(f"batches are of {batch} rows, not {asked}: there are {rows} rows to fill them from")
    return {"batch": batch, "cut": round(cut, 4), "repeated": round(repeated, 4), "notes": said}


def share_cut(model: SentenceTransformer, objective: Objective, dataset: Dataset) -> float:
    """Return the share of texts, of the first rows', that have more tokens than the encoder takes."""
    length = model.max_seq_length
    if not length or has_static_embedding_input(model):
        return 0.0
    rows = dataset[: LOOKED_AT // 2]
    texts = [text for column in rows.values() for text in column if isinstance(text, str)]
    prompt = max(objective.prompts.values(), key=len, default="")
    encoded = model.tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    return sum(len(ids) > length for ids in encoded) / max(len(encoded), 1)


def share_repeated(dataset: Dataset) -> float:
    """Return the share of rows whose first text, in normal form, another row has too."""
    raw = dataset.with_format(None)  # as they are before views are drawn from them
    counts = Counter(map(normalise, raw[raw.column_names[0]]))
    return sum(count for count in counts.values() if count > 1) / max(len(dataset), 1)
