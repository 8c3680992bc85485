"""What Ray costs and what workers bring: the same texts by one process, one worker and two, side by side in one run.

    python -m benchmarks.cluster [--inputs 4200] [--pairs 1000000]

Generation, with the pocket generator on one thread each: `dino generate`; the same with `--ray --workers 1`, and with
`--workers 2`; and, as what this machine has to give, two processes at once with half of the inputs each: two threads of
one core are not two cores. All runs' files are compared byte by byte. Then `dino filter` and `dino filter --ray` on
synthetic pairs with planted duplicates, their files compared as well.
"""

from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.common import ONE_THREAD, SPEC, dino, distinct_sentences, machine
from benchmarks.filtering import write_pairs
from dino_pipeline.progress import table


def digest(folder: Path, *names: str) -> str:
    """Return a hash of files."""
    found = hashlib.sha256()
    for file in sorted(file for name in names for file in folder.glob(name)):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()[:16]


def generation(folder: Path, count: int) -> tuple[dict[str, float], bool]:
    """Return the seconds of each way, and whether all wrote the same."""
    sentences = distinct_sentences(count)
    for name, some in (("all", sentences), ("first", sentences[::2]), ("second", sentences[1::2])):
        (folder / f"{name}.txt").write_text("\n".join(some))

    def job(run: str, inputs: str, *more: str) -> float:
        call = ("generate", SPEC, "--inputs", f"{inputs}.txt", "--samples", "2", "--shard-size", "256", "--run", run)
        return dino(*call, *more, cwd=folder, env=ONE_THREAD)

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

    def job(run: str, *more: str) -> float:
        return dino("filter", pairs, "--run", run, "--workers", "2", *more, cwd=folder, env=ONE_THREAD)

    seconds = {"filter": job("here"), "filter --ray": job("there", "--ray=local")}
    return seconds, digest(folder / "here", "*.jsonl") == digest(folder / "there", "*.jsonl")


@click.command()
@click.option("--inputs", default=4200, show_default=True, help="Six texts each; 0 leaves generation out.")
@click.option("--pairs", default=1_000_000, show_default=True, help="0 leaves the filter out.")
def main(inputs: int, pairs: int) -> None:
    """Print seconds, and their ratio to one process's."""
    click.echo(machine())
    with tempfile.TemporaryDirectory(prefix="dino-cluster-") as name:
        for measure, count in ((generation, inputs), (filtering, pairs)):
            if not count:
                continue
            seconds, same = measure(Path(name), count)
            first = next(iter(seconds.values()))
            rows = [[way, f"{took:.1f}", f"{first / took:.2f}x"] for way, took in seconds.items()]
            click.echo(table([f"{measure.__name__} of {count}", "seconds", "speed"], rows))
            click.echo("the same bytes" if same else "OTHER BYTES")


if __name__ == "__main__":
    main()
