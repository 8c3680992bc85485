"""Which model: one type for it, the fingerprint of local weights, what may be loaded safely, and sentence encoders."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from dino_pipeline.errors import ModelError, OptionError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

POCKET = "pocket"
"""Name of the embedded models."""
STATIC = "static:"
"""Before an encoder's name: a static student of it."""
POCKET_FOLDER = Path(__file__).parent / "pocket"
ALLOW_PICKLE = "DINO_ALLOW_PICKLE"
"""Environment variable that allows pickled weights; it reaches processes that this one starts, too."""
PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pkl", "*.ckpt")
FULLY_HASHED = 64 * 2**20
"""Model files up to this many bytes are hashed whole, larger ones by samples."""
SAMPLE_SIZE, SAMPLE_STRIDE = 2**20, 8 * 2**20
"""Of a large file, this many bytes are hashed out of each stride: no tensor of 8 MiB escapes."""
MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".py"}

BATCH_SIZE = 128
"""Texts that `embed` encodes at once."""

Role = Literal["generator", "encoder"]
Quantization = Literal["8bit", "4bit", "fp8"]
Vectors: TypeAlias = "NDArray[np.float32]"


class ModelRef(BaseModel):
    """A generator or an encoder: its name, and all that decides what it computes.

    Two equal references give the same texts or embeddings on the same kind of machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """``pocket``, a folder as the user wrote it, or a Hub id."""
    revision: str | None = None
    """Revision on the Hub."""
    fingerprint: str | None = None
    """`model_fingerprint` of a local folder; None for a model on the Hub."""
    dtype: str | None = None
    """``float32``, ``bfloat16`` or ``float16``; None where the model runs elsewhere or is an encoder."""
    chat: bool = False
    """Whether prompts are put into the model's chat template."""
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
        """Return what loaders take: the folder of an embedded model, any other name as it is."""
        return model_path(self.name, role)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``user/name`` of a repository on the Hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def model_path(name: str, role: Role) -> str:
    """Return the folder of an embedded model, any other name as it is."""
    return str(POCKET_FOLDER / role) if name == POCKET else name


def model_fingerprint(path: str) -> str | None:
    """Return a hash of a local model's files, None for a name on the Hub."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in MODEL_SUFFIXES:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(folder)}\0{size}\0".encode())
            if size <= FULLY_HASHED:
                digest.update(file.read_bytes())
            else:
                _hash_samples(digest, file, size)
    return digest.hexdigest()[:16]


def _hash_samples(digest: hashlib._Hash, file: Path, size: int) -> None:
    with open(file, "rb") as content:
        for start in range(0, size, SAMPLE_STRIDE):
            content.seek(start)
            digest.update(content.read(SAMPLE_SIZE))


def pickle_allowed() -> bool:
    """Return whether the user allowed pickled weights, which can run code when they are read."""
    return os.environ.get(ALLOW_PICKLE, "0") not in {"", "0"}


def safe_loading() -> dict[str, bool]:
    """Return the arguments that make `transformers`' loaders read safetensors only."""
    return {} if pickle_allowed() else {"use_safetensors": True}


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


def check_weights(path: str) -> None:
    """Refuse a model's folder that holds pickled weights only. Models on the Hub are checked by their loader.

    Raises:
        ModelError: a part of the model has pickled weights only, or there is no such folder.
    """
    folder = Path(path)
    if not folder.exists() and (path.startswith((".", "/", "~")) or len(folder.parts) > 2):
        raise ModelError(f"{path}: there is no such folder")
    if pickle_allowed() or not folder.is_dir():
        return
    for pattern in PICKLED:
        for file in sorted(folder.rglob(pattern)):
            if not any(file.parent.glob("*.safetensors")):
                raise ModelError(f"{file}: {_ONLY_PICKLED}", _PICKLE_REMEDY)


_ONLY_PICKLED = "holds pickled weights only, which can run code when they are read"
_PICKLE_REMEDY = f"convert them to safetensors or, if you trust them, set {ALLOW_PICKLE}=1 in the environment"


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
    elif not pickle_allowed() and "safetensors" in str(error) and "file named" in str(error):
        reason, remedy = _ONLY_PICKLED, _PICKLE_REMEDY
    elif Path(path).exists() or not isinstance(error, OSError):
        reason = first_line(error)
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
    from sentence_transformers.sentence_transformer.modules import Pooling

    check_weights(name)
    try:
        with quiet_loading():
            model = SentenceTransformer(name, revision=revision, model_kwargs=safe_loading())
            if has_adapters(model) and model.dtype.itemsize < 4:  # adapters were trained in single precision
                settings = {**safe_loading(), "dtype": "float32"}
                model = SentenceTransformer(name, revision=revision, model_kwargs=settings)
        if not has_own_pooling(name, revision) and pooling_of(model) != pooling:
            place = next(number for number, module in enumerate(model) if isinstance(module, Pooling))
            model[place] = Pooling(model[place].embedding_dimension, pooling_mode=pooling)
    except Exception as error:  # files that are not what their names say raise anything: EOFError, IndexError ...
        remedy = "give a folder or a Hub id that SentenceTransformer or AutoModel loads, or `pocket`"
        raise load_error(name, error, "cannot be loaded as an encoder", remedy) from error
    if model.transformers_model is not None and getattr(model.tokenizer, "pad_token", "") is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
        if model.tokenizer.pad_token is None:
            raise ModelError(f"{name}: its tokenizer has neither a token for padding nor one for the end of a text")
    return model


def has_own_pooling(name: str, revision: str | None = None) -> bool:
    """Return whether a model is a bi-encoder, which says itself how token states become an embedding."""
    from sentence_transformers.util import is_sentence_transformer_model

    return bool(is_sentence_transformer_model(name, revision=revision))


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
    return None if length is None or length == float("inf") else int(length)


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
