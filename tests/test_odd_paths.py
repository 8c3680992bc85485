"""Every path that the file system allows works: as a run, a data file, a spec, a published folder, an output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dino_pipeline as dino
from dino_pipeline.database import connect, json_rows
from dino_pipeline.display import spelt
from dino_pipeline.errors import RunError
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.files import write_bytes, write_json
from dino_pipeline.odd_paths import LONGEST_NAME, beside, plain_copy, plain_path, utf8_path
from dino_pipeline.run import Run
from tests.commands import ENVIRONMENT, invoke, refused
from tests.pairs import Words

NAMES = {
    "patterns and quotes": "-a\\?*[x]{a,b}#%20%s'\"`$HOME label=2",
    "lines and escapes": " a\nb\t\x1b[2J\u202e\u2028😀 ",
    "no UTF-8": os.fsdecode(b"caf\xe9 \xff"),
    "an address": "s3::x",
    "home": "~",
    "as long as may be": "x" * LONGEST_NAME,
    "two dashes": "--run",
}
SPEC = Path(__file__).parent.parent / "task_specs" / "sts-x2.json"


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that a plain name leads to."""
    folder = tmp_path_factory.mktemp("plain")
    sentences = "A man plays a guitar.\nA woman eats an apple.\nTwo dogs run home.\nA child reads a book.\n"
    (folder / "sentences.txt").write_text(sentences)
    invoke("generate", SPEC, "--run", folder / "run", "--inputs", folder / "sentences.txt", "--samples", "2")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_folder_of_any_name_goes_the_whole_way(
    kind: str, plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAMES[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-a\\bc").mkdir()  # what the patterns would find
    shutil.copytree(plain_run, name)
    sentences = plain_run.parent / "sentences.txt"
    options = ("--inputs", sentences, "--samples", "2")
    invoke("generate", *options, "--run", f"./{name}", "--", SPEC)
    said = invoke("filter", "--workers", "1", "--", name)
    said += invoke("finetune", "--steps", "1", "--batch-size", "4", "--", name)
    said += invoke("evaluate", "--suite", "pairs", "--data", f"./{name}/dev.jsonl", "--", name)
    said += invoke("report", "--", name)
    said += invoke("publish", "--repo", "a/b", "--dry-run", "--license", "mit", "--", name)
    said += invoke("verify", "--", f"{name}/hub/dataset")
    said += invoke("verify", "--", f"{name}/hub/model")
    assert not {"\x1b", "\u202e"} & {*said}
    said.encode()
    run = Run(Path(name))
    assert all(
        record["status"] == "done" for record in json.loads(run.record_file.read_bytes()).values() if record != 3
    )
    assert not [path for path in run.path.rglob("*") if path.suffix in (".part", ".old")]
    invoke("filter", "--run", "again", "--workers", "1", "--", f"{name}/hub/dataset")
    assert len(read_examples(Run(Path("again")).train)) > 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "-a\\bc", "again"])


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_of_any_name_is_read_and_written(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[kind]
    start = name[: LONGEST_NAME - len(".jsonl")]
    monkeypatch.chdir(tmp_path)
    data = Path(f"{start}.jsonl")
    write_examples(data, Words().pairs(12, 1))
    shutil.copy(SPEC, f"{start}.json")
    shutil.copy(SPEC.parent / "sts-x1-wide.json", "sts-x1-wide.json")
    invoke("spec", "check", "--", f"{start}.json")
    invoke("filter", "--run", "run", "--workers", "1", "--", data)
    invoke("export", "--output", f"./{name}", "--", "run")
    exported = read_examples(f"./{name}")
    assert exported == [Example(each.text_a, each.text_b, each.label) for each in read_examples("run/train.jsonl")]
    Path(name).unlink()
    Path(name).mkdir()
    shutil.copy(data, Path(name, "train.jsonl"))
    assert len(dino.filter(f"./{name}", progress=False, workers=1).train) == len(exported)
    shutil.rmtree(name)
    Path("elsewhere").mkdir()
    Path(name).symlink_to("elsewhere")
    assert len(dino.filter(data, run=Path(name), progress=False, workers=1).train) == len(exported)
    assert dino.filter(data, run=Path("elsewhere"), progress=False, workers=1).outcome == "done"
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".old")]


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_named_in_errors_and_records(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / NAMES[kind]
    folder.mkdir()
    said = refused("filter", "--", folder)
    assert spelt(folder) in said
    write_json(folder / "x.json", {"path": str(folder)})
    assert json.loads((folder / "x.json").read_bytes()) == {"path": str(folder)}
    write_bytes(folder / "run.json", b"{")
    with pytest.raises(RunError) as error:
        Run(folder).record()
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("kind", NAMES)
def test_databases_take_a_path_for_what_it_is(kind: str, tmp_path: Path) -> None:
    folder, other = tmp_path / NAMES[kind], tmp_path / "-a\\bx{a,b}#%20%s'\"`$HOME label=2"
    for place, text in ((folder, "own"), (other, "another's"), (tmp_path / "-a*[x]", "another's")):
        place.mkdir()
        (place / "rows.jsonl").write_text(json.dumps({"text": text}))
    with connect(folder / "x.duckdb") as database:
        rows = database.execute(f"FROM {json_rows([folder / 'rows.jsonl'], {'text': 'VARCHAR'})}").fetchall()
    assert rows == [("own",)]
    os.fsdecode(utf8_path(folder)).encode()
    assert Path(plain_path(folder / "rows.jsonl")).samefile(folder / "rows.jsonl")
    assert (plain_copy(folder) / "rows.jsonl").read_text() == '{"text": "own"}'


STOPPED = """
import sys
from pathlib import Path
from dino_pipeline.odd_paths import plain_copy, plain_path
from dino_pipeline.stopping import end_said_stop, leave_if_stopped

folder = Path("a*b")
folder.mkdir()
print(Path(plain_path(folder)).is_symlink(), plain_copy(folder).is_dir(), flush=True)
if len(sys.argv) > 1:
    end_said_stop(130)
leave_if_stopped()
"""


@pytest.mark.parametrize(("stop", "code"), [([], 0), (["stop"], 130)])
def test_links_in_temporary_folders_go_with_the_process(stop: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *stop], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, "True True\n"), done.stderr
    assert not list((tmp_path / "temporary").iterdir())


def test_a_name_for_the_meantime_is_no_longer_than_names_may_be(tmp_path: Path) -> None:
    for name in ("short", "x" * LONGEST_NAME, "é" * 127, os.fsdecode(b"\xff" * LONGEST_NAME), "x" * 251, "x" * 250):
        path = tmp_path / name
        made = beside(path, ".part")
        made.touch()
        assert made != path and made.name.endswith(".part")
        assert made.name == f"{name}.part" or len(os.fsencode(name)) > 250
    assert beside(tmp_path / ("x" * 254 + "a"), ".part") != beside(tmp_path / ("x" * 254 + "b"), ".part")
