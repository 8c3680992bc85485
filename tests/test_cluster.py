"""A Ray cluster of several nodes on this machine: nodes die, others come, the bytes stay the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dino_pipeline.examples import write_examples
from dino_pipeline.filtering import file_pieces
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FilterRecord
from tests.commands import ENVIRONMENT, command, files, invoke, refused
from tests.pairs import Words, outputs
from tests.records import recorded

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="needs ray")
SPEC = Path(__file__).parent.parent / "task_specs" / "sts-x2.json"
JOB: list[str | Path] = ["generate", SPEC, "--inputs", "inputs.txt", "--samples", "2", "--shard-size", "60"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head without CPUs and two nodes of one each, which notices dead nodes soon."""
    from ray.cluster_utils import Cluster

    soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 500}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon, "object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
    yield cluster
    cluster.shutdown()


def inputs(folder: Path, count: int) -> None:
    (folder / "inputs.txt").write_text("\n".join(f"The {n} dogs ran to house number {n * n}." for n in range(count)))


def shards(run: Path) -> int:
    return len(list((run / "shards").glob("*.jsonl")))


def texts(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(run).items() if name != "inputs.txt"}


def start_there(address: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    whole = command(*JOB, *arguments, "--ray", address)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(whole, cwd=cwd, env=ENVIRONMENT, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def test_a_node_is_killed_and_another_joins_and_the_driver_is_killed_too(here: Path, nodes: Any) -> None:
    inputs(here, 60)
    invoke(*JOB, "--run", "alone")
    alone = texts(here / "alone")
    run = here / "there"
    first = start_there(nodes.address, "--workers", "2", "--run", "there", cwd=here)
    wait_for(lambda: shards(run) >= 2, first)
    first.kill()  # the driver: what is there stays, its workers end
    first.wait()
    survived = shards(run)
    second = start_there(nodes.address, "--workers", "2", "--run", "there", cwd=here)
    wait_for(lambda: shards(run) > survived, second)
    nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)  # SIGKILL
    nodes.add_node(num_cpus=1, object_store_memory=10**8)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert "Traceback" not in said
    assert 2 <= survived < 6
    assert len([name for name in alone if name.startswith("shards/")]) == 6
    assert texts(run) == alone


def test_a_filter_there_keeps_the_same_rows(tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, mirrored pairs under another label and near-copies lie in pieces that different workers judge."""
    words = Words()
    pairs = words.pairs(700)
    copies = [replace(each, text_a=each.text_a.upper(), sample=9) for each in pairs[::50]]
    mirrored = [replace(each, text_a=str(each.text_b), text_b=each.text_a, label=0.5) for each in pairs[7::60]]
    near = [replace(each, text_a=each.text_a[:-2] + "x.", text_b=words.sentence()) for each in pairs[3::40]]
    write_examples(tmp_path / "data.jsonl", [*pairs, *copies, *mirrored, *near])
    for name, where in (("here", ["--workers", "1"]), ("there", ["--ray", nodes.address])):
        monkeypatch.setattr(file_pieces, "PIECE", 2**15)
        invoke("filter", tmp_path / "data.jsonl", "--run", tmp_path / name, "--pii", "drop", *where)
    here, there = Run(tmp_path / "here"), Run(tmp_path / "there")
    assert outputs(there) == outputs(here)
    assert recorded(here, FilterRecord).funnel == recorded(there, FilterRecord).funnel
    reasons = {json.loads(line)["reason"] for line in here.dropped.read_text().splitlines()}
    assert {"duplicate", "conflicting labels", "near-duplicate input"} <= reasons


MORE_WORKERS_THAN_ROOM = """
import sys
from pathlib import Path
import ray
from dino_pipeline.cluster import ClusterResources, RayPool, connected
from dino_pipeline.errors import RunError

def make():
    return abs

ray.init(address=sys.argv[1], log_to_driver=False)
with connected("auto"):
    with RayPool(ClusterResources(9, 1.0, 0.0), Path.cwd()).spread(make) as mapped:
        print(*mapped(iter(range(-40, 0))))
    try:
        RayPool(ClusterResources(1, 0.0, 0.0), Path("nowhere"))
    except RunError as error:
        print(error)
print(ray.is_initialized())
"""


def test_more_workers_than_there_is_room_for_and_a_session_of_the_caller_s(tmp_path: Path, nodes: Any) -> None:
    (tmp_path / "script.py").write_text(MORE_WORKERS_THAN_ROOM)
    whole = [sys.executable, "script.py", nodes.address]
    done = subprocess.run(whole, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stderr
    assert said[0] == " ".join(map(str, range(40, 0, -1)))
    assert said[1].startswith("nowhere: is not there on ")
    assert said[2] == "True"


def wait_for(reached: Any, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not reached() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    assert reached()


def test_what_a_user_can_do_wrong_is_said(here: Path) -> None:
    inputs(here, 2)
    call = [*JOB, "--run", "run"]
    server = ["--engine", "openai", "--base-url", "http://127.0.0.1:9"]
    for wrong, said in (
        (["--workers", "2"], "--workers: has no meaning without a cluster; give --ray"),
        (["--ray", str(SPEC)], "was taken for a cluster's address"),
        (["--ray", "127.0.0.1:9", "--workers", "1"], "no cluster can be reached"),
        (["--ray", *server], "--ray: a cluster runs models of its own"),
    ):
        assert said in refused(*call, *wrong)
    assert not (here / "run").exists()


def test_a_cluster_of_another_user_is_joined_only_by_its_address(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs(here, 2)
    (here / "ray").mkdir()
    (here / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    monkeypatch.setenv("RAY_TMPDIR", str(here))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    call = [*JOB, "--run", "run", "--ray"]
    assert "no cluster can be reached" in refused(*call)  # one of this user's that has ended
    monkeypatch.setattr(os, "getuid", lambda: here.stat().st_uid + 1)
    assert "another user started the cluster on this machine (127.0.0.1:9); give its address" in refused(*call)
