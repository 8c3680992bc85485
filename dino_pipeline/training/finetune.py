"""The finetune stage: trains a bi-encoder on texts with an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from dino_pipeline.cards.model_card import lineage, model_card, texts_origin
from dino_pipeline.encoders import pooling_of
from dino_pipeline.errors import DinoError, OutputError, first_line
from dino_pipeline.examples import Example
from dino_pipeline.files import folder_replaced, remove
from dino_pipeline.finetune_options import Hyperparameters
from dino_pipeline.progress import Reporter
from dino_pipeline.run import Run, Stage, State
from dino_pipeline.spec_file import load_spec
from dino_pipeline.training.adapters import TrainingRows, contrast_classes
from dino_pipeline.training.checks import (
    COLLAPSED,
    DataReport,
    check_encoder,
    fit_batch_size,
    inspect_data,
    probe_texts,
)
from dino_pipeline.training.corpus import Corpus
from dino_pipeline.training.heads import ClassHead, fit_head, score_head
from dino_pipeline.training.objective import Objective, TrainingContext
from dino_pipeline.training.selection import SelectionCriterion, selection_criterion
from dino_pipeline.training.trainer import COUNTS_FILE, TrainingResult, count_steps, train
from dino_pipeline.training.training_texts import TrainingTexts


def finetune_run(
    run: Run,
    objective: Objective,
    hyperparameters: Hyperparameters,
    *,
    encoder: dict[str, Any],
    load: Callable[[], SentenceTransformer],
    texts: TrainingTexts,
    reporter: Reporter,
    seed: int = 42,
    fresh: bool = False,
) -> State:
    """Train an encoder into the run's ``model`` folder. Go on from the last checkpoint of an earlier call.

    Runs in one process, or in each process of ``accelerate launch``.

    Args:
        run: where to write.
        objective: how the encoder learns.
        hyperparameters: of the training.
        encoder: identifies the encoder to start from (name, revision ...).
        load: loads that encoder; called only if something is left to do.
        texts: to learn from, and to choose the best checkpoint on.
        reporter: follows the training.
        seed: of head initialisation, dropout, views and data order.
        fresh: start over.

    Returns:
        Whether the work was new, resumed, or done before.

    Raises:
        DataError: the data is not what the objective needs.
        ModelError: the encoder cannot be trained like that.
        OptionError: an option does not fit the encoder or the data.
        RunError: the run was trained with other options.
    """
    processes = PartialState(cpu=not torch.cuda.is_available())
    options = {"objective": objective.name, **encoder, **asdict(hyperparameters), "seed": seed, **texts.options()}
    state = _decide_together(processes, lambda: _begin(run, options, texts, fresh, processes.num_processes))
    if state != "done":
        corpus, held_out = texts.parts
        rows = texts.rows(objective)
        criterion = _criterion(held_out, objective, learns_classes=_has_classes(corpus))
        set_seed(seed)
        model = load()
        full_length = _prepare_encoder(model, objective, hyperparameters)
        context = TrainingContext(
            hyperparameters, model.tokenizer, seed, encoder.get("revision"), processes.num_processes
        )
        dataset = objective.build(rows.columns, context)
        context = _with_dataset(context, objective, dataset)
        report = inspect_data(model, objective, context.hyperparameters, dataset, hyperparameters.batch_size)
        if processes.is_main_process:
            _note_data(reporter, objective, rows, dataset, report)
        probe = probe_texts(corpus.examples)
        result = train(run.checkpoints, model, dataset, objective, context, criterion, probe=probe, reporter=reporter)
        processes.wait_for_everyone()  # every process has read the best checkpoint before it is deleted
        if processes.is_main_process:
            if full_length:
                model.max_seq_length = full_length
            results = _results(result, criterion, texts, rows, report, model)
            _finish(run, model, objective, texts, results)
        processes.wait_for_everyone()
    return state


def _begin(run: Run, options: dict[str, Any], texts: TrainingTexts, fresh: bool, processes: int) -> State:
    """Decide what is left to do, and record that it has begun."""
    texts.check_origin()
    for folder in run.checkpoints.glob("checkpoint-*"):
        if not (folder / COUNTS_FILE).exists():  # it was cut short: go on from the last whole one
            remove(folder)
    stage = Stage("finetune", options, outputs=[run.model], partial=[run.checkpoints], sources=texts.digest())
    return run.begin(stage, fresh=fresh, settings={"processes": processes})


def _decide_together(processes: PartialState, decide: Callable[[], State]) -> State:
    """Let the main process decide, and all processes follow, into an error, too."""
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


def _has_classes(corpus: Corpus) -> bool:
    """Return whether a corpus is texts of two or more classes."""
    return corpus.content == "classified texts" and len({example.label for example in corpus.examples}) > 1


def _criterion(held_out: Corpus, objective: Objective, *, learns_classes: bool) -> SelectionCriterion:
    """Return the criterion that chooses the best checkpoint.

    If the objective learns from pairs within and between classes, such pairs of the held-out texts choose.
    """
    of_classes = learns_classes and held_out.content == "classified texts"
    if of_classes and objective.needs in ("scored pairs", "triplets"):
        pairs: Sequence[Example] = contrast_classes(held_out.examples)
        if len({pair.label for pair in pairs}) > 1:  # a few texts may all be of one class
            return selection_criterion(Corpus(held_out.name, list(pairs)))
    return selection_criterion(held_out)


def _prepare_encoder(model: SentenceTransformer, objective: Objective, hyperparameters: Hyperparameters) -> int | None:
    """Make an encoder ready for training.

    Returns:
        The encoder's own maximum length if it is cut shorter in training. It is restored afterwards.
    """
    check_encoder(model, objective, hyperparameters)
    model.float()  # weights stored in half precision are trained in single precision
    model.model_card_data.widget = [{}]  # the stock card would quote training texts; ours replaces it
    if objective.prepare:
        objective.prepare(model)
    length: int | None = model.max_seq_length
    if not hyperparameters.max_length or model.transformers_model is None:
        return None
    model.max_seq_length = hyperparameters.max_length
    return length if length and length > hyperparameters.max_length else None


def _with_dataset(context: TrainingContext, objective: Objective, dataset: Dataset) -> TrainingContext:
    """Return the context with what is known once the dataset is built: batch size, classes, steps."""
    fitted = fit_batch_size(objective, context.hyperparameters, dataset, context.processes)
    context = replace(context, hyperparameters=fitted)
    classes = len(getattr(dataset.features.get("label"), "names", ()))
    return replace(context, steps=count_steps(objective, context, len(dataset)), classes=classes)


def _note_data(
    reporter: Reporter, objective: Objective, rows: TrainingRows, dataset: Dataset, report: DataReport
) -> None:
    """Tell the user how the rows were made, and what is worth knowing of them."""
    for remark in rows.remarks:
        reporter.note(remark)
    left_out = len(rows) - len(dataset)
    if left_out:
        reporter.note(f"{left_out} of {len(rows)} {objective.needs} are too short")
    for message, remedy in report.notes:
        reporter.note(message, remedy)


def _results(
    result: TrainingResult,
    criterion: SelectionCriterion,
    texts: TrainingTexts,
    rows: TrainingRows,
    report: DataReport,
    model: SentenceTransformer,
) -> dict[str, Any]:
    """Return what the run's record holds of a training."""
    return {
        "batch": report.batch,
        "cut": report.cut,
        "repeated": report.repeated,
        "notes": [message for message, _ in report.notes],
        "selection": {
            "measure": criterion.measure,
            "best": round(criterion.scale * result.best, 2),
            "on": texts.selection_name,
            "human_labels": texts.select_on is not None,
        },
        "train": len(rows),
        "dev": criterion.rows,
        "made": list(rows.remarks),
        "pooling": pooling_of(model),
        "steps": result.steps,
        "history": result.history,
        "rows_seen": result.rows_seen,
        "seconds": round(result.seconds, 1),
        "mean_cosine": round(result.mean_cosine, 4),
        "collapsed": result.mean_cosine >= COLLAPSED,
    }


def _finish(
    run: Run, model: SentenceTransformer, objective: Objective, texts: TrainingTexts, results: dict[str, Any]
) -> None:
    """Fit the head if the texts have classes, record the results and save the encoder."""
    corpus, held_out = texts.parts
    head = None
    if _has_classes(corpus):
        head = fit_head(model, corpus.examples)
        scores = score_head(head, model, held_out.examples) if held_out.content == "classified texts" else {}
        results["head"] = {"classes": list(head.classes), **scores}
    run.note("finetune", **results, origin=texts.provenance(run))
    _save(model, run, objective, head)
    run.finish("finetune")
    remove(run.checkpoints)


def _save(model: SentenceTransformer, run: Run, objective: Objective, head: ClassHead | None) -> None:
    """Write the model folder and put it in the place of an older one.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with folder_replaced(run.model) as folder:
            model.save(str(folder), create_model_card=False)
            if head:
                head.save(folder)
            (folder / "README.md").write_text(_card(model, run, objective), encoding="utf-8")
    except SafetensorError as error:
        raise OutputError(f"{run.model}: cannot be written ({first_line(error)})", "make room and run again") from error


def _card(model: SentenceTransformer, run: Run, objective: Objective) -> str:
    """Return the card of an encoder that was trained in a run with an objective."""
    record = run.record()
    assert record.finetune is not None
    made_from = lineage(
        record.finetune,
        texts_origin(record, load_spec(run.spec) if run.spec.exists() else None),
        name=f"{run.path.resolve().name} ({objective.name})",
        dimension=model.get_embedding_dimension(),
        max_length=model.max_seq_length,
        citation=objective.citation,
        prompts=bool(objective.prompts),
    )
    return model_card(made_from)
