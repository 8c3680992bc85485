"""Masked language modelling on top of a sentence encoder: its masks, its head, its loss."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling
from transformers.modeling_outputs import BaseModelOutput

from dino_pipeline.errors import ModelError, first_line
from dino_pipeline.models import safe_loading
from dino_pipeline.training.objectives.base import Recipe


class _Given(nn.Module):
    """Stands in the place of a language model's backbone and hands on states that were computed elsewhere."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class MaskedWords(nn.Module):
    """Masks tokens (15 %; of these 80 % become the mask, 10 % another token) and predicts them from their states.

    The head is the encoder's own, where its folder holds one.

    Raises:
        ModelError: the encoder or its tokenizer knows no masked language modelling.
    """

    def __init__(self, model: SentenceTransformer, recipe: Recipe) -> None:
        super().__init__()
        backbone: Any = model.transformers_model
        name = model.model_card_data.base_model or getattr(backbone, "name_or_path", "the encoder")
        if backbone is None or recipe.tokenizer.mask_token_id is None:
            raise ModelError(f"{name}: masks no words; take an encoder that was trained to, such as bert-base-uncased")
        try:
            language_model = AutoModelForMaskedLM.from_pretrained(
                backbone.name_or_path, revision=recipe.revision, **safe_loading()
            )
        except (ValueError, OSError, KeyError) as error:
            said = first_line(error)
            raise ModelError(
                f"{name}: has no masked language model ({said}); take an encoder such as bert-base"
            ) from error
        setattr(language_model, language_model.base_model_prefix, _Given())
        decoder = language_model.get_output_embeddings()
        if decoder is not None and language_model.config.tie_word_embeddings:
            decoder.weight = backbone.get_input_embeddings().weight
        self.head = language_model
        self.masks = DataCollatorForLanguageModeling(recipe.tokenizer, mlm_probability=recipe["masked"])
        self.special = recipe.tokenizer.all_special_ids

    def mask(self, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return a column's features with tokens masked, and what the masked ones were (-100 elsewhere)."""
        ids = features["input_ids"]
        special = torch.isin(ids, torch.tensor(self.special, device=ids.device))
        masked, labels = self.masks.torch_mask_tokens(ids.cpu().clone(), special.cpu())
        return {**features, "input_ids": masked.to(ids.device)}, labels.to(ids.device)

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the masked tokens; zero where there are none.

        Args:
            states: the encoder's last states, ``(rows, tokens, size)``.
            labels: ``(rows, tokens)``.
        """
        chosen = labels != -100
        logits = self.head(inputs_embeds=states[chosen][None]).logits[0]
        return nn.functional.cross_entropy(logits, labels[chosen], reduction="sum") / chosen.sum().clamp(min=1)
