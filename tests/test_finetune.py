from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from dino_pipeline import finetune as stage
from dino_pipeline.encoders import load_encoder
from dino_pipeline.errors import DataError, RunError
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.finetune import Finetuned, finetune
from dino_pipeline.objectives import Training, get_objective
from dino_pipeline.progress import Progress
from dino_pipeline.run import Run

TRAINING = Training(epochs=2, learning_rate=1e-3, batch_size=8)


def rows(count: int) -> list[Example]:
    """Pairs in which the score is whether the texts begin with the same letter."""
    letters = "abcdefgh"
    return [
        Example(f"{letters[n % 8]} one {n}", f"{letters[(n % 8 + n % 3) % 8]} two {n}", 0.9 if n % 3 == 0 else 0.1)
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    write_examples(tmp_path / "train.jsonl", rows(96))
    write_examples(tmp_path / "dev.jsonl", rows(24))
    return tmp_path / "train.jsonl", tmp_path / "dev.jsonl"


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, progress: Progress) -> None:
        self.said.append(f"{progress.done}/{progress.total} {progress.extra}")

    def note(self, message: str) -> None:
        raise AssertionError(message)


Train = Callable[..., Finetuned]


@pytest.fixture
def train(data: tuple[Path, Path], toy_encoder: Path) -> Train:
    def call(run: Run, training: Training = TRAINING, **kwargs: Any) -> Finetuned:
        defaults: dict[str, Any] = {
            "encoder": {"encoder": "toy"},
            "load": lambda: load_encoder(str(toy_encoder)),
            "train": data[0],
            "dev": data[1],
            "watch": Listener(),
        }
        return finetune(run, get_objective("dino"), training, **{**defaults, **kwargs})

    return call


def embedded(run: Run) -> Any:
    return SentenceTransformer(str(run.model)).encode(["a one 1", "b two 2"])


def test_the_model_loads_plainly_and_its_card_tells_what_it_is(tmp_path: Path, train: Train) -> None:
    run, watch = Run(tmp_path / "run"), Listener()
    found = train(run, watch=watch)
    assert found.state == "new"
    assert found.dev_spearman is not None
    assert embedded(run).shape == (2, 32)
    card = (run.model / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "sentence-transformers"')
    for fact in ("| epochs | 2 |", "| learning rate | 0.001 |", "| pairs | 96 to train on, 24 held out |", "toy"):
        assert fact in card
    assert f"x 100 | {found.dev_spearman} |" in card
    assert "one 3" not in card, "no training text in the card"
    assert not run.checkpoints.exists()
    assert watch.said[-1].startswith("24/24 dev Spearman")


def test_the_defaults_are_the_papers() -> None:
    assert get_objective("dino").defaults == Training(
        epochs=1, batch_size=32, learning_rate=2e-5, weight_decay=0.01, warmup=0.1
    )


def test_a_trained_model_is_not_trained_again(tmp_path: Path, train: Train) -> None:
    run = Run(tmp_path / "run")
    first = train(run)

    def load() -> SentenceTransformer:
        raise AssertionError("the encoder was loaded")

    assert train(run, load=load) == Finetuned("done", first.dev_spearman)
    with pytest.raises(RunError, match=r"learning_rate was 0\.001, now 0\.002"):
        train(run, replace(TRAINING, learning_rate=2e-3))
    assert train(run, replace(TRAINING, learning_rate=2e-3), fresh=True).state == "new"


def test_new_data_means_a_new_training(tmp_path: Path, data: tuple[Path, Path], train: Train) -> None:
    run = Run(tmp_path / "run")
    train(run)
    write_examples(data[0], rows(104))
    assert train(run).state == "new"


def test_an_interrupted_training_goes_on_and_ends_as_a_whole_one(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    train(whole)

    class Stopper(Listener):
        def progress(self, progress: Progress) -> None:
            if progress.done == 14:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, watch=Stopper())
    checkpoints = sorted(path.name for path in run.checkpoints.iterdir())
    assert checkpoints
    watch = Listener()
    assert train(run, watch=watch).state == "resumed"
    assert int(watch.said[0].partition("/")[0]) > 5, "it did not start at the first step"
    assert np.allclose(embedded(run), embedded(whole), atol=1e-5)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path, train: Train) -> None:
    run = Run(tmp_path / "run")

    class Stopper(Listener):
        def progress(self, progress: Progress) -> None:
            if progress.done == 14:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, watch=Stopper())
    torn = run.checkpoints / "checkpoint-23"
    torn.mkdir()
    (torn / "config.json").write_text("{")
    assert train(run).state == "resumed"


def test_data_that_the_run_s_texts_no_longer_give_is_refused(tmp_path: Path, train: Train) -> None:
    run = Run(tmp_path / "run")
    write_examples(run.train, rows(96))
    write_examples(run.dev, rows(24))
    with pytest.raises(RunError, match="run dino filter"):
        train(run, train=run.train, dev=run.dev)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([Example("a", "b", 1.0), Example("a", None, 1.0)], "train.jsonl: example 2 is no scored pair"),
        ([Example("a", "b", "name")], "example 1 is no scored pair"),
        ([Example("a", "b", 3.0)], "needs two texts and a label between 0 and 1"),
    ],
)
def test_data_of_another_kind_is_refused(
    tmp_path: Path, data: tuple[Path, Path], train: Train, rows: list[Example], said: str
) -> None:
    write_examples(data[0], rows)
    with pytest.raises(DataError, match=said):
        train(Run(tmp_path / "run"))


def test_a_dev_set_without_different_scores_is_refused(tmp_path: Path, data: tuple[Path, Path], train: Train) -> None:
    write_examples(data[1], [Example("a", "b", 0.5), Example("c", "d", 0.5)])
    with pytest.raises(DataError, match="at least two different scores"):
        train(Run(tmp_path / "run"))


def test_missing_data_is_named(tmp_path: Path, train: Train) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: is not there; make it with dino filter"):
        train(Run(tmp_path / "run"), train=tmp_path / "gone.jsonl")


def test_batches_are_shared_evenly_or_not_at_all(tmp_path: Path) -> None:
    from dino_pipeline.errors import OptionError

    assert stage._arguments(Run(tmp_path), TRAINING, 100, 0, 2).per_device_train_batch_size == 4
    with pytest.raises(OptionError, match="cannot be shared by 3 processes"):
        stage._arguments(Run(tmp_path), TRAINING, 100, 0, 3)
