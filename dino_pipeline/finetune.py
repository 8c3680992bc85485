"""The finetune stage: trains a bi-encoder on a dataset, with the stock trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from dino_pipeline.errors import DataError, DinoError, OptionError, OutputError, RunError
from dino_pipeline.examples import Example, read_examples
from dino_pipeline.model_card import Lineage, model_card
from dino_pipeline.objectives import Objective, Training
from dino_pipeline.progress import Progress, Watch
from dino_pipeline.run import Run, State, digest_files, remove, shard_files

EVALUATIONS = 10
"""So often is the model evaluated on the dev set, and saved, during a training."""
BEST = "eval_dev_spearman_cosine"
WHOLE = "whole"
"""A file that marks a checkpoint as written to its end."""


@dataclass(frozen=True)
class Finetuned:
    """What a training came to."""

    state: State
    dev_spearman: float | None
    """Best dev Spearman x 100; None if the run was done before and holds none."""


def finetune(
    run: Run,
    objective: Objective,
    training: Training,
    *,
    encoder: dict[str, Any],
    load: Callable[[], SentenceTransformer],
    train: Path,
    dev: Path,
    watch: Watch,
    seed: int = 42,
    fresh: bool = False,
) -> Finetuned:
    """Train an encoder into the run's ``model`` folder, going on from the last checkpoint of an earlier call.

    Runs in one process, or in each process of ``accelerate launch``.

    Args:
        run: where to write.
        objective: how the model learns.
        training: hyper-parameters.
        encoder: what identifies the encoder to start from (name, revision ...).
        load: loads it; called only if something is left to do.
        train: JSONL to train on.
        dev: JSONL of scored pairs that chooses the best checkpoint.
        watch: is told how far it is.
        seed: of head initialisation, dropout and data order.
        fresh: start over.

    Raises:
        DataError: the data is not what the objective needs.
        RunError: the run was trained with other options.
    """
    processes = PartialState(cpu=not torch.cuda.is_available())
    options = {"objective": objective.name, **encoder, **asdict(training), "seed": seed, "data": train.name}
    state = _agree(processes, lambda: _begin(run, options, train, dev, fresh, processes.num_processes))
    if state == "done":
        return Finetuned(state, run.stage("finetune").get("dev_spearman"))
    rows, dev_rows = read_examples(train), read_examples(dev)
    dataset = objective.build(rows, str(train))
    set_seed(seed)
    model = load()
    if training.max_length:
        model.max_seq_length = training.max_length
    model.model_card_data.widget = [{}]  # the stock card would quote training texts; ours is written in its place
    trainer = SentenceTransformerTrainer(
        model=model,
        args=_arguments(run, training, len(rows), seed, processes.num_processes),
        train_dataset=dataset,
        loss=objective.loss(model),
        evaluator=dev_evaluator(dev_rows, str(dev), training.batch_size),
    )
    checkpoint = get_last_checkpoint(str(run.checkpoints)) if run.checkpoints.is_dir() else None
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Teller(watch, int(checkpoint.rpartition("-")[2]) if checkpoint else 0))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{run.checkpoints}: training could not go on ({str(error).strip().splitlines()[0]}); "
            "the last whole checkpoint is kept: make room and run again"
        ) from error
    processes.wait_for_everyone()  # each process has read the best checkpoint; now it may go
    best = None if trainer.state.best_metric is None else round(100 * trainer.state.best_metric, 2)
    if processes.is_main_process:
        results = {"dev_spearman": best, "train": len(rows), "dev": len(dev_rows), "steps": trainer.state.max_steps}
        run.note("finetune", **results)
        _save(model, run, objective)
        run.finish("finetune")
        remove(run.checkpoints)
    processes.wait_for_everyone()
    return Finetuned(state, best)


def _begin(run: Run, options: dict[str, Any], train: Path, dev: Path, fresh: bool, processes: int) -> State:
    for path in (train, dev):
        if not path.exists():
            raise DataError(f"{path}: is not there; make it with dino filter {run.path}, or name another file")
    if train == run.train:
        _check_filtered(run)
    _drop_torn_checkpoints(run)
    if run.stage("generate").get("label_type") == "class":
        raise OptionError(f"{run.path}: its labels are classes, not similarities; this objective needs scored pairs")
    return run.begin(
        "finetune",
        options,
        outputs=[run.model],
        partial=[run.checkpoints],
        sources=digest_files([train, dev]),
        settings={"processes": processes},
        fresh=fresh,
    )


def _check_filtered(run: Run) -> None:
    """Refuse data that a later generate, or a filter cut short, has left behind."""
    filtered = run.stage("filter")
    whole = filtered.get("status") == "done"
    if whole and filtered["options"]["source"] == "shards":
        whole = filtered["sources"] == digest_files(shard_files(run.shards))
    if not whole:
        raise RunError(f"{run.train}: is not what the run's texts give now; run dino filter {run.path} first")


def _drop_torn_checkpoints(run: Run) -> None:
    """Delete checkpoints that were cut short, so that training goes on from the last whole one."""
    for folder in run.checkpoints.glob("checkpoint-*"):
        if not (folder / WHOLE).exists():
            remove(folder)


def _agree(processes: PartialState, decide: Callable[[], State]) -> State:
    """Let the main process decide, and all processes follow, also into an error."""
    answer: list[Any] = [None]
    if processes.is_main_process:
        try:
            answer = [decide()]
        except DinoError as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], DinoError):
        raise answer[0]
    state: State = answer[0]
    return state


def dev_evaluator(rows: Sequence[Example], source: str, batch_size: int) -> EmbeddingSimilarityEvaluator:
    """Return the evaluator that chooses the best checkpoint: Spearman of the cosine on held-out pairs.

    Raises:
        DataError: the rows are no scored pairs, or all scores are the same.
    """
    pairs = [(row.text_a, row.text_b, row.label) for row in rows if row.text_b is not None]
    scores = [label for _, _, label in pairs if isinstance(label, float)]
    if len(scores) < len(rows) or len(dict.fromkeys(scores)) < 2:
        raise DataError(f"{source}: must hold scored pairs with at least two different scores; filter a larger dataset")
    return EmbeddingSimilarityEvaluator(
        sentences1=[text_a for text_a, _, _ in pairs],
        sentences2=[text_b for _, text_b, _ in pairs],
        scores=scores,
        batch_size=batch_size,
        name="dev",
        similarity_fn_names=["cosine"],
        write_csv=False,
    )


def _arguments(
    run: Run, training: Training, rows: int, seed: int, processes: int
) -> SentenceTransformerTrainingArguments:
    if training.batch_size % processes:
        raise OptionError(f"batch size {training.batch_size} cannot be shared by {processes} processes evenly")
    steps = max(1, int(-(-rows // training.batch_size) * training.epochs))
    every = -(-steps // EVALUATIONS)
    return SentenceTransformerTrainingArguments(
        output_dir=str(run.checkpoints),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size // processes,
        per_device_eval_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=BEST,
        greater_is_better=True,
        logging_steps=every,
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )


def _save(model: SentenceTransformer, run: Run, objective: Objective) -> None:
    """Write the model folder aside, then put it in place of an older one."""
    aside, old = run.path / "model.part", run.path / "model.old"
    for path in (aside, old):
        remove(path)
    model.save(str(aside), create_model_card=False)
    spec = json.loads(run.spec.read_text()) if run.spec.exists() else {}
    lineage = Lineage(
        name=f"{run.path.resolve().name} ({objective.name})",
        dimension=model.get_embedding_dimension(),
        max_length=model.max_seq_length,
        finetuned=run.stage("finetune"),
        generated=run.stage("generate"),
        filtered=run.stage("filter") if run.stage("finetune")["options"]["data"] == run.train.name else {},
        citation=objective.citation,
        language=spec.get("language"),
        license=spec.get("license"),
    )
    (aside / "README.md").write_text(model_card(lineage), encoding="utf-8")
    if run.model.exists():
        run.model.rename(old)
    aside.rename(run.model)
    remove(old)


class _Teller(TrainerCallback):
    """Tells the watch how far training is, and has the last step evaluated and saved like the others."""

    def __init__(self, watch: Watch, resumed: int) -> None:
        self.watch = watch
        self.shown = Progress("steps", total=0, resumed=resumed)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.done, self.shown.total = state.global_step, state.max_steps
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True
        elif state.is_world_process_zero:
            self.watch.progress(self.shown)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        if state.is_world_process_zero and BEST in metrics:
            self.shown.extra = f"dev Spearman {100 * metrics[BEST]:.2f}"
            self.watch.progress(self.shown)
