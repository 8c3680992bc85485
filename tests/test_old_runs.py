"""A run folder that the version before this one wrote is read, and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dino_pipeline import pocket
from dino_pipeline.errors import RunError
from dino_pipeline.funnel import Funnel
from dino_pipeline.run import Run
from tests.commands import invoke, refused

OLD = Path(__file__).parent / "data" / "run-format-2"


@pytest.fixture
def old_run(tmp_path: Path) -> Run:
    """The old run, with the encoder that it started from in place of the trained one, whose weights are not kept."""
    shutil.copytree(OLD, tmp_path / "old-run")
    shutil.copytree(pocket.ENCODER, tmp_path / "old-run" / "model")
    return Run(tmp_path / "old-run")


def test_its_record_is_read_into_types(old_run: Run) -> None:
    record = old_run.record()
    assert record.generate and record.filter and record.finetune and record.evaluate
    assert record.generate.options.model.name == "pocket"
    assert record.generate.options.samples == 2
    assert record.filter.options.min_margin == ("1%",)
    assert record.filter.options.max_symbols == 0.4
    assert Funnel.of(record.filter).total("train") == 77
    assert record.finetune.options.steps == 3
    assert record.finetune.selection
    assert record.finetune.selection.best == 83.67


@pytest.mark.slow
def test_its_stages_are_up_to_date(old_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old_run.path.parent)
    before = old_run.record()
    options = ("--samples", "2", "--num-inputs", "12")
    assert "texts are up to date" in invoke("generate", "sts-x2", "--run", "old-run", *options)
    assert "is up to date" in invoke("filter", "old-run", "--min-margin", "1%", "--max-symbols", "0.4")
    assert "is up to date" in invoke("finetune", "old-run", "--objective", "dino", "--steps", "3", "--batch-size", "8")
    assert old_run.record() == before
    other = refused("filter", "old-run", "--min-margin", "2%", "--max-symbols", "0.4")
    assert 'min_margin was ["1%"], now ["2%"]' in other


@pytest.mark.parametrize(
    "damage",
    [
        {"generate": {"status": "done"}},
        {"filter": {"status": "done", "options": []}},
        {"finetune": 3},
        {"generate": {"status": "perhaps", "options": {}}},
    ],
)
def test_a_damaged_one_is_a_named_error(old_run: Run, damage: dict[str, object]) -> None:
    content = json.loads(old_run.record_file.read_text())
    old_run.record_file.write_text(json.dumps({**content, **damage}))
    with pytest.raises(RunError, match=r"run\.json: is not a record that this version reads"):
        old_run.record()
