"""What Ray costs and what workers bring: the same texts by one process, one worker and two, side by side in one run.

    python -m benchmarks.cluster [--inputs 4200] [--pairs 1000000] [--json FILE]

Generation, with the pocket generator on one thread each: `dino generate`; the same with `--ray --workers 1`, and with
`--workers 2`; and, as what this machine has to give, two processes at once with half of the inputs each: two threads of
one core are not two cores. All runs' files are compared byte by byte. Then `dino filter` and `dino filter --ray` on
synthetic pairs with planted duplicates, their files compared as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.decoder import machine
from benchmarks.filtering import write_pairs
from dino_pipeline.console import table
from dino_pipeline.pocket.frames import random_frame
from dino_pipeline.pocket.grammar import write

SPEC = Path(__file__).parent.parent / "task_specs" / "sts-x2.json"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def texts(count: int) -> list[str]:
    """Return so many distinct sentences of the pocket grammar."""
    from random import Random

    random = Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[write(random_frame(random), random)] = None
    return list(found)


def dino(folder: Path, *arguments: str | Path) -> float:
    """Run a command, and return its seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "dino_pipeline", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return time.perf_counter() - begun


def digest(folder: Path, *names: str) -> str:
    """Return a hash of files."""
    found = hashlib.sha256()
    for file in sorted(file for name in names for file in folder.glob(name)):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()[:16]


def generation(folder: Path, count: int) -> tuple[dict[str, float], bool]:
    """Return the seconds of each way, and whether all wrote the same."""
    sentences = texts(count)
    for name, some in (("all", sentences), ("first", sentences[::2]), ("second", sentences[1::2])):
        (folder / f"{name}.txt").write_text("\n".join(some))

    def job(run: str, inputs: str, *more: str) -> float:
        call = ("generate", SPEC, "--inputs", f"{inputs}.txt", "--samples", "2", "--shard-size", "256", "--run", run)
        return dino(folder, *call, *more)

    seconds = {
        "one process": job("alone", "all"),
        "one worker": job("one", "all", "--workers", "1", "--ray=local"),
        "two workers": job("two", "all", "--workers", "2", "--ray=local"),
    }
    with ThreadPoolExecutor() as pool:
        seconds["two processes, half each"] = max(pool.map(lambda each: job(each, each), ("first", "second")))
    same = {digest(folder / run, "shards/*", "rejected/*", "SHA256SUMS") for run in ("alone", "one", "two")}
    return seconds, len(same) == 1


def filtering(folder: Path, count: int) -> tuple[dict[str, float], bool]:
    """Return the seconds of each way, and whether both kept and dropped the same."""
    pairs = write_pairs(folder, count, 2)
    seconds = {
        "filter": dino(folder, "filter", pairs, "--run", "here", "--workers", "2"),
        "filter --ray": dino(folder, "filter", pairs, "--run", "there", "--workers", "2", "--ray=local"),
    }
    return seconds, digest(folder / "here", "*.jsonl") == digest(folder / "there", "*.jsonl")


@click.command()
@click.option("--inputs", default=4200, show_default=True, help="Six texts each; 0 leaves generation out.")
@click.option("--pairs", default=1_000_000, show_default=True, help="0 leaves the filter out.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
def main(inputs: int, pairs: int, json_file: Path | None) -> None:
    """Print seconds, and their ratio to one process's."""
    click.echo(machine("cpu"))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="dino-cluster-") as name:
        for measure, count in ((generation, inputs), (filtering, pairs)):
            if not count:
                continue
            seconds, same = measure(Path(name), count)
            first = next(iter(seconds.values()))
            rows = [[way, f"{took:.1f}", f"{first / took:.2f}x"] for way, took in seconds.items()]
            click.echo(table([f"{measure.__name__} of {count}", "seconds", "speed"], rows))
            click.echo("the same bytes" if same else "OTHER BYTES")
            found |= seconds
    if json_file:
        json_file.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
