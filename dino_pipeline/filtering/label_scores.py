"""How likely the generator finds each text under every label's instruction; stored, so that nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Scored
from dino_pipeline.files import remove, write_json, write_json_lines
from dino_pipeline.filtering.sets import Table
from dino_pipeline.generation.plan import Task
from dino_pipeline.generation.prompts import drawn_values
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.sql import json_rows

BATCH = 512
"""Examples scored at a time, and stored in one file: what a killed filter loses at most."""
SCORES = pa.schema({"id": pa.int64(), "label": pa.int32(), "logprob": pa.float64(), "tokens": pa.int32()})


class Asked(NamedTuple):
    """One example and the prompts, a label each, after which its text is scored."""

    id: int
    text: str
    prompts: tuple[tuple[str, str], ...]
    """Each with the part with which an answer begins."""

    @property
    def key(self) -> str:
        """What the answer depends on, beside the model."""
        prompts = (prompt for prompt, _ in self.prompts)
        return xxhash.xxh3_128_hexdigest("\x1f".join((*prompts, self.text)).encode())


class LabelScores:
    """Scores a run's examples with the model that wrote them, from prompts as they were when it wrote.

    Answers are kept in the run's ``label-scores`` folder, for this spec and this model only.
    """

    def __init__(self, run: Run, of: Mapping[str, Any], load: Callable[[], Decoder], reporter: Reporter) -> None:
        """Prepare to score.

        Args:
            run: whose texts.
            of: what run.json holds of the model that scores.
            load: loads it; called only if something is to be scored.
            reporter: is told how far it is.
        """
        self.run, self.load, self.reporter = run, load, reporter
        self.spec: TaskSpec = load_spec(run.spec)
        self.decoder: Decoder | None = None
        self.number = 0
        begun = run.stage("generate")["options"]
        self.seed = begun["seed"]
        names = ("model", "revision", "fingerprint", "dtype", "chat", "adapter", "adapter_fingerprint", "quantize")
        about = {"spec": begun["spec"], **{name: of[name] for name in names if name in of}}
        file = run.label_scores / "about.json"
        if not file.exists() or json.loads(file.read_text()) != about:
            remove(run.label_scores)
            write_json(file, about)

    def fill(self, table: Table, rows: str) -> None:
        """Put what is missing of these rows into ``scores (id, label, logprob, tokens)``, means per token."""
        table.run("CREATE TABLE IF NOT EXISTS scores (id BIGINT, label INTEGER, logprob DOUBLE, tokens INTEGER)")
        self._open_cache(table)
        progress = Progress("scored", table.value(f"SELECT count(*) FROM {rows} ANTI JOIN scores USING (id)"))
        if progress.total:
            self.reporter.update(progress)
        for batch in self._batches(table, rows):
            self._score(table, batch)
            progress.done += len(batch)
            self.reporter.update(progress)

    def _open_cache(self, table: Table) -> None:
        if table.has("cache"):
            return
        table.run("CREATE TABLE cache (key VARCHAR, logprobs DOUBLE[], tokens INTEGER[])")
        files = sorted(self.run.label_scores.glob("*.jsonl"))
        self.number = len(files)
        if files:
            columns = {"key": "VARCHAR", "logprobs": "DOUBLE[]", "tokens": "INTEGER[]"}
            table.run(f"INSERT INTO cache SELECT * FROM {json_rows(files, columns)}")

    def _batches(self, table: Table, rows: str) -> Iterator[list[Asked]]:
        names = {self.spec.value(name): name for name in self.spec.labels}
        last = -1
        while found := table.run(f"""
            WITH next AS (SELECT id FROM {rows} ANTI JOIN scores USING (id) WHERE id > {last} ORDER BY id LIMIT {BATCH})
            SELECT id, text_a, text_b, label, sample FROM plain SEMI JOIN next USING (id) ORDER BY id
        """):
            last = found[-1][0]
            yield [self._asked(at, a, b, names[label], sample or 0) for at, a, b, label, sample in found]

    def _asked(self, at: int, text_a: str, text_b: str | None, label: str, sample: int) -> Asked:
        shown, text = (text_a, text_b) if text_b is not None else (None, text_a)
        values = drawn_values(self.spec, self.seed, Task(None, shown, label, sample))
        prompts = ((self.spec.prompt(name, shown, values), self.spec.opening(name)) for name in self.spec.labels)
        return Asked(at, text, tuple(prompts))

    def _score(self, table: Table, batch: list[Asked]) -> None:
        """Take scores from the cache, ask for the others, and store all."""
        keys = {asked.key: asked for asked in batch}
        found = {
            key: [Scored(*one) for one in zip(logprobs, tokens, strict=True)]
            for key, logprobs, tokens in table.run("SELECT * FROM cache WHERE key IN (SELECT unnest(?))", list(keys))
        }
        if new := [asked for key, asked in keys.items() if key not in found]:
            scored = self._ask(new)
            each = len(self.spec.labels)
            answers = {asked.key: scored[at * each : (at + 1) * each] for at, asked in enumerate(new)}
            rows = [
                {"key": key, "logprobs": [one.logprob for one in of], "tokens": [one.tokens for one in of]}
                for key, of in answers.items()
            ]
            write_json_lines(self.run.label_scores / f"{self.number:05d}.jsonl", rows)
            self.number += 1
            found.update(answers)
        values = [self.spec.value(name) for name in self.spec.labels]
        places = {value: table.labels.index(value) for value in values if value in table.labels}
        entries = [
            {"id": asked.id, "label": places[value], "logprob": one.logprob, "tokens": one.tokens}
            for asked in batch
            for value, one in zip(values, found[asked.key], strict=True)
            if value in places  # no text may be left of a label
        ]
        table.insert("scores", pa.Table.from_pylist(entries, schema=SCORES))

    def _ask(self, new: list[Asked]) -> list[Scored]:
        if self.decoder is None:
            self.decoder = self.load()
        render = self.decoder.render
        pairs = [(render(*prompt), asked.text) for asked in new for prompt in asked.prompts]
        return self.decoder.score(pairs, stop=self.spec.stop)
