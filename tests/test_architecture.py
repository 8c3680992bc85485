"""The house's floors: a module imports only from floors below; the public names and shipped files are as told."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "dino_pipeline"
FLOORS = [
    *("pocket", "cards", "decoding", "filtering", "generation", "training", "evaluation", "publishing"),
    *("cli", "__main__"),
]
"""From the bottom up; below them the files that stand in no folder."""
FILES = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
MODULES = {".".join(name.parts).removesuffix(".__init__"): path for name, path in FILES.items()}


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def floor(module: str) -> int:
    """On which floor a module stands, the lowest being 0."""
    part = module.split(".")[1]
    return FLOORS.index(part) + 1 if part in FLOORS else 0


def imports(path: Path) -> Iterator[str]:
    """The project's own modules that a file imports, inside functions too. The face imports none at run time."""
    if path == PACKAGE / "__init__.py":
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else node.module for name in inside} & MODULES.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()


def test_imports_point_down_the_floors() -> None:
    for module, path in MODULES.items():
        for other in imports(path):
            if "." in other and "." in module and module.split(".")[1] != other.split(".")[1]:
                assert floor(other) <= floor(module), f"{module} imports {other}"
                assert floor(other) < floor(module) or floor(module) == 0, f"{module} imports {other}"


def test_no_module_needs_itself() -> None:
    list(TopologicalSorter({module: set(imports(path)) for module, path in MODULES.items()}).static_order())


def test_the_page_on_the_architecture_names_all_of_it() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE) == FLOORS[-2::-1]
    (ground,) = re.findall(r"^\| the ground floor \| (.*) \|$", page, re.MULTILINE)
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(re.findall(r"`(\w+)`", ground)) == files


def test_a_file_says_at_its_head_which_question_it_answers() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(tree(path)), path.name


def test_files_stay_readable() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_functions_tell_their_story_in_a_screen() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"


def test_few_files_are_small() -> None:
    small = [path.name for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) < 50]
    assert len([name for name in small if name != "__init__.py"]) <= 8, small


def test_every_module_and_class_has_a_name_of_its_own() -> None:
    modules = [path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    classes = [
        node.name for path in PACKAGE.rglob("*.py") for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)
    ]
    for names in (modules, classes):
        assert not {name for name, count in Counter(names).items() if count > 1}


def test_only_the_command_line_names_flags_and_commands() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "cli":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.search(r"(?<![\w-])--[a-z]|\bdino [a-z]", node.value)
                assert not named, f"{path.name}:{node.lineno}: {node.value}"


def test_public_signatures_have_types_of_their_own() -> None:
    """A dict of anything tells a reader nothing."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                for annotation in (*(each.annotation for each in arguments), node.returns):
                    shown = ast.unparse(annotation) if annotation else ""
                    assert not re.search(r"(dict|Mapping)\[str, Any\]", shown), f"{path.name}: {node.name}"


def test_only_the_command_line_prints_or_exits() -> None:
    for path in PACKAGE.rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        if path.relative_to(PACKAGE).with_suffix("").parts[0] not in {"__main__", "cli", "display"}:
            assert not calls & {"print", "sys.exit", "click.echo"}, path.name
