"""What a machine has no more of is said: memory, disk, open files, processes, and a place for what is printed."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import duckdb
import pytest

from dino_pipeline.cli.base import COMMAND_LINE
from dino_pipeline.database import write_errors
from dino_pipeline.errors import (
    MAKE_ROOM,
    PYTHON,
    DinoError,
    OutputError,
    as_it_is,
    limit_of_machine,
    option_given,
    stage_call,
    worded,
    write_remedy,
)
from dino_pipeline.files import Checksums, folder_replaced, write_bytes
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.run import Run
from tests.commands import ENVIRONMENT, command, refused


def os_error(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


LIMITS: list[tuple[Exception, str | None]] = [
    (MemoryError(), "memory is full"),
    (ImportError("libx.so: failed to map segment from shared object"), "memory is full"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "memory is full"),
    (RuntimeError("std::bad_alloc"), "memory is full"),
    (os_error(errno.ENOMEM), "memory is full"),
    (RuntimeError("can't start new thread"), "no further process or thread can be started"),
    (os_error(errno.EAGAIN), None),
    (os_error(errno.ENAMETOOLONG, "x.py"), "x.py: the name is too long"),
    (os_error(errno.EMFILE, "x.py"), "x.py: too many open files"),
    (os_error(errno.ENOSPC, "x.py"), "x.py: cannot be written: No space left on device"),
    (os_error(errno.EFBIG), "a file, or what is printed, cannot be written: File too large"),
    (os_error(errno.ENOENT, "x.py"), None),
    (ImportError("no module named x"), None),
    (RuntimeError("shapes differ"), None),
]


@pytest.mark.parametrize(("error", "said"), LIMITS, ids=lambda value: repr(value))
def test_an_exception_tells_which_limit_it_comes_from(error: Exception, said: str | None) -> None:
    named = limit_of_machine(error)
    assert (named and named.message) == said
    assert named is None or (isinstance(named, DinoError) and named.remedy)


@pytest.mark.parametrize("buffered", ["", "1"])
def test_what_cannot_be_printed_is_said(buffered: str) -> None:
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("spec", "list"), env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "a file, or what is printed, cannot be written: No space left on device; make room and run again"
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")


def test_a_full_pipe_that_does_not_wait_is_no_missing_process() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb"), open(writing, "wb", buffering=2**10) as file:
        with pytest.raises(BlockingIOError) as caught:
            file.write(bytes(2**22))
        os.read(reading, 2**20)  # room to close the file
    named = limit_of_machine(caught.value)
    assert named and named.message == "what is printed goes to a full pipe that does not wait"


REMEDIES = [
    (errno.ENOSPC, MAKE_ROOM),
    (errno.EDQUOT, MAKE_ROOM),
    (errno.EROFS, "choose another folder"),
    (errno.EACCES, "choose another folder, or make this one writable"),
    (errno.EEXIST, "move what is there away, or choose another name"),
    (errno.ENOTDIR, "move what is there away, or choose another name"),
    (errno.ENAMETOOLONG, "choose a shorter name"),
]


@pytest.mark.parametrize(("number", "remedy"), REMEDIES)
def test_a_remedy_is_one_for_the_reason(number: int, remedy: str, tmp_path: Path) -> None:
    error = os_error(number)
    assert write_remedy(error) == remedy
    said = (f"I/O error: {error.strerror} (os error {number})", f'Could not write file "x": {error.strerror}')
    for words in (*said, str(os_error(number, "x"))):
        assert write_remedy(RuntimeError(words)) == remedy
    with pytest.raises(OutputError) as replaced, folder_replaced(tmp_path / "folder"):
        raise error
    with pytest.raises(OutputError) as scratch, Run(tmp_path).scratch("x"):
        raise os_error(number, str(tmp_path / "x"))
    assert replaced.value.remedy == scratch.value.remedy == remedy


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "File name too long; what was finished before is kept; choose a shorter name"),
        ("file/x", "File exists; what was finished before is kept; move what is there away"),
    ],
)
def test_a_result_whose_name_cannot_be_is_refused(name: str, said: str, tmp_path: Path) -> None:
    row = {"text_a": "a dog runs", "text_b": "it barks", "label": 1}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    (tmp_path / "file").touch()
    assert said in refused("export", tmp_path / "data.jsonl", "--output", tmp_path / f"{name}.jsonl")


def test_paths_do_not_change_what_a_database_says(tmp_path: Path) -> None:
    reading = 'IO Error: Cannot open file "/created/w"rite/train.jsonl": Permission denied'
    with pytest.raises(duckdb.IOException), write_errors(tmp_path):
        raise duckdb.IOException(reading)
    with pytest.raises(OutputError) as caught, write_errors(tmp_path):
        raise duckdb.IOException('IO Error: Could not write file "/a": Permission denied')
    assert caught.value.remedy.startswith("choose another folder")


@pytest.mark.parametrize("target", ["runs/a{b}", "a{run}%7B'\"", "a b$(c)", "-x", "caf\udce9 \n"])
def test_a_remedy_names_any_path(target: str) -> None:
    template = f"run {stage_call('filter', target)}, give {option_given('data', target)}, see {as_it_is(target)}"
    assert worded(template, PYTHON) == f"run dino.filter({target!r}), give data={target!r}, see {target}"
    call = shlex.split(COMMAND_LINE.stage("filter", target))
    assert call == ["dino", "filter", *["--"] * target.startswith("-"), target]


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/full")
    for path in (pipe, device):
        with pytest.raises(OutputError, match="is a device or a pipe; name a file"):
            write_bytes(path, b"a")
    assert pipe.is_fifo() and device.is_symlink()
    assert sorted(tmp_path.iterdir()) == [device, pipe]


def test_checksums_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").mkdir()
    with pytest.raises(DinoError, match="SHA256SUMS: cannot be read: Is a directory"):
        Checksums(tmp_path)


def test_a_filter_whose_database_has_no_room_says_so(tmp_path: Path) -> None:
    row = {"text_a": "a dog runs", "text_b": "it barks", "label": 1}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row)}\n" * 9)
    limited = ["bash", "-c", 'ulimit -f 2; exec "$@"', "bash", *command("filter", "data.jsonl", "--run", "run")]
    done = subprocess.run(limited, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "filter.duckdb" in done.stderr and "raise the limit of a file's size" in done.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert "holds no examples" not in refused("filter", tmp_path / "data.jsonl", "--run", tmp_path / "run")


class Cramped:
    """A database that has memory for one thread only."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self.database, self.refused = database, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    def execute(self, sql: str, *values: Any) -> Any:
        threads = self.database.execute("SELECT current_setting('threads')").fetchall()[0][0]
        if sql.startswith("COPY") and threads > 1:
            self.refused += 1
            raise duckdb.OutOfMemoryException("could not allocate block")
        return self.database.execute(sql, *values)


def test_where_threads_have_no_memory_to_sort_one_goes_on(tmp_path: Path) -> None:
    with closing(ExampleTable(tmp_path / "filter.duckdb", "data", 2, "1GB")) as table:
        table.write_jsonl("SELECT 1 AS a ORDER BY a", tmp_path / "first.jsonl")
        table.db = cramped = cast(Any, Cramped(table.db))
        table.write_jsonl("SELECT 1 AS a ORDER BY a", tmp_path / "second.jsonl")
        table.write_jsonl("SELECT 1 AS a ORDER BY a", tmp_path / "third.jsonl")
        assert cramped.refused == 1
    contents = [(tmp_path / f"{name}.jsonl").read_text() for name in ("first", "second", "third")]
    assert contents == ['{"a":1}\n'] * 3


def test_a_full_log_does_not_end_the_work(tmp_path: Path) -> None:
    row = {"text_a": "a dog runs", "text_b": "it barks", "label": 1}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row)}\n" * 9)
    call = command("filter", "data.jsonl", "--run", "run", "--near-duplicates", "0", "--dev-share", "0")
    with open("/dev/full", "w") as log:
        done = subprocess.run(call, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log)
    assert done.returncode == 0
    assert (tmp_path / "run" / "train.jsonl").exists()


def test_a_link_in_place_of_a_folder_is_replaced_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "model").symlink_to("elsewhere")
    for number in range(3):
        with folder_replaced(tmp_path / "model") as folder:
            (folder / "made").write_text(str(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "model"]
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"


def test_a_limit_of_address_space_is_told_before_libraries_crash_on_it(tmp_path: Path) -> None:
    limited = ["bash", "-c", 'ulimit -v 700000; exec "$@"', "bash", *command("generate", "sts-x2", "--run", "run")]
    done = subprocess.run(limited, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: memory is limited to 683 MiB of address space" in done.stderr
    assert not list(tmp_path.iterdir())


def test_too_many_open_files_are_named_whoever_opens_them() -> None:
    error = duckdb.IOException('IO Error: Cannot open file "a.parquet": Too many open files')
    assert "too many open files; close other programs, or raise the limit" in str(limit_of_machine(error))
