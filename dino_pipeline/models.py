"""Which model: one type for it, the fingerprint of local weights, what may be loaded safely, and sentence encoders."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from dino_pipeline.encoder_check import check_kind, make_usable, name_on_hub, own_code, try_encoding
from dino_pipeline.errors import ModelError, OptionError, first_line, reason_of
from dino_pipeline.model_files import (
    ONLY_PICKLED,
    PICKLE_REMEDY,
    check_files,
    gguf_in,
    pickle_allowed,
    safe_loading,
)
from dino_pipeline.odd_paths import utf8_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

POCKET = "pocket"
"""Name of the embedded models."""
STATIC = "static:"
"""Before an encoder's name: a static student of it."""
POCKET_FOLDER = Path(__file__).parent / "pocket"

BATCH_SIZE = 128
"""Texts that `embed` encodes at once."""

MAX_LENGTH = 10**9
"""Larger limits of a text's tokens mean that there is none: `transformers` writes 10^30, token tables infinity."""

Role = Literal["generator", "encoder"]
Quantization = Literal["8bit", "4bit", "fp8"]
Vectors: TypeAlias = "NDArray[np.float32]"


class ModelRef(BaseModel):
    """A generator or an encoder: its name, and all that decides what it computes.

    Two equal references give the same texts or embeddings on the same kind of machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """``pocket``, a folder or a GGUF file as the user wrote it, a Hub id, or ``user/name:FILE.gguf``."""
    revision: str | None = None
    """Revision on the Hub."""
    fingerprint: str | None = None
    """`model_fingerprint` of local files; None for a model on the Hub."""
    dtype: str | None = None
    """``float32``, ``bfloat16`` or ``float16``; None where the model runs elsewhere or is an encoder."""
    chat: bool = False
    """Whether prompts are put into the model's chat template."""
    chat_date: date | None = Field(default=None, exclude_if=lambda value: value is None)
    """The day that the template takes for today; None: it prints none."""
    adapter: str | None = None
    """Folder or Hub id of a LoRA adapter."""
    adapter_fingerprint: str | None = None
    quantize: Quantization | None = None
    """Format that the weights are brought into: by bitsandbytes, or ``fp8`` by vLLM."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    static: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether a table made of the model's token vectors is meant, in place of the model."""

    @property
    def written(self) -> str:
        """Return the name as it is given to an option: ``static:`` before the model of a static student."""
        return f"{STATIC}{self.name}" if self.static else self.name

    def path(self, role: Role) -> str:
        """Return what loaders take: the folder of an embedded model, the folder or repository of a GGUF file, or else
        the name as it is."""
        return utf8_path(gguf_in(model_path(self.name, role))[0])

    @property
    def gguf(self) -> str | None:
        """Return the name of the GGUF file that holds the model, None if it is of another kind."""
        return gguf_in(self.name)[1]


def model_path(name: str, role: Role) -> str:
    """Return the folder of an embedded model, any other name as it is."""
    return str(POCKET_FOLDER / role) if name == POCKET else name


_loading = threading.RLock()
"""Held while a model is loaded or saved: `transformers` patches torch for the whole process while it loads."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the progress bars and reports of `transformers` while a model is loaded or saved inside the block.

    One thread at a time is inside; others wait.
    """
    from transformers.utils import logging

    with _loading:
        verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if shows_bars:
                logging.enable_progress_bar()


def pick_device(name: str | None) -> str:
    """Return the device to run on: the one named, or a GPU if there is one, or the CPU.

    Raises:
        OptionError: there is no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            first_line(error), "name a device that is there, or leave it out", option="device", value=name
        ) from error
    return name


def load_error(path: str, error: BaseException, what: str, remedy: str) -> ModelError:
    """Return the error for a model that cannot be loaded.

    Args:
        path: folder or Hub id.
        error: raised by the loader.
        what: what cannot be done, such as "cannot be loaded as a causal language model".
        remedy: what to do if nothing better is known; a template of `errors.worded`.
    """
    if "trust_remote_code" in str(error):
        reason, remedy = "it brings code of its own", "if you trust that, give {trust_remote_code=True}"
    elif "safetensors" in str(error) and "file named" in str(error) and not pickle_allowed():
        # of a folder, pickled weights were looked for before
        reason, remedy = ("it holds no weights", remedy) if Path(path).is_dir() else (ONLY_PICKLED, PICKLE_REMEDY)
    elif Path(path).exists() or not isinstance(error, OSError):
        reason = reason_of(error)
    else:
        reason = f"there is no such folder, and the Hub says: {first_line(error)}"
    return ModelError(f"{path}: {what} ({reason})", remedy)


def load_encoder(name: str, revision: str | None = None, pooling: str = "mean") -> SentenceTransformer:
    """Load a bi-encoder as it is, or any other encoder with pooling on top.

    Args:
        name: a folder or a Hub id.
        revision: on the Hub.
        pooling: for encoders without pooling of their own.

    Raises:
        ModelError: it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    check_files(name)
    place = utf8_path(name)
    try:
        check_kind(name_on_hub(name), revision)
        with quiet_loading():
            model = SentenceTransformer(place, revision=revision, model_kwargs=safe_loading())
            if has_adapters(model) and model.dtype.itemsize < 4:  # adapters were trained in single precision
                settings = {**safe_loading(), "dtype": "float32"}
                model = SentenceTransformer(place, revision=revision, model_kwargs=settings)
        if not has_own_pooling(name, revision) and pooling_of(model) != pooling:
            set_pooling(model, pooling)
        make_usable(model, name)
    except ModelError:
        raise
    except Exception as error:  # files that are not what their names say raise anything: EOFError, IndexError ...
        if "trust_remote_code" in str(error):
            raise ModelError(*own_code(name)) from error
        remedy = "give a folder or a Hub id that SentenceTransformer or AutoModel loads, or `pocket`"
        raise load_error(name, error, "cannot be loaded as an encoder", remedy) from error
    try_encoding(model, name)
    return model


def has_own_pooling(name: str, revision: str | None = None) -> bool:
    """Return whether a model is a bi-encoder, which says itself how token states become an embedding."""
    from sentence_transformers.util import is_sentence_transformer_model

    return bool(is_sentence_transformer_model(name_on_hub(name), revision=revision))


def set_pooling(model: SentenceTransformer, pooling: str) -> None:
    """Have an encoder make its embedding of token states in another way."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    place = next(number for number, module in enumerate(model) if isinstance(module, Pooling))
    model[place] = Pooling(model[place].embedding_dimension, pooling_mode=pooling)


def has_adapters(model: SentenceTransformer) -> bool:
    """Return whether adapters (LoRA) are in an encoder's layers, not merged with them."""
    return hasattr(model.transformers_model, "peft_config")


def pooling_of(model: SentenceTransformer) -> str:
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    for module in model:
        if isinstance(module, Pooling):
            return str(module.pooling_mode)
        if isinstance(module, StaticEmbedding):
            return str(module.embedding.mode)
    return "none of its own"


def max_length_of(model: SentenceTransformer) -> int | None:
    """Return the most tokens that an encoder reads of a text. None means no limit."""
    length = model.max_seq_length
    return None if length is None or length > MAX_LENGTH else int(length)


def default_prompt(model: SentenceTransformer) -> str:
    """Return what `encode` puts before each text, empty if nothing."""
    return str(model.prompts.get(model.default_prompt_name or "") or "")


def embed(model: SentenceTransformer, texts: Sequence[str], *, normalize: bool = True) -> Vectors:
    """Return embeddings, ``(texts, dimension)``, scaled to length 1 unless ``normalize`` is False."""
    vectors: Vectors = model.encode(
        list(texts), batch_size=BATCH_SIZE, normalize_embeddings=normalize, show_progress_bar=False
    )
    return vectors


def mean_cosine(model: SentenceTransformer, texts: Sequence[str]) -> float:
    """Return the mean cosine of all pairs of different texts, 0 if there are fewer than two."""
    import numpy as np

    if len(texts) < 2:
        return 0.0
    vectors = embed(model, texts)
    cosines = vectors @ vectors.T  # (texts, texts)
    return float(cosines[np.triu_indices(len(vectors), 1)].mean())
