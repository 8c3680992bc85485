"""Finished files that are damaged: each command that reads one names it, and the command that made it makes it anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import dino_pipeline as dino
from dino_pipeline.errors import RunError
from dino_pipeline.publishing.verify import RunVerification, Verification
from dino_pipeline.run import Run
from tests.commands import answer, invoke, refused

pytestmark = pytest.mark.slow

Command = tuple[str, ...]
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def published(pocket_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = shutil.copytree(pocket_run, tmp_path_factory.mktemp("damage") / "run")
    invoke("publish", run, "--repo", "me/sts", "--license", "mit", "--dry-run")
    return run


@pytest.fixture
def run(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a whole run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published, tmp_path / "run")
    return Run(Path("run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_unnoticed(path: Path) -> None:
    """Flip a bit as a failing disk does: size and time stay."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def put_a_file_in_its_place(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("mine")


GENERATE = ("generate", "sts-x2", "--run", "run", "--num-inputs", "60", "--samples", "2")
FILTER = ("filter", "run", "--exclude", "pocket")
FINETUNE = ("finetune", "run", "--steps", "24", "--batch-size", "32", "--learning-rate", "1e-3")
EVALUATE = ("evaluate", "run")
REPORT = ("report", "run")
PUBLISH = ("publish", "run", "--repo", "me/sts", "--license", "mit", "--dry-run")
EXPORT = ("export", "run", "--output", "pairs.jsonl")
COMPARE = ("compare", "run", "--objectives", "dino", "--seeds", "1", "--steps", "1")
ON_FILE: tuple[Command, ...] = (
    ("finetune", "run/train.jsonl", "--run", "other", "--steps", "1"),
    ("filter", "run/train.jsonl", "--run", "other"),
    ("evaluate", "pocket", "--data", "run/train.jsonl"),
)
READERS: dict[str, tuple[str, tuple[Command, ...]]] = {  # the stage that made a file, and the commands that read it
    "train.jsonl": ("filter", (FINETUNE, COMPARE, REPORT, PUBLISH, EXPORT, *ON_FILE)),
    "dev.jsonl": ("filter", (FINETUNE, EVALUATE, REPORT, PUBLISH)),
    "dropped.jsonl": ("filter", (REPORT, PUBLISH)),
    "model/model.safetensors": ("finetune", (EVALUATE, REPORT, PUBLISH)),
    "model/config.json": ("finetune", (EVALUATE, PUBLISH)),
    "shards/00000.jsonl": ("generate", (FILTER, REPORT, PUBLISH)),
    "scores.json": ("evaluate", (PUBLISH,)),
}
PAIRS = [(name, command) for name, (_, commands) in READERS.items() for command in commands]


@pytest.mark.parametrize(("name", "command"), PAIRS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_stage_names_what_is_damaged_and_changes_nothing(run: Run, name: str, command: Command) -> None:
    stage, _ = READERS[name]
    path, content = run.path / name, (run.path / name).read_bytes()
    for damage in (flip, cut, empty, Path.unlink):
        if damage is Path.unlink and command in ON_FILE:
            continue  # that there is no such file is all there is to say
        damage(path)
        before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != ".lock"}
        said = refused(*command)
        assert f"error: run/{name}: " in said
        assert f"run the same dino {stage} {'for run' if stage == 'generate' else 'run'} again" in said
        assert {file: file.read_bytes() for file in before} == before
        path.write_bytes(content)


@pytest.mark.parametrize("damage", [empty_folder, shutil.rmtree, put_a_file_in_its_place])
def test_an_encoder_that_is_gone_is_trained_again(run: Run, damage: Damage) -> None:
    weights = (run.model / "model.safetensors").read_bytes()
    damage(run.model)
    for command in (EVALUATE, PUBLISH):
        assert "run the same dino finetune run again" in refused(*command)
    said = answer(*FINETUNE).stderr
    assert "model/model.safetensors: no longer exists" in said or "run/model: no longer exists: it is made anew" in said
    assert (run.model / "model.safetensors").read_bytes() == weights
    assert (run.path / "model.changed").exists() == (damage is not shutil.rmtree)
    assert "is up to date" in invoke(*FINETUNE)


def test_a_changed_encoder_is_kept_and_trained_again(run: Run) -> None:
    weights = (run.model / "model.safetensors").read_bytes()
    flip(run.model / "model.safetensors")
    changed = (run.model / "model.safetensors").read_bytes()
    said = answer(*FINETUNE).stderr
    assert "model.safetensors: is not what was written (its checksum differs): what is there now is kept as" in said
    assert (run.path / "model.changed" / "model.safetensors").read_bytes() == changed
    assert (run.model / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("name", ["train.jsonl", "dropped.jsonl"])
def test_filtered_data_is_made_anew_and_what_was_changed_is_kept(run: Run, name: str, damage: Damage) -> None:
    path, content = run.path / name, (run.path / name).read_bytes()
    damage(path)
    changed = path.read_bytes() if path.exists() else None
    said = answer(*FILTER)
    assert f"run/{name}: " in said.stderr
    assert "it is made anew" in said.stderr
    assert path.read_bytes() == content
    kept = path.with_name(f"{name}.changed")
    assert (kept.read_bytes() if kept.exists() else None) == changed
    assert "is up to date" in invoke(*FILTER)
    assert "is up to date" in invoke(*FINETUNE), "the data is what it was"


def test_a_second_change_does_not_replace_what_was_kept_of_the_first(run: Run) -> None:
    for text in ("mine", "mine too"):
        run.train.write_text(text)
        invoke(*FILTER)
    assert (run.path / "train.jsonl.changed").read_text() == "mine"
    assert (run.path / "train.jsonl.changed-2").read_text() == "mine too"
    run.train.write_text("lost")
    invoke(*FILTER, "--fresh")
    assert not (run.path / "train.jsonl.changed-3").exists()


def test_scores_and_the_spec_are_made_anew(run: Run) -> None:
    spec, scores = run.spec.read_bytes(), json.loads(run.scores.read_text())["scores"]
    flip(run.scores)
    said = answer(*EVALUATE).stderr
    assert "scores.json: is not what was written" in said
    assert json.loads(run.scores.read_text())["scores"] == scores
    run.spec.write_bytes(spec.replace(b"sentence", b"sentences", 1))
    invoke(*GENERATE)
    assert run.spec.read_bytes() == spec


def test_a_copy_with_other_times_is_whole(run: Run) -> None:
    for path in run.path.rglob("*"):
        os.utime(path, (1, 1))
    for command in (GENERATE, FILTER, FINETUNE):
        assert "up to date" in invoke(*command)
    assert "all as they were written" in invoke("verify", "run")


def test_the_card_may_be_edited(run: Run) -> None:
    (run.model / "README.md").write_text("mine")
    assert "up to date" in invoke(*FINETUNE)
    assert (run.model / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["train.jsonl", "model/model.safetensors", "scores.json"])
def test_a_bit_that_flips_on_the_disk_is_found_before_it_is_published(run: Run, name: str) -> None:
    flip_unnoticed(run.path / name)
    assert "is up to date" in invoke(*FILTER), "its size and time are what they were"
    assert f"run/{name}: is not what was written (its checksum differs)" in refused(*PUBLISH)
    verified = answer("verify", "run")
    assert verified.exit_code == 1
    assert f"run/{name}: is not what was written (its checksum differs)" in verified.stdout


def test_a_shard_of_another_run_is_refused(run: Run) -> None:
    shutil.copy(run.shards / "00000.jsonl", run.shards / "00007.jsonl")
    assert "00007.jsonl: was not written here (SHA256SUMS does not name it)" in refused(*FILTER)
    (run.shards / "00007.jsonl").unlink()
    run.checksums.file.unlink()
    assert "00000.jsonl: was not written here" in refused(*FILTER)


VERIFIED = [
    *READERS,
    "flagged.jsonl",
    "inputs.jsonl",
    "rejected/00000.jsonl",
    "input-shards/00000.jsonl",
    "spec.json",
    "hub/dataset/lineage.json",
    "hub/dataset/run.json",
    "hub/model/model.safetensors",
    "compare/dino/seed-42/model/model.safetensors",
    "compare/dino/seed-42/scores.json",
]


@pytest.mark.parametrize("damage", [flip_unnoticed, Path.unlink])
def test_verify_names_every_damaged_file_of_a_run(run: Run, damage: Damage) -> None:
    assert "files: all as they were written" in invoke("verify", "run")
    for name in VERIFIED:
        path, content = run.path / name, (run.path / name).read_bytes()
        if content or damage is Path.unlink:
            damage(path)
            verified = answer("verify", "run")
            assert verified.exit_code == 1, name
            assert f"run/{name}: " in verified.stdout
            assert " again to " in verified.stdout
            path.write_bytes(content)
    assert "files: all as they were written" in invoke("verify", "run")


def test_verify_from_python_tells_unfinished_stages(run: Run) -> None:
    whole = dino.verify(run)
    assert isinstance(whole, RunVerification)
    assert (whole.problems, whole.remedies, whole.unfinished, whole.unrecorded) == ([], [], [], [])
    record = run.record()
    assert record.finetune and record.filter
    run.save(record.finetune.updated(status="running", files={}))
    run.save(record.filter.updated(files={}))
    found = dino.verify("run")
    assert isinstance(found, RunVerification)
    assert (found.problems, found.unfinished, found.unrecorded) == ([], ["finetune"], ["filter"])
    assert "not finished, and not checked: finetune" in str(found)
    assert isinstance(dino.verify("run/hub/dataset"), Verification)
    with pytest.raises(dino.DinoError, match="model=True: is about the Hub, and this is a run"):
        dino.verify(run, model=True)


def test_a_result_from_python_is_what_it_was_or_says_that_it_is_not(run: Run) -> None:
    kept = dino.filter(run, exclude="pocket", progress=False)
    flip(run.train)
    with pytest.raises(RunError, match=r"train\.jsonl: is not what was written"):
        _ = kept.examples


def test_a_published_record_names_no_files(run: Run) -> None:
    assert "files" in json.loads(run.record_file.read_text())["filter"]
    for kind in ("dataset", "model"):
        assert "files" not in json.loads((run.hub / kind / "run.json").read_text())["filter"]


@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("name", ["input-shards", "input-rejected", "rejected", "shards"])
def test_texts_are_written_again_as_verify_says(run: Run, name: str, damage: Damage) -> None:
    path, content = run.path / name / "00000.jsonl", (run.path / name / "00000.jsonl").read_bytes()
    if not content:
        path.write_text("mine")
    else:
        damage(path)
    assert "run the same dino generate for run again" in answer("verify", "run").stdout
    invoke(*GENERATE)
    assert path.read_bytes() == content
    assert "files: all as they were written" in invoke("verify", "run")


def test_the_remedy_names_the_file_that_was_filtered(run: Run) -> None:
    shutil.copy(run.train, "own.jsonl")
    invoke("filter", "own.jsonl", "--run", "a b")
    flip(Path("a b/train.jsonl"))
    assert "run the same dino filter own.jsonl with --run 'a b' again" in answer("verify", "a b").stdout
    invoke("filter", "own.jsonl", "--run", "a b")
    assert "files: all as they were written" in invoke("verify", "a b")


def test_a_run_without_its_record_is_told_from_a_dataset(run: Run) -> None:
    record = run.record_file.read_bytes()
    run.record_file.unlink()
    for command in (FILTER, FINETUNE, EVALUATE, REPORT, PUBLISH, EXPORT, ("verify", "run")):
        assert "run/run.json: is missing; the folder holds the texts of a run; bring it back" in refused(*command)
    said = refused(*GENERATE)
    assert "error: run: holds inputs.jsonl, shards" in said
    assert "bring run.json back, move them away, or delete them with --fresh" in said
    run.record_file.write_bytes(record)
    assert "up to date" in invoke(*FILTER)


def test_a_refused_command_leaves_no_folder(run: Run) -> None:
    Path("bad.jsonl").write_text("{")
    assert "bad.jsonl, line 1" in refused("filter", "bad.jsonl", "--run", "new")
    assert not Path("new").exists()


def test_a_pipe_in_place_of_a_file_is_named(run: Run) -> None:
    for name in ("SHA256SUMS", "dropped.jsonl"):
        (run.path / name).unlink()
        os.mkfifo(run.path / name)
        assert f"run/{name}: is a pipe" in answer("verify", "run").output or name != "SHA256SUMS"
        (run.path / name).unlink()
        (run.path / name).write_text("")


def test_verify_goes_on_after_a_file_that_cannot_be_read(run: Run) -> None:
    for name in ("shards/00000.jsonl", "dropped.jsonl", "inputs.jsonl"):
        (run.path / name).unlink()
        (run.path / name).mkdir()
    flip(run.dev)
    shutil.rmtree(run.model)
    (run.hub / "dataset" / "lineage.json").write_text('{"rows": {"default/**x": 1}}')
    (run.hub / "model" / "README.md").write_text("---\ndate: 2020-13-45\n---\n")
    flip(run.comparison / "dino" / "seed-42" / "model" / "model.safetensors")
    said = answer("verify", "run").stdout
    for line in (
        "run/shards/00000.jsonl: cannot be read: Is a directory",
        "run/inputs.jsonl: cannot be read: Is a directory",
        "run/dropped.jsonl: is not what was written",
        "run/dev.jsonl: is not what was written (its checksum differs)",
        "run/model: no longer exists\n",
        "run/hub/dataset/lineage.json: cannot be read",
        "run/hub/model/README.md: the front matter is not valid YAML",
        "run the same dino compare run again",
    ):
        assert line in said, line
    assert "run/model/config.json" not in said, "the folder is named"


def test_a_damaged_record_is_not_replaced_by_that_of_files_that_are_ready(run: Run) -> None:
    (run.path / "ready").mkdir()
    record = run.record().filter
    assert record
    ready = {"stage": "filter", "record": record.model_dump(mode="json")}
    (run.path / "ready" / "record.json").write_text(json.dumps(ready))
    later = run.record_file.read_bytes().replace(b'"format": 3', b'"format": 99')
    run.record_file.write_bytes(later)
    assert "of format 99" in refused(*FILTER)
    assert run.record_file.read_bytes() == later


def test_a_filter_killed_while_it_replaces_its_files_leaves_a_whole_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, target: Path) -> None:
        if path.name == "flagged.jsonl":
            raise KeyboardInterrupt
        rename(path, target)

    rename = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            dino.filter(run, exclude="pocket", smoothing=0.1, fresh=True, progress=False)
    assert (run.path / "ready").exists()
    assert "files: all as they were written" in str(dino.verify(run))
    assert not (run.path / "ready").exists()
