from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

import dino_pipeline as dino
from dino_pipeline.encoder_options import OBJECTIVES, Hyperparameters
from dino_pipeline.errors import DataError, DinoError, ModelError, OptionError, RunError
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.models import ModelRef, load_encoder, pooling_of
from dino_pipeline.progress import Progress
from dino_pipeline.run import Run, State
from dino_pipeline.stage_records import FinetuneRecord
from dino_pipeline.stopping import Stopped
from dino_pipeline.training.corpus import Corpus, Source
from dino_pipeline.training.finetune import finetune_run
from dino_pipeline.training.job import TrainingJob
from dino_pipeline.training.objectives import Objective, TrainingContext, get_objective
from dino_pipeline.training.quality import selection_criterion
from dino_pipeline.training.trainer import count_steps, trainer_arguments
from dino_pipeline.training.training_texts import TrainingTexts
from dino_pipeline.training.whitening import fit_whitening, static_student
from tests.pairs import Words
from tests.records import chosen_by, recorded, write_record
from tests.toys import Listener, Quiet, char_tokenizer, save_encoder, static_encoder, without_dropout

pytestmark = pytest.mark.slow

TRAINING = Hyperparameters(epochs=2, learning_rate=1e-3, batch_size=8)


def rows(count: int) -> list[Example]:
    """Pairs in which the score is whether the texts begin with the same letter."""
    letters = "abcdefgh"
    return [
        Example(f"{letters[n % 8]} one {n}", f"{letters[(n % 8 + n % 3) % 8]} two {n}", 0.9 if n % 3 == 0 else 0.1)
        for n in range(count)
    ]


NAMES = {"text_a": "first", "text_b": "second"}


def named(count: int) -> list[dict[str, Any]]:
    """The same under names of columns that say nothing."""
    return [{"first": row.text_a, "second": row.text_b, "label": row.label} for row in rows(count)]


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    write_examples(tmp_path / "train.jsonl", rows(96))
    write_examples(tmp_path / "dev.jsonl", rows(24))
    return tmp_path / "train.jsonl", tmp_path / "dev.jsonl"


Train = Callable[..., State]


def settled(objective: Objective, training: Hyperparameters) -> Hyperparameters:
    """The objective's own options beside these hyper-parameters."""
    return training.updated(options={**objective.defaults.options, **training.options})


@pytest.fixture
def train(data: tuple[Path, Path], toy_encoder: Path) -> Train:
    def call(run: Run, training: Hyperparameters = TRAINING, **kwargs: Any) -> State:
        objective = get_objective(kwargs.pop("objective", "dino"))
        reporter, fresh = kwargs.pop("reporter", Quiet()), kwargs.pop("fresh", False)
        defaults: dict[str, Any] = {
            "encoder": ModelRef(name="toy"),
            "load": lambda: load_encoder(str(toy_encoder)),
            "texts": TrainingTexts(Source(str(data[0])), Source(str(data[1]))),
        }
        job = TrainingJob(objective, settled(objective, training), **{**defaults, **kwargs})
        return finetune_run(run, job, reporter, fresh=fresh)

    return call


@pytest.fixture
def few(toy_encoder: Path) -> dict[str, Any]:
    """Options of a short training from Python."""
    return {"encoder": str(toy_encoder), "steps": 2, "batch_size": 8, "progress": False}


def embedded(run: Run) -> Any:
    return SentenceTransformer(str(run.model)).encode(["a one 1", "b two 2"])


def card(run: Run) -> str:
    return (run.model / "README.md").read_text()


def test_the_model_loads_plainly_and_its_card_tells_what_it_is(run: Run, train: Train) -> None:
    reporter = Quiet()
    assert train(run, reporter=reporter) == "new"
    assert embedded(run).shape == (2, 32)
    told = card(run)
    assert told.startswith("---\nlibrary_name: sentence-transformers\n")
    for fact in ("| epochs | 2 |", "| learning rate | 0.001 |", "| rows | 96 to train on, 24 held out |", "toy"):
        assert fact in told
    assert f"| best Spearman x 100, on dev.jsonl | {chosen_by(run).best} |" in told
    assert "one 3" not in told, "no training text in the card"
    assert not run.checkpoints.exists()
    assert reporter.seen[-1] == ("dino, seed 42", 24, 24)
    assert reporter.last and reporter.last.extra.startswith("dev Spearman")


def test_a_trained_model_is_not_trained_again_unless_its_data_is_new(
    run: Run, data: tuple[Path, Path], train: Train
) -> None:
    train(run)

    def load() -> SentenceTransformer:
        raise AssertionError("the encoder was loaded")

    assert train(run, load=load) == "done"
    with pytest.raises(RunError, match=r"learning_rate was 0\.001, now 0\.002"):
        train(run, TRAINING.updated(learning_rate=2e-3))
    assert train(run, TRAINING.updated(learning_rate=2e-3), fresh=True) == "new"
    write_examples(data[0], rows(104))
    assert train(run, TRAINING.updated(learning_rate=2e-3)) == "new"


def test_a_checkpoint_cut_short_is_passed_over(run: Run, train: Train) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(run, reporter=Stopper())
    torn = run.checkpoints / "checkpoint-23"
    torn.mkdir()
    (torn / "config.json").write_text("{")
    assert train(run) == "resumed"


def test_data_that_the_run_s_texts_no_longer_give_is_refused(tmp_path: Path, run: Run, train: Train) -> None:
    write_examples(run.train, rows(96))
    write_examples(run.dev, rows(24))
    write_record(run.path)
    with pytest.raises(RunError, match=r"run dino\.filter\('.*'\) first"):
        train(Run(tmp_path / "other"), texts=TrainingTexts(Source(str(run.train)), Source(str(run.dev))))


def test_batches_are_shared_evenly_or_not_at_all(tmp_path: Path) -> None:
    criterion = selection_criterion(Corpus("dev", rows(9)))
    dataset = Dataset.from_dict({"anchor": list("abc")})

    def share(processes: int) -> int:
        context = TrainingContext(TRAINING, None, 0, processes=processes, steps=10)
        return trainer_arguments(
            tmp_path, get_objective("dino"), context, criterion, dataset
        ).per_device_train_batch_size

    assert share(2) == 4
    with pytest.raises(OptionError, match="cannot be shared by 3 processes"):
        share(3)
    context = TrainingContext(TRAINING, None, 0, processes=2, steps=0)
    assert count_steps(get_objective("dino"), context, 8) == 2
    with pytest.raises(OptionError, match="there are only 7 rows for several processes"):
        count_steps(get_objective("dino"), context, 7)


class Stopper(Listener):
    """Interrupts a training after some steps."""

    def update(self, progress: Progress) -> None:
        if progress.done == 14:
            raise KeyboardInterrupt


class Asker(Listener):
    """Asks a training to stop after some steps."""

    def should_stop(self) -> bool:
        return bool(self.seen) and self.seen[-1][1] >= 12


def test_a_training_that_is_asked_to_stop_saves_a_checkpoint_there(tmp_path: Path, run: Run, train: Train) -> None:
    whole = Run(tmp_path / "whole")
    train(whole)
    with pytest.raises(Stopped):
        train(run, reporter=Asker())
    assert "checkpoint-13" in {path.name for path in run.checkpoints.iterdir()}
    reporter = Quiet()
    assert train(run, reporter=reporter) == "resumed"
    assert reporter.seen[0][1] == 14, "no step is done twice"
    assert np.allclose(embedded(run), embedded(whole), atol=1e-5)


TRIPLETS = [
    Example(f"{a} dog runs {b}", f"{a} {other} {b}", label)
    for a in "abcdefgh"
    for b in "ijkl"
    for other, label in (("dog ran", 0.9), ("cat sat", 0.1), ("dog sits", 0.5))
]
DOCUMENTS = [
    Example(f"{a} dog runs fast. {b} cat sits still. Then {a} rain falls.") for a in "abcdefgh" for b in "ijklmnop"
]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_an_interrupted_training_ends_as_a_whole_one(
    tmp_path: Path, run: Run, train: Train, name: str
) -> None:
    """Heads, temperatures, memories and drawn views are what they would have been."""
    listener = Listener()
    training = Hyperparameters(steps=20, learning_rate=1e-3, batch_size=8)
    if name == "is-cse":
        training = training.updated(options={"buffer": 16, "neighbours": 4})
    arguments: dict[str, Any] = {"objective": name, "training": training, "reporter": listener}
    if name in ("declutr", "cmlm", "simcse", "mirror-bert"):
        write_examples(tmp_path / "documents.jsonl", DOCUMENTS)
        arguments["texts"] = TrainingTexts(Source(str(tmp_path / "documents.jsonl")))
    if name in ("simcse-sup", "triplets"):
        write_examples(tmp_path / "triplets.jsonl", TRIPLETS)
        arguments["texts"] = TrainingTexts(Source(str(tmp_path / "triplets.jsonl")))
    whole = Run(tmp_path / "whole")
    train(whole, **arguments)
    assert listener.seen[-1][1:] == (20, 20)
    assert listener.last and listener.last.extra.startswith("dev ")
    with pytest.raises(KeyboardInterrupt):
        train(run, **{**arguments, "reporter": Stopper()})
    again = Listener()
    assert train(run, **{**arguments, "reporter": again}) == "resumed"
    assert again.seen[0][1] > 5, "it did not start at the first step"
    assert np.allclose(embedded(run), embedded(whole), atol=1e-5)
    record, record_of_whole = recorded(run, FinetuneRecord), recorded(whole, FinetuneRecord)
    assert record.steps == 20
    assert 80 < (record.rows_seen or 0) <= 160, "batches without a text twice may be smaller"
    assert record.rows_seen == record_of_whole.rows_seen
    assert chosen_by(run).measure == chosen_by(whole).measure
    assert not chosen_by(run).human_labels


@pytest.mark.parametrize("loss", ["cosent", "angle"])
def test_dino_can_learn_the_order_of_the_scores(run: Run, train: Train, loss: str) -> None:
    train(run, TRAINING.updated(options={"loss": loss}))
    assert f"| loss | {loss} |" in card(run)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_leading_dimensions_are_trained_to_work_alone(
    tmp_path: Path, run: Run, train: Train, data: tuple[Path, Path], name: str
) -> None:
    training = Hyperparameters(steps=4, batch_size=8, matryoshka=(16, 8))
    if name == "is-cse":
        training = training.updated(options={"buffer": 8, "neighbours": 4})
    if name == "cpt":
        training = training.updated(mini_batch_size=4)
    write_examples(data[0], TRIPLETS)
    train(run, training, objective=name, reporter=Listener())
    short = SentenceTransformer(str(run.model), truncate_dim=8)
    assert short.encode("a").shape == (8,)
    assert "The first 16, 8 of them work alone" in card(run)
    with pytest.raises(OptionError, match="matryoshka=32: must be smaller than the encoder's 32"):
        train(Run(tmp_path / "other"), training.updated(matryoshka=(32,)), objective=name, reporter=Listener())


def test_bfloat16_and_gradient_caching_are_recorded_and_work(run: Run, train: Train) -> None:
    training = Hyperparameters(steps=4, batch_size=8, bf16=True, mini_batch_size=3)
    train(run, training, objective="mirror-bert", reporter=Listener())
    options = recorded(run, FinetuneRecord).options
    assert (options.bf16, options.mini_batch_size) == (True, 3)
    assert np.isfinite(embedded(run)).all()


def test_rows_that_are_apart_are_trained_on_in_parts_with_the_same_result(tmp_path: Path, train: Train) -> None:
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    toy = save_encoder(tmp_path / "toy")

    def load() -> SentenceTransformer:
        return without_dropout(toy)

    train(whole, load=load)
    train(parts, TRAINING.updated(mini_batch_size=4), load=load)
    assert np.allclose(embedded(parts), embedded(whole), atol=1e-4)
    assert recorded(parts, FinetuneRecord).steps == recorded(whole, FinetuneRecord).steps == 24
    with pytest.raises(OptionError, match="mini_batch_size=3: must divide the 8 rows of a batch"):
        train(Run(tmp_path / "uneven"), TRAINING.updated(mini_batch_size=3), load=load)


def test_human_labels_choose_only_when_asked_for_and_are_stamped(
    tmp_path: Path, run: Run, train: Train, data: Any
) -> None:
    write_examples(tmp_path / "people.jsonl", rows(30))
    texts = TrainingTexts(Source(str(data[0])), Source(str(data[1])), select_on=Source(str(tmp_path / "people.jsonl")))
    train(run, texts=texts)
    assert chosen_by(run).human_labels
    assert chosen_by(run).on == "people.jsonl"
    assert "chosen on human labels (`people.jsonl`)" in card(run)
    assert train(run) == "new", "the best checkpoint is another one without them"
    assert "held-out texts (`dev.jsonl`)" in card(run)


def test_collapse_is_said_and_recorded(tmp_path: Path, run: Run, train: Train, toy_encoder: Path) -> None:
    def collapsed() -> SentenceTransformer:
        model = load_encoder(str(toy_encoder))
        with torch.no_grad():
            norm = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
            norm.weight.mul_(1e-3)
            norm.bias.fill_(1.0)
        return model

    reporter = Listener()
    train(run, TRAINING.updated(learning_rate=1e-9), load=collapsed, reporter=reporter)
    said = "the embeddings have collapsed: cosines of different texts average 1.000"
    assert [note for note in reporter.notes if said in note]
    assert recorded(run, FinetuneRecord).collapsed
    assert "embeddings have collapsed" in card(run)
    sane = Run(tmp_path / "sane")
    train(sane)
    assert recorded(sane, FinetuneRecord).collapsed is False


def test_cpt_s_model_puts_its_delimiters_before_texts_by_itself(run: Run, train: Train) -> None:
    training = Hyperparameters(steps=2, batch_size=8, mini_batch_size=8, pooling="mean")
    train(run, training, objective="cpt", reporter=Listener())
    model = SentenceTransformer(str(run.model))
    bare = model.encode("dog", prompt="")
    assert np.allclose(model.encode("dog"), model.encode("[dog", prompt=""))
    assert np.allclose(model.encode_document("dog"), model.encode("{dog", prompt=""))
    assert not np.allclose(model.encode("dog"), bare)


def test_a_tokenizer_without_an_end_learns_to_close_texts(tmp_path: Path, toy_generator: Path) -> None:
    model = load_encoder(str(toy_generator), pooling="lasttoken")
    model.tokenizer.pad_token = "<pad>"
    cpt = get_objective("cpt")
    assert cpt.prepare is not None
    cpt.prepare(model, cpt.defaults)
    model.save(str(tmp_path / "model"))
    again = SentenceTransformer(str(tmp_path / "model")).tokenizer
    letters = model.tokenizer.convert_tokens_to_ids(["a", "b"])
    assert again("ab")["input_ids"] == [*letters, again.eos_token_id]


def test_word_vectors_learn_what_needs_no_dropout_and_no_masks(tmp_path: Path, train: Train) -> None:
    for name, said in (("simcse", "no dropout"), ("is-cse", "no dropout"), ("mirror-bert", "has no mask")):
        with pytest.raises(ModelError, match=said):
            train(Run(tmp_path / name), objective=name, load=static_encoder, reporter=Listener())
    for name in ("dino", "sbert"):
        run = Run(tmp_path / name)
        train(run, TRAINING.updated(max_length=8), objective=name, load=static_encoder, reporter=Listener())
        assert SentenceTransformer(str(run.model)).encode("a").shape == (8,)


def test_a_static_student_is_a_table_of_its_encoder_s_tokens(
    tmp_path: Path, data: tuple[Path, Path], toy_encoder: Path
) -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 8, "progress": False, "run": tmp_path / "run"}
    student = dino.finetune(str(data[0]), encoder=f"static:{toy_encoder}", **options)
    source, run = load_encoder(str(toy_encoder)), Run(tmp_path / "run")
    record = run.record().finetune
    assert record is not None and record.pooling == "mean"
    assert (record.options.encoder.name, record.options.encoder.static) == (str(toy_encoder), True)
    assert "texts of any length become" in card(run) and "a table of the token vectors of `" in card(run)
    assert dino.finetune(str(data[0]), encoder=f"static:{toy_encoder}", **options).dino.state == "done"
    with pytest.raises(RunError, match="encoder"):
        dino.finetune(str(data[0]), encoder=str(toy_encoder), **options)
    scores = dino.evaluate(run, data=str(data[1]), progress=False)
    names = [model.name for model in scores.file.models]
    assert names == [f"{toy_encoder.name} before", f"static:{toy_encoder.name} finetuned"]
    assert student.transformers_model is None and source.transformers_model is not None
    for wrong, said in (
        ({"pooling": "cls"}, "brings its own pooling"),
        ({"whiten": "end"}, "layers and mean pooling"),
        ({"freeze_embeddings": True}, "layers"),
        ({"objective": "simcse"}, "both views of a sentence the same embedding"),
        ({"mini_batch_size": 4}, "word vectors"),
    ):
        with pytest.raises(DinoError, match=said):
            dino.finetune(str(data[0]), encoder=f"static:{toy_encoder}", **{**options, "run": None}, **wrong)


def test_a_static_student_whitens_weighted_means_of_token_vectors(toy_encoder: Path) -> None:
    source, texts = load_encoder(str(toy_encoder)), [text for row in rows(96) for text in row.texts]
    student = static_student(source, texts)
    ids = [source.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    table = source.transformers_model.get_input_embeddings().weight.detach().numpy()
    held = {token: sum(token in text for text in ids) for text in ids for token in text}
    weights = {token: np.log((len(texts) + 1) / count) for token, count in held.items()}
    means = np.stack([np.mean([table[token] * weights[token] for token in text], axis=0) for text in ids])
    weight, bias = fit_whitening(means)
    expected = means @ weight.numpy().T + bias.numpy()
    found = student.encode(texts)
    assert np.allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-5)
    for few, encoder, said in (
        (texts[:9], source, "needs at least 100 different texts"),
        (texts, student, "encoder with layers"),
    ):
        with pytest.raises(DinoError, match=said):
            static_student(encoder, few)


def test_training_that_comes_to_no_numbers_is_named(tmp_path: Path, train: Train) -> None:
    wild = TRAINING.updated(learning_rate=1e30, schedule="constant", warmup=0)
    with pytest.raises(ModelError, match="step 2: the loss is not a number; train with a lower learning_rate"):
        train(Run(tmp_path / "run"), wild, reporter=Listener())


def test_a_training_s_length_is_not_the_encoder_s(tmp_path: Path, run: Run, train: Train) -> None:
    train(run, Hyperparameters(steps=2, batch_size=8, max_length=8))
    assert SentenceTransformer(str(run.model)).max_seq_length == 128
    with pytest.raises(OptionError, match="max_length=500: the encoder takes at most 128 tokens"):
        train(Run(tmp_path / "other"), Hyperparameters(max_length=500))


def test_an_encoder_stored_in_half_precision_is_trained_in_single(run: Run, train: Train, toy_encoder: Path) -> None:
    def half() -> SentenceTransformer:
        return load_encoder(str(toy_encoder)).half()

    train(run, Hyperparameters(steps=2, batch_size=8), objective="sbert", load=half, reporter=Listener())
    assert SentenceTransformer(str(run.model)).dtype == torch.float32


def test_the_only_step_of_a_training_is_not_lost_to_warm_up(run: Run, train: Train, toy_encoder: Path) -> None:
    train(run, Hyperparameters(steps=1, batch_size=8, learning_rate=1e-2), objective="dino")
    assert not np.allclose(embedded(run), load_encoder(str(toy_encoder)).encode(["a one 1", "b two 2"]), atol=1e-3)


def test_only_scored_pairs_can_stand_for_human_labels(tmp_path: Path, train: Train, data: tuple[Path, Path]) -> None:
    (tmp_path / "texts.txt").write_text("One.\nTwo.\n")
    texts = TrainingTexts(Source(str(data[0])), select_on=Source(str(tmp_path / "texts.txt")))
    with pytest.raises(DataError, match=r"texts\.txt: holds texts, not pairs with scores"):
        train(Run(tmp_path / "run"), texts=texts)


def test_causal_encoders_pool_and_pad_as_they_are_told(toy_generator: Path) -> None:
    for pooling in ("mean", "lasttoken"):
        model = load_encoder(str(toy_generator), pooling=pooling)
        assert pooling_of(model) == pooling
        assert np.allclose(model.encode("a dog"), model.encode(["a dog", "a longer text"])[0], atol=1e-5)


def test_a_tokenizer_without_padding_pads_with_its_end(toy_generator: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_generator, tmp_path / "model")
    tokenizer = char_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    model = load_encoder(str(tmp_path / "model"))
    assert model.tokenizer.pad_token == tokenizer.eos_token
    assert np.allclose(model.encode("a dog"), model.encode(["a dog", "a longer text"])[0], atol=1e-5)


PAIRS, NAMED = rows(40), named(40)


@pytest.mark.parametrize(
    ("source", "wrong", "message"),
    [
        (NAMED, {"seed": -1}, "seed=-1: must be at least 0"),
        (NAMED, {"seed": 2**32}, "seed=4294967296: must be at most 4294967295"),
        (NAMED, {"lr": 1e-3}, "lr: there is no such option; did you mean learning_rate?"),
        (NAMED, {"split": "test"}, "split='test': applies to a dataset in a folder or on the Hub only; leave it out"),
        (NAMED, {"config": "python"}, "config='python': applies to a dataset in a folder or on the Hub only"),
        ("train.jsonl", {"config": "python"}, "config='python': applies to a dataset in a folder or on the Hub only"),
        (".", {"data_revision": "main"}, "data_revision='main': applies to a dataset on the Hub only"),
        (NAMED, {"column": {"text_a": "third"}}, "example 0: has no column third, only first, second, label"),
        (NAMED, {"column": {"text": "first"}}, "there is no role text; choose from text_a, text_b, label"),
        (
            [("a", "b", 1)],
            {"column": {"text_a": "first"}},
            "example 0: has no column first, only text_a",
        ),
        (PAIRS, {"learning_rate": -1}, "learning_rate=-1: must be more than 0"),
        (PAIRS, {"objective": "dinoo"}, "objective='dinoo': must be one of triplets, dino"),
        (PAIRS, {"learningrate": 1}, "learningrate: there is no such option; did you mean learning_rate?"),
        (PAIRS, {"matryoshka": (0,)}, "dimensions are 1 and more"),
        (PAIRS, {"warmup": 2.0}, "warmup=2.0: must be at most 1"),
        (PAIRS, {"epochs": "abc"}, "epochs='abc': must be a number"),
        (PAIRS, {"objective_options": {"loss": "cos"}}, "loss=cos: must be one of cosine, cosent, angle"),
        (PAIRS, {"objective_options": {"temperature": 1}}, "temperature: dino has no such option; it has loss"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(
    here: Path, toy_encoder: Path, source: Any, wrong: dict[str, Any], message: str
) -> None:
    write_examples(here / "train.jsonl", rows(8))
    with pytest.raises(dino.DinoError, match=re.escape(message)):
        dino.finetune(source, encoder=str(toy_encoder), progress=False, **wrong)


def test_the_last_seed_of_a_comparison_is_one_too() -> None:
    with pytest.raises(OptionError, match="seed=4294967295: the last of 2 seeds must be at most 4294967295"):
        dino.compare(NAMED, seed=2**32 - 1, seeds=2, progress=False)


def test_a_silent_training_shows_nothing_and_keeps_the_callers_random_numbers(
    few: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def states() -> list[str]:
        return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]

    monkeypatch.setattr(logging, "_tqdm_active", True)
    before = states()
    encoder = dino.finetune(NAMED, column=NAMES, seed=2**32 - 1, **few)
    assert encoder.dino.record.train + encoder.dino.record.dev == 40
    assert states() == before
    shown = capfd.readouterr()
    assert "Writing" not in shown.err + shown.out and "Loading" not in shown.err + shown.out


def test_examples_in_memory_become_an_encoder(few: dict[str, Any]) -> None:
    pairs = [(example.text_a, example.text_b, example.label) for example in PAIRS]
    encoder = dino.finetune(pairs, dev=rows(24), **few)
    assert encoder.encode("a one 1").shape == (32,)
    record = encoder.dino.record
    assert (record.selection.measure, record.train, record.dev, record.steps) == ("Spearman", 40, 24, 2)
    assert (record.options.data, record.selection.on) == ("examples in memory", "examples in memory")
    columns, held_out = Dataset.from_list(NAMED), Dataset.from_list(named(24))
    of_columns = dino.finetune(columns, column=NAMES, dev=rows(24), **few)
    assert np.allclose(of_columns.encode("a one 1"), encoder.encode("a one 1"))
    parted = dino.finetune(DatasetDict({"train": columns, "validation": held_out}), column=NAMES, **few)
    assert (parted.dino.record.train, parted.dino.record.dev) == (40, 24)
    texts = [example.text_a for example in PAIRS]
    seen = list[Progress | str]()
    few |= {"progress": seen.append, "objective_options": {"temperature": 0.1}}
    views = dino.finetune(texts, objective="simcse", **few)
    assert views.dino.record.options.options == {"temperature": 0.1}
    assert "batches of 8 rows leave 7 other rows to tell a text from; 32 and more are usual" in seen
    classes = [{"text_a": f"a {label} {n}", "label": label} for n in range(20) for label in ("dog", "cat")]
    told = dino.finetune(classes, **few | {"objective_options": {}})
    assert told.dino.head.classes == ("cat", "dog")
    assert set(told.dino.head.predict(told.encode(texts))) <= {"cat", "dog"}


def test_what_a_filter_kept_becomes_an_encoder_that_knows_how_it_was_filtered(run: Run, few: dict[str, Any]) -> None:
    kept = dino.filter(Words().pairs(40), dev_share=0.2, progress=False)
    record = dino.finetune(kept, **few, objective="dino").dino.record
    assert (record.train, record.dev) == (len(kept.train), len(kept.dev))
    assert record.origin.filter == kept.record.updated(files={})
    texts = dino.generate("sts-x2", num_inputs=10, samples=2, progress=False)
    kept = dino.filter(texts, near_duplicates=0, dev_share=0.3, progress=False)
    record = dino.finetune(kept, run=run, **few).dino.record
    assert record.origin.generate == texts.record.updated(files={})
    assert record.origin.filter == kept.record.updated(files={})
    assert (record.origin.language, record.origin.license) == (texts.spec.language, texts.spec.license)
    assert "pocket" in card(run), "the card names the generator"


def test_a_run_named_from_python_is_kept_and_not_trained_again(
    tmp_path: Path, data: tuple[Path, Path], few: dict[str, Any]
) -> None:
    few["run"] = tmp_path / "run"
    first = dino.finetune(data[0], dev=data[1], **few)
    again = dino.finetune(str(data[0]), dev=str(data[1]), **few)
    assert (first.dino.state, again.dino.state) == ("new", "done")
    assert again.dino.record == first.dino.record
    with pytest.raises(RunError, match="finetune was begun with other options: steps was 2, now 3"):
        dino.finetune(data[0], dev=data[1], **few | {"steps": 3})


def test_objectives_are_compared_in_memory(few: dict[str, Any]) -> None:
    compared = dino.compare(PAIRS, objectives=["dino", "simcse"], data=[rows(24)], seeds=1, **few)
    frame = compared.to_pandas()
    assert list(frame["name"]) == ["word overlap (Jaccard)", "untrained", "dino", "simcse"]
    assert list(frame["rows_seen"]) == [0, 0, 16, 16]
    assert not compared.files
    assert repr(compared).splitlines()[0].split()[:2] == ["objective", "learns"]
