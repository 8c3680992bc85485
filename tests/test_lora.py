"""Adapters in an encoder's layers: trained, merged, saved alone, and refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

import dino_pipeline as dino
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.models import embed, has_adapters, load_encoder
from dino_pipeline.pocket import GOLD_DEV
from dino_pipeline.progress import Progress
from dino_pipeline.training.lora import TRAINED_FILE, add_adapters, merge_adapters
from tests.commands import invoke, refused
from tests.toys import static_encoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed"),
]
PAIRS = list(read_examples(GOLD_DEV))[:100]
TEXTS = [pair.text_a for pair in PAIRS[:20]]
DOCUMENTS = [Example(f"{a} dog runs fast. {b} cat sits still. Then {a} rain falls.") for a in "abcdef" for b in "ijklm"]
TRIPLETS = [Example(f"{a} dog", f"{a} {b}", label) for a in "abcdefgh" for b, label in (("dog ran", 0.9), ("cat", 0.1))]


def options(encoder: Path | str, **more: Any) -> dict[str, Any]:
    """Options of a short training of adapters."""
    few = {"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "lora": 4, "progress": False}
    return {"encoder": str(encoder), **few, **more}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_merged_adapters_compute_the_same_and_leave_no_trace(toy_encoder: Path) -> None:
    model, plain = load_encoder(str(toy_encoder)), load_encoder(str(toy_encoder))
    add_adapters(model, 4)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert np.array_equal(embed(model, TEXTS), embed(plain, TEXTS)), "adapters start with nothing"
    torch.manual_seed(0)
    for value in trained.values():
        value.data.normal_(std=0.1)
    before = embed(model, TEXTS)
    assert abs(before - embed(plain, TEXTS)).max() > 0.01
    merge_adapters(model)
    np.testing.assert_allclose(embed(model, TEXTS), before, atol=1e-5)
    assert list(model.state_dict()) == list(plain.state_dict()) and not has_adapters(model)


def test_a_merged_encoder_loads_without_peft(
    toy_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(toy_encoder, steps=40, learning_rate=3e-2, dev=PAIRS[:20])
    encoder = dino.finetune(PAIRS, run=tmp_path / "run", **given)
    assert "| lora | 4 |" in (tmp_path / "run" / "model" / "README.md").read_text()
    before, after = load_encoder(str(toy_encoder)).state_dict(), encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    scores = [point.dev for point in encoder.dino.record.history if point.dev is not None]
    vectors = [embed(encoder, [getattr(pair, name) for pair in PAIRS[:20]]) for name in ("text_a", "text_b")]
    correlation = spearmanr((vectors[0] * vectors[1]).sum(axis=1), [pair.label for pair in PAIRS[:20]]).statistic
    assert 100 * correlation == pytest.approx(max(scores)) and max(scores) > scores[-1] + 1, "the best, not the last"
    assert changed and all(name.endswith("weight") and "embeddings" not in name for name in changed)
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    np.testing.assert_allclose(embed(load_encoder(str(tmp_path / "run" / "model")), TEXTS), embed(encoder, TEXTS))


class Stopper:
    """Interrupts a training once it has a checkpoint, and looks into that."""

    def __init__(self, run: Path) -> None:
        self.run, self.tensors = run, list[str]()

    def __call__(self, progress: Progress | str) -> None:
        if isinstance(progress, Progress) and progress.done == 14:
            (file,) = self.run.rglob(TRAINED_FILE)
            assert not list(file.parent.glob("model*")) + list(file.parent.glob("adapter*"))
            self.tensors = list(load_file(file))
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "texts", "more"),
    [
        ("dino", PAIRS, {"whiten": "start", "lora_save": "adapter"}),
        ("dino", PAIRS, {"whiten": "end", "lora_save": "adapter", "freeze_embeddings": True}),
        ("dino", PAIRS, {"mini_batch_size": 4, "matryoshka": (16, 8)}),
        ("cmlm", DOCUMENTS, {}),
        ("declutr", DOCUMENTS, {"matryoshka": (16,)}),
        ("simcse-sup", TRIPLETS, {"mini_batch_size": 4}),
        ("cpt", TRIPLETS, {"mini_batch_size": 4, "lora_save": "adapter"}),
    ],
)
def test_an_interrupted_training_of_adapters_ends_as_a_whole_one(
    name: str, texts: list[Example], more: dict[str, Any], toy_encoder: Path, tmp_path: Path
) -> None:
    given = options(toy_encoder, objective=name, dev=PAIRS[:20], **more)
    whole = dino.finetune(texts, run=tmp_path / "whole", **given)
    stopper = Stopper(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        dino.finetune(texts, run=tmp_path / "run", **given | {"progress": stopper})
    assert all("lora_" in tensor or "linear" in tensor for tensor in stopper.tensors)
    assert any("linear" in tensor for tensor in stopper.tensors) == (more.get("whiten") == "start")
    encoder = dino.finetune(texts, run=tmp_path / "run", **given)
    assert (encoder.dino.state, encoder.dino.record.steps) == ("resumed", 20)
    np.testing.assert_allclose(embed(encoder, TEXTS), embed(whole, TEXTS), atol=1e-5)
    assert abs(embed(encoder, TEXTS) - embed(load_encoder(str(toy_encoder)), TEXTS)).max() > 0.01
    assert has_adapters(encoder) == ("lora_save" in more)


def test_adapters_alone_are_evaluated_reported_and_trained_on(
    toy_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    monkeypatch.chdir(toy_encoder.parent)
    alone = dino.finetune(PAIRS, run=run, **options(toy_encoder.name, lora_save="adapter"))
    monkeypatch.chdir(tmp_path)  # the encoder is found from elsewhere, too
    whole = dino.finetune(PAIRS, run=merged, **options(toy_encoder))
    np.testing.assert_allclose(embed(load_encoder(str(run / "model")), TEXTS), embed(whole, TEXTS), atol=1e-5)
    assert size(run / "model") < size(merged / "model") / 2
    card = (run / "model" / "README.md").read_text()
    assert f"the trained adapters (LoRA) alone. `{toy_encoder.name}` is loaded with them, by peft" in card
    plain = SentenceTransformer(str(run / "model"), model_kwargs={"dtype": "float32"})
    assert np.allclose(embed(plain, TEXTS), embed(alone, TEXTS))
    write_examples(tmp_path / "pairs.jsonl", PAIRS[:50])
    assert "finetuned" not in invoke("evaluate", run / "model", "--data", tmp_path / "pairs.jsonl")
    invoke("report", run)
    said = refused("publish", run, "--repo", "me/x", "--what", "model", "--dry-run")
    assert "others do not have the folder of what it adapts" in said and "--lora-save merged" in said
    again = dino.finetune(PAIRS, **options(run / "model", steps=0))
    np.testing.assert_allclose(embed(again, TEXTS), embed(alone, TEXTS), atol=1e-5)
    assert not has_adapters(again), "they were merged before the training"
    with pytest.raises(OptionError, match=r"lora_save='adapter': .*is not what is trained: its weights are other ones"):
        dino.finetune(PAIRS, **options(run / "model", lora_save="adapter"))


def test_adapters_of_an_encoder_in_half_precision_are_loaded_in_single(toy_encoder: Path, tmp_path: Path) -> None:
    half = load_encoder(str(toy_encoder)).bfloat16()
    half.save(str(tmp_path / "half"))
    assert load_encoder(str(tmp_path / "half")).dtype == torch.bfloat16
    saves = ("merged", "adapter")
    merged, alone = (dino.finetune(PAIRS, **options(tmp_path / "half", lora_save=save)) for save in saves)
    assert alone.dtype == torch.float32
    np.testing.assert_allclose(embed(alone, TEXTS), embed(merged, TEXTS), atol=1e-5)


def test_what_cannot_be_adapted_is_refused(toy_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static_encoder().save(str(tmp_path / "static"))
    for encoder in (str(tmp_path / "static"), f"static:{toy_encoder}"):
        with pytest.raises(OptionError, match="lora=4: needs an encoder with layers; leave it out"):
            dino.finetune(PAIRS, **options(encoder))
    with pytest.raises(OptionError, match=r"lora_save='adapter': no adapters are trained; leave it out, or"):
        dino.finetune(PAIRS, **options(toy_encoder, lora=None, lora_save="adapter"))
    with pytest.raises(OptionError, match=r"cannot name a revision .*; leave it out, or leave out revision"):
        dino.finetune(PAIRS, **options("me/encoder", lora_save="adapter", revision="v1"))
    with pytest.raises(OptionError, match="lora=0: must be at least 1"):
        dino.finetune(PAIRS, **options(toy_encoder, lora=0))
    model = load_encoder(str(toy_encoder))
    add_adapters(model, 4)
    with pytest.raises(ModelError, match="the encoder's layers take no adapters"):
        add_adapters(model, 4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"lora=4: needs peft, .* not installed: pip install dino-pipeline\[lora\]"):
        dino.finetune(PAIRS, **options(toy_encoder))
