"""LoRA: small adapters in all layers of an encoder are trained, and its own weights stay (Hu et al. 2021).

See arXiv:2106.09685. Checkpoints hold the trained tensors alone. The weights that stay are those of the start; reading
them again by the name of the encoder could find other ones, or the same in another precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import ModelError, OptionError, first_line, require_package
from dino_pipeline.models import embed, load_encoder, quiet_loading
from dino_pipeline.odd_paths import utf8_path

TRAINED_FILE = "trained.safetensors"
"""Holds a checkpoint's trained tensors of the encoder."""
SCALE = 2
"""What an adapter computes is multiplied by this, whatever its rank: alpha over rank."""
TOLERANCE = 1e-4
"""Largest difference of coordinates of the same embedding, of length 1."""


def check_lora(hyperparameters: Hyperparameters, revision: str | None) -> None:
    """Refuse adapters that cannot be made, or could not be loaded.

    Raises:
        OptionError: peft is not installed, or the adapter's folder could not name the encoder's revision.
    """
    if hyperparameters.lora:
        require_package("peft", "lora", hyperparameters.lora, extra="lora")
    if hyperparameters.lora_save == "adapter" and revision:
        raise OptionError(
            "the folder of an adapter cannot name a revision of its encoder",
            "leave it out, or leave out {revision}",
            option="lora_save",
            value="adapter",
        )


def add_adapters(model: SentenceTransformer, rank: int) -> None:
    """Put an adapter into each linear layer of an encoder. Of its layers, only these are trained.

    Raises:
        ModelError: the layers take no adapters.
    """
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    try:
        model.add_adapter(config)
    except (ValueError, TypeError, ImportError) as error:
        raise ModelError(f"the encoder's layers take no adapters ({first_line(error)})", "leave out {lora}") from error
    if Path(config.base_model_name_or_path or "").is_dir():  # found from other folders, too, and never on the Hub
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    config.target_modules = sorted(config.target_modules)  # peft made a set of it, which is saved in any order


def merge_adapters(model: SentenceTransformer, *, loaded: bool = False) -> None:
    """Add an encoder's adapters to its weights, and remove them. All layers can be trained afterwards.

    ``loaded`` says that the adapters were read from files. Saving would then give the weights the names that adapters
    have in files, by which nothing finds them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    backbone = model.transformers_model
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            backbone.set_submodule(name, layer.get_base_layer())
    del backbone.peft_config
    backbone._hf_peft_config_loaded = False
    backbone.requires_grad_(True)
    if loaded:
        backbone._weight_conversions = None


def check_base(model: SentenceTransformer, texts: Sequence[str]) -> None:
    """Refuse to save new adapters alone if loading them would find other weights than the encoder's.

    Raises:
        OptionError: the weights of the encoder that the adapters' folder names are not found, or are other ones.
    """
    with TemporaryDirectory(prefix="dino-") as folder:
        with quiet_loading():
            model.save(utf8_path(folder), create_model_card=False)
        try:
            found = np.abs(embed(load_encoder(folder), texts) - embed(model, texts)).max() < TOLERANCE
            reason = "" if found else "its weights are other ones"
        except ModelError as error:
            reason = error.message.replace(folder, "the adapter")
    if reason:
        name = model.transformers_model.name_or_path
        raise OptionError(
            f"an adapter alone needs its encoder, and {name} is not what is trained: {reason}",
            "leave it out",
            option="lora_save",
            value="adapter",
        )


def save_trained(model: SentenceTransformer, folder: Path) -> None:
    """Write the tensors of an encoder that are trained."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in _trained(model).items()}, folder / TRAINED_FILE)


def load_trained(model: SentenceTransformer, folder: Path) -> None:
    """Give an encoder the tensors that `save_trained` wrote."""
    saved = load_file(folder / TRAINED_FILE)
    with torch.no_grad():
        for name, tensor in _trained(model).items():
            tensor.copy_(saved[name])


def _trained(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
