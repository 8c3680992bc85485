"""Masked language modelling on top of a sentence encoder, and the objective cmlm that conditions it on a neighbour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling
from transformers.modeling_outputs import BaseModelOutput

from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import ModelError, first_line
from dino_pipeline.models import quiet_loading, safe_loading
from dino_pipeline.training.objective import Objective, TrainingContext, fixed_rows
from dino_pipeline.training.objectives.contrastive import embedding_sizes, module_per_size

IGNORED = -100
"""Label of tokens that are not masked, as `transformers` has it."""


class _PassThrough(nn.Module):
    """Takes the place of a language model's backbone and returns states that were computed elsewhere."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class MaskedWordLoss(nn.Module):
    """Masks tokens and predicts them from the encoder's states (Devlin et al. 2019, section 3.1).

    A share of the tokens is chosen: of these 80 % become the mask, 10 % another token, and 10 % stay. The head is the
    encoder's own if its folder holds one.

    Raises:
        ModelError: the encoder or its tokenizer was not made for masked language modelling.
    """

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__()
        backbone: Any = model.transformers_model
        name = model.model_card_data.base_model or getattr(backbone, "name_or_path", "the encoder")
        if backbone is None or context.tokenizer.mask_token_id is None:
            raise ModelError(
                f"{name}: masks no words", "take an encoder that was trained to, such as bert-base-uncased"
            )
        try:
            with quiet_loading():
                language_model = AutoModelForMaskedLM.from_pretrained(
                    backbone.name_or_path, revision=context.revision, **safe_loading()
                )
        except (ValueError, OSError, KeyError) as error:
            raise ModelError(
                f"{name}: has no masked language model ({first_line(error)})", "take an encoder such as bert-base"
            ) from error
        # only the head of the language model is used: states come from the encoder that is trained
        setattr(language_model, language_model.base_model_prefix, _PassThrough())
        decoder = language_model.get_output_embeddings()
        if decoder is not None and language_model.config.tie_word_embeddings:
            decoder.weight = backbone.get_input_embeddings().weight
        self.head = language_model
        self.masks = DataCollatorForLanguageModeling(context.tokenizer, mlm_probability=context["masked"])
        self.special = context.tokenizer.all_special_ids

    def mask(self, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return a column's features with tokens masked, and the labels, ``(rows, tokens)``.

        A label is the token's id where it was masked, and `IGNORED` elsewhere.
        """
        ids = features["input_ids"]  # (rows, tokens)
        special = torch.isin(ids, torch.tensor(self.special, device=ids.device))
        # the collator draws on the CPU, so that masks are the same on every device
        masked, labels = self.masks.torch_mask_tokens(ids.cpu().clone(), special.cpu())
        return {**features, "input_ids": masked.to(ids.device)}, labels.to(ids.device)

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the masked tokens, 0 if there are none.

        Args:
            states: the encoder's last states, ``(rows, tokens, size)``.
            labels: ``(rows, tokens)``.
        """
        chosen = labels != IGNORED
        logits = self.head(inputs_embeds=states[chosen][None]).logits[0]  # (masked tokens, vocabulary)
        return nn.functional.cross_entropy(logits, labels[chosen], reduction="sum") / chosen.sum().clamp(min=1)


class ConditionalMaskedLoss(nn.Module):
    """Masked language modelling of the second text, the first one's embedding put before it as vectors.

    See Yang et al. 2021, section 3. The projection to these vectors is dropped after training.
    """

    backbone: Any

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__()
        self.model = model
        self.words = MaskedWordLoss(model, context)
        self.vectors = context["vectors"]
        # Set past nn.Module, so that it is no submodule of the loss. Kept here because the distributed wrapper, which
        # later takes the model's place, has no such attribute.
        backbone: Any = model.transformers_model
        self.__dict__["backbone"] = backbone
        positions = getattr(backbone.config, "max_position_embeddings", None)
        self.max_tokens = positions - self.vectors if positions else None
        width = backbone.get_input_embeddings().embedding_dim

        def projection(size: int) -> nn.Sequential:
            layers = (nn.Linear(size, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
            return nn.Sequential(*layers, nn.Linear(width, self.vectors * width))

        self.projections = module_per_size(embedding_sizes(model, context), projection)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch of neighbouring texts."""
        first, second = sentence_features
        condition = self.model(first)["sentence_embedding"]  # (rows, dimension)
        projection = self.projections[str(condition.shape[-1])]
        before = projection(condition).reshape(len(condition), self.vectors, -1)  # (rows, vectors, width)
        # the vectors take up positions, so that longer texts must be cut
        second = {name: value[:, : self.max_tokens] for name, value in second.items() if isinstance(value, Tensor)}
        masked, words = self.words.mask(second)
        embedded = self.backbone.get_input_embeddings()(masked["input_ids"])  # (rows, tokens, width)
        attention = second["attention_mask"]  # (rows, tokens)
        states = self.backbone(
            inputs_embeds=torch.cat([before.to(embedded.dtype), embedded], dim=1),
            attention_mask=torch.cat([attention.new_ones(before.shape[:2]), attention], dim=1),
        ).last_hidden_state  # (rows, vectors + tokens, width)
        loss: Tensor = self.words(states[:, self.vectors :], words)
        return loss


CMLM = Objective(
    name="cmlm",
    needs="pairs",
    method="tells masked words of the neighbour (experimental)",
    build=fixed_rows,
    loss=ConditionalMaskedLoss,
    defaults=Hyperparameters(batch_size=64, learning_rate=5e-5, max_length=64, options={"masked": 0.15, "vectors": 15}),
    shares=("masked",),
    citation="Yang et al. 2021, Universal Sentence Representation Learning with Conditional Masked Language Model, "
    "arXiv:2012.14388",
)
