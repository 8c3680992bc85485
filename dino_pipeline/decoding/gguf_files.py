"""What GGUF files say and `transformers` does not read: scaled rotary frequencies, capped logits, further files."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, modeling_gguf_pytorch_utils

from dino_pipeline.errors import ModelError

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of values, by their number in the format, as `struct` reads them."""
STRING = 8
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
LONGEST_HEADER = 2**27
"""Bytes in which keys and names of tensors are looked for. The weights behind them can be many gigabytes."""
ONE_FILE = "give the model as one GGUF file, or as safetensors"


class GgufMetadata:
    """Single values of a GGUF file's header, without reading its vocabulary.

    A key stands in the file as it is, followed by the number of its type and the value.

    Args:
        file: the file.

    Raises:
        ModelError: it is one of several parts of a model.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        found = PART.search(file.name)
        if (found and int(found[1]) > 1) or (self.value("split.count") or 0) > 1:
            raise ModelError(f"{file}: is one of several parts of a model", ONE_FILE)

    def value(self, name: str) -> Any:
        """Return the value of the key that ends in ``name``, None if there is none."""

        def read(content: mmap.mmap, at: int) -> Any:
            (kind,) = struct.unpack_from("<I", content, at)
            if kind == STRING:
                (length,) = struct.unpack_from("<Q", content, at + 4)
                return content[at + 12 : at + 12 + min(length, 1000)].decode(errors="replace")
            return struct.unpack_from(SCALARS[kind], content, at + 4)[0] if kind in SCALARS else None

        return self._after(name.encode(), read)

    def has_tensor(self, name: str) -> bool:
        """Return whether the file has a tensor of this name."""
        return bool(self._after(name.encode(), lambda *_: True))

    def _after(self, name: bytes, read: Callable[[mmap.mmap, int], Any]) -> Any:
        with open(self.file, "rb") as file:
            if not self.file.stat().st_size:
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                at = content.find(name, 0, LONGEST_HEADER)
                try:
                    return None if at < 0 else read(content, at + len(name))
                except struct.error:  # the file is cut
                    return None


def complete_config(config: PreTrainedConfig, file: Path) -> None:
    """Add to a configuration what the file says of scaled rotary frequencies and capped logits.

    Raises:
        ModelError: it says something that is not supported, or is one of several parts.
    """
    metadata = GgufMetadata(file)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = metadata.value(f".{name}")
        if cap is not None and hasattr(config, name):
            setattr(config, name, cap)
    kind = metadata.value(".rope.scaling.type")
    factor = metadata.value(".rope.scaling.factor")
    if kind in (None, "none") or factor in (None, 0.0, 1.0):
        return
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{file}: scales rotary frequencies by {kind}, which is not read from GGUF", ONE_FILE)
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    original = metadata.value(".rope.scaling.original_context_length")
    if kind == "yarn" and original:
        scaling["original_max_position_embeddings"] = int(original)
    parameters: Any = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        raise ModelError(f"{file}: scales rotary frequencies, which its architecture has none of", ONE_FILE)
    of_full = parameters.get("full_attention")
    if isinstance(of_full, dict):  # only these layers are scaled (Gemma 3)
        config.rope_parameters = {**parameters, "full_attention": {**of_full, **scaling}}
    else:
        config.rope_parameters = {**parameters, **scaling}


def scale_frequencies(model: PreTrainedModel, file: Path) -> None:
    """Divide the rotary frequencies by the file's factors (Llama 3.1), if it has any.

    Raises:
        ModelError: the model has no single set of frequencies.
    """
    if not GgufMetadata(file).has_tensor("rope_freqs.weight"):
        return
    from gguf import GGUFReader

    (tensor,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == "rope_freqs.weight")
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None or not hasattr(rotary, "inv_freq") or rotary.inv_freq.shape != torch.Size([len(tensor.data)]):
        raise ModelError(f"{file}: scales rotary frequencies, which its architecture has none of", ONE_FILE)
    factors = torch.from_numpy(tensor.data.copy()).to(rotary.inv_freq)
    rotary.inv_freq.div_(factors)
    rotary.original_inv_freq = rotary.inv_freq.clone()


def forget_format(model: PreTrainedModel, name: str) -> None:
    """Remove what marks a model as quantised, because its weights are not any more, and name it after its file."""
    model.config.name_or_path = name
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False


@contextmanager
def quiet_reading() -> Iterator[None]:
    """Hide the progress bar of `transformers` for GGUF files. Its switch for progress bars leaves this one on."""
    shown = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = shown
