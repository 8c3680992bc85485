"""Whether a training can be worth anything: checks that refuse it, or that a user should hear of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import has_static_embedding_input
from torch import nn

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import DataError, ModelError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.text import normalise
from dino_pipeline.training.corpus import distinct_texts
from dino_pipeline.training.objectives import Objective

COLLAPSED = 0.99
"""Mean cosine of different texts from which embeddings count as collapsed."""
PROBE_TEXTS = 256
"""Texts in which collapse is looked for."""
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


def check_encoder(model: SentenceTransformer, objective: Objective, hyperparameters: Hyperparameters) -> None:
    """Refuse an encoder that an objective cannot train.

    Raises:
        ModelError: it has no dropout and needs it, or cannot cache gradients.
        OptionError: it takes fewer tokens, or has fewer dimensions, than the options ask for.
    """
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
    positions = getattr(getattr(model.transformers_model, "config", None), "max_position_embeddings", None)
    max_length = hyperparameters.max_length
    if max_length and positions and max_length > positions:
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
    steps. A batch size that a user chose stays. If no two rows of a batch may share a text, it is at most the size of
    the batches that can be filled.
    """
    batch_size = hyperparameters.batch_size
    is_default = batch_size == objective.defaults.batch_size
    if objective.in_batch_negatives and hyperparameters.steps is None and is_default:
        batch_size = min(batch_size, max(int(len(dataset) * hyperparameters.epochs / MIN_STEPS), FEW_ROWS))
    if objective.no_duplicates:
        batch_size = min(batch_size, max(int(FILLED * _duplicate_free_rows(dataset, batch_size)), 2))
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


@dataclass(frozen=True)
class DataReport:
    """Figures of a training's data, and what a user should know of them."""

    batch: int
    """Rows per batch."""
    cut: float
    """Share of texts that are longer than the encoder takes."""
    repeated: float
    """Share of rows that share their first text with another row."""
    notes: list[tuple[str, str]]
    """Message and remedy of each note."""


def inspect_data(
    model: SentenceTransformer,
    objective: Objective,
    hyperparameters: Hyperparameters,
    dataset: Dataset,
    wanted_rows: int,
    wanted_batch: int,
) -> DataReport:
    """Return what is worth knowing of the dataset that an objective built.

    Args:
        wanted_rows: the rows before the objective left some out.
        wanted_batch: the batch size before `fit_batch_size`.

    Raises:
        DataError: there are too few rows for in-batch negatives.
        OptionError: the batches are too small for them.
    """
    rows, batch = len(dataset), min(hyperparameters.batch_size, len(dataset))
    notes: list[tuple[str, str]] = []
    if rows < wanted_rows:
        notes.append((f"{wanted_rows - rows} of {wanted_rows} {objective.needs} are too short", ""))
    if objective.in_batch_negatives:
        if hyperparameters.batch_size < 2:
            raise OptionError(
                f"{objective.name} needs the other rows of a batch",
                option="batch_size",
                value=hyperparameters.batch_size,
            )
        if rows < 2:
            raise DataError(f"{objective.name}: one row is too few; the others of a batch are what it learns from")
        if batch < FEW_ROWS:
            few = f"batches of {batch} rows leave {batch - 1} other rows to tell a text from"
            notes.append((f"{few}; {FEW_ROWS} and more are usual", ""))
    cut = share_cut(model, objective, dataset)
    if cut >= WORTH_A_NOTE:
        notes.append(
            (
                f"{cut:.0%} of the texts are longer than {model.max_seq_length} tokens and are cut",
                "raise {max_length}, or train on their sentences with {split_sentences=True}",
            )
        )
    repeated = share_repeated(dataset) if objective.in_batch_negatives else 0.0
    if repeated >= WORTH_A_NOTE:
        effect = "batches keep them apart" if objective.no_duplicates else "in one batch they are false negatives"
        notes.append((f"{repeated:.0%} of the rows share a first text with another row; {effect}", ""))
    if batch < min(wanted_batch, rows):
        notes.append((f"batches are of {batch} rows, not {wanted_batch}: there are {rows} rows to fill them from", ""))
    return DataReport(batch, round(cut, 4), round(repeated, 4), notes)


def share_cut(model: SentenceTransformer, objective: Objective, dataset: Dataset) -> float:
    """Return the share of texts, in the first rows, that have more tokens than the encoder takes."""
    length = model.max_seq_length
    if not length or has_static_embedding_input(model):
        return 0.0
    prompt = max(objective.prompts.values(), key=len, default="")
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


def probe_texts(examples: Sequence[Example]) -> list[str]:
    """Return different texts in which to look for collapse."""
    return distinct_texts(examples[:PROBE_TEXTS])[:PROBE_TEXTS]
