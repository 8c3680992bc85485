"""Task specs as the command line names them: a file, or the name of one that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PACKAGE = Path(__file__).parent.parent


def shipped() -> dict[str, Path]:
    """Return the files of the specs that come with the package, by their names."""
    installed = PACKAGE / "task_specs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "task_specs"  # in a checkout
    return {path.stem: path for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)}


class SpecFile(click.ParamType[Path]):
    """A task spec's file, or the name of one that comes with the package."""

    name = "SPEC"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        path = Path(value)
        if path.is_file() or path.suffix or len(path.parts) > 1:
            return path
        found = shipped().get(path.name)
        return found or self.fail(
            f"{value}: there is no such file, and no spec of that name comes with dino; see dino spec list", param, ctx
        )
