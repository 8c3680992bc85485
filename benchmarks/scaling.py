"""How much of many workers' time is lost: shards are scheduled with times measured here, failures and slow starts.

    python -m benchmarks.scaling [--shards 12] [--rate TEXTS_PER_SECOND]

First this machine is measured: how long loading the pocket generator takes, how long each of some shards, how their
times scatter, and how long the driver needs to store one (two files, synced, checksums, counts). Then a simulation
hands shards out as `dino generate --ray` does: two ahead a worker, those of lost workers first, doubles at the end.

Assumed, and to be changed by options: a node of eight workers is lost once in 500 hours and is back after 10 minutes;
one shard in a hundred takes three times as long; workers start within two minutes. With --rate, a worker writes so many
texts a second, as `dino preview` says of a GPU, in place of the rate measured here.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.common import SPEC, machine, settings_of, timed
from dino_pipeline import pocket
from dino_pipeline.cluster import CALLS_PER_WORKER
from dino_pipeline.decoding.loading import load_decoder
from dino_pipeline.examples import Example, iter_examples, write_examples
from dino_pipeline.generation.plan import GenerationJob, Plan, Shard
from dino_pipeline.generation.ray_writer import STORING_THREADS, WrittenShard, store_shard
from dino_pipeline.generation.shard_writer import EngineWriter
from dino_pipeline.models import ModelRef
from dino_pipeline.progress import Progress, SilentReporter, no_counts, table
from dino_pipeline.run import Run
from dino_pipeline.spec_file import load_spec

SHARD_SIZE = 1024
NODE = 8
"""Workers of a node, lost together."""
WORKERS = (1, 8, 64, 512)
EACH = (10, 100, 1000)
"""Shards a worker."""
STORED = 200
"""Shards that the driver's time is measured on."""


@dataclass(frozen=True)
class Times:
    """Seconds, and how they scatter."""

    shard: float
    spread: float
    """Standard deviation of a shard's time over its mean."""
    store: float
    """The driver's, for each shard."""
    start: float
    """Of a worker, up to its first shard."""
    slow: float = 0.01
    """Share of shards that take three times as long."""
    between_failures: float = 500 * 3600.0
    """Of a node."""
    repair: float = 600.0
    row: float = 0.0
    """Bytes of a text in its shard."""


@dataclass(frozen=True)
class Outcome:
    """What a simulated job came to."""

    seconds: float
    ideal: float
    """All shards' time over the workers, nothing lost."""
    failures: int
    again: int
    """Shards written once more, lost or doubled."""
    driver: float
    """Share of the time in which the driver stored."""

    @property
    def efficiency(self) -> float:
        """Ideal time over time."""
        return self.ideal / self.seconds


class Simulation:
    """A job on a cluster, event by event."""

    def __init__(self, times: Times, workers: int, shards: int, seed: int = 0) -> None:
        self.times, self.workers, self.shards = times, workers, shards
        self.random = random.Random(seed)
        self.took = [self._duration() for _ in range(shards)]
        self.events: list[tuple[float, int, str, int, int]] = []
        self.numbers = itertools.count()
        self.life = [0] * workers
        """How often each worker was lost: what a former one began does not end."""
        self.alive = [False] * workers
        self.queue: list[deque[int]] = [deque() for _ in range(workers)]
        self.coming = iter(range(shards))
        self.again: deque[int] = deque()
        self.done = [False] * shards
        self.doubled: set[int] = set()
        self.left = shards
        self.failures = self.repeated = 0
        self.driver_free = self.driver_busy = 0.0

    def _duration(self) -> float:
        spread = self.times.spread
        usual = self.random.gauss(self.times.shard, spread * self.times.shard)
        return max(usual, 0.2 * self.times.shard) * (3 if self.random.random() < self.times.slow else 1)

    def _at(self, when: float, what: str, which: int) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what, which, self.life[which] if what != "fail" else 0))

    def run(self) -> Outcome:
        """Return what it comes to."""
        for worker in range(self.workers):
            self._at(self.times.start * self.random.uniform(0.5, 1), "up", worker)
        for first in range(0, self.workers, NODE):
            self._at(self.random.expovariate(1 / self.times.between_failures), "fail", first)
        now = 0.0
        while self.left:
            now, _, what, which, life = heapq.heappop(self.events)
            if what == "fail":
                self._fail(now, which)
            elif life == self.life[which]:
                if what == "up":
                    self.alive[which] = True
                else:
                    now = self._finish(now, which)
                self._hand_out(now)
        ended, ideal = max(now, self.driver_free), sum(self.took) / self.workers
        return Outcome(ended, ideal, self.failures, self.repeated, driver=self.driver_busy / ended)

    def _fail(self, now: float, first: int) -> None:
        self.failures += 1
        for worker in range(first, min(first + NODE, self.workers)):
            lost = [shard for shard in self.queue[worker] if not self.done[shard]]
            self.again.extend(lost)
            self.repeated += len(lost)
            self.queue[worker].clear()
            self.life[worker] += 1
            self.alive[worker] = False
            self._at(now + self.times.repair + self.times.start, "up", worker)
        self._at(now + self.random.expovariate(1 / self.times.between_failures), "fail", first)

    def _finish(self, now: float, worker: int) -> float:
        """Store a shard; the driver does one at a time, and the worker goes on meanwhile."""
        shard = self.queue[worker].popleft()
        if self.queue[worker]:
            self._begin(now, worker)
        if not self.done[shard]:
            self.done[shard] = True
            self.left -= 1
            self.driver_free = max(self.driver_free, now) + self.times.store
            self.driver_busy += self.times.store
        return now

    def _begin(self, now: float, worker: int) -> None:
        self._at(now + self.took[self.queue[worker][0]], "end", worker)

    def _hand_out(self, now: float) -> None:
        for had in range(CALLS_PER_WORKER):
            for worker in range(self.workers):
                if self.alive[worker] and len(self.queue[worker]) == had:
                    shard = self.again.popleft() if self.again else next(self.coming, None)
                    if shard is None:
                        self._double(now)
                        return
                    self._give(now, worker, shard)

    def _give(self, now: float, worker: int, shard: int) -> None:
        self.queue[worker].append(shard)
        if len(self.queue[worker]) == 1:
            self._begin(now, worker)

    def _double(self, now: float) -> None:
        idle = (worker for worker in range(self.workers) if self.alive[worker] and not self.queue[worker])
        under_way = (shard for queue in self.queue for shard in list(queue))
        late = [shard for shard in under_way if shard not in self.doubled and not self.done[shard]]
        for worker, shard in zip(list(idle), sorted(late, reverse=True), strict=False):
            self.doubled.add(shard)
            self.repeated += 1
            self._give(now, worker, shard)


def measure(shards: int) -> Times:
    """Return this machine's times with the pocket generator."""
    loaded, decoder = timed(lambda: load_decoder(ModelRef(name="pocket"), device="cpu"))
    spec, took, written = load_spec(SPEC), [], []
    with tempfile.TemporaryDirectory(prefix="dino-scaling-") as folder:
        run = Run(Path(folder))
        texts = [example.text_a for example in iter_examples(pocket.GOLD_TEST)]
        write_examples(run.inputs, (Example(text) for text in texts))
        settings = settings_of(spec, samples=2)
        for shard in itertools.islice(Plan(run, spec, settings).shards(), shards):
            progress = Progress("", 0, labels=no_counts(spec.labels))
            begun = time.perf_counter()
            job = GenerationJob(spec, settings)
            EngineWriter(decoder).write(job, [shard], SilentReporter(), progress, lambda shard, _: None)
            took.append(time.perf_counter() - begun)
            written.append(WrittenShard(shard.path.read_bytes(), shard.rejected_path.read_bytes(), {}, []))
        stored = _storing(run, written)
        row = statistics.mean(len(each.accepted) + len(each.rejected) for each in written) / SHARD_SIZE
    mean = statistics.mean(took)
    spread = statistics.stdev(took) / mean if len(took) > 1 else 0.0
    return Times(mean, spread, stored, loaded, row=row)


def _storing(run: Run, written: Sequence[WrittenShard]) -> float:
    """Return the seconds that a driver takes to store a shard, many being there."""
    shards = [Shard(run.shards / f"{n:05d}.jsonl", run.rejected / f"{n:05d}.jsonl", []) for n in range(STORED)]
    sums = run.checksums
    begun = time.perf_counter()
    with ThreadPoolExecutor(STORING_THREADS) as pool:
        under_way = [pool.submit(store_shard, shard, written[n % len(written)]) for n, shard in enumerate(shards)]
        for shard, each in zip(shards, under_way, strict=True):
            each.result()
            list(iter_examples(shard.path))
            sums.add(*shard.files)
    return (time.perf_counter() - begun) / STORED


@click.command()
@click.option("--shards", default=12, show_default=True, help="To measure.")
@click.option("--rate", type=float, help="Texts a second of one worker, in place of what is measured here.")
@click.option("--hours-between-failures", default=500.0, show_default=True, help="Of a node of eight workers.")
@click.option("--start", default=120.0, show_default=True, help="Seconds until a worker writes, at most.")
def main(shards: int, rate: float | None, hours_between_failures: float, start: float) -> None:
    """Print how much of the workers' time is lost, for 10, 100 and 1,000 shards a worker."""
    click.echo(machine())
    measured = measure(shards)
    click.echo(
        f"measured: {measured.shard:.2f} s a shard of {SHARD_SIZE} texts ({SHARD_SIZE / measured.shard:.0f}/s), "
        f"scatter {measured.spread:.0%}, {measured.row:.0f} bytes a text, stored in {1000 * measured.store:.1f} ms a "
        f"shard, the model loaded in {measured.start:.1f} s"
    )
    times = replace(measured, start=start, between_failures=3600 * hours_between_failures)
    if rate:
        times = replace(times, shard=SHARD_SIZE / rate)
    rows = []
    for workers in WORKERS:
        for each in EACH:
            outcome = Simulation(times, workers, each * workers).run()
            time_taken = [f"{outcome.seconds / 3600:.2f} h", f"{1 - outcome.efficiency:.1%}"]
            lost = [f"{outcome.failures}", f"{outcome.again}"]
            rows.append([f"{workers}", f"{each}", *time_taken, *lost, f"{outcome.driver:.1%}"])
    header = ["workers", "shards each", "time", "lost", "nodes lost", "shards again", "driver busy"]
    click.echo(table(header, rows))


if __name__ == "__main__":
    main()
