"""The finetune stage: trains a bi-encoder on texts with an objective."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import WordWeights
from transformers import set_seed

from dino_pipeline.cards.card import ModelCard, texts_origin
from dino_pipeline.encoder_options import FinetuneOptions, Hyperparameters, WhitenTime
from dino_pipeline.errors import DinoError, OptionError, OutputError, first_line, write_remedy
from dino_pipeline.files import files_below, folder_replaced, remove
from dino_pipeline.measures import measure_title
from dino_pipeline.models import default_prompt, has_adapters, load_encoder, max_length_of, pooling_of, quiet_loading
from dino_pipeline.odd_paths import utf8_path
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, doing, reporter_for
from dino_pipeline.record import public_record
from dino_pipeline.run import Run, State
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import FinetuneRecord, HeadRecord, SelectionRecord
from dino_pipeline.training.adapters import TrainingRows
from dino_pipeline.training.checkpoints import delete_unusable
from dino_pipeline.training.heads import ClassHead, fit_head, score_head
from dino_pipeline.training.health import check_not_constant, check_room, probe_texts
from dino_pipeline.training.job import TrainingJob, finetune_job
from dino_pipeline.training.lora import add_adapters, check_base, merge_adapters
from dino_pipeline.training.objectives import Objective, TrainingContext, citation
from dino_pipeline.training.padding import check_padding
from dino_pipeline.training.quality import (
    SelectionCriterion,
    check_encoder,
    criterion_for,
    fit_batch_size,
    inspect_data,
    with_quality,
)
from dino_pipeline.training.trainer import count_steps, train
from dino_pipeline.training.training_texts import training_texts
from dino_pipeline.training.whitening import whiten


@dataclass(frozen=True)
class FinetuneInfo:
    """How an encoder was trained. `finetune` puts it on the encoder as ``encoder.dino``."""

    record: FinetuneRecord
    """Options, data, and results such as ``selection.best``, the best checkpoint's score."""
    state: State
    """Whether the training was new, resumed, or done before."""
    head: ClassHead | None = None
    """Predicts classes from embeddings, if the encoder was trained on texts with classes."""


@accepts(FinetuneOptions)
def finetune(
    source: object, *, progress: bool | Callable[[Progress | str], object] | Reporter = True, **options: Any
) -> SentenceTransformer:
    """Train a sentence encoder on texts and return it.

    The encoder is kept in the folder ``run`` or, without it, in the run that the texts are from. There, a stopped
    training goes on. If there is neither, nothing is kept on disk.

    Args:
        source: a run's folder, the result of `filter`, examples in memory (a list, a `datasets.Dataset`, a pandas
            frame), a file, or a dataset on the Hub.
        progress: show progress; a function is called with each `Progress` and each note.

    Returns:
        The encoder with the best checkpoint's weights. ``encoder.dino`` is a `FinetuneInfo`: how it was trained.

    Raises:
        DinoError: an option, the texts, the encoder or the run does not allow the training.
    """
    chosen = FinetuneOptions.of(options)
    texts = training_texts(source, chosen)
    job = finetune_job(chosen, texts)
    own = Run.of(source)
    folder = chosen.run or (own.path if own else None)
    if folder is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("several processes need a folder in common", "name one with {run=FOLDER}")
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes of `accelerate launch`
    # the first process alone tells of the training
    with reporter_for(progress if is_first else False) as reporter, folder_or_temporary(folder) as kept:
        run = Run(kept)
        with run.locked() if is_first else contextlib.nullcontext():
            state = finetune_run(run, job, reporter, fresh=chosen.fresh)
        return _load_trained(run, state)


@contextlib.contextmanager
def folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    """Give a folder, or one that is deleted at the end."""
    if folder is not None:
        yield folder
    else:
        with TemporaryDirectory(prefix="dino-") as temporary:
            yield Path(temporary) / "run"


def _load_trained(run: Run, state: State) -> SentenceTransformer:
    """Return the encoder of a run, with its `FinetuneInfo` attached."""
    record = _recorded(run)
    encoder = load_encoder(str(run.model))
    encoder.dino = FinetuneInfo(record, state, ClassHead.load(run.model) if record.head else None)
    return encoder


def finetune_run(run: Run, job: TrainingJob, reporter: Reporter, *, fresh: bool = False) -> State:
    """Train an encoder into the run's ``model`` folder. Go on from the last checkpoint of an earlier call.

    Runs in one process, or in each process of ``accelerate launch``.

    Raises:
        DataError: the data is not what the objective needs.
        ModelError: the encoder cannot be trained like that.
        OptionError: an option does not fit the encoder or the data.
        RunError: the run was trained with other options.
    """
    processes = PartialState(cpu=not torch.cuda.is_available())
    state = decide_together(processes, lambda: _begin(run, job, reporter, processes.num_processes, fresh=fresh))
    if state != "done":
        with random_states_kept():
            _train_into(run, job, reporter, processes)
    return state


def _begin(run: Run, job: TrainingJob, reporter: Reporter, processes: int, *, fresh: bool) -> State:
    """Decide what is left to do, and record that it has begun."""
    job.texts.check_run()
    delete_unusable(run.checkpoints, reporter.note)
    record = FinetuneRecord(options=job.settings(), sources=job.texts.digest(), settings={"processes": processes})
    return run.begin(record, fresh=fresh, note=reporter.note)


def _train_into(run: Run, job: TrainingJob, reporter: Reporter, processes: PartialState) -> None:
    """Train an encoder and save it with its record."""
    objective, texts = job.objective, job.learns_from
    rows, criterion = texts.rows(objective), _criterion(job)
    set_seed(job.seed)
    model, when_whitened = job.start(reporter)
    full_length = _prepare_encoder(model, objective, job.hyperparameters)
    context = TrainingContext(
        job.hyperparameters, model.tokenizer, job.seed, job.encoder.revision, processes.num_processes
    )
    probe = probe_texts(texts.parts[0].examples)
    if job.hyperparameters.lora_save == "adapter":
        check_base(model, probe)
    dataset = objective.build(rows.columns, context)
    check_not_constant(model, dataset, job.encoder.written)
    context = _with_dataset(context, objective, dataset)
    _note_texts(job, rows, when_whitened, reporter)
    record = _recorded(run)
    selection = SelectionRecord(
        measure=criterion.measure,
        best=None,
        on=texts.selection_name,
        human_labels=texts.select_on is not None,
        kept="last" if criterion.keeps_last else "best",
    )
    record = record.updated(
        rows_read=texts.rows_read,
        train=len(rows),
        dev=criterion.rows,
        made=rows.remarks,
        pooling=pooling_of(model),
        prompt="" if objective.prompts else default_prompt(model),
        selection=selection,
        whitened=when_whitened,
    )
    record = inspect_data(record, model, objective, dataset, context.hyperparameters.batch_size, reporter)
    record = train(
        record, run.checkpoints, model, dataset, objective, context, criterion, probe=probe, reporter=reporter
    )
    with doing(reporter, "measuring and saving the encoder"):
        if full_length:  # `_prepare_encoder` has cut it for training
            model.max_seq_length = full_length
        if has_adapters(model) and job.hyperparameters.lora_save == "merged":
            merge_adapters(model)
        if when_whitened == "end":
            before = record.selection
            model = whiten(model, job.fitting_texts)
            record = with_quality(record, model, criterion, criterion.measured(model), probe)
            _note_whitening(job, before, record.selection, reporter)
        processes.wait_for_everyone()  # every process has read the best checkpoint before it is deleted
        if processes.is_main_process:
            _finish(run, record, model, job)
        processes.wait_for_everyone()


def _criterion(job: TrainingJob) -> SelectionCriterion:
    """Return what chooses the best checkpoint, or says that the last one is kept."""
    texts = job.learns_from
    corpus, held_out = texts.parts
    criterion = criterion_for(held_out, job.objective, learns_classes=corpus.has_classes)
    authors = job.objective.followed(job.hyperparameters)
    if authors and authors.keeps_last and texts.select_on is None:
        criterion = replace(criterion, keeps_last=True)
    return criterion


def _note_whitening(
    job: TrainingJob, before: SelectionRecord | None, after: SelectionRecord | None, reporter: Reporter
) -> None:
    """Tell what whitening at the end was fitted to, and how it changed the measure on held-out texts."""
    assert before is not None
    assert after is not None
    source = job.texts.sentences or job.texts
    reporter.note(
        f"whitened by {len(job.fitting_texts)} texts of {source.train.label}: dev {measure_title(after.measure)} "
        f"{before.best} before, {after.best} after"
    )


def _note_texts(job: TrainingJob, rows: TrainingRows, when_whitened: WhitenTime, reporter: Reporter) -> None:
    """Note what was read of the user's data, what it was made into, and texts that change nothing."""
    for read in job.learns_from.rows_read if job.learns_from.run is None else ():
        reporter.note(read.told)
    for remark in rows.remarks:
        reporter.note(remark)
    sentences = job.texts.sentences
    if sentences is None:
        return
    learns_from_them = job.objective.needs == "sentences"
    if not learns_from_them and when_whitened == "no" and not job.encoder.static:
        reporter.note(f"{sentences.train.label}: nothing learns from it, and the encoder is not whitened")
    if learns_from_them and not job.texts.parts[0].has_classes:
        reporter.note(f"{job.objective.name} learns from {sentences.train.label}, not from {job.texts.train.label}")


def _recorded(run: Run) -> FinetuneRecord:
    """Return the record of a stage that has begun."""
    record = run.record().finetune
    assert record is not None
    return record


def _prepare_encoder(model: SentenceTransformer, objective: Objective, hyperparameters: Hyperparameters) -> int | None:
    """Make an encoder ready for training.

    Returns:
        The encoder's own maximum length if it is cut shorter in training alone. It is restored afterwards.
    """
    check_encoder(model, objective, hyperparameters)
    model.model_card_data.widget = [{}]  # the stock card would quote training texts; ours replaces it
    if objective.prepare:
        objective.prepare(model, hyperparameters)
    check_padding(model, hyperparameters)
    for module in model:
        if isinstance(module, WordWeights):  # one that was loaded would train, and its folder holds the weights as text
            module.requires_grad_(False)
    if hyperparameters.freeze_embeddings:
        model.transformers_model.get_input_embeddings().requires_grad_(False)
    if hyperparameters.lora:
        add_adapters(model, hyperparameters.lora)
    cut = hyperparameters.max_length
    if not cut or model.transformers_model is None:
        check_room(model, objective)
        return None
    length: int | None = model.max_seq_length
    authors = objective.followed(hyperparameters)
    if authors and length and cut == authors.hyperparameters.get("max_length"):
        cut = min(cut, length)  # the authors' encoders take more tokens than some do
    model.max_seq_length = cut
    check_room(model, objective)
    if authors and authors.keeps_length:
        return None
    return length if length and length > cut else None


def _with_dataset(context: TrainingContext, objective: Objective, dataset: Dataset) -> TrainingContext:
    """Return the context completed with what the dataset decides: batch size, classes and steps."""
    fitted = fit_batch_size(objective, context.hyperparameters, dataset, context.processes)
    context = replace(context, hyperparameters=fitted)
    classes = len(getattr(dataset.features.get("label"), "names", ()))
    return replace(context, steps=count_steps(objective, context, len(dataset)), classes=classes)


def _finish(run: Run, record: FinetuneRecord, model: SentenceTransformer, job: TrainingJob) -> None:
    """Fit the head if the texts have classes, save the encoder and record the results."""
    corpus, held_out = job.texts.parts
    head = None
    if corpus.has_classes:
        head = fit_head(model, corpus.examples)
        scores = score_head(head, model, held_out.examples) if held_out.content == "classified texts" else {}
        record = record.updated(head=HeadRecord(classes=head.classes, **scores))
    record = record.updated(origin=job.texts.origin_for(run))
    run.save(record)  # the card, which is written next, reads it
    _save(model, run, job.objective, head)
    run.finish(record)
    remove(run.checkpoints)


def _save(model: SentenceTransformer, run: Run, objective: Objective, head: ClassHead | None) -> None:
    """Write the model folder and put it in the place of an older one.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with folder_replaced(run.model) as folder:
            with quiet_loading():
                model.save(utf8_path(folder), create_model_card=False)
            if head:
                head.save(folder)
            card = folder / "README.md"
            card.write_text(_card(model, run, objective), encoding="utf-8")
            for path in files_below(folder):  # safetensors lets nobody else read its files
                path.chmod(card.stat().st_mode)
    except SafetensorError as error:
        raise OutputError(f"{run.model}: cannot be written ({first_line(error)})", write_remedy(error)) from error


def _card(model: SentenceTransformer, run: Run, objective: Objective) -> str:
    """Return the card of an encoder that was trained in a run with an objective."""
    record = public_record(run.record())
    assert record.finetune is not None
    card = ModelCard(
        title=f"{run.path.resolve().name} ({objective.name})",
        dimension=model.get_embedding_dimension(),
        max_length=max_length_of(model),
        finetuned=record.finetune,
        origin=texts_origin(record, load_spec(run.spec) if run.spec.exists() else None),
        citation=citation(objective, record.finetune),
        prompts=bool(objective.prompts),
    )
    return card.text()


# Processes and random states


def decide_together(processes: PartialState, decide: Callable[[], State]) -> State:
    """Return what the main process decides, in all processes. If it raises a `DinoError`, all raise it."""
    decision: list[Any] = [None]
    if processes.is_main_process:
        try:
            decision = [decide()]
        except DinoError as error:
            decision = [error]
    broadcast_object_list(decision)
    if isinstance(decision[0], DinoError):
        raise decision[0]
    state: State = decision[0]
    return state


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the global random generators of Python, numpy and torch, which a training seeds, at the end."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
