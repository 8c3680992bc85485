"""The commands that faults are tried on, and the folder in which they begin."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import SPEC, distinct_sentences
from benchmarks.fault_servers import serve
from benchmarks.fault_trials import Call, Trial

FEW = ("--num-inputs", "24", "--samples", "1")
JOB = (*FEW, "--shard-size", "12")
TEXTS = ("run/spec.json", "run/inputs", "run/input-", "run/shards/", "run/rejected/", "run/SHA256SUMS")
PAIRS = ("run/train.jsonl", "run/dev.jsonl", "run/dropped.jsonl", "run/flagged.jsonl")
SERVED = ("--engine", "openai", "--base-url", "URL", "--model", "m", "--timeout", "4", "--top-k", "0")
STEPS = ("--steps", "8", "--batch-size", "32")
EXPORTED = ("--output", "exported.jsonl")
BROUGHT = ("--inputs", "DATA", "--num-inputs", "6", "--samples", "1")

CHAIN = (  # each starts from what the one before has left
    Call("generate", ("generate", str(SPEC), "--run", "run", *JOB), "new", TEXTS),
    Call("filter", ("filter", "run"), "generate", PAIRS),
    Call("finetune", ("finetune", "run", *STEPS), "filter", ("run/model/",)),
    Call("evaluate", ("evaluate", "run"), "finetune", ("run/scores.json",)),
    Call("report", ("report", "run"), "evaluate", ("run/pictures/",)),
    Call("publish", ("publish", "run", "--repo", "user/name", "--dry-run"), "report", ("run/hub/",)),
)
OTHERS = (
    Call("until", ("generate", str(SPEC), "--run", "run", *JOB, "--until-target", "20"), "new", (*TEXTS, *PAIRS)),
    Call("served", ("generate", "one.json", "--run", "run", *BROUGHT, *SERVED), "new", TEXTS, serve=serve),
    Call("preview", ("preview", str(SPEC), "--run", "run", *FEW, "--texts", "1"), "new"),
    Call("filter-2", ("filter", "table.jsonl", "--run", "run", "--workers", "2"), "new", PAIRS),
    Call(
        "compare",
        ("compare", "run", "--objectives", "simcse", "--seeds", "1", *STEPS),
        "filter",
        ("run/compare/compare.json",),
    ),
    Call("verify", ("verify", "run/hub/dataset"), "publish"),
    Call("export", ("export", "run", *EXPORTED), "publish", ("exported.jsonl",)),
    Call("export-hub", ("export", "run/hub/dataset", *EXPORTED), "publish", ("exported.jsonl",)),
    Call("storage", ("generate", str(SPEC), "--run", "run", *JOB, "--storage", "dying://PLACE/far"), "new", TEXTS),
    Call("generate-file", ("generate", str(SPEC), "--run", "run", *BROUGHT), "new", TEXTS),
    Call("filter-file", ("filter", "DATA", "--run", "run"), "new", PAIRS),
    Call("finetune-file", ("finetune", "DATA", "--run", "run", *STEPS), "new", ("run/model/",)),
    Call("evaluate-file", ("evaluate", "pocket", "--data", "DATA", "--output", "scored.json"), "new"),
)
CALLS = {call.name: call for call in (*CHAIN, *OTHERS)}
STAGES = tuple(call.name for call in CHAIN)
LONG = (*STAGES, "until", "served", "filter-2", "compare")
QUICK = ("filter", "verify", "export", "export-hub")
OF_DATA = ("generate-file", "filter-file", "finetune-file", "evaluate-file")


def new_state(folder: Path) -> None:
    """Fill the folder from which all begins."""
    (folder / "tmp").mkdir(parents=True)
    sentences = distinct_sentences(80)
    one = {"task_name": "one", "labels": {"a": {"instruction": 'Of "<X1>": "'}}}
    (folder / "one.json").write_text(json.dumps(one))
    rows = zip(sentences[::2], sentences[1::2], strict=True)
    pairs = [{"text_a": a, "text_b": b, "label": number % 3 / 2} for number, (a, b) in enumerate(rows)]
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    chance, words = random.Random(0), [f"word{number}" for number in range(5000)]
    with open(folder / "table.jsonl", "w") as file:  # two pieces, one for each worker
        for number in range(25_000):
            a, b = (" ".join(chance.choices(words, k=18)) for _ in range(2))
            file.write(json.dumps({"text_a": a, "text_b": b, "label": number % 3 / 2}) + "\n")


def signalled(number: signal.Signals, *moments: float, group: bool = False) -> Callable[[Trial], None]:
    """Return what sends a signal after shares of the usual time, to the process or, like a terminal, to its group."""

    def send(trial: Trial) -> None:
        for moment in moments:
            if trial.wait_for(moment):
                (os.killpg if group else os.kill)(trial.pid, number)

    return send


def ends_of(number: int) -> tuple[int, ...]:
    return (0, 128 + number, -number)
