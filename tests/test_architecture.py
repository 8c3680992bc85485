"""The house's floors: a module imports only from floors below; the public names and shipped files are as told."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "dino_pipeline"
FLOORS = [
    {"errors", "labels", "texts", "progress", "debias", "sampling", "devices", "funnel"} | {"measures", "signals"},
    {"lock", "weights", "processes"},
    {"examples", "spec", "stops", "chat", "next_token", "tuning", "encoders", "console", "model_card", "pocket"}
    | {"attention", "prefill", "dedup"},
    {"digests", "cluster"},
    {"run", "engine", "diversity", "inputs", "slots", "scoring", "objectives", "hygiene", "sets"},
    {"graphs", "lane", "server", "selfcheck", "contamination", "near", "corpus", "trainability", "expected"},
    {"decoder", "rules", "adapters", "selection", "suites"},
    {"compiling", "writer", "heads", "ingest", "trainer"},
    {"sieve", "plan", "worker", "storage"},
    {"loading", "generate", "filters", "finetune", "evaluate", "fidelity", "verify", "until"} | {"crew"},
    {"compare", "preview"},
    {"report"},
    {"hub"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def part(path: Path) -> str:
    """The module, or the package, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Names of the project's own modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dino_pipeline"):
            inside = node.module.split(".")[1:2]
            yield from inside or (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dino_pipeline."))


def test_every_module_has_its_floor() -> None:
    assert {part(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(FLOOR)


def test_imports_point_down_the_floors() -> None:
    for path in PACKAGE.rglob("*.py"):
        own = part(path)
        for other in imports(path):
            if own != other and own != "__init__":
                assert FLOOR[other] < FLOOR[own], f"{path.name} imports {other}"


def test_a_file_says_at_its_head_which_question_it_answers() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path.name


def test_files_stay_readable() -> None:
    for path in PACKAGE.rglob("*.py"):
        longest = 600 if "pocket" in path.parts else 450
        assert len(path.read_text().splitlines()) <= longest, path.name


def test_only_the_command_line_prints_or_exits() -> None:
    for path in PACKAGE.rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        if part(path) not in {"cli", "console", "pocket"}:
            assert not calls & {"print", "sys.exit", "click.echo"}, path.name
