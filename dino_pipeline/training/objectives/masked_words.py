"""Masked language modelling on top of a sentence encoder, and the objectives that use it: cmlm and declutr."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling
from transformers.modeling_outputs import BaseModelOutput

from dino_pipeline.encoder_check import position_limit
from dino_pipeline.encoder_options import Hyperparameters
from dino_pipeline.errors import DataError, ModelError, OptionError, first_line
from dino_pipeline.model_files import safe_loading
from dino_pipeline.models import quiet_loading
from dino_pipeline.options import Options
from dino_pipeline.text import is_inside_word
from dino_pipeline.training.objectives import Columns, Objective, Row, TrainingContext, drawn_rows, fixed_rows
from dino_pipeline.training.objectives.pairs import (
    NT_XENT_DIRECTIONS,
    ContrastOptions,
    embedding_sizes,
    module_per_size,
    nt_xent,
    ranking_loss,
)
from dino_pipeline.training.objectives.reference import Reference

IGNORED = -100
"""Label of tokens that are not masked, as `transformers` has it."""


class MaskOptions(Options):
    """Options of objectives that mask words."""

    masked: float = Field(default=0.15, gt=0, le=1, description="Share of the tokens that is to be predicted.")


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
                ).float()  # as the encoder is trained, whatever precision it is stored in
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
        try:
            with torch.no_grad():
                language_model(inputs_embeds=torch.zeros(1, 1, backbone.config.hidden_size))
        except (AttributeError, RuntimeError) as error:
            raise ModelError(
                f"{name}: its masked language model does not work on states alone ({first_line(error)})",
                "take an encoder such as bert-base",
            ) from error
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
            states: the encoder's last states, ``(..., size)``.
            labels: the words that were masked, ``(...)``.
        """
        chosen = labels != IGNORED
        logits = self.head(inputs_embeds=states[chosen][None]).logits[0]  # (masked tokens, vocabulary)
        return nn.functional.cross_entropy(logits, labels[chosen], reduction="sum") / chosen.sum().clamp(min=1)


# CMLM: the masked words of a text are predicted with the help of its neighbour's embedding.


class CmlmOptions(MaskOptions):
    """Options of cmlm."""

    vectors: int = Field(default=15, ge=1, description="Vectors that the neighbour's embedding becomes.")


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
        positions, _ = position_limit(backbone)
        self.max_tokens = positions - self.vectors if positions else None
        if self.max_tokens is not None and self.max_tokens < 1:
            raise OptionError(
                f"the encoder has positions for {positions} tokens, and these take {self.vectors}",
                "give fewer",
                option="objective_options",
                value=f"vectors={self.vectors}",
            )
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
    hyperparameters=Hyperparameters(batch_size=64, learning_rate=5e-5, max_length=64),
    options=CmlmOptions,
    citation="Yang et al. 2021, Universal Sentence Representation Learning with Conditional Masked Language Model, "
    "arXiv:2012.14388",
    faithful="has no code of its authors",
)

# DeCLUTR: a span of a document finds the spans near it among those of other places; its masked words are predicted.

Span = tuple[int, int]
"""Token positions, start and end."""


class SpanOptions(MaskOptions, ContrastOptions):
    """Options of declutr, by which spans are drawn from a document (Giorgi et al. 2021, section 3.1)."""

    anchors: int = Field(default=2, ge=1, description="Spans of a document that find others.")
    positives: int = Field(default=2, ge=1, description="Spans near each of them.")
    shortest: int = Field(default=32, ge=1, description="Tokens of the shortest span.")
    longest: int = Field(default=512, ge=1, description="Tokens of the longest span.")
    spans: Literal["scaled", "fixed"] = Field(
        default="scaled",
        description="scaled: short documents give shorter spans, of whole words. fixed: as in the authors' code, short "
        "documents are refused, and spans may break words.",
    )

    @property
    def scaled(self) -> bool:
        """Return whether shorter documents give shorter spans."""
        return self.spans == "scaled"

    @property
    def min_tokens(self) -> int:
        """Return the number of tokens that a document must have."""
        return 2 * self.anchors * (1 if self.scaled else self.longest)

    def bounds(self, tokens: int) -> tuple[int, int]:
        """Return the lengths of the shortest and the longest span of a document, in tokens."""
        longest = min(self.longest, tokens // (2 * self.anchors)) if self.scaled else self.longest
        return min(self.shortest, max(longest // 2, 1)), longest

    def draw(self, tokens: int, random: Random) -> list[list[Span]]:
        """Return, for each anchor, its span and then those of its positives.

        As in the authors' code, the document is divided into stretches as long as the longest span, and an anchor lies
        within one that is not next to another's, so that anchors are at least that far apart. An anchor's length
        follows Beta(4, 2), so that anchors are long. A positive overlaps its anchor, lies inside it or touches it; its
        length follows Beta(2, 4), so that positives are short.
        """
        shortest, longest = self.bounds(tokens)
        stretches = list(range(0, tokens - longest + 1, longest))
        drawn = []
        for left in range(self.anchors, 0, -1):
            length = int(random.betavariate(4, 2) * (longest - shortest) + shortest)
            few = len(stretches) // left < left  # from the middle, an anchor would take the room of later ones
            place = random.choice([0, len(stretches) - 1]) if few else random.randrange(len(stretches))
            start = stretches[place] + random.randint(0, longest - length)
            del stretches[max(place - 1, 0) : place + 2]
            spans = [(start, start + length)]
            for _ in range(self.positives):
                size = int(random.betavariate(2, 4) * (longest - shortest) + shortest)
                near = random.randint(max(start - size, 0), min(start + length, tokens - size))
                spans.append((near, near + size))
            drawn.append(spans)
        return drawn


def drawn_spans(columns: Columns, context: TrainingContext) -> Dataset:
    """Return spans of each document, other ones in each epoch: all anchors, then the positives of each.

    Documents that are too short are left out.

    Raises:
        DataError: all documents are too short, or one is and spans have the paper's lengths.
    """
    sampler = SpanOptions.of(context.hyperparameters.options)
    rows: Columns = {"document": [], "tokens": []}
    short = []
    for number, text in enumerate(columns["document"], start=1):
        document = text if sampler.scaled else " " + " ".join(text.split())
        tokens = _tokens(document, context.tokenizer, places=sampler.scaled)
        if len(tokens) < sampler.min_tokens:
            short.append((number, len(tokens)))
        else:
            rows["document"].append(document)
            rows["tokens"].append(tokens)
    if short and not (sampler.scaled and rows["document"]):
        number, count = short[0]
        remedy = "give longer documents" if sampler.scaled else "give longer documents, or leave out {faithful}"
        raise DataError(
            f"document {number}: has {count} tokens, as {len(short)} of {len(columns['document'])} have under "
            f"{sampler.min_tokens}",
            f"{remedy}, or fewer anchors (the objective's option anchors=1)",
        )
    draw = partial(span_texts, sampler=sampler, tokenizer=None if sampler.scaled else context.tokenizer)
    return drawn_rows(rows, draw, context.seed)


def _tokens(text: str, tokenizer: Any, *, places: bool) -> list[Any]:
    """Return the ids of the text's tokens, or the place, [start, end], of each."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    return [list(pair) for pair in encoded["offset_mapping"]] if places else list(encoded["input_ids"])


def span_texts(row: Row, random: Random, *, sampler: SpanOptions, tokenizer: Any) -> Row:
    """Return a document's spans as texts: ``anchor0``, ``anchor1``, ... then ``near0x0``, ``near0x1``, ...

    They are made of the ids of their tokens by the tokenizer or, without one, cut out of the document.
    """

    def text_of(span: Span) -> str:
        if tokenizer is None:
            return _cut(row["document"], row["tokens"], span)
        text: str = tokenizer.decode(row["tokens"][slice(*span)], clean_up_tokenization_spaces=True)
        return text

    anchors, positives = {}, {}
    for number, (anchor, *near) in enumerate(sampler.draw(len(row["tokens"]), random)):
        anchors[f"anchor{number}"] = text_of(anchor)
        for place, span in enumerate(near):
            positives[f"near{number}x{place}"] = text_of(span)
    return {**anchors, **positives}


def _cut(text: str, offsets: list[list[int]], span: Span) -> str:
    """Return the text of a span, extended to the ends of the words that it touches."""
    start, end = offsets[span[0]][0], offsets[span[1] - 1][1]
    while is_inside_word(text, start):
        start -= 1
    while is_inside_word(text, end):
        end += 1
    return text[start:end]


class SpanContrastLoss(nn.Module):
    """NT-Xent between anchors and the means of their positives, plus masked language modelling on the anchors.

    See Giorgi et al. 2021, section 3.2.
    """

    def __init__(self, model: SentenceTransformer, context: TrainingContext) -> None:
        super().__init__()
        self.model = model
        self.anchors = context["anchors"]
        self.size = embedding_sizes(model, context)[0]
        self.words = MaskedWordLoss(model, context)
        self.stock = ranking_loss(model, context, directions=NT_XENT_DIRECTIONS)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch: the columns are all anchors, then the positives of each."""
        columns = list(sentence_features)
        masked = [self.words.mask(features) for features in columns[: self.anchors]]
        encoded = [self.model(features) for features, _ in masked]
        anchors = torch.cat([output["sentence_embedding"] for output in encoded])  # (anchors * rows, dimension)
        near = [self.model(features)["sentence_embedding"] for features in columns[self.anchors :]]
        per_anchor = len(near) // self.anchors
        means = []
        for first in range(0, len(near), per_anchor):
            means.append(torch.stack(near[first : first + per_anchor]).mean(0))  # (rows, dimension)
        loss = nt_xent(self.stock, anchors, torch.cat(means))
        if anchors.shape[-1] < self.size:  # a shorter embedding of the same states: their words are counted already
            return loss
        states = torch.cat([output["token_embeddings"].flatten(0, 1) for output in encoded])  # (tokens, size)
        labels = torch.cat([word_labels.flatten() for _, word_labels in masked])  # (tokens,)
        return loss + self.words(states, labels)


DECLUTR = Objective(
    name="declutr",
    needs="documents",
    method="spans near one another, NT-Xent, and masked words",
    build=drawn_spans,
    loss=SpanContrastLoss,
    hyperparameters=Hyperparameters(batch_size=16, learning_rate=5e-5, weight_decay=0.1),
    options=SpanOptions,
    citation="Giorgi et al. 2021, DeCLUTR: Deep Contrastive Learning for Unsupervised Textual Representations, "
    "arXiv:2006.03659",
    faithful=Reference(
        code="github.com/JohnGiorgi/DeCLUTR",
        more="AdamW without the correction of its moments' bias, a slanted triangular rate; the head is clipped, rows "
        "that fill no batch are left out, and the last checkpoint is kept",
        options={"spans": "fixed"},
        hyperparameters={"max_length": 510},
        adam="uncorrected",
        epsilon=1e-6,
        slanted=True,
        drops_last_batch=True,
        keeps_last=True,
    ),
    reads_token_states=True,
    in_batch_negatives=True,
)
