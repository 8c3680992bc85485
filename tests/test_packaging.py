"""What is built from here holds all that it needs, wherever it is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dino_pipeline import __version__

ROOT = Path(__file__).parent.parent
OTHERS = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__", "*.part")


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build an sdist or a wheel without the network."""
    folder.mkdir()
    program = f"from setuptools.build_meta import build_{kind}; build_{kind}({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as found:
        return {name: found.read(name) for name in found.namelist()}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel built from a checkout, and one built from an sdist of it."""
    folder = tmp_path_factory.mktemp("packages")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=OTHERS)
    sdist = build("sdist", checkout, folder / "sdist")
    with tarfile.open(sdist) as found:
        found.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", checkout, folder / "one"), build("wheel", unpacked, folder / "other")


@pytest.mark.slow
def test_an_sdist_builds_the_same_wheel(wheels: tuple[Path, Path]) -> None:
    one, other = map(contents, wheels)
    assert one == other


@pytest.mark.slow
def test_a_wheel_holds_all_code_specs_and_models(wheels: tuple[Path, Path]) -> None:
    names = set(contents(wheels[0]))
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "dino_pipeline").rglob("*.py")}
    specs = {
        f"dino_pipeline/task_specs/{path.name}" for path in (ROOT / "task_specs").iterdir() if path.suffix != ".md"
    }
    models = {str(path.relative_to(ROOT)) for path in (ROOT / "dino_pipeline").rglob("*.safetensors")}
    assert len(models) >= 2
    assert not [name for name in names if "lexicon" in name]
    assert code | specs | models | {"dino_pipeline/py.typed", "dino_pipeline/cards/templates/page.html.j2"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/"))]


@pytest.mark.slow
def test_an_installed_wheel_writes_texts(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels[0]) as found:
        found.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    program = (
        "import sys; from dino_pipeline import cli; print(cli.__file__, file=sys.stderr)\n"
        "cli.main(['generate', 'sts-x2', '--num-inputs', '4', '--samples', '1'])"
    )
    call = [sys.executable, "-c", program]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr
    assert (tmp_path / "outputs" / "sts-x2" / "shards" / "00000.jsonl").exists()


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found
    assert found[1] == __version__
