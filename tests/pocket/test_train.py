"""Training of the pocket models: goes on where it was stopped, refuses another recipe, publishes whole files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from dino_pipeline.models import load_encoder
from tools.pocket import train as pocket_train
from tools.pocket.corpus import row_text, shard_rows, shard_sentences
from tools.pocket.train import Schedule, causal_loss, generator_shard, shard_stream, train
from tools.pocket.vocabulary import bpe_tokenizer, wordpiece_tokenizer

pytestmark = pytest.mark.slow

SCHEDULE = Schedule(steps=8, batch_size=4, learning_rate=1e-3, seed=3, shard_steps=2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe_tokenizer(map(row_text, shard_rows(3, -1, 200, 0.5)), 400)


def trained(folder: Path, tokenizer: Any, stop_after: int | None = None, schedule: Schedule = SCHEDULE) -> Any:
    """Weights and progress of a training in `folder`, which may break off after some shards."""
    make = partial(generator_shard, schedule=schedule, tokenizer_file=pocket_train.prepared(folder, tokenizer))

    def stream(shards: range) -> Any:
        for number, shard in enumerate(shard_stream(shards, make, workers=0)):
            if number == stop_after:
                raise KeyboardInterrupt
            yield shard

    torch.manual_seed(0)
    model = pocket_train.generator_model(tokenizer)
    progress = train(model, schedule, {}, stream, causal_loss, folder / "generator.pt", every=1)
    return model.state_dict(), progress


def test_a_training_cut_short_ends_with_the_same_weights(tmp_path: Path, tokenizer: Any) -> None:
    whole, progress = trained(tmp_path / "whole", tokenizer)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", tokenizer, stop_after=2)
    resumed, same = trained(tmp_path / "cut", tokenizer)
    assert (progress.shard, progress.tokens, progress.data_hash) == (4, same.tokens, same.data_hash)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    trained(tmp_path, tokenizer)
    other = Schedule(steps=8, batch_size=8, learning_rate=1e-3, seed=3, shard_steps=2)
    with pytest.raises(click.UsageError, match=r"generator.pt: was begun with batch_size 4; delete it"):
        trained(tmp_path, tokenizer, schedule=other)


def test_text_does_not_depend_on_the_number_of_workers(tmp_path: Path, tokenizer: Any) -> None:
    make = partial(generator_shard, schedule=SCHEDULE, tokenizer_file=pocket_train.prepared(tmp_path, tokenizer))
    alone, together = (list(shard_stream(range(3), make, workers)) for workers in (0, 2))
    assert alone == together


def test_a_vocabulary_is_the_same_each_time() -> None:
    def learn() -> dict[str, int]:
        return wordpiece_tokenizer(shard_sentences(3, -1, 200), 400).get_vocab()

    assert learn() == learn()


def test_the_command_writes_a_model_with_its_record(tmp_path: Path) -> None:
    out, work = tmp_path / "encoder", tmp_path / "work"
    call = ["encoder", "--out", str(out), "--work", str(work), "--steps", "50", "--batch-size", "2", "--device", "cpu"]
    done = CliRunner().invoke(pocket_train.main, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "training.json").read_text())
    assert (record["steps"], record["batch_size"]) == (50, 2)
    assert record["tokens"] > 500
    assert len(record["data_hash"]) == 64
    assert load_encoder(str(out)).encode("A man eats.").shape == (128,)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert not [path for path in work.iterdir() if path.is_dir()]
