"""Faults, each injected once: what can be mended is mended and the bytes are the same, else one clear message."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest
from click.testing import Result

from dino_pipeline import files as file_writers
from dino_pipeline import model_files, processes
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.errors import OptionError, RunError
from dino_pipeline.evaluation.suites import sts
from dino_pipeline.evaluation.suites.sts import hub_folder
from dino_pipeline.filtering import file_pieces
from dino_pipeline.generation import plan, shard_writer
from dino_pipeline.generation.shard_writer import EngineWriter, TextWriter
from dino_pipeline.model_files import model_fingerprint
from dino_pipeline.record import FORMAT
from dino_pipeline.run import Run
from dino_pipeline.stopping import Stopped, StopRequest, signals_handled
from tests.commands import answer, files, invoke, refused
from tests.conftest import TOY_SPEC

pytestmark = pytest.mark.slow

JOB = ("--num-inputs", "12", "--samples", "2", "--shard-size", "12")
Damage = Callable[[Run], object]
Texts = dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toy_generator: Path) -> Path:
    """A folder with a spec, a generator and a whole run of six shards."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(toy_generator, folder / "generator")
    (folder / "toy.json").write_text(json.dumps(TOY_SPEC))
    generate(folder)
    assert len(list((folder / "run" / "shards").glob("*.jsonl"))) == 6
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for path in made.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    return tmp_path


def generate(folder: Path, *more: str, code: int = 0) -> Result:
    """Run the command, which must end with this code."""
    with contextlib.chdir(folder):
        done = answer("generate", "toy.json", "--run", "run", "--model", "generator", *JOB, *more)
    assert done.exit_code == code, done.output
    return done


def texts(folder: Path) -> Texts:
    return files(folder / "run")


@pytest.fixture
def whole(folder: Path) -> Texts:
    """The texts of the whole run."""
    return texts(folder)


def shard(run: Run) -> Path:
    return sorted(run.shards.glob("*.jsonl"))[2]


def generator(run: Run) -> Path:
    return run.path.parent / "generator"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def damage_inputs(run: Run) -> None:
    run.inputs.unlink()
    cut(run.input_shards / "00000.jsonl")


def put_a_file_in_its_place(run: Run) -> None:
    shutil.rmtree(run.path)
    run.path.write_text("mine")


def set_format(number: object) -> Damage:
    return lambda run: edit(run.record_file, lambda record: record.update(format=number))


def set_status(run: Run) -> None:
    edit(run.record_file, lambda record: record["generate"].update(status="running"))


def change_tokenizer(run: Run) -> None:
    edit(generator(run) / "tokenizer.json", lambda found: found.update(x=1))


ANOTHERS = f"{'0' * 64}  shards/00004.jsonl\n" * 3
MENDED: dict[str, tuple[Damage, str]] = {  # what is done, and the file that is then said to be spoilt
    "a shard is cut short": (lambda run: cut(shard(run)), "00002.jsonl"),
    "a bit of a shard flips": (lambda run: flip(shard(run)), "00002.jsonl"),
    "a shard is emptied": (lambda run: shard(run).write_bytes(b""), "00002.jsonl"),
    "a shard is gone": (lambda run: shard(run).unlink(), ""),
    "all shards are gone": (lambda run: shutil.rmtree(run.shards), ""),
    "rejected texts are gone": (lambda run: (run.rejected / "00001.jsonl").unlink(), ""),
    "rejected texts are changed": (lambda run: flip(run.rejected / "00001.jsonl"), "rejected/00001.jsonl"),
    "the checksums are gone": (lambda run: run.checksums.file.unlink(), ""),
    "the checksums are cut short": (lambda run: cut(run.checksums.file), ""),
    "the checksums are no text": (lambda run: run.checksums.file.write_bytes(b"\xff\x00" * 99), ""),
    "the checksums are another's": (lambda run: run.checksums.file.write_text(ANOTHERS), ""),
    "the inputs are edited": (lambda run: flip(run.inputs), "inputs.jsonl"),
    "the inputs are gone": (lambda run: run.inputs.unlink(), ""),
    "the inputs and what they come from are damaged": (damage_inputs, "input-shards/00000.jsonl"),
    "half-written files are left": (lambda run: (run.shards / "00002.jsonl.part").write_text("{"), ""),
    "a killed process's lock is left": (lambda run: (run.path / ".lock").write_text("{"), ""),
    "the record says that work is under way": (set_status, ""),
    "the spec's copy is gone": (lambda run: run.spec.unlink(), ""),
}


@pytest.mark.parametrize("fault", MENDED)
def test_what_is_damaged_is_written_anew(folder: Path, whole: Texts, fault: str) -> None:
    damage, spoilt = MENDED[fault]
    damage(Run(folder / "run"))
    said = generate(folder).stderr
    assert not spoilt or f"{spoilt}: is not what was written" in said
    after = texts(folder)
    after.pop("shards/00002.jsonl.part", None)
    assert after == whole
    assert json.loads((folder / "run" / "run.json").read_text())["format"] == FORMAT


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_own_code(folder: Path) -> None:
    own = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    edit(folder / "config.json", lambda config: config.update(own))
    (folder / "code.py").write_text("raise SystemExit('this ran')\n")


UNREAD = "run.json: is not a record that this version reads"
OTHER_MODEL = "begun with other options: model.fingerprint was"
REFUSED: dict[str, tuple[Damage, str]] = {
    "the record is cut short": (lambda run: cut(run.record_file), f"{UNREAD} (not JSON: "),
    "the record is a list": (lambda run: run.record_file.write_text("[]"), f"{UNREAD} (must be a JSON object)"),
    "the record is deep": (lambda run: run.record_file.write_text("[" * 99_999), f"{UNREAD} (not JSON: "),
    "the record is no text": (lambda run: run.record_file.write_bytes(b"\xff\xfe\x00"), f"{UNREAD} (not JSON: "),
    "the run is of no format": (
        lambda run: edit(run.record_file, lambda record: record.pop("format")),
        "of format 1, and this version reads 2 and 3); restore it, use the version that wrote it",
    ),
    "the run is of a later format": (set_format(FORMAT + 1), f"of format {FORMAT + 1}, and this version reads 2 and 3"),
    "the run's format is no number": (set_format("new"), "of format 'new', and this version reads 2 and 3"),
    "no record tells whose shards these are": (lambda run: run.record_file.unlink(), "no record of the generate that"),
    "the weights are others": (lambda run: flip(generator(run) / "model.safetensors"), OTHER_MODEL),
    "the tokenizer is another": (change_tokenizer, OTHER_MODEL),
    "the model is gone": (
        lambda run: shutil.rmtree(generator(run)),
        "generator: was there when the run started, and is missing; bring it back",
    ),
    "the weights are pickled": (lambda run: pickled(generator(run)), ""),
    "the run's folder is a file": (put_a_file_in_its_place, "cannot be written"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_mended_is_said_and_nothing_is_lost(folder: Path, fault: str) -> None:
    damage, said = REFUSED[fault]
    damage(Run(folder / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    failed = generate(folder, code=2).stderr
    assert failed.startswith("error: ")
    assert said in failed
    assert {path: path.read_bytes() for path in before} == before


def test_models_from_strangers_run_nothing(folder: Path) -> None:
    shutil.rmtree(folder / "run")
    pickled(folder / "generator")
    failed = generate(folder, code=2).stderr
    assert "pytorch_model.bin: holds pickled weights only" in failed
    assert "if you trust them, set DINO_ALLOW_PICKLE=1 in the environment" in failed
    (folder / "generator" / "pytorch_model.bin").rename(folder / "generator" / "model.safetensors")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.bin").write_bytes(b"\x80")
    failed = generate(folder, "--adapter", str(folder / "adapter"), code=2).stderr
    assert "adapter_model.bin: holds pickled weights only" in failed
    with_own_code(folder / "generator")
    said = generate(folder, code=2)
    assert "trust" in said.stderr
    assert "this ran" not in said.output


def test_pickled_weights_that_are_asked_for_are_read(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "generator" / "model.safetensors"), folder / "generator" / "pytorch_model.bin")
    (folder / "generator" / "model.safetensors").unlink()
    with contextlib.chdir(folder):
        invoke("--allow-pickle", "generate", "toy.json", "--run", "pickled", "--model", "generator", *JOB)
    assert files(folder / "pickled")["shards/00000.jsonl"] == texts(folder)["shards/00000.jsonl"]


def test_a_change_in_the_middle_of_large_weights_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "FULLY_HASHED", 1000)
    monkeypatch.setattr(model_files, "SAMPLE_SIZE", 100)
    monkeypatch.setattr(model_files, "SAMPLE_STRIDE", 200)
    (tmp_path / "model.safetensors").write_bytes(bytes(10_000))
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(bytes(5_000) + b"\1" * 150 + bytes(4_850))
    assert model_fingerprint(str(tmp_path)) != before


def test_a_name_on_the_hub_that_moved_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(folder / "run")
    edit(run.record_file, lambda record: record["generate"].update(model_commit="a" * 40))
    shard(run).unlink()
    monkeypatch.setattr(EngineWriter, "facts", lambda self: {"model_commit": "b" * 40})
    assert f"was begun with commit {'a' * 40}" in generate(folder, code=2).stderr
    assert len(list(run.shards.glob("*.jsonl"))) == 5


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("name", ["00003.jsonl.part", "run.json.part", "inputs.jsonl.part", "SHA256SUMS"])
def test_a_disk_that_takes_no_more_loses_nothing(
    folder: Path, whole: Texts, monkeypatch: pytest.MonkeyPatch, name: str, error: OSError
) -> None:
    shutil.rmtree(folder / "run")

    def full(path: Any, mode: str = "r", **kwargs: Any) -> Any:
        if Path(path).name == name and mode != "rb" and ("SUMS" not in name or Path(path).exists()):
            raise error
        return open(path, mode, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(file_writers, "open", full, raising=False)
        failed = generate(folder, code=2)
    assert f"cannot be written: {error.strerror}" in failed.stderr
    kept = texts(folder)
    assert not [path for path in kept if path.endswith(".part")]
    assert all(content == whole[path] for path, content in kept.items() if "SUMS" not in path)
    generate(folder)
    assert texts(folder) == whole


def test_memory_that_is_full_is_said(folder: Path, whole: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TextWriter, shards: Any) -> NoReturn:
        raise MemoryError

    shutil.rmtree(folder / "run")
    with monkeypatch.context() as patch:
        patch.setattr(TextWriter, "_write_batch", full)
        failed = generate(folder, code=2)
    assert failed.stderr.splitlines()[-1].startswith("error: memory is full")
    generate(folder)
    assert texts(folder) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_one_signal_finishes_the_shard_and_two_stop_at_once(
    folder: Path, whole: Texts, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, times: int
) -> None:
    shutil.rmtree(folder / "run" / "shards")
    count = plan.count_text
    taken = 0

    def signalled(*arguments: Any) -> None:
        nonlocal taken
        count(*arguments)
        taken += 1
        if taken == 18:  # in the second shard
            for _ in range(times):
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "count_text", signalled)
        stopped = generate(folder, code=128 + number)
    assert "the same command goes on from there" in stopped.stderr
    assert len(list((folder / "run" / "shards").glob("*"))) == (2 if times == 1 else 1)
    generate(folder)
    assert texts(folder) == whole


def test_a_long_shard_is_left_in_the_middle_and_its_texts_are_kept(
    folder: Path, whole: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "run" / "shards")
    monkeypatch.setattr(shard_writer, "PATIENCE", 0.0)
    count = plan.count_text
    counted = 0

    def signalled(*arguments: Any) -> None:
        nonlocal counted
        count(*arguments)
        counted += 1
        if counted == 18:  # in the second shard
            signal.raise_signal(signal.SIGTERM)

    def written(calls: list[int]) -> Callable[..., Iterator[Any]]:
        sample = Decoder.sample

        def sampled(self: Decoder, requests: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
            listed = list(requests)
            calls.append(len(listed))
            return sample(self, listed, *arguments, **options)

        return sampled

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "count_text", signalled)
        generate(folder, code=128 + signal.SIGTERM)
    assert len(list((folder / "run" / "shards").glob("*"))) == 1
    kept = (folder / "run" / "received.jsonl").read_text().splitlines()
    assert len(kept) == 18 - 12
    calls: list[int] = []
    monkeypatch.setattr(Decoder, "sample", written(calls))
    generate(folder)
    assert calls == [12 - len(kept), 12, 12, 12, 12]
    assert texts(folder) == whole
    assert not (folder / "run" / "received.jsonl").exists()


def test_nothing_under_way_is_left_at_once() -> None:
    said: list[str] = []
    asked = StopRequest(lambda: said.append("finishing"))
    with pytest.raises(Stopped), signals_handled(asked):
        signal.raise_signal(signal.SIGTERM)
    assert not said
    with signals_handled(StopRequest()), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_second_process_is_told_who_works_there_and_how_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after(**passed: float) -> str:
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(**passed)
        monkeypatch.setattr(processes, "_now", lambda: now)
        return generate(folder, code=2).stderr

    run = Run(folder / "run")
    with run.locked():
        said = after(minutes=5)
        assert f"another process works here (process {os.getpid()} on " in said
        assert ", for 0:05:0" in said
        assert ", for" not in after(days=-5), "the clock was set back"
        (run.path / ".lock").write_text("no JSON")
        assert "another process works here; wait" in after()


def test_a_file_system_without_locks_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, how: int) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    assert "keeps no locks" in generate(folder, code=2).stderr


IMPORT_ALL = """
import builtins, importlib, importlib.util, pkgutil
import dino_pipeline

original = builtins.__import__

def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    if name in {"fcntl", "resource"} and (globals or {}).get("__name__", "").startswith("dino_pipeline"):
        raise ImportError(name)
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = refuse
for module in pkgutil.walk_packages(dino_pipeline.__path__, "dino_pipeline."):
    is_missing = ".vllm_" in module.name and importlib.util.find_spec("vllm") is None
    if not module.name.endswith("__main__") and not is_missing:
        importlib.import_module(module.name)
"""


def test_every_module_can_be_imported_without_posix_modules() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("jump", [-(10**9), 10**9])
def test_jumping_clocks_change_nothing(folder: Path, whole: Texts, monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    now = time.time
    shard(Run(folder / "run")).unlink()
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    generate(folder)
    assert texts(folder) == whole


def test_a_filter_refuses_spoilt_shards_until_they_are_written_anew(folder: Path) -> None:
    run = Run(folder / "run")
    call = ("filter", run.path, "--near-duplicates", "0", "--no-balance", "--dev-share", "0", "--min-chars", "0")
    flip(shard(run))
    said = refused(*call)
    assert "00002.jsonl: is not what was written" in said
    assert "dino generate" in said
    assert not run.train.exists()
    generate(folder)
    assert "is not what was written" not in answer(*call).output


def test_long_inputs_are_named_or_left_out(folder: Path) -> None:
    (folder / "long.txt").write_text("fine\n" + "a" * 17 * 2**20)
    shutil.rmtree(folder / "run")
    failed = generate(folder, "--inputs", str(folder / "long.txt"), code=2)
    assert "long.txt, line 2: is longer than 16 MiB" in failed.stderr
    (folder / "long.txt").write_text("fine\n" + "a" * 2_000_000)
    done = generate(folder, "--inputs", str(folder / "long.txt"))
    assert "long.txt: 2 rows read, 1 left out: with a text of more than 1,000,000 characters (line 2)" in done.stderr
    assert len((folder / "run" / "inputs.jsonl").read_text().splitlines()) == 1


def test_a_bomb_of_an_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sts, "MAX_UNPACKED_BYTES", 2**20)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as packed:
        member = tarfile.TarInfo("STS/STS12-en-test/bomb.txt")
        member.size = 64 * 2**20
        packed.addfile(member, io.BytesIO(bytes(member.size)))
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 2**17
    with pytest.raises(OptionError, match="unpacks to more than 1 MiB"):
        hub_folder(lambda *_, **__: str(tmp_path / "bomb.tar.gz"), tmp_path / "cache")
    assert not list(tmp_path.rglob("bomb.txt"))


def test_a_worker_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killer.py").write_text("import os\n\n\ndef die(example):\n    os.kill(os.getpid(), 9)\n")
    row = '{"text_a": "a dog runs", "text_b": "it barks", "label": 1}\n'
    (tmp_path / "data.jsonl").write_text(row * 99)
    monkeypatch.setattr(file_pieces, "PIECE", 1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("filter", "data.jsonl", "--run", "run", "--rule", "killer:die", "--workers", "2")
    assert "a worker process ended early: its memory was full" in said
    assert not list((tmp_path / "run").glob("*.jsonl"))


@pytest.fixture
def storage(folder: Path) -> Iterator[str]:
    """A place on an object store, with all that the run has."""
    url = f"memory://{folder.name}/run"
    shutil.rmtree(folder / "run")
    generate(folder, "--storage", url)
    yield url
    fsspec.filesystem("memory").rm(f"/{folder.name}", recursive=True)


def test_a_run_goes_on_from_its_storage_on_another_machine(folder: Path, whole: Texts, storage: str) -> None:
    assert texts(folder) == whole
    shutil.rmtree(folder / "run")
    done = generate(folder, "--storage", storage)
    assert "12 finished shards or inputs taken from memory://" in done.stderr
    assert "texts are up to date" in done.stdout
    found = texts(folder)
    kept = [name for name in whole if name != "SHA256SUMS" and not name.startswith("input-")]
    assert {name: found[name] for name in kept} == {name: whole[name] for name in kept}


@pytest.mark.parametrize("marked", [True, False], ids=["spoilt", "without its mark"])
def test_spoilt_or_unmarked_texts_in_storage_are_redone(folder: Path, whole: Texts, storage: str, marked: bool) -> None:
    name = "shards/00002.jsonl"
    there = fsspec.filesystem("memory")
    there.pipe_file(f"/{folder.name}/run/{name}", b"half of it")
    if not marked:
        there.rm_file(f"/{folder.name}/run/done/shards-00002.jsonl")
    shutil.rmtree(folder / "run")
    said = generate(folder, "--storage", storage).stderr
    assert (f"{name}: is not what was written" in said) == marked
    assert there.cat_file(f"/{folder.name}/run/{name}") == whole[name] == texts(folder)[name]


def test_storage_whose_record_was_cut_short_is_filled_again(folder: Path, whole: Texts, storage: str) -> None:
    there, name = fsspec.filesystem("memory"), f"/{folder.name}/run/run.json"
    for part in (there.cat_file(name)[:99], b""):
        there.pipe_file(name, part)
        said = generate(folder, "--storage", storage).stderr
        assert "run.json: was not written to its end: all is stored again" in said
        assert json.loads(there.cat_file(name))["generate"]["status"] == "done"
        assert there.cat_file(f"/{folder.name}/run/shards/00002.jsonl") == whole["shards/00002.jsonl"]
    there.pipe_file(name, b"{")
    shutil.rmtree(folder / "run")
    said = generate(folder, "--storage", storage, code=2).stderr
    assert "run.json: is not a record that this version reads (not JSON: " in said
    assert there.exists(f"/{folder.name}/run/shards/00002.jsonl"), "it may be the only copy"


def test_storage_that_leads_elsewhere_or_is_not_there_is_refused(folder: Path, storage: str) -> None:
    shutil.rmtree(folder / "run")
    generate(folder, "--seed", "7")
    assert "holds another run" in generate(folder, "--seed", "7", "--storage", storage, code=2).stderr
    shutil.rmtree(folder / "run")
    mark = f"{'0' * 64}  ../../outside.jsonl\n".encode()
    fsspec.filesystem("memory").pipe_file(f"/{folder.name}/run/done/shards-00002.jsonl", mark)
    assert "which no run holds" in generate(folder, "--storage", storage, code=2).stderr
    assert not list(folder.parent.rglob("outside.jsonl"))
    failed = generate(folder, "--storage", "nowhere://bucket/run", code=2)
    assert "--storage nowhere://bucket/run" in failed.stderr


def test_checksums_are_what_sha256sum_reads(folder: Path) -> None:
    run = Run(folder / "run")
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run.path, capture_output=True)
    assert checked.returncode == 0, checked.stdout
    flip(shard(run))
    with pytest.raises(RunError, match="its checksum differs"):
        run.check(run.record().generate)
