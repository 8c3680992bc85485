"""Faults of the world, each tried on the commands that it fits: nothing is lost, and every error has a name.

    python -m benchmarks.faults [--only NAME] [--workers 2] [--failures FILE] [--all] [--large]

A run of the pocket models is made once, and kept as it was before each command. For each pair of a command and a fault
(a signal, a full disk, a damaged file, a server that lies, ...) it is copied, the command runs with the fault, and:

- it ends in time, as it should, without a traceback;
- what was finished before is there, as it was or made anew as a whole; no half-written file, no process is left;
- the same command without the fault then makes what it makes undisturbed.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.fault_calls import CALLS, CHAIN, OTHERS, QUICK, new_state
from benchmarks.fault_kinds import FAULTS
from benchmarks.fault_sizes import sizes
from benchmarks.fault_trials import Bench, Call, Fault, Outcome
from dino_pipeline.progress import table

Pair = tuple[Call, Fault]


SLOW_EACH = 2
"""Slow commands that a fault is tried on, unless all are asked for. Each fault begins with another of them."""


def pairs_of(only: tuple[str, ...] = (), *, all_pairs: bool = False) -> list[Pair]:
    """Return the pairs of commands and faults.

    Args:
        only: words, one of which ``command: fault`` must hold.
        all_pairs: not only `SLOW_EACH` slow commands of each fault.
    """
    pairs = []
    for number, fault in enumerate(FAULTS):
        slow = [name for name in fault.calls if name not in QUICK]
        chosen = {slow[(number + step) % len(slow)] for step in range(SLOW_EACH)} if slow else set()
        for name in fault.calls:
            if all_pairs or name in QUICK or name in chosen:
                pairs.append((CALLS[name], fault))
    return [each for each in pairs if not only or any(word in f"{each[0].name}: {each[1].name}" for word in only)]


def prepare(root: Path, pairs: list[Pair], workers: int) -> Bench:
    """Make the folders that pairs start from, and what their commands make undisturbed."""
    bench = Bench(root, CALLS)
    new_state(bench.state("new"))
    wanted = {call.name for call, _ in pairs} | {fault.state or call.state for call, fault in pairs}
    wanted |= {call.state for call in OTHERS if call.name in wanted}
    last = max([number for number, call in enumerate(CHAIN) if call.name in wanted], default=-1)

    def carry_out(call: Call, keep: bool = False) -> None:
        bench.prepare(call, keep)
        click.echo(f"{call.name}: {bench.seconds[call.name]:.1f} s", err=True)

    for call in CHAIN[: last + 1]:
        carry_out(call, keep=True)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(carry_out, [call for call in OTHERS if call.name in wanted]))
    return bench


def try_all(bench: Bench, pairs: list[Pair], workers: int) -> list[Outcome]:
    """Try pairs, some side by side, and say what became of each as soon as it is known."""

    def tried(number: int, pair: Pair) -> Outcome:
        call, fault = pair
        if reason := fault.unfit():
            return Outcome(call.name, fault.name, None, f"left out: {reason}", 0.0)
        outcome = bench.tried(call, fault, number)
        click.echo(f"{number + 1}/{len(pairs)} {call.name}: {fault.name}: {'; '.join(shown(outcome))}", err=True)
        return outcome

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(tried, range(len(pairs)), pairs))


def shown(outcome: Outcome) -> tuple[str, ...]:
    """Say what became of a pair."""
    return tuple(f"FAILED {each}" for each in outcome.problems) or (outcome.became,)


def summary(outcomes: list[Outcome]) -> str:
    """Count what went wrong, by kind."""
    told = [problem for outcome in outcomes for problem in outcome.problems]
    kinds = {
        "tracebacks": "traceback",
        "lost work": "lost work",
        "processes left": "process left",
        "hanging": "hangs",
    }
    counts = ", ".join(f"{name} {sum(each.startswith(kind) for each in told)}" for name, kind in kinds.items())
    good = sum(not each.problems for each in outcomes)
    return f"{len(outcomes)} pairs: {good} ended as they should; {counts}"


@click.command()
@click.option("--only", multiple=True, help="Try pairs only that hold this in 'command: fault'; several times.")
@click.option("--workers", default=2, show_default=True, help="Pairs side by side.")
@click.option("--failures", type=click.Path(path_type=Path), help="JSON file for what failed.")
@click.option("--all", "all_pairs", is_flag=True, help="Try each fault on all commands that it fits: over an hour.")
@click.option("--large", is_flag=True, help="Measure memory for a million inputs and pairs instead: some 15 minutes.")
@click.option("--list", "listing", is_flag=True, help="List the pairs.")
def main(
    only: tuple[str, ...], workers: int, failures: Path | None, all_pairs: bool, large: bool, listing: bool
) -> None:
    """Print what became of each pair of a command and a fault."""
    if large:
        with tempfile.TemporaryDirectory(prefix="dino-faults-") as name:
            raise SystemExit(0 if sizes(Path(name)) else 1)
    pairs = pairs_of(only, all_pairs=all_pairs)
    if listing:
        for call, fault in pairs:
            click.echo(f"{call.name}: {fault.name}")
        return
    if not pairs:
        raise click.UsageError("no pair has such a name")
    with tempfile.TemporaryDirectory(prefix="dino-faults-") as name:
        bench = prepare(Path(name), pairs, workers)
        outcomes = try_all(bench, pairs, workers)
    rows = []
    for each in outcomes:
        first, *more = shown(each)
        rows.append([each.call, each.fault, first, f"{each.seconds:.0f}", f"{each.megabytes:.0f}"])
        rows += [["", "", problem, "", ""] for problem in more]
    click.echo(table(["command", "fault", "what became of it", "seconds", "MB"], rows))
    failed = [each for each in outcomes if each.problems]
    if failures:
        failures.write_text(json.dumps([asdict(each) for each in failed], indent=2))
    click.echo(summary(outcomes))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
