"""The finetune stage: trains a bi-encoder on texts, in the way that an objective says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from dino_pipeline.digests import digest_files, shard_files
from dino_pipeline.errors import DataError, DinoError, OutputError, RunError, first_line
from dino_pipeline.progress import Reporter
from dino_pipeline.run import Run, Stage, State, remove
from dino_pipeline.training.adapters import Rows, adapt, contrasted
from dino_pipeline.training.corpus import Corpus, Source, hold_out
from dino_pipeline.training.encoders import pooling_of
from dino_pipeline.training.heads import Head, fit, judged
from dino_pipeline.training.model_card import Lineage, model_card
from dino_pipeline.training.objectives import Objective, Recipe, Training
from dino_pipeline.training.selection import COLLAPSED, Selection, probe, selection
from dino_pipeline.training.trainability import check_model, fitted, notes
from dino_pipeline.training.trainer import COUNTS, Trained, steps_of, train

HELD_OUT = 0.1
"""Share of the texts that are kept out of training to choose the best checkpoint, where no others are given."""
MOST_HELD_OUT = 500


@dataclass(frozen=True)
class Published:
    """A published dataset that is trained on."""

    folder: Run
    """Holds its run.json and spec.json."""
    dataset: Mapping[str, str]
    """Its repository, and the commit, as far as they are known."""


@dataclass(frozen=True)
class Texts:
    """What to train on, and what chooses the best checkpoint."""

    train: Source
    dev: Source | None = None
    """None: a part of the texts to train on is held out."""
    select_on: Source | None = None
    """Pairs scored by people that choose in place of the held-out ones."""
    language: str = "en"
    split_sentences: bool = False
    published: Published | None = None
    """What is known of them, where they are a published dataset."""
    _made: dict[str, Rows] = field(default_factory=dict, compare=False, repr=False)

    @property
    def origin(self) -> Run | None:
        """The run whose filtered data is trained on, if it is one's."""
        run = Run(self.train.path.parent)
        return run if self.train.path == run.train and run.is_run else None

    def known(self, run: Run) -> dict[str, Any]:
        """Return where the texts come from: the run itself, the records of another, or nothing that is known."""
        source = self.published.folder if self.published else self.origin
        if source is None:
            return {}
        if source.path.resolve() == run.path.resolve():
            return {"own": True}
        return {**_told_of(source), "dataset": dict(self.published.dataset) if self.published else None}

    def options(self) -> dict[str, Any]:
        """Return what decides which texts are trained on."""
        return {
            "data": self.train.label,
            "columns": dict(self.train.columns),
            "class_labels": self.train.classes,
            "select_on": self.select_on.label if self.select_on else None,
            "language": self.language,
            "split_sentences": self.split_sentences,
        }

    def digest(self) -> str:
        """Return a hash of all of them."""
        sources = (self.train, self.dev, self.select_on)
        return "+".join(source.digest() for source in sources if source)

    @cached_property
    def parts(self) -> tuple[Corpus, Corpus]:
        """Return the texts to train on, and those that choose."""
        corpus = self.train.corpus
        if self.select_on:
            if self.select_on.corpus.content != "scored pairs":
                raise DataError(f"{self.select_on.name}: holds {self.select_on.corpus.content}, not pairs with scores")
            return corpus, self.select_on.corpus
        return (corpus, self.dev.corpus) if self.dev else hold_out(corpus, HELD_OUT, MOST_HELD_OUT)

    @property
    def chosen_on(self) -> str:
        """What chooses, in words."""
        chosen = self.select_on or self.dev
        return chosen.label if chosen else f"{self.train.label}, held out"

    def rows(self, objective: Objective) -> Rows:
        """Return the texts to train on as an objective needs them, made once for all that need the same."""
        if objective.needs not in self._made:
            corpus, _ = self.parts
            self._made[objective.needs] = adapt(
                corpus, objective.needs, objective.name, self.language, split=self.split_sentences
            )
        return self._made[objective.needs]


def finetune(
    run: Run,
    objective: Objective,
    training: Training,
    *,
    encoder: dict[str, Any],
    load: Callable[[], SentenceTransformer],
    texts: Texts,
    reporter: Reporter,
    seed: int = 42,
    fresh: bool = False,
) -> State:
    """Train an encoder into the run's ``model`` folder, going on from the last checkpoint of an earlier call.

    Runs in one process, or in each process of ``accelerate launch``.

    Args:
        run: where to write.
        objective: how the model learns.
        training: hyper-parameters.
        encoder: what identifies the encoder to start from (name, revision ...).
        load: loads it; called only if something is left to do.
        texts: to learn from, and to choose the best checkpoint on.
        reporter: is told how far it is.
        seed: of head initialisation, dropout, views and data order.
        fresh: start over.

    Returns:
        Whether the work was new, resumed, or done before.

    Raises:
        DataError: the data is not what the objective needs.
        ModelError: the encoder cannot be trained like that.
        OptionError: an option has no place here.
        RunError: the run was trained with other options.
    """
    processes = PartialState(cpu=not torch.cuda.is_available())
    options = {"objective": objective.name, **encoder, **asdict(training), "seed": seed, **texts.options()}
    state = _agree(processes, lambda: _begin(run, options, texts, fresh, processes.num_processes))
    if state == "done":
        return state
    corpus, dev = texts.parts
    rows = texts.rows(objective)
    with_classes = corpus.content == "classified texts" and len({each.label for each in corpus.examples}) > 1
    chosen = _selection(dev, objective, with_classes)
    set_seed(seed)
    model = load()
    length = _prepare(model, objective, training)
    recipe = Recipe(training, model.tokenizer, seed, encoder.get("revision"), processes.num_processes)
    dataset = objective.build(rows.columns, recipe)
    recipe = _settled(recipe, objective, dataset)
    short = len(rows) - len(dataset)
    left_out = [f"{short} of {len(rows)} {objective.needs} are too short"] if short else []
    found = notes(model, objective, recipe.training, dataset, training.batch_size)
    if processes.is_main_process:
        for said in (*rows.said, *left_out, *found["notes"]):
            reporter.note(said)
    looked_at = probe(corpus.examples)
    trained = train(run.checkpoints, model, dataset, objective, recipe, chosen, probe=looked_at, reporter=reporter)
    processes.wait_for_everyone()  # each process has read the best checkpoint; now it may go
    results = _results(trained, chosen, texts, rows, model)
    if processes.is_main_process:
        if length:
            model.max_seq_length = length
        head = fit(model, corpus.examples) if with_classes else None
        if head:
            measured = judged(head, model, dev.examples) if dev.content == "classified texts" else {}
            results["head"] = {"classes": list(head.classes), **measured}
        run.note("finetune", **found, **results, origin=texts.known(run))
        _save(model, run, objective, head)
        run.finish("finetune")
        remove(run.checkpoints)
    processes.wait_for_everyone()
    return state


def _selection(dev: Corpus, objective: Objective, with_classes: bool) -> Selection:
    """Return what chooses; of texts with classes, pairs within and between them, where such are trained on."""
    if with_classes and dev.content == "classified texts" and objective.needs in ("scored pairs", "triplets"):
        pairs = contrasted(dev.examples)
        if len({each.label for each in pairs}) > 1:  # a few texts may all be of one class
            return selection(Corpus(dev.name, pairs))
    return selection(dev)


def _settled(recipe: Recipe, objective: Objective, dataset: Dataset) -> Recipe:
    """Return a recipe with what is known once the data is built."""
    recipe = replace(recipe, training=fitted(objective, recipe.training, dataset, recipe.processes))
    classes = len(getattr(dataset.features.get("label"), "names", ()))
    return replace(recipe, steps=steps_of(objective, recipe, len(dataset)), classes=classes)


def _prepare(model: SentenceTransformer, objective: Objective, training: Training) -> int | None:
    """Make an encoder ready for training; return the length to go back to afterwards, where it is cut shorter."""
    check_model(model, objective, training)
    model.float()  # what is stored in half precision is not trained in it
    model.model_card_data.widget = [{}]  # the stock card would quote training texts; ours is written in its place
    if objective.prepare:
        objective.prepare(model)
    length: int | None = model.max_seq_length
    if not training.max_length or model.transformers_model is None:
        return None
    model.max_seq_length = training.max_length
    return length if length and length > training.max_length else None


def _results(
    trained: Trained, chosen: Selection, texts: Texts, rows: Rows, model: SentenceTransformer
) -> dict[str, Any]:
    human = texts.select_on is not None
    best = round(chosen.factor * trained.best, 2)
    return {
        "selection": {"measure": chosen.measure, "best": best, "on": texts.chosen_on, "human_labels": human},
        "train": len(rows),
        "dev": chosen.rows,
        "made": list(rows.said),
        "pooling": pooling_of(model),
        "steps": trained.steps,
        "history": trained.history,
        "rows_seen": trained.rows_seen,
        "seconds": round(trained.seconds, 1),
        "mean_cosine": round(trained.mean_cosine, 4),
        "collapsed": trained.mean_cosine >= COLLAPSED,
    }


def _begin(run: Run, options: dict[str, Any], texts: Texts, fresh: bool, processes: int) -> State:
    if texts.origin:
        _check_filtered(texts.origin)
    _drop_torn_checkpoints(run)
    stage = Stage("finetune", options, outputs=[run.model], partial=[run.checkpoints], sources=texts.digest())
    return run.begin(stage, fresh=fresh, settings={"processes": processes})


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
        if not (folder / COUNTS).exists():
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


def _save(model: SentenceTransformer, run: Run, objective: Objective, head: Head | None) -> None:
    """Write the model folder aside, then put it in place of an older one.

    Raises:
        OutputError: it cannot be written.
    """
    aside, old = run.path / "model.part", run.path / "model.old"
    for path in (aside, old):
        remove(path)
    try:
        model.save(str(aside), create_model_card=False)
        if head:
            head.save(aside)
        (aside / "README.md").write_text(model_card(lineage(model, run, objective)), encoding="utf-8")
        if run.model.exists():
            run.model.rename(old)
        aside.rename(run.model)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{run.model}: cannot be written ({first_line(error)}); make room and run again") from error
    remove(old)


def lineage(model: SentenceTransformer, run: Run, objective: Objective) -> Lineage:
    """Return where a model comes from that was trained in a run by an objective."""
    origin = origin_of_texts(run)
    return Lineage(
        name=f"{run.path.resolve().name} ({objective.name})",
        dimension=model.get_embedding_dimension(),
        max_length=model.max_seq_length,
        finetuned=run.stage("finetune"),
        generated=origin.get("generate") or {},
        filtered=origin.get("filter") or {},
        citation=objective.citation,
        prompts=bool(objective.prompts),
        language=origin.get("language"),
        license=origin.get("license"),
    )


def origin_of_texts(run: Run) -> dict[str, Any]:
    """Return what is known of the texts that a run's encoder learnt from: records, language, licence, dataset."""
    found: dict[str, Any] = run.stage("finetune").get("origin", {})
    return {**found, **_told_of(run)} if found.get("own") else found


def _told_of(run: Run) -> dict[str, Any]:
    """Return what a run knows of its texts."""
    spec = run.spec_fields()
    return {
        **{stage: run.stage(stage) for stage in ("generate", "filter")},
        **{field: spec.get(field) for field in ("language", "license")},
    }
