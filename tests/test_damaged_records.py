"""Whatever the JSON of a run holds in place of what belongs there, it is read, or named as damaged."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dino_pipeline.cards.hub import PublishedRecord
from dino_pipeline.decoding.engine import Completion
from dino_pipeline.decoding.received_texts import ReceivedTexts
from dino_pipeline.errors import DinoError
from dino_pipeline.evaluation.compare import Comparison
from dino_pipeline.evaluation.evaluate import candidates_of
from dino_pipeline.evaluation.scores import ScoresFile
from dino_pipeline.files import Checksums
from dino_pipeline.funnel import Funnel
from dino_pipeline.generation.preview import SpeedMonitor
from dino_pipeline.progress import Progress, SilentReporter
from dino_pipeline.publishing.rebuild import rebuild_of
from dino_pipeline.publishing.verify import verify_folder
from dino_pipeline.record import public_record
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec
from dino_pipeline.training.checkpoints import COUNTS_FILE, checked_counts, delete_unusable, mark_whole
from tests.commands import invoke


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


WRONG: tuple[Any, ...] = (None, [], "x", "", 10**400, -1, 1.5, {}, True, {"a": 1}, ["x"], nested(300), "\ud800")
REMOVED = object()
RAW = (b"", b"{", b"\xff", b"[" * 100_000, b"null", b"1e999", b"NaN", '{"a": 1}'.encode("utf-16"))
ASKED = {"a": 1}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value in a JSON value; of long lists, that of the first two items."""
    yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*place, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 2)):
            yield from places(value[index], (*place, index))


def mutants(value: Any) -> Iterator[bytes]:
    """Yield a JSON value with something else, or nothing, in one of its places: in large ones a few things in each."""
    found = list(places(value))
    kinds = (*WRONG, REMOVED)
    some = len(kinds) if len(found) < 100 else 3
    for at, place in enumerate(found):
        wrongs = [kinds[(at + each) % len(kinds)] for each in range(some)]
        for wrong in wrongs if place else WRONG:
            changed = {"": copy.deepcopy(value)}
            within: Any = changed
            for key in ("", *place[:-1]) if place else ():
                within = within[key]
            last = place[-1] if place else ""
            if wrong is REMOVED:
                del within[last]
            else:
                within[last] = wrong
            yield json.dumps(changed[""]).encode()


def read_run(file: Path) -> None:
    run = Run(file.parent)
    record = run.record()
    for stage in ("generate", "filter", "finetune", "evaluate"):
        if asked := record.of(stage):
            run.state_of(asked)
    shown = public_record(record)
    Funnel.of(shown.filter).rows()
    rebuild_of(shown)
    candidates_of(str(run.path))


def read_scores(file: Path) -> None:
    scores = ScoresFile.read(file)
    scores.score_rows()
    scores.difference_rows()
    scores.human_label_remarks()


def read_spec(file: Path) -> None:
    spec = load_spec(file)
    for label in spec.labels:
        spec.prompt(label, "x", {name: choices[0] for name, choices in spec.variables.items()})


def read_estimate(file: Path) -> None:
    monitor = SpeedMonitor(SilentReporter(), Run(file.parent), ASKED)
    monitor.start = (time.monotonic() - 1000, 0)
    monitor.update(Progress("texts", total=1000, done=500))


def settle(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    with Run(file.parent.parent).locked():
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "run.json": read_run,
    "spec.json": read_spec,
    "scores.json": read_scores,
    "estimate.json": read_estimate,
    "ready/record.json": settle,
    "compare/compare.json": lambda file: str(Comparison.read(file)),
    "hub/published.json": lambda file: PublishedRecord.read(file.parent),
    "hub/dataset/lineage.json": lambda file: str(verify_folder(file.parent)),
    "hub/model/lineage.json": lambda file: str(verify_folder(file.parent)),
    "hub/dataset/run.json": lambda file: str(verify_folder(file.parent)),
    f"checkpoint-1/{COUNTS_FILE}": lambda file: checked_counts(file.parent),
    "checkpoint-1/trainer_state.json": lambda file: checked_counts(file.parent),
}


@pytest.fixture(scope="module")
def sound_run(pocket_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one of each file of JSON."""
    run = tmp_path_factory.mktemp("sound") / "run"
    shutil.copytree(pocket_run, run)
    invoke("publish", run, "--repo", "a/b", "--license", "mit", "--dry-run", "--no-raw")
    evaluated = json.loads((run / "run.json").read_bytes())["evaluate"]
    upload = {"repository": "a/b", "address": "x", "commit": "c", "changed": True, "private": False, "card": "x"}
    made = {
        "estimate.json": {"asked": ASKED, "seconds": 3.0, "per_second": 100.0},
        "ready/record.json": {"stage": "evaluate", "record": evaluated},
        "hub/published.json": {"dataset": upload},
        f"checkpoint-1/{COUNTS_FILE}": {"rows": 3, "seconds": 1.5},
        "checkpoint-1/trainer_state.json": {"global_step": 1, "log_history": [{"loss": 1.0}]},
    }
    for name, value in made.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(json.dumps(value))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_json_is_read_or_named_as_damaged(name: str, sound_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound_run, run)
    if name != "ready/record.json":
        shutil.rmtree(run / "ready")
    file, read = run / name, READERS[name]
    sound = file.read_bytes()
    read(file)
    said = []
    for content in (*RAW, *mutants(json.loads(sound))):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        try:
            read(file)
        except DinoError as error:
            said.append(str(error))
    assert all(str(run) in each and len(each) < 5000 for each in said)
    assert len(said) > 5 or name in ("estimate.json", "hub/published.json", "hub/dataset/run.json"), "those do without"


def test_lines_of_received_texts_are_texts_or_left_out(tmp_path: Path) -> None:
    file = tmp_path / "received.jsonl"
    completion = Completion(0, "A text.", "stop", (1, 2), 2, -1.5, None)
    ReceivedTexts(file).add((1, "a"), completion)
    (line,) = file.read_bytes().splitlines()
    for content in (*RAW, *mutants(json.loads(line))):
        file.write_bytes(content.replace(b"\n", b" ") + b"\n" + line + b"\n")
        texts = ReceivedTexts(file)
        assert texts.get((1, "a")) == completion
        for other in texts.texts.values():
            assert isinstance(other.text, str) and isinstance(other.length, int)
            assert all(isinstance(token, int) for token in other.tokens)


def test_lines_of_checksums_are_checksums_or_none(tmp_path: Path) -> None:
    for content in (b"", b"\n\n", b"x", b"\xff" * 64 + b"  a\n", b"0" * 64 + b"  \xff\n", b"0" * 64 + b"  ../x\n" * 3):
        (tmp_path / "SHA256SUMS").write_bytes(content)
        checksums = Checksums(tmp_path)
        assert not checksums.has(tmp_path / "x")
        checksums.tidy()


@pytest.mark.parametrize("broken", ["optimizer.pt", "counts.json"])
def test_a_training_goes_on_from_before_a_damaged_checkpoint(tmp_path: Path, broken: str) -> None:
    for step in (9, 48, 100):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        for name in ("optimizer.pt", "rng_state.pth", "rng_state_1.pth"):
            (checkpoint / name).write_text(f"{name} of {step}")
        mark_whole(checkpoint, step, 0.5)
        (checkpoint / "rng_state_1.pth").write_text("another process writes this later")
    (tmp_path / "checkpoint-110").mkdir()
    notes: list[str] = []
    delete_unusable(tmp_path, notes.append)
    assert not notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-48", "checkpoint-9"]
    (tmp_path / "checkpoint-48" / broken).write_text("[")
    delete_unusable(tmp_path, notes.append)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]
    (note,) = notes
    assert note.endswith(
        f"checkpoint-48/{broken}: is not what was written: the training goes on from before checkpoint-48"
    )
    (tmp_path / "checkpoint-9" / "optimizer.pt").unlink()
    delete_unusable(tmp_path, notes.append)
    assert not list(tmp_path.iterdir())
