"""Puts an objective on the stock trainer: arguments, checkpoints that hold everything, and what is told meanwhile."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
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

from dino_pipeline.errors import ModelError, OptionError, OutputError, first_line
from dino_pipeline.examples import write_json
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.signals import Stopped
from dino_pipeline.training.objectives import Objective, Recipe
from dino_pipeline.training.objectives.contrastive import average_gradients, embedding_sizes, own_tensors
from dino_pipeline.training.objectives.views import Views, views_of
from dino_pipeline.training.selection import COLLAPSED, Selection, mean_cosine

EVALUATIONS = 10
"""So often is the model evaluated, and saved, during a training, and at its end."""
APART = 10
"""But not more often than after so many steps."""
COUNTS = "counts.json"
"""What a checkpoint holds of rows seen and time taken; written last, it marks a checkpoint as whole."""
OWN = "loss.safetensors"
"""What a checkpoint holds of the loss: heads, temperature, memory."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    best: float
    """The best checkpoint's measure."""
    steps: int
    rows_seen: int
    """Repetitions counted."""
    seconds: float
    """Interrupted calls included, up to the checkpoints that training went on from."""
    mean_cosine: float
    """Of different texts, by the best checkpoint."""
    history: list[dict[str, float]]
    """``step`` with the mean ``loss`` since the step before, or with ``dev``, what the checkpoint is chosen by."""


def train(
    folder: Path,
    model: SentenceTransformer,
    dataset: Dataset,
    objective: Objective,
    recipe: Recipe,
    selection: Selection,
    *,
    probe: Sequence[str],
    reporter: Reporter,
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
        reporter: is told how far it is.

    Raises:
        ModelError: training came to embeddings that are no numbers.
        OutputError: a checkpoint cannot be written or read.
        Stopped: somebody wanted it to; a checkpoint holds what was done.
    """
    loss = objective.loss(model, recipe)
    if recipe.training.matryoshka:
        loss = MatryoshkaLoss(model, loss, embedding_sizes(model, recipe))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(folder, objective, recipe, selection, dataset),
        train_dataset=dataset,
        loss=loss,
        evaluator=selection.evaluator,
    )
    own = own_tensors(trainer.loss, model)  # now that the trainer has put them where they stay
    if recipe.processes > 1:
        average_gradients(own.values())
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.remove_callback(PrinterCallback)
    if views := views_of(dataset):
        trainer.add_callback(_Epochs(views))
    counter = _Counter(trainer.loss, recipe.processes)
    trainer.add_callback(_Keeper(own, counter, checkpoint))
    resumed = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    progress = Progress(f"{objective.name}, seed {recipe.seed}", total=0, resumed=resumed)
    trainer.add_callback(_Teller(reporter, selection, model, probe, progress, alone=recipe.processes == 1))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: training could not go on ({first_line(error)}); "
            "the last whole checkpoint is kept: make room and run again"
        ) from error
    best, steps = trainer.state.best_metric, trainer.state.global_step
    if best is None or not math.isfinite(best):
        raise ModelError(
            f"{objective.name}: no checkpoint can be told from another after {steps} steps (embeddings that are no "
            "numbers, or all the same); train with a lower --learning-rate"
        )
    history = list(_history(trainer.state.log_history, selection))
    return Trained(best, steps, counter.rows, counter.seconds, mean_cosine(model, probe), history)


def _history(logged: Sequence[dict[str, float]], selection: Selection) -> Iterator[dict[str, float]]:
    for entry in logged:
        for name, key, factor in (("loss", "loss", 1.0), ("dev", selection.metric, selection.factor)):
            if math.isfinite(value := factor * entry.get(key, math.nan)):
                yield {"step": int(entry["step"]), name: round(value, 6)}


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
    few = objective.in_batch and not objective.distinct and rows > recipe.training.batch_size
    return recipe.processes > 1 or few


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
    if training.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise OptionError("--bf16: this GPU does not compute in bfloat16; leave it out")
    every = max(-(-recipe.steps // EVALUATIONS), APART)
    found = SentenceTransformerTrainingArguments(
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
        warmup_steps=int(training.warmup * recipe.steps),
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
    )
    found._n_gpu = min(found.n_gpu, 1)  # several cards in one process would each take a whole batch
    return found


class _Counter:
    """Counts the rows that a loss is given, and the time."""

    def __init__(self, loss: Any, processes: int) -> None:
        self.processes = processes
        self.rows, self.before, self.started = 0, 0.0, time.monotonic()
        loss.register_forward_pre_hook(self._count)

    @property
    def seconds(self) -> float:
        """Time until now, that of earlier calls included."""
        return self.before + time.monotonic() - self.started

    def _count(self, loss: Any, given: Any) -> None:
        first = given[0][0]
        here = len(first["attention_mask"] if "attention_mask" in first else first["offsets"])
        self.rows += here * self.processes


@dataclass(eq=False)
class _Epochs(TrainerCallback):
    """Tells the dataset's views which epoch it is."""

    views: Views

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.views.epoch = math.floor((state.epoch or 0) + 1e-6)


@dataclass(eq=False)
class _Keeper(TrainerCallback):
    """Puts counts and the loss's own tensors into checkpoints, and takes them from that which training goes on from."""

    own: dict[str, torch.Tensor]
    counter: _Counter
    checkpoint: str | None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.checkpoint:
            return
        counts = json.loads((Path(self.checkpoint) / COUNTS).read_text())
        self.counter.rows, self.counter.before = counts["rows"], counts["seconds"]
        if self.own:
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
        write_json(folder / COUNTS, {"rows": self.counter.rows, "seconds": self.counter.seconds})


@dataclass(eq=False)
class _Teller(TrainerCallback):
    """Reports how far training is and when embeddings collapse, and has the last step evaluated and saved."""

    reporter: Reporter
    selection: Selection
    model: SentenceTransformer
    probe: Sequence[str]
    shown: Progress
    alone: bool
    """Whether there is only this process: of several, each would have to end at the same step."""
    said: bool = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.done, self.shown.total = state.global_step, state.max_steps
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True
        elif self.alone and self.reporter.should_stop():
            control.should_save = True
        elif state.is_world_process_zero:
            self.reporter.update(self.shown)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.alone and self.reporter.should_stop() and state.global_step < state.max_steps:
            raise Stopped  # here, for an ended training deletes all checkpoints but the best

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        if not state.is_world_process_zero or self.selection.metric not in metrics:
            return
        value = self.selection.factor * metrics[self.selection.metric]
        self.shown.extra = f"dev {self.selection.measure} {value:.2f}"
        self.reporter.update(self.shown)
        if not self.said and (cosine := mean_cosine(self.model, self.probe)) >= COLLAPSED:
            self.said = True
            self.reporter.note(
                f"step {state.global_step}: the embeddings have collapsed: cosines of different texts average "
                f"{cosine:.3f}; try a lower --learning-rate, larger batches, or mean pooling"
            )
