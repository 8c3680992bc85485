"""Texts a second of each engine, side by side in one run: this package's decoder, vLLM, and a vLLM server.

    python -m benchmarks.engines [--model FOLDER --spec sts-few-shot --texts 96]

Needs vllm. All engines write the same texts, or nearly: how many are token-identical to the decoder's stands beside.
``vllm, no contrast`` writes under the own prompts alone: the price of contrast. Each engine runs in a process of its
own, one after the other, ``--rounds`` times; the best round counts. Loading is left out.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.common import distinct_sentences, machine, timed
from dino_pipeline import pocket
from dino_pipeline.decoding.engine import Completion, Request, Task, task_key, task_prompts
from dino_pipeline.decoding.group_member import PLUGIN
from dino_pipeline.generate_options import GenerateOptions
from dino_pipeline.generation.engines import choose_engine
from dino_pipeline.generation.plan import resolve_settings
from dino_pipeline.generation.shard_writer import EngineWriter
from dino_pipeline.progress import SilentReporter, table
from dino_pipeline.spec_file import load_spec

CONTENDERS = ("transformers", "vllm", "vllm server", "vllm, no contrast")
START_SECONDS = 300
"""Longest wait for a server."""


def options_of(contender: str, model: str, base_url: str, dtype: str, rows: int, texts: int) -> dict[str, Any]:
    """Return the options of `dino.generate` for a contender."""
    if contender == "vllm server":
        return {"model": model, "engine": "openai", "base_url": base_url, "concurrency": texts}
    engine = "transformers" if contender == "transformers" else "vllm"
    return {"model": model, "engine": engine, "dtype": dtype, "rows": rows}


def measure(contender: str, spec_name: str, texts: int, rounds: int, options: dict[str, Any]) -> dict[str, Any]:
    """Write the texts, and return seconds, row-tokens and the texts themselves."""
    chosen = GenerateOptions.of(options)
    spec = load_spec(spec_name)
    inputs = distinct_sentences(texts)[: -(-texts // len(spec.labels))]
    choice = choose_engine(chosen, spec, None, SilentReporter())
    sampling = resolve_settings(chosen, spec, inputs, choice.model, debias=choice.debias).sampling
    writer = choice.load_writer()
    assert isinstance(writer, EngineWriter)
    engine = writer.engine
    tasks = [Task(number, text, label, 0) for number, text in enumerate(inputs) for label in spec.labels][:texts]
    requests = []
    for task in tasks:
        prompts = tuple(engine.encode(task_prompts(spec, 42, task, engine.render)))
        requests.append(
            Request(prompts[:1] if contender.endswith("no contrast") else prompts, task_key(spec, 42, task))
        )
    best, written = float("inf"), list[Completion]()
    for _ in range(rounds):
        seconds, written = timed(lambda: list(engine.sample(requests, sampling, stop=spec.stop)))
        best = min(best, seconds)
    row_tokens = sum(text.length * len(requests[text.number].prompts) for text in written)
    return {"seconds": best, "row_tokens": row_tokens, "texts": {text.number: text.text for text in written}}


@contextmanager
def server(model: str, dtype: str, rows: int) -> Iterator[str]:
    """Run a vLLM server with the plug-in, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plugin = ["--logits-processors", f"{PLUGIN}:SelfDebias", "--scheduler-cls", f"{PLUGIN}.GroupScheduler"]
    how = ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-num-seqs", str(rows), "--enforce-eager"]
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command = [*module, *how, *plugin, "--no-async-scheduling"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            for _ in range(START_SECONDS):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                    break
                except OSError:
                    if process.poll() is not None:
                        said.seek(0)
                        raise click.ClickException(said.read().decode()[-2000:]) from None
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def in_own_process(contender: str, **arguments: Any) -> dict[str, Any]:
    """Return what `measure` returns in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        job = json.dumps({"contender": contender, **arguments})
        subprocess.run([sys.executable, "-m", "benchmarks.engines", "--job", job, "--result", str(file)], check=True)
        return dict(json.loads(file.read_text()))


@click.command()
@click.option("--model", default=str(pocket.GENERATOR), help="A folder.")
@click.option("--spec", default="sts-x2", show_default=True)
@click.option("--texts", default=96, show_default=True)
@click.option("--rows", default=96, show_default=True, help="Prompts at the same time.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--contender", "contenders", multiple=True, type=click.Choice(CONTENDERS), default=CONTENDERS)
@click.option("--job", hidden=True)
@click.option("--result", type=click.Path(path_type=Path), hidden=True)
def main(model: str, spec: str, texts: int, rows: int, rounds: int, dtype: str, **asked: Any) -> None:
    """Measure each engine and print a table."""
    if asked["job"]:
        asked["result"].write_text(json.dumps(measure(**json.loads(asked["job"]))))
        return
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    results = {}
    for contender in asked["contenders"]:
        job = {"spec_name": spec, "texts": texts, "rounds": rounds}
        if contender == "vllm server":
            with server(model, dtype, rows) as base_url:
                options = options_of(contender, model, base_url, dtype, rows, texts)
                results[contender] = in_own_process(contender, **job, options=options)
        else:
            options = options_of(contender, model, "", dtype, rows, texts)
            results[contender] = in_own_process(contender, **job, options=options)
    first = next(iter(results.values()))
    lines = []
    for contender, result in results.items():
        same = sum(result["texts"].get(number) == text for number, text in first["texts"].items())
        per_second = len(result["texts"]) / result["seconds"]
        ratio = first["seconds"] / result["seconds"]
        numbers = [f"{per_second:.1f}", f"{result['row_tokens'] / result['seconds']:.0f}", f"{ratio:.2f}", str(same)]
        lines.append([contender, *numbers])
    click.echo(f"{Path(model).name}, {spec}, {texts} texts, {rows} rows, {dtype}; {machine()}")
    head = ["engine", "texts/s", "row-tokens/s", f"times {next(iter(results))}", "same texts"]
    click.echo(table(head, lines))


if __name__ == "__main__":
    main()
