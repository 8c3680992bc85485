"""Checks that a model computes the same in cached rows as alone, and up to which length."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_pipeline.decoding.cache import CachedRows
from dino_pipeline.decoding.plain_forward import PlainForward
from dino_pipeline.decoding.prefill import attention_windows
from dino_pipeline.decoding.shallow_copy import SMALL_MODEL, shallow_copy
from dino_pipeline.decoding.tokenization import Prompt
from dino_pipeline.errors import ModelError, first_line

log = logging.getLogger(__name__)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted difference of logits (root mean square), relative to their standard deviation."""
STEPS = 3
"""Decoding steps that are compared."""
SHORT_PROMPTS = (2, 5, 11)
"""Tokens of the prompts that are tried when a model is loaded."""
FIRST_LENGTH = 128
"""Tokens up to which rows are tried first."""


def model_name(model: PreTrainedModel) -> str:
    """Return the folder or Hub id that a model was loaded from, or the name of its class."""
    return model.config.name_or_path or type(model).__name__


def not_finite(model: PreTrainedModel) -> ModelError:
    """Return the error for a model whose logits are not finite."""
    problem = f"{model_name(model)}: its logits are not finite in {str(model.dtype).removeprefix('torch.')}"
    return ModelError(problem, "give another {dtype}, or intact weights")


class CachedLength:
    """Up to which length rows compute in a cache what the model computes for each of them alone.

    Models can treat a text otherwise beyond some length, of the text or of the longest row beside it: GPT-Neo's local
    attention (window 256) counts from the longest row, and the rotary frequencies of Phi-3-128k change for all rows
    when one has more than 4,096 tokens. Such lengths have many names, and some have none. So none is looked up: before
    rows of a length are first used, a short row is tried beside one of that length, see `length_defect`. Lengths are
    tried as powers of 2. An example with GPT-Neo::

        a request needs 40 tokens      128 is tried: right, so up to 128 tokens need no further trial
        a request needs 200 tokens     256 is tried: right
        a request needs 300 tokens     512 is tried: wrong, and so are all longer ones

    Args:
        model: a causal language model. A warning is logged if it, or a length, cannot run in cached rows.

    Raises:
        ModelError: its predictions depend on later tokens, or its logits are not finite.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.context = context_of(model)
        self.proven = 0
        """Rows of up to this many tokens are right."""
        self.wrong: int | None = None
        """Rows of this many tokens are wrong. None: no such length is known."""
        self._copied: PreTrainedModel | None = shallow_copy(model)
        """The model's first layers, kept until the first trial, which most often follows at once."""
        tried = model if model.num_parameters() < SMALL_MODEL else self._copied
        if sees_ahead(tried):
            raise ModelError(
                f"{self._name}: cannot be loaded as a causal language model (its predictions depend on later "
                "tokens, as an encoder's do)",
                "give a decoder-only model",
            )
        if defect := row_defect(tried):
            self.wrong = 1
            log.warning("%s cannot run in cached rows (%s): rows are computed one by one, slower", self._name, defect)

    def allows(self, length: int) -> bool:
        """Return whether rows of up to ``length`` tokens, prompt and text together, may run in a cache."""
        if length > self.proven and (self.wrong is None or length < self.wrong):
            self._try(length)
        return length <= self.proven

    def _try(self, length: int) -> None:
        """Find out whether rows of ``length`` tokens are right."""
        trial = max(FIRST_LENGTH, 1 << (length - 1).bit_length())
        copied, self._copied, defect = self._copied or shallow_copy(self.model), None, None
        while trial >= length:
            if self.wrong is None or trial < self.wrong:
                defect = length_defect(copied, min(trial, self.context or trial))
                if defect is None:
                    self.proven = trial  # a row has no more tokens than the context
                    return
                self.wrong = trial
            trial //= 2
        if defect:
            log.warning(
                "%s cannot run rows of up to %d tokens in a cache (%s): those of more than %d run one by one, slower",
                self._name,
                2 * trial,
                defect,
                trial,
            )

    @property
    def _name(self) -> str:
        return model_name(self.model)


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model reads at most, None if it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def row_defect(model: PreTrainedModel) -> str | None:
    """Compare the logits of cached rows with a plain forward's on a few short prompts.

    The comparison covers rows of different lengths, a prefill, several steps, and a refill that copies the shared
    beginning of its prompts from the first prefill.

    Returns:
        Why the model cannot run in cached rows, None if it can.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:  # rows of different lengths would be wrong
        return "its forward takes no position_ids"
    try:
        attention_windows(model)
    except ModelError as error:
        return str(error)
    lengths = [length for length in SHORT_PROMPTS if length + STEPS <= (context_of(model) or 64)]
    generator = torch.Generator().manual_seed(0)
    first, second = (
        [random_text(model, length + STEPS, generator) for length in lengths],
        [random_text(model, length + STEPS, generator) for length in lengths],
    )
    refill = [old[: len(old) // 3] + new[len(old) // 3 :] for old, new in zip(first, second, strict=True)]
    return _defect(model, [first, refill])


def length_defect(model: PreTrainedModel, length: int) -> str | None:
    """Compare rows of 5 tokens, of half of ``length`` and of ``length`` beside one another with each of them alone.

    All three are beginnings of one text, so that what the model computes for the shorter ones must not depend on how
    the text goes on: otherwise keys and values that are cached now would be others once the text is longer.

    Returns:
        Why rows of this length cannot run in a cache beside others, None if they can.
    """
    text = random_text(model, length, torch.Generator().manual_seed(length))
    return _defect(model, [[text[: 5 + STEPS], text[: length // 2], text]])


@torch.inference_mode()
def _defect(model: PreTrainedModel, rounds: Sequence[Sequence[Prompt]]) -> str | None:
    """Return why rows are not what a plain forward computes, None if they are.

    Args:
        model: a causal language model.
        rounds: the texts of rows that run beside one another; each round starts in the rows of the one before.
    """
    try:
        plain = PlainForward(model)
        rows = CachedRows(model, len(rounds[0]), max(map(len, rounds[0])))
        try:
            worst = max(_difference_of_texts(rows, texts, plain) for texts in rounds)
        finally:
            rows.close()
    except Exception as error:  # an unknown architecture can raise anything: it cannot run in cached rows
        return f"{type(error).__name__}: {first_line(error)}"
    tolerance = TOLERANCE.get(model.dtype, 5e-2)
    if worst <= tolerance:
        return None
    return f"its logits differ by {worst:.1e} of their spread, more than {tolerance:.0e}"


def random_text(model: PreTrainedModel, length: int, generator: torch.Generator) -> Prompt:
    """Return as many token ids as ``length`` says."""
    vocab = model.get_input_embeddings().weight.shape[0]
    return tuple(torch.randint(vocab, (length,), generator=generator).tolist())


def _difference_of_texts(rows: CachedRows, texts: Sequence[Prompt], plain: PlainForward) -> float:
    """Write the last `STEPS` tokens of texts; return how far the logits are from those of each text alone.

    Args:
        rows: as many rows as texts.
        texts: token ids of prompt and text together. Where one is the beginning of another, both are compared, too.
        plain: of the same model.
    """
    is_half = rows.model.dtype.itemsize < 4
    prompts = [text[:-STEPS] for text in texts]
    rows.start(range(len(texts)), rows.prefill(prompts), range(len(texts)))
    alone = [plain.logits(text) for text in texts]  # each (length, vocab)
    longest, of_longest = max(zip(texts, alone, strict=True), key=lambda pair: len(pair[0]))
    worst = 0.0
    for text, logits in zip(texts, alone, strict=True):
        if text == longest[: len(text)]:
            differences = _differences(of_longest[: len(text)], logits)  # by position
            worst = max(worst, float(differences.median() if is_half else differences.max()))
    by_step = []
    for step in range(STEPS):
        logits = rows.step(max(map(len, prompts)) + step)
        expected = torch.stack([one[len(prompt) + step - 1] for one, prompt in zip(alone, prompts, strict=True)])
        by_step.append(_differences(logits, expected))  # by row
        following = torch.tensor([text[len(prompt) + step] for text, prompt in zip(texts, prompts, strict=True)])
        rows.feed(rows.every_row[:, None], following.to(rows.device))
    steps = torch.stack(by_step)  # (steps, rows)
    return max(worst, float((steps.median(dim=0).values if is_half else steps).max()))


def _differences(logits: Tensor, expected: Tensor) -> Tensor:
    """Return ``(n,)``: how far each of ``(n, vocab)`` logits is from the expected ones, relative to their spread.

    In half precision, single positions can be far off by rounding alone. What depends on the length shows in most.
    """
    if not (torch.isfinite(logits).all() and torch.isfinite(expected).all()):
        return torch.full(logits.shape[:1], torch.inf)
    # in half precision, large logits are off by their own rounding
    rounding = torch.finfo(logits.dtype).eps * expected.abs().max()
    difference = (logits.float() - expected).square().mean(dim=-1).sqrt()
    return (difference - rounding).clamp(min=0) / expected.std()


@torch.inference_mode()
def sees_ahead(model: PreTrainedModel) -> bool:
    """Return whether predictions depend on later tokens. `AutoModelForCausalLM` loads encoders without a warning.

    Raises:
        ModelError: its logits are not finite.
    """
    text = random_text(model, 8, torch.Generator().manual_seed(0))
    plain = PlainForward(model)
    early, whole = plain.logits(text[:4])[-1], plain.logits(text)[3]
    if not (early.isfinite().all() and whole.isfinite().all()):
        raise not_finite(model)
    return float((early - whole).abs().max() / whole.std()) > TOLERANCE.get(model.dtype, 5e-2)
