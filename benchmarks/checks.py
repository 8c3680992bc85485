"""What it costs to check finished files: the share of each stage's time that goes into checksums.

    python -m benchmarks.checks [--pairs 200000] [--encoder pocket] [--steps 30]

A run of the pocket generator's texts and a run of brought pairs go through the stages in one process, by the Python
functions. The time in the functions that record checksums and compare them is taken apart from the stage's own, in the
same call. The last line of each stage is a second call, which only finds that all is up to date.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import dino_pipeline as dino
import dino_pipeline.run as run_module
from benchmarks.common import SPEC, machine, timed
from benchmarks.filtering import write_pairs
from dino_pipeline.filtering import filter_stage
from dino_pipeline.progress import table

CHECKS = ("damaged_files", "damaged_texts", "damaged_shards", "finished_files")


class Stopwatch:
    """Adds up the time in some functions, whether they return a value or yield several."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, watched."""

        def watched(*arguments: Any, **options: Any) -> Any:
            seconds, result = timed(lambda: function(*arguments, **options))
            self.seconds += seconds
            return self._each(result) if isinstance(result, Iterator) else result

        return watched

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        while True:
            begun = time.perf_counter()
            try:
                value = next(values)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - begun
            yield value


def stages(folder: Path, pairs: int, encoder: str, steps: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the stages by name, in order."""
    written, brought = folder / "written", folder / "brought"
    quiet: dict[str, Any] = {"progress": False}
    data = write_pairs(folder, pairs, workers=2)
    trained: dict[str, Any] = {"encoder": encoder, "steps": steps, "batch_size": 32, **quiet}
    yield "generate", lambda: dino.generate(SPEC, run=written, num_inputs=120, samples=2, **quiet)
    yield "filter", lambda: dino.filter(written, **quiet)
    yield f"filter, {pairs} brought pairs", lambda: dino.filter(data, run=brought, **quiet)
    yield f"finetune, {steps} steps", lambda: dino.finetune(written, **trained)
    yield "evaluate", lambda: dino.evaluate(written, **quiet)
    yield "publish", lambda: dino.publish(written, repo="me/sts", license="mit", dry_run=True, **quiet)
    yield "verify", lambda: dino.verify(written)


@click.command()
@click.option("--pairs", default=200_000, show_default=True)
@click.option("--encoder", default="pocket", show_default=True)
@click.option("--steps", default=30, show_default=True)
def main(pairs: int, encoder: str, steps: int) -> None:
    """Print each stage's time, and the share that checks take of it."""
    watch = Stopwatch()
    for name in CHECKS:
        setattr(run_module, name, watch.watch(getattr(run_module, name)))
    filter_stage.file_digest = watch.watch(filter_stage.file_digest)  # type: ignore[attr-defined]
    rows = []
    with tempfile.TemporaryDirectory(prefix="dino-checks-") as folder:
        for name, stage in stages(Path(folder), pairs, encoder, steps):
            for call in ("", ", again"):
                watch.seconds = 0.0
                seconds, _ = timed(stage)
                share = watch.seconds / seconds
                rows.append([name + call, f"{seconds:.2f}", f"{1000 * watch.seconds:.1f}", f"{share:.2%}"])
    click.echo(f"{machine()}, encoder {encoder}")
    click.echo(table(["stage", "seconds", "ms in checks", "share"], rows))


if __name__ == "__main__":
    main()
