"""Puts an objective on the stock trainer: arguments, checkpoints that hold everything, and what is told meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from dino_pipeline.errors import OptionError, OutputError
from dino_pipeline.objectives import Objective, Recipe
from dino_pipeline.objectives.contrastive import average_gradients, own_tensors
from dino_pipeline.objectives.views import views_of
from dino_pipeline.progress import Progress, Watch
from dino_pipeline.selection import COLLAPSED, Selection, mean_cosine

EVALUATIONS = 10
"""So often is the model evaluated, and saved, during a training."""
WHOLE = "whole"
"""A file that marks a checkpoint as written to its end."""
OWN = "loss.safetensors"
"""What a checkpoint holds of the loss: heads, temperature, memory."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    best: float | None
    """The best checkpoint's measure."""
    steps: int
    rows_seen: int
    """Repetitions counted; where an earlier call was interrupted, its share is taken to be like this one's."""
    seconds: float
    """Of the last call; an interrupted training took longer."""
    mean_cosine: float
    """Of different texts, at the end."""


def train(
    folder: Path,
    model: SentenceTransformer,
    dataset: Dataset,
    objective: Objective,
    recipe: Recipe,
    selection: Selection,
    *,
    probe: Sequence[str],
    watch: Watch,
) -> Trained:
    """Train a model in place, and end with the best checkpoint; goes on from the last one in the folder.

    Args:
        folder: for checkpoints.
        model: the encoder.
        dataset: as the objective built it.
        objective: gives the loss.
        recipe: hyper-parameters, with the number of steps.
        selection: chooses the best checkpoint.
        probe: texts in which collapse is looked for.
        watch: is told how far it is.

    Raises:
        OutputError: a checkpoint cannot be written or read.
    """
    loss = objective.loss(model, dataset, recipe)
    own = own_tensors(loss, model)
    if recipe.processes > 1:
        average_gradients(own.values())
    if recipe.training.matryoshka:
        loss = MatryoshkaLoss(model, loss, [model.get_embedding_dimension(), *recipe.training.matryoshka])
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(folder, objective, recipe, selection, dataset),
        train_dataset=dataset,
        loss=loss,
        evaluator=selection.evaluator,
    )
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Epochs(dataset))
    trainer.add_callback(_Keeper(own, checkpoint))
    resumed = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    progress = Progress(f"{objective.name}, seed {recipe.seed}", total=0, resumed=resumed)
    teller = _Teller(watch, selection, model, probe, progress)
    trainer.add_callback(teller)
    counter = _Counter()
    loss.register_forward_pre_hook(counter)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: training could not go on ({str(error).strip().splitlines()[0]}); "
            "the last whole checkpoint is kept: make room and run again"
        ) from error
    steps = trainer.state.max_steps
    seen = counter.rows * recipe.processes * steps // max(steps - resumed, 1)
    return Trained(trainer.state.best_metric, steps, seen, time.monotonic() - started, teller.mean_cosine)


def steps_of(objective: Objective, recipe: Recipe, rows: int) -> int:
    """Return how many steps a training takes.

    Raises:
        OptionError: several processes cannot each have a batch.
    """
    training, dropped = recipe.training, _drops_last(objective, recipe, rows)
    if dropped and rows < training.batch_size:
        raise OptionError(f"--batch-size {training.batch_size}: there are only {rows} rows for several processes")
    each = rows // training.batch_size if dropped else -(-rows // training.batch_size)
    return training.steps or max(1, math.ceil(each * training.epochs))


def _drops_last(objective: Objective, recipe: Recipe, rows: int) -> bool:
    """Say whether a last small batch is left out: a text would have too few others beside it, or a process none."""
    return recipe.processes > 1 or (objective.in_batch and rows > recipe.training.batch_size)


def arguments(
    folder: Path, objective: Objective, recipe: Recipe, selection: Selection, dataset: Dataset
) -> SentenceTransformerTrainingArguments:
    """Return the stock trainer's arguments.

    Raises:
        OptionError: the batch cannot be shared by the processes.
    """
    training = recipe.training
    if training.batch_size % recipe.processes:
        raise OptionError(f"batch size {training.batch_size} cannot be shared by {recipe.processes} processes evenly")
    rows = training.batch_size // recipe.processes
    parts = 1
    if training.mini_batch_size and not objective.caches:
        parts = -(-rows // training.mini_batch_size)
        if rows % parts:
            raise OptionError(f"--mini-batch-size {training.mini_batch_size}: must divide the {rows} rows of a batch")
    every = -(-recipe.steps // EVALUATIONS)
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.steps or -1,
        per_device_train_batch_size=rows // parts,
        gradient_accumulation_steps=parts,
        dataloader_drop_last=_drops_last(objective, recipe, len(dataset)),
        batch_sampler=BatchSamplers.NO_DUPLICATES if objective.distinct else BatchSamplers.BATCH_SAMPLER,
        prompts=dict(objective.prompts),
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup,
        lr_scheduler_type={"linear": "linear", "constant": "constant_with_warmup"}[training.schedule],
        bf16=training.bf16,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=selection.metric,
        greater_is_better=True,
        logging_steps=every,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )


class _Counter:
    """Counts the rows that a loss is given."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, loss: Any, given: Any) -> None:
        first = given[0][0]
        self.rows += len(first["attention_mask"] if "attention_mask" in first else first["offsets"])


class _Epochs(TrainerCallback):
    """Tells the dataset's views which epoch it is."""

    def __init__(self, dataset: Dataset) -> None:
        self.views = views_of(dataset)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.views:
            self.views.epoch = math.floor((state.epoch or 0) + 1e-6)


class _Keeper(TrainerCallback):
    """Puts the loss's own tensors into checkpoints, and takes them from the one that training goes on from."""

    def __init__(self, own: dict[str, torch.Tensor], checkpoint: str | None) -> None:
        self.own, self.checkpoint = own, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.own and self.checkpoint:
            kept = load_file(Path(self.checkpoint) / OWN)
            with torch.no_grad():
                for name, tensor in self.own.items():
                    tensor.copy_(kept[name])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.own:
            save_file({name: tensor.detach().contiguous() for name, tensor in self.own.items()}, folder / OWN)
        (folder / WHOLE).touch()


class _Teller(TrainerCallback):
    """Tells the watch how far training is and when embeddings collapse, and has the last step evaluated and saved."""

    def __init__(
        self, watch: Watch, selection: Selection, model: SentenceTransformer, probe: Sequence[str], shown: Progress
    ) -> None:
        self.watch, self.selection, self.model, self.probe = watch, selection, model, probe
        self.shown = shown
        self.mean_cosine, self.said = 0.0, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.done, self.shown.total = state.global_step, state.max_steps
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True
        elif state.is_world_process_zero:
            self.watch.progress(self.shown)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        if not state.is_world_process_zero or self.selection.metric not in metrics:
            return
        value = self.selection.factor * metrics[self.selection.metric]
        self.shown.extra = f"dev {self.selection.measure} {value:.2f}"
        self.watch.progress(self.shown)
        self.mean_cosine = mean_cosine(self.model, self.probe)
        if self.mean_cosine >= COLLAPSED and not self.said:
            self.said = True
            self.watch.note(
                f"step {state.global_step}: the embeddings have collapsed: cosines of different texts average "
                f"{self.mean_cosine:.3f}; try a lower --learning-rate, larger batches, or mean pooling"
            )
