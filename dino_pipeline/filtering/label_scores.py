"""How likely the generator finds each text under every label's instruction. Scores are stored and computed once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import xxhash
from pydantic import JsonValue

from dino_pipeline.damage import OTHER_CHECKSUM
from dino_pipeline.database import database_reason, json_rows
from dino_pipeline.decoding.engine import LocalEngine, Scored, Task, drawn_values
from dino_pipeline.errors import OptionError, RunError
from dino_pipeline.files import Checksums, file_digest, remove, write_json, write_json_lines
from dino_pipeline.filtering.example_table import ExampleTable
from dino_pipeline.generate_options import SPEED_OPTIONS, EngineOptions
from dino_pipeline.models import ModelRef, pick_device
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import GenerateRecord

BATCH = 512
"""Examples scored at a time and stored in one file: at most these are lost if the filter is killed."""
SCORES = pa.schema({"id": pa.int64(), "label": pa.int32(), "logprob": pa.float64(), "tokens": pa.int32()})


class ScoreRequest(NamedTuple):
    """An example's text, and the prompts of all labels after which it is scored."""

    id: int
    text: str
    prompts: tuple[tuple[str, str], ...]
    """For each label the prompt, and the opening of the answer."""

    @property
    def key(self) -> str:
        """The hash of the prompts and the text: what the scores depend on apart from the model."""
        prompts = (prompt for prompt, _ in self.prompts)
        return xxhash.xxh3_128_hexdigest("\x1f".join((*prompts, self.text)).encode())


class LabelScores:
    """Scores a run's examples with the model that wrote them, after the prompts that it got when it wrote.

    Scores are kept in the run's ``label-scores`` folder. Those of another spec or model are deleted.

    Args:
        run: the run of the texts.
        load: loads ``model``, which scores; called once, when the first text has to be scored.
    """

    def __init__(
        self, run: Run, generated: GenerateRecord, model: ModelRef, load: Callable[[], LocalEngine], reporter: Reporter
    ) -> None:
        self.run, self.load, self.reporter = run, load, reporter
        self.spec: TaskSpec = load_spec(run.spec)
        self.seed = generated.options.seed
        self.scorer: LocalEngine | None = None
        self.files = 0
        """Number of the next file of scores."""
        about = _description(generated, model)
        file = run.label_scores / "about.json"
        if _read_json(file) != about:
            remove(run.label_scores)
            write_json(file, about)
        self.checksums = Checksums(run.label_scores)

    def close(self) -> None:
        """Free the memory of the model, if it was loaded."""
        if self.scorer is not None:
            self.scorer.close()

    def fill(self, table: ExampleTable, rows: str) -> None:
        """Add the missing scores of these rows to the table ``scores (id, label, logprob, tokens)``.

        A score is the mean log-probability per token of the text under the label's instruction.
        """
        table.run("CREATE TABLE IF NOT EXISTS scores (id BIGINT, label INTEGER, logprob DOUBLE, tokens INTEGER)")
        self._open_cache(table)
        progress = Progress("scored", table.value(f"SELECT count(*) FROM {rows} ANTI JOIN scores USING (id)"))
        if progress.total:
            self.reporter.update(progress)
        for batch in self._batches(table, rows):
            self._score(table, batch)
            progress.done += len(batch)
            self.reporter.update(progress)

    def _open_cache(self, table: ExampleTable) -> None:
        """Make the table ``cache`` of the stored scores, unless it is there."""
        if table.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'cache'"):
            return
        table.run("CREATE TABLE cache (key VARCHAR, logprobs DOUBLE[], tokens INTEGER[])")
        files = []
        is_old = not self.checksums.known  # an earlier version kept no checksums
        for path in sorted(self.run.label_scores.glob("[0-9]*.jsonl")):
            self.files += 1
            if is_old or self.checksums.recorded(path) == file_digest(path):
                files.append(path)
            else:
                self.reporter.note(f"{path}: {OTHER_CHECKSUM}; its texts are scored again")
                path.unlink()
        if files:
            columns = {"key": "VARCHAR", "logprobs": "DOUBLE[]", "tokens": "INTEGER[]"}
            try:
                table.run(f"INSERT INTO cache SELECT * FROM {json_rows(files, columns)}")
            except duckdb.Error as error:
                raise RunError(
                    f"{self.run.label_scores}: cannot be read ({database_reason(error)})",
                    "delete the folder, and run again to score the texts anew",
                ) from error
            self.checksums.add(*files)

    def _batches(self, table: ExampleTable, rows: str) -> Iterator[list[ScoreRequest]]:
        """Yield requests for the rows without scores, in the order of their ids."""
        names = {self.spec.value(name): name for name in self.spec.labels}
        last_id = -1
        while examples := table.run(f"""
            WITH next AS (
                SELECT id FROM {rows} ANTI JOIN scores USING (id) WHERE id > {last_id} ORDER BY id LIMIT {BATCH}
            )
            SELECT id, text_a, text_b, label, sample FROM examples SEMI JOIN next USING (id) ORDER BY id
        """):
            last_id = examples[-1][0]
            requests = []
            for id, text_a, text_b, label, sample in examples:
                # Of a single text there is no input: the text itself was written.
                input_text, text = (None, text_a) if text_b is None else (text_a, text_b)
                values = drawn_values(self.spec, self.seed, Task(None, input_text, names[label], sample or 0))
                prompts = []
                for name in self.spec.labels:
                    prompts.append((self.spec.prompt(name, input_text, values), self.spec.opening(name)))
                requests.append(ScoreRequest(id, text, tuple(prompts)))
            yield requests

    def _score(self, table: ExampleTable, batch: list[ScoreRequest]) -> None:
        """Take scores from the cache, make and store the others, and add all to the table ``scores``."""
        requests = {request.key: request for request in batch}
        scores: dict[str, list[Scored]] = {}
        for key, logprobs, tokens in table.run("SELECT * FROM cache WHERE key IN (SELECT unnest(?))", list(requests)):
            scores[key] = [Scored(*score) for score in zip(logprobs, tokens, strict=True)]
        new = {key: request for key, request in requests.items() if key not in scores}
        if new:
            scores |= self._score_new(new)
        # Numbers of the labels in the table; no text may be left of a label of the spec.
        values = [self.spec.value(name) for name in self.spec.labels]
        numbers = [table.labels.index(value) if value in table.labels else None for value in values]
        rows: list[dict[str, Any]] = []
        for request in batch:
            for number, score in zip(numbers, scores[request.key], strict=True):
                if number is not None:
                    rows.append({"id": request.id, "label": number, "logprob": score.logprob, "tokens": score.tokens})
        table.insert("scores", pa.Table.from_pylist(rows, schema=SCORES))

    def _score_new(self, requests: dict[str, ScoreRequest]) -> dict[str, list[Scored]]:
        """Score texts with the model, store the scores in a file, and return them by key, in the order of labels."""
        if self.scorer is None:
            self.scorer = self.load()
        pairs = []
        for request in requests.values():
            for prompt, opening in request.prompts:
                pairs.append((self.scorer.render(prompt, opening), request.text))
        scored = self.scorer.score(pairs, stop=self.spec.stop)  # all labels of the first text, of the second ...
        labels = len(self.spec.labels)
        scores: dict[str, list[Scored]] = {}
        rows = []
        for number, key in enumerate(requests):
            scores[key] = by_label = scored[number * labels : (number + 1) * labels]
            logprobs, tokens = [score.logprob for score in by_label], [score.tokens for score in by_label]
            rows.append({"key": key, "logprobs": logprobs, "tokens": tokens})
        while (path := self.run.label_scores / f"{self.files:05d}.jsonl").exists():
            self.files += 1
        self.checksums.add_digests({path: write_json_lines(path, rows)})
        self.files += 1
        return scores


def _read_json(file: Path) -> JsonValue:
    """Return the content of a JSON file, None if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content: JsonValue = json.loads(file.read_bytes())
        return content
    return None


def open_label_scores(run: Run, device: str | None, reporter: Reporter) -> LabelScores:
    """Return the scores of a run's texts by its generator or, for texts of a server, by their scorer.

    What vLLM wrote, vLLM scores, started in the same way: the model may fit nowhere else.
    """
    from dino_pipeline.decoding.loading import load_engine

    generated = run.record().generate
    model = scoring_model(run, generated)
    assert generated is not None  # `scoring_model` refuses a run without
    engine: dict[str, object] = {}
    if generated.options.engine == "vllm":
        started = {name: generated.settings.get(name) for name in (*SPEED_OPTIONS, "engine_arg")}
        engine = {"engine": "vllm", **{name: value for name, value in started.items() if value}}
    load = partial(load_engine, model, EngineOptions.of(engine), pick_device(device))
    return LabelScores(run, generated, model, load, reporter)


def scoring_model(run: Run, generated: GenerateRecord | None) -> ModelRef:
    """Return the model that scores a run's texts: the one that wrote them or, if that is a server's, its scorer.

    Raises:
        RunError: the run has no texts.
        OptionError: a server wrote them, and no model that runs here scored them.
    """
    if generated is None:
        raise RunError(f"{run.path}: no texts are written there", "run {generate()} first")
    if generated.options.engine != "openai":
        return generated.options.model
    if not isinstance(generated.options.scorer, ModelRef):
        raise OptionError(
            "verification and posterior labels need the generator, which ran on a server",
            "generate with {scorer=MODEL}, a model that runs here, or leave them out",
        )
    return generated.options.scorer


def _description(generated: GenerateRecord, model: ModelRef) -> dict[str, Any]:
    """Return what identifies spec and model of stored scores."""
    optional = {
        "chat": "on" if model.chat else None,
        "adapter": model.adapter,
        "adapter_fingerprint": model.adapter_fingerprint,
        "quantize": model.quantize,
        "engine": generated.options.engine if generated.options.engine == "vllm" else None,
    }
    return {
        "spec": generated.options.spec,
        "model": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "dtype": model.dtype,
        **{name: value for name, value in optional.items() if value is not None},
    }
