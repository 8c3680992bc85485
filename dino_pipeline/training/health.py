"""Whether a training can teach an encoder anything: what stays the same for all texts, or is no number, ends it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import Example
from dino_pipeline.models import default_prompt, embed
from dino_pipeline.training.corpus import distinct_texts
from dino_pipeline.training.objectives import Objective

COLLAPSED = 0.99
"""Mean cosine of different texts from which embeddings count as collapsed."""
SAME = 1e-5
"""Coordinates of embeddings that differ by less are the same: so much is lost in rounding."""
PROBE_TEXTS = 256
"""Texts in which collapse is looked for."""
FIRST_ROWS = 32
"""Rows whose texts are compared to see whether all have one embedding."""
STUCK_STEPS = 8
"""Steps with the very same loss after which a training ends."""
LEARNED = 1e-3
"""Smaller losses may stay as they are."""


def longest_prompt(model: SentenceTransformer, objective: Objective) -> str:
    """Return the longest text that stands before texts in training."""
    return max(objective.prompts.values(), key=len, default=default_prompt(model))


def check_room(model: SentenceTransformer, objective: Objective) -> None:
    """Refuse a limit of tokens that special tokens and a prompt use up: all texts would have the same embedding.

    Raises:
        OptionError: see above.
    """
    if model.transformers_model is None or model.max_seq_length is None:
        return
    used = len(model.tokenizer(longest_prompt(model, objective))["input_ids"])
    if model.max_seq_length <= used:
        raise OptionError(
            f"texts are cut to {model.max_seq_length} tokens, and special ones and the prompt are {used} of these",
            f"give {{max_length}} of more than {used}",
        )


def probe_texts(examples: Sequence[Example]) -> list[str]:
    """Return different texts in which to look for collapse."""
    return distinct_texts(examples[:PROBE_TEXTS])[:PROBE_TEXTS]


def check_not_constant(model: SentenceTransformer, dataset: Dataset, when: str) -> None:
    """Refuse embeddings that are the same for all texts of the first rows, or are not numbers.

    Args:
        dataset: what an objective has built.
        when: in the training; the message begins with it.

    Raises:
        ModelError: see above.
    """
    texts: dict[str, None] = {}
    for column in dataset[:FIRST_ROWS].values():
        texts |= dict.fromkeys(text for text in column if isinstance(text, str))
    vectors = embed(model, list(texts))
    if not np.isfinite(vectors).all():
        raise ModelError(f"{when}: embeddings are not numbers (NaN)", "train with a lower {learning_rate}")
    if len(vectors) > 1 and np.abs(vectors - vectors[0]).max() < SAME:
        raise ModelError(
            f"{when}: all texts have the same embedding, from which nothing is learned",
            "take another encoder or {pooling}, or train with a lower {learning_rate}",
        )


class LossWatch:
    """Ends a training whose loss is no number, or stays the same."""

    def __init__(self) -> None:
        self.last: deque[float] = deque(maxlen=STUCK_STEPS)

    def see(self, loss: float, step: int) -> None:
        """Take in the loss of a batch.

        Raises:
            ModelError: it is not a number, or has been the same for `STUCK_STEPS` batches.
        """
        self.last.append(loss)
        if not math.isfinite(loss):
            raise ModelError(f"step {step}: the loss is not a number", "train with a lower {learning_rate}")
        if len(self.last) == STUCK_STEPS and min(self.last) == max(self.last) > LEARNED:
            raise ModelError(
                f"step {step}: the loss has been {loss:.4g} for {STUCK_STEPS} steps: nothing is learned",
                "take another encoder or {pooling}, or train with another {learning_rate}",
            )
