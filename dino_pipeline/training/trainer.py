"""How an objective runs on the stock trainer: arguments, checkpoints that hold everything, progress."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
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

from dino_pipeline.errors import OptionError, OutputError, first_line, write_remedy
from dino_pipeline.models import default_prompt, has_adapters, mean_cosine, quiet_loading
from dino_pipeline.odd_paths import utf8_path
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.stage_records import FinetuneRecord, HistoryPoint
from dino_pipeline.stopping import Stopped
from dino_pipeline.training.checkpoints import checked_counts, mark_whole
from dino_pipeline.training.health import COLLAPSED, LossWatch, check_not_constant
from dino_pipeline.training.lora import load_trained, save_trained
from dino_pipeline.training.objectives import Objective, RowViews, TrainingContext, reads_token_states, row_views
from dino_pipeline.training.objectives.pairs import average_gradients, embedding_sizes, own_tensors
from dino_pipeline.training.objectives.reference import ClipCallback
from dino_pipeline.training.padding import rows_grouped_by_length
from dino_pipeline.training.quality import SelectionCriterion, with_quality

EVALUATIONS = 10
"""Evaluations, and checkpoints, during a training. One more follows at its end."""
MIN_STEPS_BETWEEN = 10
"""Steps between two evaluations, at least."""
ROWS = ("attention_mask", "offsets", "sentence_embedding")
"""Inputs with an entry for each text: of encoders with layers, of token tables, and of counted words."""
LOSS_FILE = "loss.safetensors"
"""Holds a checkpoint's tensors of the loss: heads, temperature, memory."""


def train(
    record: FinetuneRecord,
    folder: Path,
    model: SentenceTransformer,
    dataset: Dataset,
    objective: Objective,
    context: TrainingContext,
    criterion: SelectionCriterion,
    *,
    probe: Sequence[str],
    reporter: Reporter,
) -> FinetuneRecord:
    """Train an encoder in place and end with its best checkpoint. Go on from the last checkpoint in the folder.

    The dataset is the one that the objective built, and the context holds the number of steps. ``probe`` are the texts
    in which collapse is looked for.

    Returns:
        The record with what the training achieved.

    Raises:
        ModelError: training led to embeddings that are not numbers.
        OutputError: a checkpoint cannot be written or read.
        Stopped: the reporter asked to stop. A checkpoint holds everything until then.
    """
    if context.steps == 0:
        best = criterion.measured(model)
        history = _history([{"step": 0, criterion.metric: best}], criterion)
        record = record.updated(steps=0, history=history, rows_seen=0, seconds=0.0)
        return with_quality(record, model, criterion, best, probe)
    trainer = _make_trainer(folder, model, dataset, objective, context, criterion)
    loss_tensors = own_tensors(trainer.loss, model)  # only now: the trainer has moved them to their device
    if context.processes > 1:
        average_gradients(loss_tensors.values())
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    counter = _CheckpointCallback(trainer.loss, loss_tensors, context.processes, checkpoint)
    resumed = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    progress = Progress(f"{objective.name}, seed {context.seed}", total=0, resumed=resumed)
    trainer.add_callback(counter)
    trainer.add_callback(
        _ProgressCallback(reporter, criterion, model, probe, dataset, progress, context.processes == 1)
    )
    # the gain was measured on CPUs; on a GPU, batches stay whole
    grouped = not torch.cuda.is_available() and not reads_token_states(objective, context.hyperparameters)
    with rows_grouped_by_length(model) if grouped else contextlib.nullcontext():
        _run_trainer(trainer, checkpoint)
    record = record.updated(
        steps=trainer.state.global_step,
        history=_history(trainer.state.log_history, criterion),
        rows_seen=counter.rows,
        seconds=round(counter.seconds, 1),
    )
    best = criterion.measured(model) if criterion.keeps_last else trainer.state.best_metric
    return with_quality(record, model, criterion, best, probe)


def _make_trainer(
    folder: Path,
    model: SentenceTransformer,
    dataset: Dataset,
    objective: Objective,
    context: TrainingContext,
    criterion: SelectionCriterion,
) -> SentenceTransformerTrainer:
    """Return the stock trainer with the objective's loss. Views of rows follow its epochs."""
    loss = objective.loss(model, context)
    if context.hyperparameters.matryoshka:
        loss = MatryoshkaLoss(model, loss, embedding_sizes(model, context))
    hyperparameters = context.hyperparameters
    authors = objective.followed(hyperparameters)
    trainer = _QuietTrainer(
        model=model,
        args=trainer_arguments(folder, objective, context, criterion, dataset, default_prompt(model)),
        train_dataset=dataset,
        loss=loss,
        evaluator=criterion.evaluator,
        optimizers=authors.optimizers(loss, hyperparameters, context.steps) if authors else (None, None),
    )
    trainer.remove_callback(PrinterCallback)
    if authors and authors.clip:
        trainer.add_callback(ClipCallback(loss, authors.clip))
    if views := row_views(dataset):
        trainer.add_callback(_EpochCallback(views))
    return trainer


def _run_trainer(trainer: SentenceTransformerTrainer, checkpoint: str | None) -> None:
    """Train from a checkpoint, or from the start."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{trainer.args.output_dir}: training could not go on ({first_line(error)}); the last whole checkpoint is "
            "kept",
            write_remedy(error),
        ) from error


def _history(log: Sequence[Mapping[str, float]], criterion: SelectionCriterion) -> tuple[HistoryPoint, ...]:
    """Return the finite losses and measures of the trainer's log: mean losses since the entry before."""
    history = []
    for entry in log:
        for name, key, scale in (("loss", "loss", 1.0), ("dev", criterion.metric, criterion.scale)):
            value = scale * entry.get(key, math.nan)
            if math.isfinite(value):
                history.append(HistoryPoint(step=int(entry["step"]), **{name: round(value, 6)}))
    return tuple(history)


def count_steps(objective: Objective, context: TrainingContext, rows: int) -> int:
    """Return the number of steps of a training.

    Raises:
        OptionError: there are too few rows for a batch, where batches must be whole.
    """
    hyperparameters, dropped = context.hyperparameters, _drops_last_batch(objective, context, rows)
    batch_size = hyperparameters.batch_size
    if dropped and rows < batch_size:
        use = "several processes" if context.processes > 1 else f"a batch of {batch_size}, which is not cut here"
        raise OptionError(f"there are only {rows} rows for {use}", "give a smaller {batch_size}")
    per_epoch = rows // batch_size if dropped else math.ceil(rows / batch_size)
    if hyperparameters.steps is not None:
        return hyperparameters.steps
    return max(1, math.ceil(per_epoch * hyperparameters.epochs))


def _drops_last_batch(objective: Objective, context: TrainingContext, rows: int) -> bool:
    """Return whether rows that do not fill the last batch are left out.

    They are if a text would have too few others in that batch, or a process none; or as the authors have it.
    """
    if context.processes == 1 and (authors := objective.followed(context.hyperparameters)):
        return authors.drops_last_batch
    too_few = objective.in_batch_negatives and not objective.no_duplicates
    return context.processes > 1 or (too_few and rows > context.hyperparameters.batch_size)


def trainer_arguments(
    folder: Path,
    objective: Objective,
    context: TrainingContext,
    criterion: SelectionCriterion,
    dataset: Dataset,
    prompt: str = "",
) -> SentenceTransformerTrainingArguments:
    """Return the arguments of the stock trainer.

    Args:
        prompt: what the encoder puts before each text by default; an objective may have prompts of its own.

    Raises:
        OptionError: the processes cannot share a batch evenly, mini-batches do not divide it, or the GPU cannot
            compute in bfloat16.
    """
    hyperparameters = context.hyperparameters
    rows, parts = _rows_per_process(objective, context)
    if hyperparameters.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise OptionError("this GPU does not compute in bfloat16", "leave it out", option="bf16")
    interval = max(math.ceil(context.steps / EVALUATIONS), MIN_STEPS_BETWEEN)
    apart = objective.keeps_apart(hyperparameters)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=utf8_path(folder),
        num_train_epochs=hyperparameters.epochs,
        max_steps=-1 if hyperparameters.steps is None else hyperparameters.steps,
        per_device_train_batch_size=rows // parts,
        gradient_accumulation_steps=parts,
        dataloader_drop_last=_drops_last_batch(objective, context, len(dataset)),
        batch_sampler=BatchSamplers.NO_DUPLICATES if apart else BatchSamplers.BATCH_SAMPLER,
        prompts=dict(objective.prompts) or prompt or None,
        learning_rate=hyperparameters.learning_rate,
        weight_decay=hyperparameters.weight_decay,
        warmup_steps=int(hyperparameters.warmup * context.steps),
        lr_scheduler_type={"linear": "linear", "constant": "constant_with_warmup"}[hyperparameters.schedule],
        bf16=hyperparameters.bf16,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        max_grad_norm=0.0 if objective.followed(hyperparameters) else 1.0,
        load_best_model_at_end=not criterion.keeps_last,
        metric_for_best_model=criterion.metric,
        greater_is_better=True,
        logging_steps=interval,
        seed=context.seed,
        data_seed=context.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several cards in one process would each take a whole batch
    return arguments


def _rows_per_process(objective: Objective, context: TrainingContext) -> tuple[int, int]:
    """Return the rows of a batch that each process takes, and into how many parts it accumulates them.

    Objectives that cache gradients part their batches themselves.
    """
    batch_size, mini_batch_size = context.hyperparameters.batch_size, context.hyperparameters.mini_batch_size
    if batch_size % context.processes:
        raise OptionError(f"batch size {batch_size} cannot be shared by {context.processes} processes evenly")
    rows = batch_size // context.processes
    if not mini_batch_size or objective.caches_gradients:
        return rows, 1
    parts = math.ceil(rows / mini_batch_size)
    if rows % parts:
        raise OptionError(f"must divide the {rows} rows of a batch", option="mini_batch_size", value=mini_batch_size)
    return rows, parts


class _QuietTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """The stock trainer without progress bars where it writes and reads checkpoints.

    If adapters are trained, checkpoints hold these and not the encoder. A loss that is not a number, or stays the same,
    ends the training.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = LossWatch()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.watch.see(float(loss), self.state.global_step + 1)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with quiet_loading():
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if has_adapters(self.model):
            load_trained(self.model, Path(args[0]))
            return
        with quiet_loading():
            super()._load_from_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str, state_dict: Any = None) -> None:
        if has_adapters(self.model):
            save_trained(self.model, Path(output_dir))
        else:
            super()._save(output_dir, state_dict)


@dataclass(eq=False)
class _EpochCallback(TrainerCallback):
    """Sets the epoch of the dataset's views."""

    views: RowViews

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.views.epoch = math.floor((state.epoch or 0) + 1e-6)


class _CheckpointCallback(TrainerCallback):
    """Counts rows and seconds. Writes both, and the loss's own tensors, into checkpoints.

    With a checkpoint, it restores them from there, and training goes on.
    """

    def __init__(self, loss: Any, tensors: dict[str, torch.Tensor], processes: int, checkpoint: str | None) -> None:
        self.loss_tensors, self.processes, self.checkpoint = tensors, processes, checkpoint
        self.rows, self.seconds_before = checked_counts(Path(checkpoint)) if checkpoint else (0, 0.0)
        self.started = time.monotonic()
        loss.register_forward_pre_hook(self._count)

    @property
    def seconds(self) -> float:
        """Return the time until now, earlier calls included."""
        return self.seconds_before + time.monotonic() - self.started

    def _count(self, loss: Any, arguments: Any) -> None:
        features = arguments[0][0]  # of the first column
        rows = len(next(features[name] for name in ROWS if name in features))
        self.rows += rows * self.processes

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.checkpoint:
            return
        if self.loss_tensors:
            saved = load_file(Path(self.checkpoint) / LOSS_FILE)
            with torch.no_grad():
                for name, tensor in self.loss_tensors.items():
                    tensor.copy_(saved[name])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.loss_tensors:
            tensors = {name: tensor.detach().contiguous() for name, tensor in self.loss_tensors.items()}
            save_file(tensors, folder / LOSS_FILE)
        mark_whole(folder, self.rows, self.seconds)


@dataclass(eq=False)
class _ProgressCallback(TrainerCallback):
    """Reports progress and collapsed embeddings, stops when asked to, and has the last step evaluated and saved."""

    reporter: Reporter
    criterion: SelectionCriterion
    model: SentenceTransformer
    probe: Sequence[str]
    dataset: Dataset
    progress: Progress
    may_stop: bool
    """Whether this process trains alone. Several would each have to stop at the same step."""
    collapse_noted: bool = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.done, self.progress.total = state.global_step, state.max_steps
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True
        elif self.may_stop and self.reporter.should_stop():
            control.should_save = True
        elif state.is_world_process_zero:
            self.reporter.update(self.progress)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.may_stop and self.reporter.should_stop() and state.global_step < state.max_steps:
            raise Stopped  # an orderly end of training would delete all checkpoints but the best

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        if not state.is_world_process_zero or self.criterion.metric not in metrics:
            return
        value = self.criterion.scale * metrics[self.criterion.metric]
        self.progress.extra = f"dev {self.criterion.measure} {value:.2f}"
        self.reporter.update(self.progress)
        cosine = mean_cosine(self.model, self.probe)
        if not (math.isfinite(value) and cosine < COLLAPSED):
            check_not_constant(self.model, self.dataset, f"step {state.global_step}")
        if cosine >= COLLAPSED and not self.collapse_noted:
            self.collapse_noted = True
            self.reporter.note(
                f"step {state.global_step}: the embeddings have collapsed: cosines of different texts average "
                f"{cosine:.3f}",
                "try a lower {learning_rate}, larger batches, or mean pooling",
            )
