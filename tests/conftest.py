from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from dino_pipeline.run import Run

# how long a machine takes is no property of the code
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

TOY_SPEC: dict[str, Any] = {
    "task_name": "toy",
    "labels": {
        "1": {"instruction": 'Same: "<X1>"\nThen: "', "counter_labels": []},
        "0.5": {"instruction": 'Near: "<X1>"\nThen: "', "counter_labels": ["1"]},
        "0": {"instruction": 'Far: "<X1>"\nThen: "', "counter_labels": ["1", "0.5"]},
    },
    "inputs": {
        "task_name": "toy-inputs",
        "labels": {"1": {"instruction": 'Write: "'}, "0": {"instruction": 'Say: "'}},
        "sampling": {"top_k": 0, "top_p": 1.0, "max_new_tokens": 30},
    },
    "sampling": {"top_k": 0, "top_p": 1.0, "max_new_tokens": 40},
}


@pytest.fixture(autouse=True)
def _pickle_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor left so by a test that ran ``dino --allow-pickle`` in this process."""
    monkeypatch.setenv("DINO_ALLOW_PICKLE", "0")


@pytest.fixture(scope="session")
def toy_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny causal language model and its tokenizer."""
    from tests.toys import save_generator

    return save_generator(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="session")
def toy_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder and its tokenizer."""
    from tests.toys import save_encoder

    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def toy_spec(tmp_path: Path) -> Path:
    """A spec file of three labels that lets another spec write its inputs."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY_SPEC))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, in which its commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that is still empty."""
    from dino_pipeline.run import Run

    return Run(tmp_path / "run")


@pytest.fixture(scope="session")
def pocket_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that went the whole way on the pocket models; copy it before changing it."""
    from tests.commands import invoke

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one run for all of pytest's processes
    run = shared / "pocket" / "run"
    with FileLock(shared / "pocket.lock"):
        if not (run / "compare" / "compare.json").exists():
            spec = Path(__file__).parent.parent / "task_specs" / "sts-x2.json"
            invoke("generate", spec, "--run", run, "--num-inputs", "60", "--samples", "2")
            invoke("filter", run, "--exclude", "pocket")
            invoke("finetune", run, "--steps", "24", "--batch-size", "32", "--learning-rate", "1e-3")
            invoke("evaluate", run)
            invoke("compare", run, "--objectives", "dino", "--seeds", "1", "--steps", "1")
    return run
